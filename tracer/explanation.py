"""An explanation for people: the packet's path as a tree, and what comes of it. Pure: an Explanation to lines of spans.

What belongs here: layout, in as many columns as there are. What does not: what a rule does, in words
(`tracer.rule_sentences`); colours as escape codes (`tracer.lines`); JSON (`Explanation.to_json`).

    10.96.100.50:8000 TCP  fastapi/lets-ship-it:http
    from a process on this node

    output, nat
    └─ OUTPUT 1: every packet goes to KUBE-SERVICES, the list of all Services
       │  -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
       └─ KUBE-SERVICES 3: to 10.96.100.50, tcp port 8000: goes to KUBE-SVC-…, which chooses an endpoint
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from tracer.escape import cells, escape
from tracer.render import Span
from tracer.rule_sentences import fraction, packets, sentence
from tracer.rules.answer import Backend, Explanation, Otherwise
from tracer.rules.model import Origin, Table
from tracer.rules.trail import Passed, Step, Visited
from tracer.service_table import duration_label, endpoint_label

MOST_ALIKE = 6  # branches by chance that are shown one by one, unless all are asked for
MOST_BACKENDS = 20
MOST_LINES = 3  # of a rule's own words
MOST_PASSED = 3  # rules passed over that are quoted for each chain
_LEAST = 24  # columns for words, however deep the tree is

Line = tuple[Span, ...]


def lines(told: Explanation, width: int, *, verbose: bool = False) -> Iterator[Line]:
    """The lines of an explanation, in at most `width` columns but for words that can't be broken."""
    yield from _heading(told, width)
    yield from _Tree(told, width, verbose).lines()
    yield from _result(told, width, verbose)


def _heading(told: Explanation, width: int) -> Iterator[Line]:
    question = told.question
    title = [Span(f"{endpoint_label(question.ip, question.port)} {question.protocol}")]
    if told.service is not None:
        name = f"{told.service.namespace}/{told.service.name}"
        name += f":{told.service.port_name}" if told.service.port_name else ""
        title += [Span("  "), Span(escape(name), "service")]
    yield tuple(title)
    sender = "a process on this node" if told.local else "outside of this node"
    address = f" ({told.source})" if told.source is not None and told.local else ""
    if not told.local and told.source is not None:
        sender, address = told.source, ""
    yield (Span(f"from {sender}{address}", "dim"),)


class _Tree:
    """The steps of an explanation, by the step that led to each."""

    def __init__(self, told: Explanation, width: int, verbose: bool) -> None:
        self._told = told
        self._width = width
        self._verbose = verbose
        self._children: dict[int | None, list[Step]] = defaultdict(list)
        known = {step.number for step in told.steps}
        for step in told.steps:
            self._children[step.parent].append(step)
        self._visits: dict[int | None, list[Visited]] = defaultdict(list)
        for visit in told.visited if verbose else ():
            if visit.passed and visit.step in known:
                self._visits[visit.step].append(visit)
        self._in_vain = [visit for visit in told.visited if visit.passed and visit.step not in known] if verbose else []

    def lines(self) -> Iterator[Line]:
        """All of it, one tree for each base chain that did anything."""
        roots = self._children[None]
        for (hook, table, _), group in groupby(roots, key=lambda step: (step.hook, _Same(step.table), step.chain)):
            yield ()
            yield (Span(f"{hook}, {_table_label(table.table)}", "source"),)
            yield from self._siblings(list(group), "")
        if self._in_vain:
            yield ()
            yield (Span("passed over", "source"),)
            yield from self._passed_in_vain()

    def _passed_in_vain(self) -> Iterator[Line]:
        """Chains that were gone through without anything happening, those of a hook and table together."""
        for visit in self._in_vain:
            text = f"{visit.hook}, {_table_label(visit.table)}, {visit.chain}: {_count(visit)}"
            yield from _wrapped("   ", "   ", [Span(escape(text), "dim")], self._width)

    def _siblings(self, steps: list[Step], indent: str, visits: Iterable[Visited] = ()) -> Iterator[Line]:
        shown, left = (steps, 0) if self._verbose else _thinned(steps)
        visits = list(visits)
        last = len(shown) - 1
        for index, step in enumerate(shown):
            is_last = index == last and not left and not visits
            yield from self._step(step, indent, is_last)
        if left:
            text = f"… and {left} more of this kind (-v shows all)"
            yield (Span(indent, "dim"), Span("└─ " if not visits else "├─ ", "dim"), Span(text, "dim"))
        for index, visit in enumerate(visits):
            yield from self._visit(visit, indent, index == len(visits) - 1)

    def _step(self, step: Step, indent: str, is_last: bool) -> Iterator[Line]:
        children = self._children[step.number]
        visits = self._visits[step.number]
        inner = indent + ("   " if is_last else "│  ")
        label = _step_label(step)
        words = [Span(escape(label), "process"), Span(": "), Span(escape(sentence(step)), _style(step))]
        if 0.0 < step.probability < 1.0 - 1e-9:
            words.insert(1, Span(f" ({fraction(step.probability)} of packets)", "good"))
        yield from _wrapped(indent + ("└─ " if is_last else "├─ "), inner, words, self._width)
        below = inner + ("│  " if children or visits else "   ")
        if step.rule is not None or step.table.origin is Origin.EBPF:
            text = [Span(escape(step.text), "dim")]
            yield from _limited(_wrapped(below, below, text, self._width), None if self._verbose else MOST_LINES)
        if step.same_as is not None:
            yield (Span(below, "dim"), Span("as before", "dim"))
        yield from self._siblings(children, inner, visits)

    def _visit(self, visit: Visited, indent: str, is_last: bool) -> Iterator[Line]:
        head = indent + ("└─ " if is_last else "├─ ")
        inner = indent + ("   " if is_last else "│  ")
        yield from _wrapped(head, inner, [Span(escape(f"{visit.chain}: {_count(visit)}"), "dim")], self._width)
        yield from self._quoted(visit, inner)

    def _quoted(self, visit: Visited, indent: str) -> Iterator[Line]:
        """The first rules that a chain passed over."""
        chain = visit.table.chains.get(visit.chain)
        if chain is None:
            return
        took = set(visit.took)
        shown = 0
        for index in range(visit.met):
            if index in took:
                continue
            if shown == MOST_PASSED:
                yield (Span(indent, "dim"), Span("…", "dim"))
                return
            shown += 1
            text = [Span(escape(f"{index + 1}: {chain.rules[index].text}"), "dim")]
            yield from _limited(_wrapped(indent, indent, text, self._width), MOST_LINES)


