"""Where conntrack is asked afterwards, a TCP record says the same as where packets are looked at.

The tests of test_tcp.py and test_nat.py that need no datagrams, once more, with a source that asks from the first
connection on; and what leads back to looking. pytest runs what is imported, with the fixtures of this module: to the
linter those imports are unused (F401).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.conftest import Net, Tracer, inhabited, open_or_skip
from tests.kernel.test_losses import test_two_tracers_see_the_same  # noqa: F401 (run here, too)
from tests.kernel.test_nat import (  # noqa: F401 (run here, too)
    BACKENDS,
    backend_of,
    service,
    test_a_backend_on_the_node_itself,
    test_a_backend_that_is_gone_is_still_named,
    test_a_process_on_the_node_itself,
    test_a_request_that_is_sent_again_and_translated_anew,
    test_a_rule_that_drops_the_translated_packet_does_not_hide_where_it_went,
    test_a_second_node_translates_what_the_first_masqueraded,
    test_each_record_says_what_conntrack_holds,
    test_ipv6,
    test_masquerade_is_source_translation_without_a_backend,
)
from tests.kernel.test_tcp import (  # noqa: F401 (run here, too)
    test_a_closed_port_refuses,
    test_a_connection_that_is_accepted_and_reset,
    test_a_connection_to_itself,
    test_a_nonblocking_connect_is_the_process_own,
    test_a_process_that_gives_up_waiting_times_out,
    test_a_reject_rule_is_told_from_a_refusal,
    test_a_request_that_nobody_answers_times_out,
    test_a_reset_after_the_first_byte_is_another_matter,
    test_an_ipv4_mapped_address_is_ipv4,
    test_every_connection_gives_one_record,
    test_more_requests_at_once_than_there_are_slots,
    test_no_route_on_the_way_is_unreachable,
)
from tests.kernel.traffic import ask, connect, echo, listener
from tests.tracer.networks import SERVICE, Namespace, routed
from tracer import netns
from tracer.events import Flag, Outcome, Shape
from tracer.source import lookups
from tracer.source.live import LiveSource
from tracer.source.watch import can_ask

pytestmark = [pytest.mark.bpf, pytest.mark.skipif(not can_ask(), reason="this kernel can't ask (Linux 6.3)")]


def asking(**options: int) -> LiveSource:
    """A source that asks from now on, until something leads it back."""
    source = open_or_skip("tracepoint", busy_rate=0, **options)
    await_asking(source)
    return source


def await_asking(source: LiveSource) -> None:
    """Not for as long as what led it back before makes it look; but what leads it back next shall be seen."""
    assert source._watch is not None
    source._watch._quiet_seconds = 0.1
    deadline = time.monotonic() + 30
    while source.looks_at_packets:
        assert time.monotonic() < deadline
        source.read(0.05)
    source._watch._quiet_seconds = 8


@pytest.fixture
def open_backend() -> Callable[..., LiveSource]:
    return asking


@pytest.fixture(scope="module")
def attached() -> Iterator[LiveSource]:
    with asking() as source:
        yield source


@pytest.fixture
def tracer(attached: LiveSource, patience: float) -> Tracer:
    await_asking(attached)
    return Tracer(attached, patience)


@pytest.fixture
def net() -> Iterator[Net]:
    """As everywhere, with a process in each namespace, without which the tracer does not find it."""
    with routed() as made, ExitStack() as stack:
        for namespace in made:
            stack.enter_context(inhabited(namespace))
        yield made


def test_it_goes_on_asking(tracer: Tracer, net: Net) -> None:
    """Or the other tests would show nothing."""
    client, router, server = net
    service(router, *BACKENDS)
    with listener(server, "0.0.0.0", 8000):
        for _ in range(137):
            connect(client, SERVICE, 80)
    seen = tracer.collect(137, client)
    assert {record.shape.flags for record in seen} == {Flag.DNAT}
    assert not tracer.source.looks_at_packets


def refused(tracer: Tracer, client: Namespace) -> Shape:
    """Connect to where nobody listens."""
    with pytest.raises(ConnectionRefusedError):
        connect(client, SERVICE, 80)
    (record,) = tracer.collect(1, client)
    assert record.shape.outcome == Outcome.REFUSED
    return record.shape


def test_a_refusal_leads_back_as_conntrack_forgets_it(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    service(router, BACKENDS[0])
    with listener(server, "0.0.0.0", 8000):
        connect(client, SERVICE, 80)
    (record,) = tracer.collect(1, client)
    assert backend_of(record.shape) == (BACKENDS[0], 8000)
    lost = tracer.source.losses().get("unwatched packet", 0)

    refused(tracer, client)
    assert tracer.source.looks_at_packets
    # It is known that connections to there are translated: so something is missing.
    assert tracer.source.losses().get("unwatched packet", 0) == lost + 1

    assert backend_of(refused(tracer, client)) == (BACKENDS[0], 8000)


def test_a_port_of_ones_own_choice_leads_back(tracer: Tracer, net: Net) -> None:
    """It may be used again before conntrack is asked about the first connection."""
    client, _, server = net

    def call() -> None:
        with socket.create_connection(("10.0.2.2", 80), 5, source_address=("10.0.1.2", 4711)):
            pass

    with listener(server, "10.0.2.2", 80):
        client.run(call)
    assert [record.raw.sport for record in tracer.collect(1, client)] == [4711]
    assert tracer.source.looks_at_packets


def test_a_connected_datagram_is_told_of_and_leads_back(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    service(router, BACKENDS[1], protocol="udp", port=53)
    with echo(server, BACKENDS[1], 8000):
        ask(client, SERVICE, 53, connected=True)
        (first,) = tracer.collect(1, client)
        assert tracer.source.looks_at_packets
        ask(client, SERVICE, 53, connected=True)
        (second,) = tracer.collect(1, client)
    for record in (first, second):
        assert record.shape.outcome == Outcome.ANSWERED
        assert backend_of(record.shape) == (BACKENDS[1], 8000)
    assert second.raw.latency_ns > 0


def test_an_answer_that_comes_once_packets_are_looked_at_again(tracer: Tracer, net: Net) -> None:
    client, router, server = net
    service(router, BACKENDS[1], protocol="udp", port=53)
    netns.every(max_age=0)  # a datagram does not make the tracer look for namespaces that are less than a second old

    def open_server() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((BACKENDS[1], 8000))
        return opened

    def open_client() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.connect((SERVICE, 53))
        return opened

    with server.run(open_server) as answering, client.run(open_client) as asks:
        asks.send(b"question")
        _, peer = answering.recvfrom(100)
        while not tracer.source.looks_at_packets:
            assert not tracer.source.read(0.05)
        answering.sendto(b"answer", peer)
        (record,) = tracer.collect(1, client)
    assert record.shape.outcome == Outcome.ANSWERED
    assert record.raw.latency_ns > 0
    assert backend_of(record.shape) == (BACKENDS[1], 8000)
    assert record.shape.nat_netns == router.inode


def test_a_datagram_to_who_knows_where_is_counted(tracer: Tracer, net: Net) -> None:
    client, _, server = net
    lost = tracer.source.losses().get("unwatched packet", 0)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", ("10.0.2.2", 53))

    with echo(server, "10.0.2.2", 53):
        client.run(send)
        tracer.collect(0, client, seconds=0.2)
        assert tracer.source.losses().get("unwatched packet", 0) == lost + 1
        assert tracer.source.looks_at_packets


def test_another_network_that_comes_later_is_found(tracer: Tracer) -> None:
    """Its namespaces may have the inodes of others that are gone."""
    for _ in range(3):
        with routed() as (client, router, server), inhabited(client), inhabited(router), inhabited(server):
            service(router, BACKENDS[2])
            with listener(server, "0.0.0.0", 8000):
                connect(client, SERVICE, 80)
            (record,) = tracer.collect(1, client)
            assert backend_of(record.shape) == (BACKENDS[2], 8000)
            assert record.shape.nat_netns == router.inode
    assert not tracer.source.looks_at_packets


def test_a_signal_does_not_end_it(tracer: Tracer, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _, server = net
    run, calls = lookups.libbpf.run, []

    def interrupted(program: int, times: int) -> int:
        calls.append(times)
        if len(calls) == 1:
            raise InterruptedError
        return run(program, times)

    monkeypatch.setattr(lookups.libbpf, "run", interrupted)
    with listener(server, "10.0.2.2", 80):
        connect(client, "10.0.2.2", 80)
    assert len(tracer.collect(1, client)) == 1
    assert len(calls) > 1
