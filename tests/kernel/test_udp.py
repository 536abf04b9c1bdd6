"""Datagrams: the first of a flow asks, and is answered, refused, or left alone."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter, defaultdict

import pytest

from tests.kernel.conftest import Net, Tracer
from tests.kernel.traffic import ask, echo
from tracer.events import IPPROTO_UDP, Outcome

pytestmark = pytest.mark.bpf
_asked_from: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # source ports, by backend and address


@pytest.mark.parametrize("address", ["10.0.2.2", "fd00:2::2"])
@pytest.mark.parametrize("connected", [True, False])
def test_an_answered_flow_is_one_record(tracer: Tracer, net: Net, address: str, connected: bool) -> None:
    """The server's answers are no flows of its own."""
    client, _, server = net
    with echo(server, address, 53):
        ports: list[int] = []
        for _ in range(7):
            assert ask(client, address, 53, connected=connected, ports=ports) == b"hello"
    # One that came round again is the same flow, to the programs as to conntrack: addresses are the same in each test.
    earlier = _asked_from[tracer.source.backend, address]
    new = set(ports) - earlier
    earlier.update(ports)
    seen = tracer.collect(len(new), client, server)
    assert Counter(record.raw.sport for record in seen) == Counter(new)
    for record in seen:
        assert record.shape.netns == client.inode
        assert record.shape.pid == os.getpid()
        assert (record.shape.protocol, record.shape.outcome) == (IPPROTO_UDP, Outcome.ANSWERED)
        assert record.shape.family == (6 if ":" in address else 4)
        assert record.shape.dport == 53
        assert 0 < record.raw.latency_ns < 10**9


def test_many_datagrams_of_a_socket_are_one_flow(tracer: Tracer, net: Net) -> None:
    client, _, server = net

    def call() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(5)
            for _ in range(20):
                one.sendto(b"hello", ("10.0.2.2", 53))
                one.recv(100)

    with echo(server, "10.0.2.2", 53):
        client.run(call)
    assert len(tracer.collect(1, client, server)) == 1


def test_nobody_answers(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    router.iptables("-A FORWARD -p udp -j DROP")
    assert ask(client, "10.0.2.2", 53, connected=False, timeout=0.1) is None
    (record,) = tracer.collect(1, client, seconds=6)
    assert (record.shape.outcome, record.raw.latency_ns) == (Outcome.SENT, -1)


def test_a_closed_port_refuses(tracer: Tracer, net: Net) -> None:
    client, _, _ = net
    assert ask(client, "10.0.2.2", 54, connected=True) is None
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.REFUSED, errno.ECONNREFUSED)


def test_a_reject_rule_is_told_from_a_refusal(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    router.iptables("-A FORWARD -p udp --dport 55 -j REJECT")
    assert ask(client, "10.0.2.2", 55, connected=True) is None
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.REJECTED, errno.ECONNREFUSED)


def test_a_client_with_a_port_of_its_own_choice(tracer: Tracer, net: Net) -> None:
    client, _, server = net
    with echo(server, "10.0.2.2", 53):
        assert ask(client, "10.0.2.2", 53, connected=False, source_port=5353) == b"hello"
    (record,) = tracer.collect(1, client, server)
    assert (record.raw.sport, record.shape.outcome) == (5353, Outcome.ANSWERED)


def test_a_server_that_answers_from_another_machine_is_no_client(tracer: Tracer, net: Net) -> None:
    """A request comes in that no socket here sent; the answer to it is not a flow."""
    client, _, server = net

    def inject() -> None:
        # As from outside: a raw socket sends the datagram, so that no UDP socket asks.
        header = struct.pack("!HHHH", 4444, 53, 8 + 5, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            raw.sendto(header + b"hello", ("10.0.2.2", 0))

    with echo(server, "10.0.2.2", 53):
        for _ in range(3):
            client.run(inject)
    assert tracer.collect(0, server, seconds=3.5) == []
