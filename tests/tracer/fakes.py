"""Stand-ins for the kernel and for names, which follow the protocols of tracer.source and tracer.resolve."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tracer.events import IPPROTO_TCP, Connection, Flag, Outcome, RawConnection, Shape
from tracer.names.model import NO_ROUTE, NOWHERE, DestinationName, PodName, Route

T0 = 1_795_338_000_123_456_789  # 2026-11-22T09:00:00.123456789Z

EXAMPLE: dict[str, Any] = {  # the contract's, its elided chain names made whole
    "type": "connection",
    "time": "2026-11-22T09:00:00.123456789Z",
    "node": "node1",
    "protocol": "TCP",
    "family": 4,
    "process": {"pid": 4242, "comm": "curl", "cgroup_id": 1234, "netns": 4026532245},
    "source": {"ip": "10.244.0.10", "port": 46354, "namespace": "default", "pod": "client"},
    "destination": {
        "ip": "10.96.100.50",
        "port": 8000,
        "namespace": "fastapi",
        "service": "lets-ship-it",
        "port_name": "http",
        "kind": "ClusterIP",
    },
    "backend": {
        "ip": "10.244.0.12",
        "port": 8000,
        "namespace": "fastapi",
        "pod": "lets-ship-it-584c4f66f8-htx9q",
    },
    "translation": {
        "by": "netfilter",
        "dnat": True,
        "snat": False,
        "via": ["KUBE-SVC-IFBPFJZVZWOEZWQQ", "KUBE-SEP-RHQ3LXHZHN6YS7UZ"],
        "probability": 0.333,
    },
    "outcome": "established",
    "errno": None,
    "latency_us": 412,
}


def address(text: str) -> bytes:
    """An address as Shape holds it."""
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def shape(**changes: Any) -> bytes:
    """The packed shape of the contract's example, changed as told; addresses are text."""
    values: dict[str, Any] = {
        "cgroup_id": 1234,
        "pid": 4242,
        "netns": 4026532245,
        "nat_netns": 4026531840,
        "family": 4,
        "protocol": IPPROTO_TCP,
        "outcome": Outcome.ESTABLISHED,
        "flags": Flag.DNAT,
        "errno": 0,
        "dport": 8000,
        "bport": 8000,
        "source": "10.244.0.10",
        "destination": "10.96.100.50",
        "backend": "10.244.0.12",
        "comm": b"curl",
    } | changes
    for field in ("source", "destination", "backend"):
        values[field] = address(values[field])
    values["comm"] = values["comm"].ljust(16, b"\0")
    return Shape(**values).pack()


def untranslated(**changes: Any) -> bytes:
    """A shape that nothing rewrote."""
    return shape(**{"flags": Flag(0), "nat_netns": 0, "bport": 0, "backend": "0.0.0.0"} | changes)


def raw(number: int = 0, packed: bytes | None = None, latency_ns: int = 412_345) -> RawConnection:
    """The number-th connection after T0, a millisecond apart."""
    port = 46354 + number % 10_000
    return RawConnection(T0 + number * 1_000_000, latency_ns, port, shape() if packed is None else packed)


def example(**changes: Any) -> Connection:
    """The contract's example as a Connection; changes replace whole members."""
    return Connection.from_json({**EXAMPLE, **changes})


class FakeNames:
    """Knows the contract's example, counts questions."""

    def __init__(self) -> None:
        self.generation = 1
        self.questions = 0
        self.pods = {
            "10.244.0.10": PodName("default", "client"),
            "10.244.0.12": PodName("fastapi", "lets-ship-it-584c4f66f8-htx9q"),
        }
        self.empty_services: set[str] = set()

    def source(self, ip: str, netns: int, cgroup_id: int, pid: int) -> PodName | None:
        self.questions += 1
        return self.pods.get(ip)

    def destination(self, protocol: str, ip: str, port: int, netns: int) -> DestinationName:
        known = (protocol, ip, port) == ("TCP", "10.96.100.50", 8000)
        return DestinationName("fastapi", "lets-ship-it", "http", "ClusterIP") if known else NOWHERE

    def backend(self, ip: str, port: int, netns: int) -> PodName | None:
        return self.pods.get(ip)

    def node(self, netns: int, nat_netns: int, source_ip: str, cgroup_id: int, pid: int) -> str | None:
        return "node1"

    def route(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, nat_netns: int, source_ip: str
    ) -> Route:
        if (ip, backend_ip) != ("10.96.100.50", "10.244.0.12"):
            return NO_ROUTE
        return Route(("KUBE-SVC-IFBPFJZVZWOEZWQQ", "KUBE-SEP-RHQ3LXHZHN6YS7UZ"), 0.333)

    def socket_share(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, netns: int
    ) -> float | None:
        return 0.25 if (ip, backend_ip) == ("10.96.100.50", "10.244.0.12") else None

    def no_endpoints(self, protocol: str, ip: str, port: int, netns: int) -> bool:
        return ip in self.empty_services


class FakeSource:
    """Hands out the given batches, one for each read; then calls `at_end`, and goes on with nothing."""

    backend = "fake"
    room = True

    def __init__(self, batches: Iterable[Sequence[RawConnection]] = (), lost: Sequence[dict[str, int]] = ()) -> None:
        self.batches = list(batches)
        self.lost = list(lost) or [{}]
        self.closed = False

    def read(self, timeout: float) -> Sequence[RawConnection]:
        return self.batches.pop(0) if self.batches else []

    def has_room(self) -> bool:
        return self.room

    def losses(self) -> dict[str, int]:
        return self.lost.pop(0) if len(self.lost) > 1 else self.lost[0]

    def close(self) -> None:
        self.closed = True


class ListSink:
    """Keeps what it is given; `every_type` and `patient` as told."""

    def __init__(self, *, every_type: bool = True, patient: bool = False) -> None:
        self.every_type = every_type
        self.patient = patient
        self.taken: list[Any] = []
        self.ticks = 0
        self.closed = False

    def items(self, items: Sequence[Any]) -> None:
        self.taken += items

    def documents(self, documents: Sequence[Any]) -> None:
        self.taken += documents

    def tick(self, now: float) -> None:
        self.ticks += 1

    def close(self) -> None:
        self.closed = True


class MemoryWriter(NamedTuple):
    """A tracer.sinks.Writer that keeps its text."""

    texts: list[str]

    def write(self, text: str) -> None:
        self.texts.append(text)

    def write_bytes(self, content: bytes) -> None:
        self.texts.append(content.decode())

    def check_reader(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        return "".join(self.texts).splitlines()
