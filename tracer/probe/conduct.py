"""A whole probe, from what the user said to a report: one call for the command.

What belongs here: the order of things, and which of them may fail without ending the probe. What does not: any of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer import netns
from tracer.destination import Destination, parse
from tracer.errors import MissingError, NotRoot, UsageError
from tracer.names.model import PodName
from tracer.probe import devices, packets, wire
from tracer.probe import origin as origins
from tracer.probe.flows import Flow
from tracer.probe.origin import Origin
from tracer.probe.packets import Ends
from tracer.probe.prediction import Prediction, Rulebook, locate, predict
from tracer.probe.report import Report, summarise
from tracer.probe.run import Plan, send
from tracer.probe.tracking import Tracking
from tracer.rules.walk import TooManyWays

if TYPE_CHECKING:
    from tracer.names import Names
    from tracer.rules.sockets import Names as ServiceNames

NAMES_SECONDS = 1.0  # what the names of backends may take once all else is known

Payload = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked of any probe. origin: --from. kubeconfig: None looks in the usual places."""

    plan: Plan
    origin: str | None = None
    family: int | None = None
    kubeconfig: str | None = None
    with_names: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """Flows that were sent, and what is known beside them. pod: names the pod at an address and port."""

    destination: Destination
    origin: Origin
    ends: Ends
    flows: list[Flow]
    book: Rulebook
    notes: list[str]
    pod: Callable[[str, int], PodName | None]


def probe(words: str, wishes: Wishes, stopped: Callable[[], bool]) -> Report:
    """Probe the destination that the words name. Raises K8snetError."""
    with conducted(words, wishes, stopped) as outcome:
        prediction, more = _prediction(outcome)
        return summarise(
            outcome.destination,
            outcome.origin,
            outcome.ends,
            outcome.flows,
            prediction,
            outcome.pod,
            (*outcome.notes, *more),
        )


@contextlib.contextmanager
def conducted(
    words: str, wishes: Wishes, stopped: Callable[[], bool], payload: Payload = lambda number: packets.GREETING
) -> Iterator[Outcome]:
    """Send flows to the destination that the words name; names can be asked for inside. Raises K8snetError."""
    asked = parse(words)
    wire.require()
    origin = origins.find(wishes.origin)
    paths = netns.every()
    with contextlib.ExitStack() as stack:
        book = Rulebook(origin, paths, _service_names(wishes, stack))
        destination = locate(asked, book, wishes.family)
        _check(destination)
        source = netns.run_in(origin.path, lambda: wire.source_address(destination.ip))
        ends = Ends(destination.protocol, source, destination.ip, destination.port)
        names = _start_names(wishes, stack)
        notes: list[str] = []
        tracking = _start_tracking(ends, _with_own(paths, origin), notes, stack)
        flows = netns.run_in(origin.path, lambda: send(ends, wishes.plan, tracking, stopped, payload))
        devices.add_hops(origin, ends, flows)
        if len(flows) < wishes.plan.count:
            notes.append(f"ended early: {len(flows)} of {wishes.plan.count} were sent")
        inode = translator(flows) or origin.inode
        yield Outcome(destination, origin, ends, flows, book, notes, _namer(names, inode))


def translator(flows: list[Flow]) -> int | None:
    """The namespace whose rules chose the backends of most flows."""
    counts = Counter(flow.translator for flow in flows if flow.translator is not None)
    return counts.most_common(1)[0][0] if counts else None


def _prediction(outcome: Outcome) -> tuple[Prediction, list[str]]:
    """What the rules of the namespace that translated say, and what is to be said about that."""
    inode = translator(outcome.flows)
    if any(sum(hop.dnat for hop in flow.hops) > 1 for flow in outcome.flows):
        return Prediction(reason="the flows were translated twice: no one namespace's rules decide"), []
    try:
        if inode is not None:
            rules = outcome.book.of(inode)
        else:
            rules = next(outcome.book.near(), None) or outcome.book.of(outcome.origin.inode)
        hops = (hop.source for flow in outcome.flows for hop in flow.hops if hop.inode == rules.inode)
        source = next(hops, outcome.ends.source)
        prediction = predict(rules, outcome.destination, source)
        now = outcome.book.renewed(rules.inode)
        changed = now is not None and predict(now, outcome.destination, source).shares != prediction.shares
    except (MissingError, TooManyWays, OSError) as error:
        return Prediction(reason=f"there is no expectation: {error}"), []
    notes = ["the rules have changed meanwhile: the expectation is that of before"] if changed else []
    if any(flow.translator not in (None, rules.inode) for flow in outcome.flows):
        notes.append("several network namespaces translated; the expectation is that of the one that had most flows")
    return prediction, notes


def _check(destination: Destination) -> None:
    """Raise UsageError for what can't be probed."""
    if destination.protocol not in ("TCP", "UDP"):
        raise UsageError(f"a probe sends TCP or UDP, not {destination.protocol}")
    address = ipaddress.ip_address(destination.ip)
    scoped = address.version == 6 and address.is_link_local
    if address.is_multicast or address.is_unspecified or scoped or destination.ip == "255.255.255.255":
        raise UsageError(f"{destination.ip} is not the address of one Service or machine")


def _with_own(paths: Mapping[int, str], origin: Origin) -> dict[int, str]:
    """All namespaces, that which packets leave from among them however it is held."""
    own = origin.path if origin.path is not None else "/proc/self/ns/net"
    return {**paths, origin.inode: own}


def _start_tracking(
    ends: Ends, paths: Mapping[int, str], notes: list[str], stack: contextlib.ExitStack
) -> Tracking | None:
    try:
        return stack.enter_context(Tracking(ends, paths))
    except NotRoot as error:
        notes.append(f"{error.message}: a backend is known only where it answers under its own address")
        return None


def _service_names(wishes: Wishes, stack: contextlib.ExitStack) -> Callable[[], ServiceNames]:
    """What names the Services in maps of eBPF."""
    if not wishes.with_names:
        return dict
    from tracer.names.services import ServiceNames as Asking

    asking = Asking(wishes.kubeconfig)
    stack.callback(asking.close)
    return asking.names


def _start_names(wishes: Wishes, stack: contextlib.ExitStack) -> Names | None:
    if not wishes.with_names:
        return None
    from tracer.names import Names

    names = Names(kubeconfig=wishes.kubeconfig)
    stack.callback(names.close)
    names.start()
    return names


def _namer(names: Names | None, inode: int) -> Callable[[str, int], PodName | None]:
    """What names the pod at an address and port, as the namespace `inode` sees it; all may take NAMES_SECONDS."""
    if names is None:
        return lambda ip, port: None
    deadline = time.monotonic() + NAMES_SECONDS

    def pod(ip: str, port: int) -> PodName | None:
        while True:
            found = names.backend(ip, port, inode)
            if found is not None or time.monotonic() >= deadline:
                return found
            time.sleep(0.02)

    return pod
