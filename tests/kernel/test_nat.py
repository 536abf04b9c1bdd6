"""Translations: the record's backend is where conntrack sends the packets."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.kernel.conftest import Net, Tracer, inhabited
from tests.kernel.traffic import ask, connect, echo, listener
from tests.tracer.networks import SERVICE, SERVICE6, Namespace
from tracer import conntrack
from tracer.events import IPPROTO_TCP, IPPROTO_UDP, Flag, Outcome, Shape
from tracer.source.live import LiveSource

pytestmark = pytest.mark.bpf
BACKENDS = ("10.0.2.2", "10.0.2.3", "10.0.2.4")
BACKENDS6 = ("fd00:2::2", "fd00:2::3", "fd00:2::4")


def backend_of(shape: Shape) -> tuple[str, int]:
    """Address and port of the backend, as text."""
    packed = shape.backend if shape.family == 6 else shape.backend[:4]
    return str(ipaddress.ip_address(packed)), shape.bport


def service(router: Namespace, *backends: str, protocol: str = "tcp", port: int = 80) -> None:
    """Rules as kube-proxy spreads connections: each backend an equal share, in PREROUTING and OUTPUT."""
    v6 = ":" in backends[0]
    match = f"-d {SERVICE6 if v6 else SERVICE} -p {protocol} --dport {port}"
    rules = []
    for index, backend in enumerate(backends):
        share = f"-m statistic --mode random --probability {1 / (len(backends) - index):.10f}"
        target = f"[{backend}]:8000" if v6 else f"{backend}:8000"
        rules.append(f"{match} {share} -j DNAT --to-destination {target}")
    router.iptables(*(f"-A {hook} {rule}" for hook in ("PREROUTING", "OUTPUT") for rule in rules), table="nat", v6=v6)


def test_each_record_says_what_conntrack_holds(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    service(router, *BACKENDS)
    with listener(server, "0.0.0.0", 8000):
        for _ in range(37):
            connect(client, SERVICE, 80)
    seen = tracer.collect(37, client)
    held = {
        entry.orig.sport: (str(ipaddress.ip_address(entry.reply.src)), entry.reply.sport)
        for entry in conntrack.dump(router.path)
        if entry.protocol == IPPROTO_TCP
    }
    assert {record.raw.sport: backend_of(record.shape) for record in seen} == held
    assert len(held) == 37
    assert {record.shape.nat_netns for record in seen} == {router.inode}
    assert {record.shape.flags for record in seen} == {Flag.DNAT}
    assert len(Counter(backend_of(record.shape) for record in seen)) == len(BACKENDS)
    assert tracer.source.losses() == {}


def test_ipv6(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    service(router, BACKENDS6[1])
    with listener(server, "::", 8000):
        connect(client, SERVICE6, 80)
    (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == (BACKENDS6[1], 8000)
    assert record.shape.flags == Flag.DNAT
    assert record.shape.destination == ipaddress.ip_address(SERVICE6).packed


def test_masquerade_is_source_translation_without_a_backend(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    router.iptables("-A POSTROUTING -o server -j MASQUERADE", table="nat")
    with listener(server, "10.0.2.2", 80):
        connect(client, "10.0.2.2", 80)
    (record,) = tracer.collect(1, client)
    assert record.shape.flags == Flag.SNAT
    assert (record.shape.nat_netns, record.shape.backend, record.shape.bport) == (router.inode, bytes(16), 0)


def test_a_process_on_the_node_itself(tracer: Tracer, net: Net) -> None:
    _, router, server = net
    router.ip("route add default via 10.0.2.2")  # the kernel routes before it translates
    service(router, BACKENDS[2])
    with listener(server, "0.0.0.0", 8000):
        port = connect(router, SERVICE, 80)
    (record,) = tracer.collect(1, router)
    assert record.raw.sport == port
    assert backend_of(record.shape) == (BACKENDS[2], 8000)
    assert record.shape.flags & Flag.DNAT


def test_a_backend_on_the_node_itself(tracer: Tracer, net: Net) -> None:
    """A hostNetwork pod: the request is delivered locally and never leaves again."""
    client, router, _ = net
    service(router, "10.0.1.1")
    with listener(router, "0.0.0.0", 8000):
        connect(client, SERVICE, 80)
    (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == ("10.0.1.1", 8000)
    assert record.shape.flags == Flag.DNAT


def test_a_backend_that_refuses_is_still_named(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    service(router, BACKENDS[0])
    with pytest.raises(ConnectionRefusedError):
        connect(client, SERVICE, 80)
    (record,) = tracer.collect(1, client)
    assert record.shape.outcome == Outcome.REFUSED
    assert backend_of(record.shape) == (BACKENDS[0], 8000)


def test_a_second_node_translates_what_the_first_masqueraded(tracer: Tracer, net: Net) -> None:
    """As a NodePort of another node is reached from a pod: SNAT on the way out, DNAT on arrival, one record."""
    client, router, server = net
    router.iptables("-A POSTROUTING -o server -j MASQUERADE --random-fully", table="nat")
    rule = "-A PREROUTING -d 10.0.2.2 -p tcp --dport 30080 -j DNAT --to-destination 10.0.2.3:8000"
    server.iptables(rule, table="nat")
    with listener(server, "0.0.0.0", 8000):
        connect(client, "10.0.2.2", 30080)
    (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == ("10.0.2.3", 8000)
    assert record.shape.flags == Flag.DNAT | Flag.SNAT
    assert record.shape.nat_netns == server.inode


def everywhere(client: Namespace, address: str, port: int) -> None:
    """Connect from each CPU once, so that no request of before is the last that one of them opened."""

    def call() -> None:
        for cpu in os.sched_getaffinity(0):
            os.sched_setaffinity(0, {cpu})
            with socket.create_connection((address, port)):
                pass

    client.run(call)


def test_a_request_that_is_sent_again_and_translated_anew(tracer: Tracer, net: Net) -> None:
    """Its first packet is dropped, so that no entry is confirmed: the second one may go elsewhere, and does."""
    client, router, server = net
    service(router, BACKENDS[0])
    router.iptables("-A FORWARD -d 10.0.2.2 -p tcp --dport 8000 -j DROP")

    def begin() -> socket.socket:
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((SERVICE, 80))
        return one

    with listener(server, "0.0.0.0", 8000), client.run(begin) as one:
        service(router, BACKENDS[1])
        router.iptables("-D PREROUTING 1", table="nat")  # in its place at once: no packet may find neither
        everywhere(client, "10.0.2.3", 8000)
        assert select.select([], [one], [], 5)[1] == [one]
        sport = one.getsockname()[1]
        seen = tracer.collect(1 + len(os.sched_getaffinity(0)), client)
    (record,) = [record for record in seen if record.raw.sport == sport]
    assert record.shape.outcome == Outcome.ESTABLISHED
    assert backend_of(record.shape) == (BACKENDS[1], 8000)


def test_the_same_ports_again_with_another_backend(
    open_backend: Callable[..., LiveSource], net: Net, patience: float
) -> None:
    """An entry of before the trace says where such packets went once; the kernel decides anew."""
    client, router, server = net
    flow = f"-p tcp -s 10.0.1.2 --sport 40000 -d {SERVICE} --dport 80"
    router.sh(f"conntrack -I {flow} --dst-nat {BACKENDS[0]}:8000 --state SYN_SENT -t 600")
    service(router, BACKENDS[1])

    def call() -> None:
        with socket.socket() as one:
            one.bind(("10.0.1.2", 40000))
            one.connect((SERVICE, 80))

    with listener(server, "0.0.0.0", 8000), inhabited(router), open_backend() as source:
        tracer = Tracer(source, patience)
        time.sleep(1)  # the tables are read in the background
        router.sh(f"conntrack -D {flow}")
        client.run(call)
        (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == (BACKENDS[1], 8000)


@pytest.mark.parametrize("connected", [True, False])
def test_datagrams(tracer: Tracer, net: Net, connected: bool) -> None:
    client, router, server = net
    service(router, BACKENDS[1], protocol="udp", port=53)
    with echo(server, "10.0.2.3", 8000):
        assert ask(client, SERVICE, 53, connected=connected) == b"hello"
    (record,) = tracer.collect(1, client, server)
    assert record.shape.protocol == IPPROTO_UDP
    assert record.shape.outcome == Outcome.ANSWERED
    assert backend_of(record.shape) == (BACKENDS[1], 8000)
    assert record.shape.flags == Flag.DNAT
    assert record.shape.nat_netns == router.inode


def test_datagrams_of_the_node_itself(tracer: Tracer, net: Net) -> None:
    _, router, server = net
    router.ip("route add default via 10.0.2.2")
    service(router, BACKENDS[1], protocol="udp", port=53)
    with echo(server, "10.0.2.3", 8000):
        assert ask(router, SERVICE, 53, connected=True) == b"hello"
    (record,) = tracer.collect(1, router, server)
    assert record.shape.outcome == Outcome.ANSWERED
    assert backend_of(record.shape) == (BACKENDS[1], 8000)


def test_a_translated_datagram_that_nobody_answers(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    service(router, "10.0.2.99", protocol="udp", port=53)
    with inhabited(router):
        assert ask(client, SERVICE, 53, connected=True, timeout=0.1) is None
        (record,) = tracer.collect(1, client, seconds=6)
    assert (record.shape.outcome, record.raw.latency_ns) == (Outcome.SENT, -1)
    assert backend_of(record.shape) == ("10.0.2.99", 8000)
    assert record.shape.destination[:4] == ipaddress.ip_address(SERVICE).packed
    assert record.shape.dport == 53


def test_a_backend_that_is_gone_is_still_named(tracer: Tracer, net: Net) -> None:
    """The next hop does not answer ARP, so that the packet never leaves: conntrack knows where it was to go."""
    client, router, _ = net
    service(router, "10.0.2.99")
    with inhabited(router):
        with pytest.raises(TimeoutError):
            connect(client, SERVICE, 80, timeout=1.5)  # namespaces are looked for once a second
        (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.TIMEOUT, 0)
    assert backend_of(record.shape) == ("10.0.2.99", 8000)
    assert record.shape.nat_netns == router.inode


def test_a_rule_that_drops_the_translated_packet_does_not_hide_where_it_went(tracer: Tracer, net: Net) -> None:
    """As a network policy does: the conntrack entry is never confirmed, so that no table holds it."""
    client, router, _ = net
    service(router, BACKENDS[1])
    router.iptables("-A FORWARD -d 10.0.2.3 -j DROP")
    with pytest.raises(TimeoutError):
        connect(client, SERVICE, 80, timeout=0.5)
    (record,) = tracer.collect(1, client)
    assert record.shape.outcome == Outcome.TIMEOUT
    assert backend_of(record.shape) == (BACKENDS[1], 8000)


def test_a_flow_that_was_translated_before_the_trace_began(
    open_backend: Callable[..., LiveSource], net: Net, patience: float
) -> None:
    """Its conntrack entry is read at the start: the kernel does not translate it anew."""
    client, router, server = net
    service(router, BACKENDS[1], protocol="udp", port=53)

    def open_socket() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.settimeout(5)
        one.connect((SERVICE, 53))
        return one

    with echo(server, "10.0.2.3", 8000), client.run(open_socket) as one, inhabited(router):
        for _ in range(2):  # the answer to the first makes the entry ESTABLISHED, no longer NEW
            one.send(b"before")
            one.recv(100)
        with open_backend() as source:
            tracer = Tracer(source, patience)
            time.sleep(1)  # the tables are read in the background
            one.send(b"after")
            one.recv(100)
            (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == (BACKENDS[1], 8000)
    assert record.shape.outcome == Outcome.ANSWERED