class _Same:
    """A table, equal to itself only: tables compare by all that is in them."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.table is self.table

    __hash__ = None  # type: ignore[assignment]


def _thinned(steps: list[Step]) -> tuple[list[Step], int]:
    """The steps without most of those that chance chooses from, and how many are left out."""
    alike = [step for step in steps if 0.0 < step.probability < 1.0 - 1e-9 and step.effect in ("jump", "goto", "dnat")]
    if len(alike) <= MOST_ALIKE:
        return steps, 0
    hidden = {step.number for step in alike[MOST_ALIKE // 2 :]}
    return [step for step in steps if step.number not in hidden], len(hidden)


def _count(visit: Visited) -> str:
    return f"{visit.passed:,} rule{'s' if visit.passed != 1 else ''} passed over"


def _step_label(step: Step) -> str:
    """Where a step is: in a chain, or in the list of a Service's endpoints."""
    if step.table.origin is Origin.EBPF:
        return "service" if step.rule is None else f"slot {step.rule}"
    return f"{step.chain} policy" if step.rule is None else f"{step.chain} {step.rule}"


def _table_label(table: Table) -> str:
    """As people call it: the engine matters where it is not the usual one."""
    if table.origin is Origin.EBPF:
        return f"map {table.name} (eBPF)"
    if table.origin is Origin.NFTABLES:
        return f"table {escape(table.family)} {escape(table.name)}"
    return f"table {escape(table.name)} ({table.origin.value})"


def _style(step: Step) -> str:
    if step.effect in ("drop", "reject"):
        return "bad"
    return "backend" if step.effect in ("dnat", "redirect") else "plain"


def _result(told: Explanation, width: int, verbose: bool) -> Iterator[Line]:
    yield ()
    yield from _verdict(told, width)
    backends = told.backends if verbose else told.backends[:MOST_BACKENDS]
    labels = [endpoint_label(backend.ip, backend.port) for backend in backends]
    pad = max(map(len, labels), default=0)
    for label, backend in zip(labels, backends, strict=True):
        yield _backend(label.ljust(pad), backend, told)
    if len(backends) < len(told.backends):
        yield (Span(f"   … and {len(told.backends) - len(backends)} more (-v shows all)", "dim"),)
    for words in _remarks(told):
        yield from _wrapped("   ", "     ", [Span(escape(words), "dim")], width)
    if verbose:
        yield (Span(f"   passed: {passed_words(told.passed)}", "dim"),)


def passed_words(passed: Passed) -> str:
    """10,012 rules in 6 chains, 2 map look-ups. Where chance makes the way longer or shorter, as a mean."""
    counts = []
    if passed.rules or not passed.lookups:
        counts.append(f"{_many(passed.rules, 'rule')} in {_many(passed.chains, 'chain')}")
    if passed.lookups:
        counts.append(_many(passed.lookups, "map look-up"))
    is_mean = any(round(count, 3) % 1 for count in (passed.rules, passed.chains, passed.lookups))
    return ", ".join(counts) + (" on average" if is_mean else "")


def _many(count: float, what: str) -> str:
    number = f"{count:,.1f}" if round(count, 3) % 1 else f"{round(count):,}"
    return f"{number} {what}{'' if number == '1' else 's'}"


