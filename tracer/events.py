"""What the tracer says: records, as frozen dataclasses, to and from the JSON of the contract.

What belongs here: the shape of a record, its JSON, and the raw form in which sources hand connections over.
What does not: where records come from (`tracer.source`), what they look like on a terminal (`tracer.render`).

Raw form. A source does not build a `Connection` for each connection: at 12,000 a second that alone would cost more
than tracing. It hands over `RawConnection` tuples whose last field, the *shape*, is all that many connections share
(who, from where, to where, how it ended) as SHAPE_SIZE packed bytes; the three fields before it are what varies.
Whoever formats records resolves each distinct shape once (`Shape.unpack`) and keeps the result keyed by those bytes.
The layout is that of `struct connection_shape` in bpf/include/records.h, native byte order; both sides assert the
size.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

AF_INET = 2
AF_INET6 = 10
IPPROTO_TCP = 6
IPPROTO_UDP = 17


class Outcome(enum.IntEnum):
    """How a connection request ended; `.label` is the word in JSON. Values: enum outcome in bpf/include/records.h."""

    UNKNOWN = 0
    ESTABLISHED = 1
    REFUSED = 2
    RESET = 3
    TIMEOUT = 4
    REJECTED = 5
    NO_ENDPOINTS = 6  # never from the kernel: `rejected` of a Service whose rules say that it has no endpoints
    UNREACHABLE = 7
    SENT = 8
    ANSWERED = 9

    @property
    def label(self) -> str | None:
        """The contract's word, or None for UNKNOWN (the conntrack source saw no outcome)."""
        return None if self is Outcome.UNKNOWN else self.name.lower().replace("_", "-")


FAILED_OUTCOMES = frozenset({"refused", "reset", "timeout", "rejected", "no-endpoints", "unreachable"})


class Flag(enum.IntFlag):
    """Bits of Shape.flags; they match the FLAG_ constants in bpf/include/records.h."""

    DNAT = 1  # conntrack says: destination rewritten
    SNAT = 2  # conntrack says: source rewritten
    SOCKET = 4  # a cgroup program changed the destination before the kernel saw it
    NO_PROCESS = 8  # the source knows no process (conntrack backend): pid, comm, cgroup_id are meaningless


class Shape(NamedTuple):
    """All of a connection but its times and source port, as packed by the kernel.

    Addresses are 16 bytes in network order: an IPv4 one is in the first 4, the rest zero; an IPv4-mapped IPv6 address
    has been turned into IPv4 (family 4) by the source. Ports are in host order. `destination`, `dport`: what a process
    asked for. `backend`, `bport`: where packets go when flags has DNAT or SOCKET; otherwise zero. `netns`: inode of the
    socket's network namespace, 0 when unknown; `nat_netns`: of the namespace whose conntrack translated it (the
    conntrack source: that holds the entry), 0 for none. `errno`: positive, 0 for none. `comm`: NUL-padded bytes.
    """

    cgroup_id: int
    pid: int
    netns: int
    nat_netns: int
    family: int  # 4 or 6
    protocol: int  # IPPROTO_*
    outcome: int  # Outcome
    flags: int  # Flag
    errno: int
    dport: int
    bport: int
    source: bytes
    destination: bytes
    backend: bytes
    comm: bytes

    @classmethod
    def unpack(cls, shape: bytes) -> Shape:
        """Decode SHAPE_SIZE bytes. Raises struct.error for any other size."""
        return cls._make(_SHAPE.unpack(shape))

    def pack(self) -> bytes:
        """Encode to SHAPE_SIZE bytes."""
        return _SHAPE.pack(*self)


# cgroup_id pid netns nat_netns, family protocol outcome flags, errno dport bport pad, source destination backend comm
_SHAPE = struct.Struct("=QIII4BHHH2x16s16s16s16s")
OUTCOME_OFFSET = 22  # where the outcome lies in a packed shape
SHAPE_SIZE = _SHAPE.size  # 96: a multiple of 8, as the ring buffer aligns records


class RawConnection(NamedTuple):
    """One connection as a source hands it over. Times in nanoseconds; latency_ns is -1 where it is not known."""

    time_ns: int  # request, since the Unix epoch
    latency_ns: int  # request to outcome
    sport: int  # source port, host order
    shape: bytes  # Shape, packed


@dataclass(frozen=True, slots=True)
class Process:
    """Who asked. comm is at most 15 bytes, as the kernel keeps it, undecodable bytes replaced."""

    pid: int
    comm: str
    cgroup_id: int
    netns: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where the request came from; namespace and pod are None when it was no pod, or its name is not known."""

    ip: str
    port: int
    namespace: str | None = None
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """What the process asked for. kind: ClusterIP, NodePort, ExternalIP, LoadBalancer, Pod, Node, External, or None."""

    ip: str
    port: int
    namespace: str | None = None
    service: str | None = None
    port_name: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """Where packets went."""

    ip: str
    port: int
    namespace: str | None = None
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """What rewrote the addresses.

    by: netfilter, socket or None. via: chains in the order walked. probability: of this backend, 0 to 1.
    """

    by: str | None = None
    dnat: bool = False
    snat: bool = False
    via: tuple[str, ...] = ()
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """One record of type "connection". time: RFC 3339, UTC, nanoseconds. latency_us: request to outcome."""

    time: str
    node: str | None
    protocol: str
    family: int
    process: Process | None
    source: Source
    destination: Destination
    backend: Backend | None
    translation: Translation
    outcome: str | None
    errno: int | None
    latency_us: int | None

    def to_json(self) -> dict[str, Any]:
        """The record as the contract's JSON object, keys in the contract's order."""
        # Not dataclasses.asdict: copying deeply takes it 60 us, and every shape is written once.
        nested = {name: value for name, value in _fields(self).items() if hasattr(value, "__dataclass_fields__")}
        return {"type": "connection", **_fields(self), **{name: _fields(value) for name, value in nested.items()}}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Connection:
        """The reverse of to_json; unknown keys are ignored. Raises KeyError or TypeError for what is no such record."""
        process = document["process"]
        backend = document["backend"]
        translation = _pick(Translation, document["translation"])
        return cls(
            time=document["time"],
            node=document["node"],
            protocol=document["protocol"],
            family=document["family"],
            process=None if process is None else Process(**_pick(Process, process)),
            source=Source(**_pick(Source, document["source"])),
            destination=Destination(**_pick(Destination, document["destination"])),
            backend=None if backend is None else Backend(**_pick(Backend, backend)),
            translation=Translation(**{**translation, "via": tuple(translation.get("via") or ())}),
            outcome=document["outcome"],
            errno=document["errno"],
            latency_us=document["latency_us"],
        )


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, as they are."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _pick(cls: Any, document: dict[str, Any]) -> dict[str, Any]:
    """The entries of `document` that are fields of the dataclass `cls`."""
    return {name: document[name] for name in cls.__dataclass_fields__ if name in document}
