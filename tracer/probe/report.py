"""What came of a probe: flows counted by the backend that each one reached, beside what the rules promise.

What belongs here: what a flow's fate is called, the counts, the test, the notes, the JSON. What does not: how it looks
to people (`table`), and who is asked (`conduct`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.destination import Destination, endpoint_text
from tracer.names.model import PodName
from tracer.probe import chisquare
from tracer.probe.flows import Answer, Flow
from tracer.probe.origin import Origin
from tracer.probe.packets import Ends
from tracer.probe.prediction import Backend, Prediction

FATES = ("answered", "refused", "rejected", "unreachable", "unanswered")
ENOUGH = 5  # expected in each class, from where on the chi-square approximation is good


@dataclass(frozen=True, slots=True)
class Reached:
    """A backend: how many flows went there, how many should have (None: not known), its share by the rules."""

    ip: str
    port: int
    pod: PodName | None
    observed: int
    expected: float | None
    share: float | None

    def to_json(self) -> dict[str, Any]:
        """Its object in the document."""
        return {
            "ip": self.ip,
            "port": self.port,
            "namespace": self.pod.namespace if self.pod is not None else None,
            "pod": self.pod.pod if self.pod is not None else None,
            "observed": self.observed,
            "expected": self.expected,
            "share": self.share,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All that a probe found. fates: how many flows ended how, by the words of FATES; they sum to `sent`.

    p_value: None where nothing was compared; 0 where the rules allow no such thing, without a statistic.
    """

    destination: Destination
    origin: Origin
    source: str
    sent: int
    reached: tuple[Reached, ...]
    fates: dict[str, int]
    chi_square: float | None
    degrees: int | None
    p_value: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `k8snet-trace probe -o json`."""
        asked, service = self.destination, self.destination.service
        return {
            "destination": asked.text,
            "address": {"ip": asked.ip, "port": asked.port},
            "service": None
            if service is None
            else {"namespace": service.namespace, "name": service.name, "port_name": service.port_name},
            "protocol": asked.protocol,
            "source": self.source,
            "from": self.origin.text,
            "sent": self.sent,
            "reached": [each.to_json() for each in self.reached],
            **{fate: self.fates[fate] for fate in FATES},
            "chi_square": self.chi_square,
            "degrees": self.degrees,
            "p_value": self.p_value,
            "notes": list(self.notes),
        }


def backend(flow: Flow, destination: Destination) -> Backend | None:
    """Where a flow went: as the last connection tracking has it; without translation, to whoever answered; or None.

    A Service's address without a translation is nobody's, whoever answers: then a rule has.
    """
    if flow.translator is not None:
        return flow.hops[-1].ip, flow.hops[-1].port
    if destination.service is not None:
        return None
    if flow.answer in (Answer.ANSWERED, Answer.RESET) and flow.answered_by and flow.answered_from:
        return flow.answered_by, flow.answered_from
    if flow.answer is Answer.PORT_UNREACHABLE and flow.answered_by == destination.ip:
        return destination.ip, destination.port
    return None


def fate(flow: Flow, destination: Destination) -> str:
    """The word of FATES for how a flow ended.

    refused: a backend says that nobody listens. rejected: a rule says no, or dropped the packet before it left. The
    two send the same packets; what never was let through a translation can't have come to a backend. A rule on a
    node further on, behind the translation, is therefore taken for the backend.
    """
    if flow.answer is Answer.ANSWERED:
        return "answered"
    if flow.answer in (Answer.RESET, Answer.PORT_UNREACHABLE):
        return "rejected" if backend(flow, destination) is None else "refused"
    if flow.answer is Answer.PROHIBITED or flow.held_back:
        return "rejected"
    return "unreachable" if flow.answer is Answer.UNREACHABLE else "unanswered"


def summarise(
    destination: Destination,
    origin: Origin,
    ends: Ends,
    flows: Sequence[Flow],
    prediction: Prediction,
    pod: Callable[[str, int], PodName | None],
    notes: Sequence[str] = (),
) -> Report:
    """The report about flows that were sent. pod: names the pod at an address. notes: what is to be said as well."""
    observed = Counter(found for flow in flows if (found := backend(flow, destination)) is not None)
    fates = Counter(fate(flow, destination) for flow in flows)
    comparison = _Comparison(observed, prediction)
    keys = sorted({*observed, *comparison.promised()}, key=lambda key: (len(key[0]), key))
    reached = tuple(
        Reached(*key, pod(*key), observed[key], comparison.expected(key), comparison.share(key)) for key in keys
    )
    return Report(
        destination,
        origin,
        ends.source,
        len(flows),
        reached,
        {word: fates[word] for word in FATES},
        *comparison.result(),
        (*notes, *comparison.notes(), *delivery_notes(flows, fates)),
    )


class _Comparison:
    """Observed counts beside a prediction."""

    def __init__(self, observed: Counter[Backend], prediction: Prediction) -> None:
        self._observed = observed
        self._prediction = prediction
        self._total = observed.total()
        strays = observed.keys() - prediction.shares.keys() if prediction.shares else set()
        self._stray = sorted(strays - prediction.otherwise)
        self._open = strays & prediction.otherwise
        self._affinity = prediction.affinity_seconds is not None

    def promised(self) -> Collection[Backend]:
        """The backends of the rules; not the destination alone, to which untranslated flows go if they go anywhere."""
        shares = self._prediction.shares
        return shares.keys() if self._total or len(shares) > 1 else ()

    def share(self, key: Backend) -> float | None:
        """A backend's share by the rules."""
        return self._prediction.shares.get(key, 0.0) if self._prediction.shares else None

    def expected(self, key: Backend) -> float | None:
        """How many of the flows that reached a backend should have reached this one."""
        share = self.share(key)
        return None if share is None or self._affinity else share * self._total

    def result(self) -> tuple[float | None, int | None, float | None]:
        """Chi-square, degrees of freedom, p-value."""
        shares = self._prediction.shares
        if not self._total or not shares or self._affinity:
            return None, None, None
        if self._stray:
            return None, None, 0.0
        if len(shares) < 2 or self._open:
            return None, None, None
        return chisquare.test([self._observed[key] for key in shares], [self._total * each for each in shares.values()])

    def notes(self) -> list[str]:
        """What is to be said about the comparison."""
        shares = self._prediction.shares
        if not shares:
            return [self._prediction.reason] if self._prediction.reason is not None else []
        if self._prediction.depends:
            return [f"the expectation holds as far as this does not apply: {', '.join(self._prediction.depends)}"]
        if self._affinity:
            return [
                f"session affinity keeps all flows of one client at one backend for "
                f"{self._prediction.affinity_seconds} seconds: no spread to test"
            ]
        if self._stray:
            strays = ", ".join(endpoint_text(*key) for key in self._stray)
            return [f"by the rules nothing goes to {strays}"]
        wanted = math.ceil(ENOUGH / min(shares.values()))
        if len(shares) > 1 and 0 < self._total < wanted:
            return [f"fewer than {ENOUGH} flows are expected at a backend, so p is rough: --count {wanted} would do"]
        return []


def delivery_notes(flows: Sequence[Flow], fates: Counter[str]) -> list[str]:
    """What is to be said about packets that may not have come to where they were sent."""
    notes = []
    held_back = sum(flow.held_back for flow in flows)
    if held_back:
        notes.append(f"{held_back} of the packets never left: a rule of the sending namespace's OUTPUT stops them")
    by_icmp = any(flow.answer in (Answer.PORT_UNREACHABLE, Answer.PROHIBITED, Answer.UNREACHABLE) for flow in flows)
    if by_icmp and fates["unanswered"]:
        notes.append(
            "the kernel sends one client only about one ICMP error a second (net.ipv4.icmp_ratelimit): what got no "
            "answer may have been refused or rejected as well; --rate 1 would show it"
        )
    return notes