def _verdict(told: Explanation, width: int) -> Iterator[Line]:
    style = {"dnat": "backend", "drop": "bad", "reject": "bad"}.get(told.verdict, "good")
    yield from _wrapped("⇒ ", "  ", [Span(escape(_verdict_words(told)), style)], width)
    if len(told.shares) > 1:
        words = ", ".join(f"{fraction(part)} {verdict}" for verdict, part in told.shares.items())
        yield from _wrapped("   ", "   ", [Span(f"of all packets: {words}")], width)


def _verdict_words(told: Explanation) -> str:
    where = endpoint_label(told.question.ip, told.question.port)
    if told.verdict == "dnat":
        count = len(told.backends)
        return "translated to its one backend" if count == 1 else f"translated to one of {count} backends"
    if told.verdict in ("reject", "drop"):
        why = _refusal(told)
        return ("rejected" if told.verdict == "reject" else "dropped") + (f": {why}" if why else "")
    if told.verdict == "accept":
        return f"let through to {where}"
    return f"untouched: no rule concerns it, it goes to {where}"


def _refusal(told: Explanation) -> str:
    """What kube-proxy says of it: no endpoints."""
    for step in told.steps:
        if step.table.origin is Origin.EBPF and step.text.endswith("endpoints"):
            return f"the Service has no {step.text.rpartition(' has no ')[2]}"
        comment = step.comment or ""
        for words in ("has no endpoints", "has no local endpoints"):
            if comment.endswith(words):
                return (
                    words.replace("has no", "no") if told.service is None else words.replace("has", "the Service has")
                )
        lookups = step.text if step.table.name == "kube-proxy" and "vmap @no-endpoint" in step.text else ""
        if lookups:
            return "the Service has no endpoints" if told.verdict == "reject" else "the Service has no local endpoints"
    return ""


def _backend(label: str, backend: Backend, told: Explanation) -> Line:
    spans = [Span("   "), Span(label, "backend"), Span(f"  {_part(backend.probability)}")]
    if backend.verdict != "accept":
        spans.append(Span(f"  {backend.verdict}", "bad"))
    if backend.masquerade and not told.masquerade:
        spans.append(Span("  masqueraded", "dim"))
    return tuple(spans)


def _part(probability: float) -> str:
    return "always" if probability > 1.0 - 1e-9 else fraction(probability)


def _remarks(told: Explanation) -> Iterator[str]:
    if told.masquerade_why:
        yield _masquerade(told)
    elif told.verdict == "dnat":
        yield "not masqueraded: the backend sees the sender's own address"
    if told.affinity_seconds is not None:
        seconds = duration_label(told.affinity_seconds)
        yield f"affinity: a client stays at its backend for {seconds}; told is what becomes of a new client"
    for other in told.otherwise:
        where = "" if other.ip is None else f" to {endpoint_label(other.ip, other.port or 0)}"
        yield f"or else {other.verdict}{where}{_source_words(told, other)}, as it depends"
    yield from (f"note: {note}" for note in told.notes)


def _source_words(told: Explanation, other: Otherwise) -> str:
    """What becomes of the source, where only that sets it apart from what is told for sure."""
    if other.ip is None or not any((each.ip, each.port) == (other.ip, other.port) for each in told.outcomes):
        return ""
    return " with its source changed" if other.masquerade else " with its source as it is"


def _masquerade(told: Explanation) -> str:
    """By which rule the source is changed, and which one made it so."""
    *marking, changing = told.masquerade_why
    words = "masqueraded" if told.masquerade else "in part masqueraded"
    words += f" by {_step_label(changing)}" + (" as it leaves" if changing.table.origin is Origin.EBPF else "")
    if marking:
        why = packets(marking[0])
        words += f", as {marking[0].chain} {marking[0].rule} has it marked" + (f" ({why})" if why else "")
    return words


def _wrapped(head: str, indent: str, spans: Iterable[Span], width: int) -> Iterator[Line]:
    """The spans in lines, broken at blanks, `head` before the first and `indent` before the others."""
    room = max(width - cells(indent), _LEAST)
    line: list[Span] = [Span(head, "dim")]
    used = 0
    for text, style in spans:
        for word in _words(text):
            while cells(word) + used > room:
                if used:
                    yield tuple(line)
                    line, used = [Span(indent, "dim")], 0
                    word = word.lstrip(" ")
                else:
                    yield (*line, Span(word[:room], style))
                    line, word = [Span(indent, "dim")], word[room:]
            if word:
                line.append(Span(word, style))
                used += cells(word)
    yield tuple(line)


def _words(text: str) -> Iterator[str]:
    """The text in pieces that begin with a blank."""
    for index, word in enumerate(text.split(" ")):
        yield word if index == 0 else f" {word}"


def _limited(found: Iterable[Line], most: int | None) -> Iterator[Line]:
    """At most so many lines, the last of them with an ellipsis if there are more; None: all."""
    if most is None:
        yield from found
        return
    first = list(islice(found, most + 1))
    yield from first[: most - 1]
    for line in first[most - 1 : most]:
        yield (*line, Span(" …", "dim")) if len(first) > most else line
