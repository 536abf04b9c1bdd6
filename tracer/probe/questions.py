"""DNS queries as a probe: each in a flow of its own, with or without the recursion-desired bit, and what came back.

What belongs here: making queries, reading answers, what their header flags mean, the JSON. What does not: flows
(`conduct`), how it looks to people (`question_table`). Sources: RFC 1035, 4.1.1 (the header); RFC 4035, 3 (ad and cd).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tracer.destination import Destination, endpoint_text
from tracer.errors import UsageError
from tracer.names.model import PodName
from tracer.probe.conduct import Outcome, Wishes, conducted
from tracer.probe.flows import Flow
from tracer.probe.origin import Origin
from tracer.probe.report import backend, delivery_notes, fate

if TYPE_CHECKING:
    import dns.message

PORT = 53
FLAGS = ("QR", "AA", "TC", "RD", "RA", "AD", "CD")
POD_NDOTS, OTHER_NDOTS = 5, 1  # what the kubelet writes (pkg/kubelet/network/dns/dns.go), and resolv.conf(5)'s default
MALFORMED = "malformed"


class Record(NamedTuple):
    """One resource record of an answer, as text."""

    name: str
    type: str
    ttl: int
    data: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One query and what came of it.

    outcome: "answered", "malformed" for an answer that is none, or as `report.fate` says. rcode, flags: of the answer's
    header, None and () where there is none. time: seconds until then. backend: the server that the query reached.
    """

    recursion_desired: bool
    outcome: str
    rcode: str | None
    flags: tuple[str, ...]
    records: tuple[Record, ...]
    time: float | None
    backend: tuple[str, int] | None
    pod: PodName | None

    def to_json(self) -> dict[str, Any]:
        """Its object in the document."""
        return {
            "rd": self.recursion_desired,
            "outcome": self.outcome,
            "rcode": self.rcode,
            "flags": list(self.flags),
            "answers": [record._asdict() for record in self.records],
            "time_ms": None if self.time is None else round(self.time * 1000, 3),
            "backend": None
            if self.backend is None
            else {
                "ip": self.backend[0],
                "port": self.backend[1],
                "namespace": self.pod.namespace if self.pod is not None else None,
                "pod": self.pod.pod if self.pod is not None else None,
            },
        }


