"""TCP requests: who asked, for what, how it ended; without translation."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import resource
import socket
import struct
import time
from collections import Counter

import pytest

from tests.kernel.conftest import Net, Tracer
from tests.kernel.traffic import connect, listener
from tracer.events import IPPROTO_TCP, Outcome

pytestmark = pytest.mark.bpf


def test_every_connection_gives_one_record(tracer: Tracer, net: Net) -> None:
    client, _, server = net
    before = time.time_ns()
    with listener(server, "10.0.2.2", 80):
        ports = [connect(client, "10.0.2.2", 80) for _ in range(37)]
    seen = tracer.collect(37, client, server)
    assert [record.raw.sport for record in seen] == ports
    for record in seen:
        shape = record.shape
        assert (shape.pid, shape.netns, shape.nat_netns) == (os.getpid(), client.inode, 0)
        assert (shape.family, shape.protocol, shape.flags) == (4, IPPROTO_TCP, 0)
        assert (shape.outcome, shape.errno) == (Outcome.ESTABLISHED, 0)
        assert shape.source[:4] == ipaddress.ip_address("10.0.1.2").packed
        assert shape.destination[:4] == ipaddress.ip_address("10.0.2.2").packed
        assert (shape.dport, shape.bport, shape.backend) == (80, 0, bytes(16))
        assert before <= record.raw.time_ns <= time.time_ns()
        assert 0 < record.raw.latency_ns < 10**9
    assert tracer.source.losses() == {}


def test_ipv6(tracer: Tracer, net: Net) -> None:
    client, _, server = net
    with listener(server, "fd00:2::2", 80):
        port = connect(client, "fd00:2::2", 80)
    (record,) = tracer.collect(1, client)
    assert record.raw.sport == port
    assert record.shape.family == 6
    assert record.shape.source == ipaddress.ip_address("fd00:1::2").packed
    assert record.shape.destination == ipaddress.ip_address("fd00:2::2").packed


def test_an_ipv4_mapped_address_is_ipv4(tracer: Tracer, net: Net) -> None:
    client, _, server = net
    with listener(server, "10.0.2.2", 80):
        connect(client, "::ffff:10.0.2.2", 80, family=socket.AF_INET6)
    (record,) = tracer.collect(1, client)
    assert record.shape.family == 4
    assert record.shape.destination == ipaddress.ip_address("10.0.2.2").packed + bytes(12)
    assert record.shape.source == ipaddress.ip_address("10.0.1.2").packed + bytes(12)
    assert record.shape.flags == 0


def test_a_closed_port_refuses(tracer: Tracer, net: Net) -> None:
    client, _, _ = net
    with pytest.raises(ConnectionRefusedError):
        connect(client, "10.0.2.2", 81)
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.REFUSED, errno.ECONNREFUSED)
    assert record.raw.sport != 0


def test_a_connection_that_is_accepted_and_reset(tracer: Tracer, net: Net) -> None:
    """As a server does that closes with SO_LINGER 0; the accepting side gives no record."""
    client, _, server = net

    def open_socket() -> socket.socket:
        return socket.create_server(("10.0.2.2", 80))

    def call(accepting: socket.socket) -> None:
        with socket.create_connection(("10.0.2.2", 80), timeout=5) as one:
            accepted, _ = accepting.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            with pytest.raises(ConnectionResetError):
                one.recv(1)

    with server.run(open_socket) as accepting:
        for _ in range(7):
            client.run(lambda: call(accepting))
    seen = tracer.collect(7, client, server)
    assert len(seen) == 7
    for record in seen:
        assert (record.shape.outcome, record.shape.errno) == (Outcome.RESET, errno.ECONNRESET)
        assert (record.shape.netns, record.shape.pid) == (client.inode, os.getpid())
        assert 0 < record.raw.latency_ns < 10**9


def test_a_reset_after_the_first_byte_is_another_matter(tracer: Tracer, net: Net) -> None:
    client, _, server = net

    def call(accepting: socket.socket) -> None:
        with socket.create_connection(("10.0.2.2", 80), timeout=5) as one:
            accepted, _ = accepting.accept()
            accepted.send(b"x")
            assert one.recv(1) == b"x"
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    with server.run(lambda: socket.create_server(("10.0.2.2", 80))) as accepting:
        client.run(lambda: call(accepting))
    (record,) = tracer.collect(1, client, server)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.ESTABLISHED, 0)


def test_a_reject_rule_is_told_from_a_refusal(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    router.iptables("-A FORWARD -p tcp --dport 82 -j REJECT --reject-with icmp-port-unreachable")
    with pytest.raises(ConnectionRefusedError):
        connect(client, "10.0.2.2", 82)
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.REJECTED, errno.ECONNREFUSED)


def test_no_route_on_the_way_is_unreachable(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    router.ip("route add unreachable 10.9.9.0/24")
    with pytest.raises(OSError) as raised:
        connect(client, "10.9.9.9", 80)
    assert raised.value.errno == errno.EHOSTUNREACH
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.UNREACHABLE, errno.EHOSTUNREACH)


def test_a_request_that_nobody_answers_times_out(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    client.sysctl("net.ipv4.tcp_syn_retries", "1")
    router.iptables("-A FORWARD -p tcp --dport 83 -j DROP")
    with pytest.raises(OSError) as raised:
        connect(client, "10.0.2.2", 83, timeout=30)
    assert raised.value.errno == errno.ETIMEDOUT
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.TIMEOUT, errno.ETIMEDOUT)
    assert record.raw.latency_ns > 2 * 10**9  # the first SYN's second, and that of the one retry


def test_a_process_that_gives_up_waiting_times_out(tracer: Tracer, net: Net) -> None:
    client, router, _ = net
    router.iptables("-A FORWARD -p tcp --dport 83 -j DROP")
    with pytest.raises(TimeoutError):
        connect(client, "10.0.2.2", 83, timeout=0.5)
    (record,) = tracer.collect(1, client)
    assert (record.shape.outcome, record.shape.errno) == (Outcome.TIMEOUT, 0)


def test_more_requests_at_once_than_there_are_slots(tracer: Tracer, net: Net) -> None:
    """Each socket has one place where its request may lie; those that find it taken lie elsewhere."""
    client, router, _ = net
    number = 1200  # more than the 1,024 slots
    router.iptables("-A FORWARD -p tcp --dport 83 -j DROP")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * number), hard))

    def call() -> set[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for one in sockets:
                one.setblocking(False)
                assert one.connect_ex(("10.0.2.2", 83)) == errno.EINPROGRESS
            return {one.getsockname()[1] for one in sockets}

    try:
        ports = client.run(call)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    seen = tracer.collect(number, client, seconds=10)
    assert Counter(record.raw.sport for record in seen) == Counter(ports)
    assert {(record.shape.outcome, record.shape.errno) for record in seen} == {(Outcome.TIMEOUT, 0)}
    assert tracer.source.losses() == {}


def test_a_nonblocking_connect_is_the_process_own(tracer: Tracer, net: Net) -> None:
    client, _, server = net

    def call() -> None:
        with socket.socket() as one:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("10.0.2.2", 80))
            one.settimeout(5)
            one.send(b"x")
            # Asking again on a connected socket must not look like a second request.
            with contextlib.suppress(OSError):
                one.connect(("10.0.2.2", 80))

    with listener(server, "10.0.2.2", 80):
        client.run(call)
    (record,) = tracer.collect(1, client)
    assert record.shape.pid == os.getpid()
    assert record.shape.outcome == Outcome.ESTABLISHED


def test_a_connection_to_itself(tracer: Tracer, net: Net) -> None:
    """Simultaneous open: the socket goes through SYN_RECV, and is still one request."""
    client, _, _ = net

    def call() -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            one.connect(one.getsockname())

    client.run(call)
    (record,) = tracer.collect(1, client)
    assert record.shape.outcome == Outcome.ESTABLISHED
    assert record.raw.sport == record.shape.dport


def test_a_connect_without_a_route_is_seen_where_functions_can_be_probed(tracer: Tracer, net: Net) -> None:
    """The tracepoint backend does not see it, as long as no program on the machine makes it watch connect() itself: no
    socket state ever changes (KNOWN_ISSUES).
    """
    client, _, _ = net
    client.ip("route del default")
    with pytest.raises(OSError) as raised:
        connect(client, "192.0.2.1", 80)
    assert raised.value.errno == errno.ENETUNREACH
    seen = tracer.collect(1, client, seconds=1)
    assert len(seen) == (1 if tracer.source.sees_connect else 0)
    for record in seen:
        assert (record.shape.outcome, record.shape.errno) == (Outcome.UNREACHABLE, errno.ENETUNREACH)
        assert record.shape.destination[:4] == ipaddress.ip_address("192.0.2.1").packed