@dataclass(frozen=True, slots=True)
class DnsReport:
    """All queries for one name and type, in the order sent."""

    name: str
    type: str
    server: Destination
    origin: Origin
    source: str
    exchanges: tuple[Exchange, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `k8snet-trace probe dns -o json`."""
        return {
            "name": self.name,
            "type": self.type,
            "server": {"ip": self.server.ip, "port": self.server.port},
            "source": self.source,
            "from": self.origin.text,
            "queries": [exchange.to_json() for exchange in self.exchanges],
            "notes": list(self.notes),
        }


def ask(
    name: str, kind: str, recursion: Sequence[bool], server: str, wishes: Wishes, stopped: Callable[[], bool]
) -> DnsReport:
    """Ask a server for a name, as given, `wishes.plan.count` times for each value of the recursion-desired bit.

    server: an address, perhaps with a port, or a Service. Raises UsageError for what is no name, type or server, and
    K8snetError as any probe does.
    """
    queries = [_query(name, kind, recursion[n % len(recursion)]) for n in range(wishes.plan.count * len(recursion))]
    wishes = replace(wishes, plan=replace(wishes.plan, count=len(queries)))
    payloads = [query.to_wire() for query in queries]
    with conducted(server_words(server), wishes, stopped, payloads.__getitem__) as outcome:
        exchanges = tuple(_exchange(flow, query, outcome) for flow, query in zip(outcome.flows, queries, strict=False))
        notes = (*outcome.notes, *_notes(name, exchanges, outcome))
        return DnsReport(
            queries[0].question[0].name.to_text(),
            kind.upper(),
            outcome.destination,
            outcome.origin,
            outcome.ends.source,
            exchanges,
            notes,
        )


def server_words(server: str) -> str:
    """What --server says as a destination: port 53 where there is none, UDP always."""
    bare = server.removeprefix("[").removesuffix("]")
    try:
        return f"{endpoint_text(str(ipaddress.ip_address(bare)), PORT)}/udp"
    except ValueError:
        whole = server.lower().endswith(("/udp", "/tcp", "/sctp")) or not re.search("[:/]", server)
        return server if whole else f"{server}/udp"


def _query(name: str, kind: str, recursion_desired: bool) -> dns.message.Message:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.rdatatype

    try:
        rdtype = dns.rdatatype.from_text(kind)
    except (dns.exception.DNSException, ValueError):
        raise UsageError(f"{kind!r} is no type of DNS record", hint="A, AAAA, SRV, PTR, TXT, …") from None
    try:
        asked = dns.name.from_text(name)
    except (dns.exception.DNSException, ValueError) as error:
        raise UsageError(f"{name!r} is no DNS name: {error}") from None
    return dns.message.make_query(asked, rdtype, flags=dns.flags.RD if recursion_desired else 0)


def _exchange(flow: Flow, query: dns.message.Message, outcome: Outcome) -> Exchange:
    import dns.flags
    import dns.rcode

    answer = _answer(flow, query)
    found = backend(flow, outcome.destination)
    ended = fate(flow, outcome.destination)
    seconds = flow.answered_at - flow.sent_at if flow.answered_at is not None and flow.sent_at is not None else None
    return Exchange(
        bool(query.flags & dns.flags.RD),
        MALFORMED if ended == "answered" and answer is None else ended,
        None if answer is None else dns.rcode.to_text(answer.rcode()),
        () if answer is None else tuple(flag.lower() for flag in FLAGS if answer.flags & dns.flags.from_text(flag)),
        () if answer is None else _records(answer),
        seconds,
        found,
        None if found is None else outcome.pod(*found),
    )


def _answer(flow: Flow, query: dns.message.Message) -> dns.message.Message | None:
    """The answer to a query; None for no answer, and for bytes that are none."""
    import dns.exception
    import dns.message

    if not flow.data:
        return None
    try:
        answer = dns.message.from_wire(flow.data, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError):
        return None
    return answer if query.is_response(answer) else None


def _records(answer: dns.message.Message) -> tuple[Record, ...]:
    import dns.rdatatype

    return tuple(
        Record(rrset.name.to_text(), dns.rdatatype.to_text(rrset.rdtype), rrset.ttl, item.to_text())
        for rrset in answer.answer
        for item in rrset
    )


def _notes(name: str, exchanges: Sequence[Exchange], outcome: Outcome) -> list[str]:
    notes = []
    answered = [exchange for exchange in exchanges if exchange.rcode is not None]
    if any(exchange.recursion_desired and "ra" not in exchange.flags for exchange in answered):
        notes.append(
            "recursion is not available (rd is set, ra is not), and that is no error: the server is authoritative for "
            "the cluster's own zone and forwards nothing, so it offers no recursion (RFC 1035, 4.1.1)"
        )
    if any("tc" in exchange.flags for exchange in answered):
        notes.append("the answer is cut (tc): it does not fit a datagram, and a resolver would ask again over TCP")
    dots = name.rstrip(".").count(".")
    ndots = POD_NDOTS if outcome.origin.pod is not None else OTHER_NDOTS
    if not name.endswith(".") and dots < ndots:
        notes.append(
            f"asked as it is; with fewer dots ({dots}) than ndots:{ndots}, a resolver first tries it with each suffix "
            "of its search list (resolv.conf): that is the resolver's doing, not the server's"
        )
    fates = Counter(exchange.outcome for exchange in exchanges)
    return [*notes, *delivery_notes(outcome.flows, fates)]
