"""tracer.source.flows: events in, records out. No kernel: each message is what one would send."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.ctnetlink import (
    DESTROY,
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    NEW,
    SCTP_CLOSED,
    SCTP_COOKIE_ECHOED,
    SCTP_COOKIE_WAIT,
    SCTP_ESTABLISHED,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_FIN_WAIT,
    TCP_SYN_RECV,
    TCP_SYN_SENT,
    UPDATE,
    Message,
)
from tracer.events import Flag, Outcome, Shape
from tracer.source import flows
from tracer.source.flows import Arrival, Flows, Place

TCP, UDP, SCTP = 6, 17, 132
MS = 1_000_000
POD, SERVICE, BACKEND, NODE = "10.244.0.10", "10.96.100.50", "10.244.1.12", "172.18.0.2"


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def entry(
    orig: tuple[str, int, str, int] = (POD, 40000, SERVICE, 8000),
    reply: tuple[str, int, str, int] | None = None,
    *,
    protocol: int = TCP,
    zone: int = 0,
) -> Message:
    """The NEW event about an entry; without `reply`, nothing is translated."""
    src, sport, dst, dport = orig
    back = reply or (dst, dport, src, sport)
    status = (IPS_DST_NAT if back[:2] != (dst, dport) else 0) | (IPS_SRC_NAT if back[2:] != (src, sport) else 0)
    state = {TCP: TCP_SYN_SENT, UDP: None, SCTP: SCTP_COOKIE_WAIT}[protocol]
    family = 6 if ":" in src else 4
    return Message(
        NEW, family, protocol, ip(src), sport, ip(dst), dport, ip(back[0]), back[1], ip(back[2]), back[3],
        status, state, 120, None, zone, 1, None, None,
    )  # fmt: skip


def dnat(**other: int) -> Message:
    """The entry of a node that translates the Service to the backend."""
    return entry((POD, 40000, SERVICE, 8000), (BACKEND, 8000, POD, 40000), **other)


def update(new: Message, state: int | None, status: int = IPS_SEEN_REPLY) -> Message:
    return new._replace(kind=UPDATE, state=state, status=(new.status or 0) | status)


def destroy(new: Message, state: int | None, status: int = 0, timeout: int | None = 100) -> Message:
    return new._replace(kind=DESTROY, state=state, status=(new.status or 0) | status, timeout=timeout)


def established(new: Message) -> Message:
    return update(new, TCP_ESTABLISHED, IPS_SEEN_REPLY | IPS_ASSURED)


class Following:
    """Flows with a clock: each event is read 1 ms after the one before, the moment it happens."""

    def __init__(self) -> None:
        self.flows = Flows()
        self.now_ns = 0

    def see(self, place: Place, *messages: Message, after_ns: int = MS, waited_ns: int = 0) -> None:
        for message in messages:
            self.now_ns += after_ns
            self.flows.handle(place, message, Arrival(self.now_ns, waited_ns))

    def records(self) -> list[tuple[int, int, int, Shape]]:
        """All that has ended: what a round that saw nothing more would give."""
        both = [*self.flows.settle(0), *self.flows.settle(0)]
        return [(time_ns, latency_ns, sport, Shape.unpack(shape)) for time_ns, latency_ns, sport, shape in both]

    def outcomes(self) -> list[Outcome]:
        return [Outcome(shape.outcome) for _, _, _, shape in self.records()]

    def one(self) -> Shape:
        ((_, _, _, shape),) = self.records()
        return shape


@pytest.fixture
def following() -> Following:
    return Following()


@pytest.fixture
def node() -> Place:
    return Place(4026532001)


def test_a_translated_connection(following: Following, node: Place) -> None:
    following.see(node, dnat(), established(dnat()))
    ((time_ns, latency_ns, sport, shape),) = following.records()
    assert (time_ns, latency_ns, sport) == (MS, MS, 40000)
    assert shape == Shape(
        cgroup_id=0, pid=0, netns=0, nat_netns=node.inode, family=4, protocol=TCP, outcome=Outcome.ESTABLISHED,
        flags=Flag.DNAT | Flag.NO_PROCESS, errno=0, dport=8000, bport=8000,
        source=ip(POD) + bytes(12), destination=ip(SERVICE) + bytes(12), backend=ip(BACKEND) + bytes(12),
        comm=bytes(16),
    )  # fmt: skip
    assert len(following.flows) == 0


@pytest.mark.parametrize("state", [TCP_FIN_WAIT, TCP_CLOSE])
def test_an_end_that_is_told_instead_of_the_beginning(following: Following, node: Place, state: int) -> None:
    """Both happened before the event was written: only that the entry is ASSURED tells that it was established."""
    following.see(node, dnat(), update(dnat(), state, IPS_SEEN_REPLY | IPS_ASSURED))
    assert following.outcomes() == [Outcome.ESTABLISHED]


def test_an_end_that_is_told_too_adds_nothing(following: Following, node: Place) -> None:
    following.see(node, dnat(), established(dnat()), update(dnat(), TCP_CLOSE, IPS_SEEN_REPLY | IPS_ASSURED))
    assert following.outcomes() == [Outcome.ESTABLISHED]
    assert len(following.flows) == 0


@pytest.mark.parametrize("status", [IPS_SEEN_REPLY, IPS_SEEN_REPLY | IPS_ASSURED])
def test_an_entry_that_is_used_again(following: Following, node: Place, status: int) -> None:
    """Linux 6.1: the same tuple soon after a reset makes no NEW event, and the first that is heard is the answer."""
    answered = update(dnat(), TCP_SYN_RECV, status)
    closed = update(dnat(), TCP_CLOSE, IPS_SEEN_REPLY | IPS_ASSURED)
    following.see(node, dnat(), established(dnat()), closed)
    following.see(node, answered, established(dnat()), closed)
    records = following.records()
    assert [(Outcome(shape.outcome), latency) for _, latency, _, shape in records] == [
        (Outcome.ESTABLISHED, MS),
        (Outcome.ESTABLISHED, -1),
    ]
    assert {shape.backend for *_, shape in records} == {ip(BACKEND) + bytes(12)}
    assert len(following.flows) == 0


def test_a_masqueraded_one_tells_of_the_source_that_asked(following: Following, node: Place) -> None:
    new = entry((POD, 40000, SERVICE, 8000), (BACKEND, 8000, NODE, 1234))
    following.see(node, new, established(new))
    ((_, _, sport, shape),) = following.records()
    assert (shape.source[:4], sport) == (ip(POD), 40000)
    assert shape.flags == Flag.DNAT | Flag.SNAT | Flag.NO_PROCESS


def test_snat_only_has_no_backend(following: Following, node: Place) -> None:
    new = entry((POD, 40000, "1.1.1.1", 443), ("1.1.1.1", 443, NODE, 1234))
    following.see(node, new, established(new))
    shape = following.one()
    assert (shape.flags, shape.backend, shape.bport) == (Flag.SNAT | Flag.NO_PROCESS, bytes(16), 0)


def test_ipv6(following: Following, node: Place) -> None:
    new = entry(("fd00::1", 1, "fd00:96::1", 80), ("fd00::2", 8080, "fd00::1", 1))
    following.see(node, new, established(new))
    shape = following.one()
    assert (shape.family, shape.destination, shape.backend) == (6, ip("fd00:96::1"), ip("fd00::2"))


@pytest.mark.parametrize(
    ("protocol", "end", "expected"),
    [
        (TCP, (UPDATE, TCP_ESTABLISHED, IPS_SEEN_REPLY | IPS_ASSURED, 432000), Outcome.ESTABLISHED),
        (TCP, (UPDATE, 4, IPS_SEEN_REPLY, 120), Outcome.ESTABLISHED),  # FIN_WAIT: the ACK came with the FIN
        (TCP, (DESTROY, 7, IPS_SEEN_REPLY | IPS_ASSURED, None), Outcome.ESTABLISHED),  # TIME_WAIT; the update was lost
        (TCP, (DESTROY, TCP_CLOSE, 0, 120), Outcome.REFUSED),
        (TCP, (UPDATE, TCP_CLOSE, IPS_SEEN_REPLY, 10), Outcome.RESET),
        (TCP, (DESTROY, TCP_CLOSE, IPS_SEEN_REPLY, 10), Outcome.RESET),
        (TCP, (DESTROY, TCP_SYN_SENT, 0, None), Outcome.TIMEOUT),
        (TCP, (DESTROY, TCP_SYN_RECV, IPS_SEEN_REPLY, None), Outcome.TIMEOUT),
        (TCP, (DESTROY, TCP_SYN_SENT, 0, 60), Outcome.UNKNOWN),  # conntrack -D, a namespace that ends
        (TCP, (DESTROY, None, 0, None), Outcome.UNKNOWN),  # before v5.9 there is no state
        (UDP, (UPDATE, None, IPS_SEEN_REPLY, 30), Outcome.ANSWERED),
        (UDP, (DESTROY, None, 0, None), Outcome.SENT),
        (UDP, (DESTROY, None, IPS_SEEN_REPLY, None), Outcome.ANSWERED),
        (SCTP, (UPDATE, SCTP_ESTABLISHED, IPS_SEEN_REPLY, 100), Outcome.ESTABLISHED),
        (SCTP, (DESTROY, SCTP_CLOSED, 0, 10), Outcome.REFUSED),
        (SCTP, (DESTROY, SCTP_COOKIE_WAIT, 0, None), Outcome.TIMEOUT),
    ],
)
def test_outcomes(
    following: Following, node: Place, protocol: int, end: tuple[int, int | None, int, int | None], expected: Outcome
) -> None:
    new = dnat(protocol=protocol)
    kind, state, status, timeout = end
    last = new._replace(kind=kind, state=state, status=(new.status or 0) | status, timeout=timeout)
    following.see(node, new, last)
    assert following.outcomes() == [expected]
    assert len(following.flows) == 0


@pytest.mark.parametrize(
    ("protocol", "state", "status"),
    [
        (TCP, TCP_SYN_RECV, IPS_SEEN_REPLY),
        (TCP, None, 0),  # a new mark
        (UDP, None, 0),
        (SCTP, SCTP_COOKIE_ECHOED, IPS_SEEN_REPLY),
    ],
)
def test_what_is_no_outcome_yet(following: Following, node: Place, protocol: int, state: int, status: int) -> None:
    new = dnat(protocol=protocol)
    following.see(node, new, update(new, state, status))
    assert following.outcomes() == []
    assert len(following.flows) == 1


def test_one_record_whatever_follows(following: Following, node: Place) -> None:
    new = dnat()
    following.see(node, new, established(new), established(new), destroy(new, 7, IPS_ASSURED))
    assert following.outcomes() == [Outcome.ESTABLISHED]


def test_connections_that_were_there_before_us_are_not_requests(following: Following, node: Place) -> None:
    following.see(node, established(dnat()), dnat()._replace(state=TCP_ESTABLISHED))
    assert following.outcomes() == []
    assert len(following.flows) == 0


def test_unanswered_datagrams_are_told_in_time(following: Following, node: Place) -> None:
    new = dnat(protocol=UDP)
    following.see(node, new)
    following.flows.expire(following.now_ns + flows.UDP_PATIENCE_NS - 1)
    assert following.outcomes() == []
    following.flows.expire(following.now_ns + flows.UDP_PATIENCE_NS + 1)
    assert following.outcomes() == [Outcome.SENT]
    following.see(node, update(new, None), destroy(new, None, IPS_SEEN_REPLY))  # too late
    assert following.outcomes() == []
    assert len(following.flows) == 0


def test_streams_are_waited_for_longer_and_given_up_in_the_end(following: Following, node: Place) -> None:
    following.see(node, dnat())
    following.flows.expire(following.now_ns + 250_000 * MS)  # 127 s of retries, 120 s of the last one's entry
    assert following.outcomes() == []
    following.flows.expire(following.now_ns + flows.PATIENCE_NS + 1)
    assert following.outcomes() == [Outcome.UNKNOWN]
    assert len(following.flows) == 0


def test_a_flood_is_bounded_and_nothing_is_left_out(
    following: Following, node: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "MAX_WAITING", 100)
    for port in range(1, 1001):
        following.see(node, entry((POD, port, SERVICE, 8000)))
    assert len(following.flows) == 100
    assert following.outcomes() == [Outcome.UNKNOWN] * 900
    assert len(node.entries) == 100


def test_the_end_of_an_entry_was_lost_and_its_port_is_used_again(following: Following, node: Place) -> None:
    following.see(node, dnat(), dnat(), established(dnat()))
    assert following.outcomes() == [Outcome.UNKNOWN, Outcome.ESTABLISHED]


def test_a_namespace_that_ends(following: Following, node: Place) -> None:
    following.see(node, dnat(), dnat(protocol=UDP))
    following.flows.forget(node)
    assert sorted(following.outcomes()) == [Outcome.UNKNOWN, Outcome.SENT]
    assert len(following.flows) == 0


class TestSeveralNamespaces:
    """pod → node1 (translates) → node2 → backend, tracked everywhere: one record, whatever the order of reading."""

    @pytest.fixture
    def places(self) -> list[Place]:
        return [Place(inode) for inode in (101, 102, 103)]

    @staticmethod
    def chain() -> list[Message]:
        return [entry(), dnat(), entry((POD, 40000, BACKEND, 8000))]

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
    @pytest.mark.parametrize("socket_by_socket", [True, False])
    def test_one_record(
        self, following: Following, places: list[Place], order: tuple[int, ...], socket_by_socket: bool
    ) -> None:
        chain = self.chain()
        if socket_by_socket:  # all that a socket holds, before the next one is read
            for i in order:
                following.see(places[i], chain[i], established(chain[i]))
        else:
            for i in order:
                following.see(places[i], chain[i])
            for i in order:
                following.see(places[i], established(chain[i]))
        shape = following.one()
        assert shape.nat_netns == 102
        assert (shape.destination[:4], shape.backend[:4]) == (ip(SERVICE), ip(BACKEND))
        assert len(following.flows) == 0

    def test_what_comes_after_the_first_round_still_belongs_to_it(
        self, following: Following, places: list[Place]
    ) -> None:
        """node2 is read first and tells of the whole connection; node1 only in the next round."""
        _, translated, after = self.chain()
        following.see(places[2], after, established(after))
        assert following.flows.settle(0) == []
        following.see(places[1], translated, established(translated))
        assert following.one().nat_netns == 102

    def test_untranslated_it_is_told_by_the_first(self, following: Following, places: list[Place]) -> None:
        for place in places:
            following.see(place, entry())
        for place in places:
            following.see(place, established(entry()))
        shape = following.one()
        assert (shape.nat_netns, shape.flags) == (101, Flag.NO_PROCESS)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_translated_twice(self, following: Following, places: list[Place], order: tuple[int, int]) -> None:
        """NodePort of a load balancer's choice: what was asked first, where it went last, who chose the backend."""
        chain = [
            entry((POD, 1, "203.0.113.5", 80), (NODE, 30080, POD, 1)),
            entry((POD, 1, NODE, 30080), (BACKEND, 8000, "10.0.0.1", 99)),
        ]
        for i in order:
            following.see(places[i], chain[i], established(chain[i]))
        shape = following.one()
        assert (shape.destination[:4], shape.dport) == (ip("203.0.113.5"), 80)
        assert (shape.backend[:4], shape.bport, shape.nat_netns) == (ip(BACKEND), 8000, places[1].inode)
        assert shape.flags == Flag.DNAT | Flag.SNAT | Flag.NO_PROCESS

    def test_back_through_the_first_namespace(self, following: Following, places: list[Place]) -> None:
        """A NodePort of the other node, whose backend is here: this namespace has two entries of one connection."""
        here, there = places[:2]
        chain = [
            (here, entry((POD, 1, "172.18.0.3", 30080))),
            (there, entry((POD, 1, "172.18.0.3", 30080), (BACKEND, 8000, "172.18.0.3", 99))),
            (here, entry(("172.18.0.3", 99, BACKEND, 8000))),
        ]
        for place, message in chain:
            following.see(place, message)
        for place, message in chain:
            following.see(place, established(message))
        assert following.one().nat_netns == there.inode

    def test_ports_used_again_at_once(self, following: Following, places: list[Place]) -> None:
        """Three connections one after the other with the same tuple, read socket by socket: three records."""
        for place, message in zip(places, self.chain(), strict=True):
            for _ in range(3):
                following.see(place, message, established(message))
        records = following.records()
        assert [(shape.nat_netns, Outcome(shape.outcome)) for *_, shape in records] == [(102, Outcome.ESTABLISHED)] * 3
        assert len(following.flows) == 0

    @given(reading=st.permutations([0, 1, 2] * 6), ports=st.lists(st.integers(1, 2), min_size=3, max_size=3))
    def test_any_order_of_reading(self, reading: list[int], ports: list[int]) -> None:
        """Three connections, some with the same tuple; each socket keeps its order, between them there is none."""
        following, places = Following(), [Place(inode) for inode in (101, 102, 103)]
        waiting: list[list[Message]] = [[], [], []]
        for port in ports:
            chain = [
                entry((POD, port, SERVICE, 8000)),
                entry((POD, port, SERVICE, 8000), (BACKEND, 8000, POD, port)),
                entry((POD, port, BACKEND, 8000)),
            ]
            for i, message in enumerate(chain):
                waiting[i] += [message, established(message)]
        for i in reading:
            following.see(places[i], waiting[i].pop(0))
        records = following.records()
        assert sorted(sport for _, _, sport, _ in records) == sorted(ports)
        assert {shape.nat_netns for *_, shape in records} == {102}
        assert len(following.flows) == 0
        assert not any(place.entries for place in places)

    def test_ports_used_again_untranslated(self, following: Following, places: list[Place]) -> None:
        for place in places:
            for _ in range(3):
                following.see(place, entry(), established(entry()))
        assert following.outcomes() == [Outcome.ESTABLISHED] * 3

    def test_two_clusters_that_use_the_same_addresses(self, following: Following, places: list[Place]) -> None:
        """One tuple can't be translated twice, so these are two."""
        other = entry((POD, 40000, SERVICE, 8000), ("10.244.9.9", 8000, POD, 40000))
        following.see(places[0], dnat(), established(dnat()))
        following.see(places[1], other, established(other))
        assert [shape.backend[:4] for *_, shape in following.records()] == [ip(BACKEND), ip("10.244.9.9")]

    def test_zones_of_one_namespace(self, following: Following, node: Place) -> None:
        first, second = entry(zone=1), dnat(zone=2)
        following.see(node, first, second, established(first), established(second))
        assert following.one().backend[:4] == ip(BACKEND)

    def test_a_namespace_on_the_way_ends(self, following: Following, places: list[Place]) -> None:
        chain = self.chain()
        for place, message in zip(places, chain, strict=True):
            following.see(place, message)
        following.flows.forget(places[2])
        following.see(places[1], established(chain[1]))
        following.see(places[0], established(chain[0]))
        assert following.outcomes() == [Outcome.ESTABLISHED]
        assert len(following.flows) == 0

    def test_records_come_in_the_order_of_their_ends(self, following: Following, places: list[Place]) -> None:
        news = [entry((POD, port, SERVICE, 8000)) for port in (1, 2, 3)]
        following.see(places[0], *news)
        following.see(places[0], *(established(news[i]) for i in (2, 0, 1)))
        assert [sport for _, _, sport, _ in following.records()] == [3, 1, 2]


class TestLatency:
    def test_of_events_that_were_read_as_they_came(self, following: Following, node: Place) -> None:
        following.see(node, dnat(), established(dnat()), after_ns=3 * MS)
        ((_, latency_ns, _, _),) = following.records()
        assert latency_ns == 3 * MS

    def test_of_events_that_waited_together(self, following: Following, node: Place) -> None:
        arrival = Arrival(5, 0)
        following.flows.handle(node, dnat(), arrival)
        following.flows.handle(node, established(dnat()), arrival)
        ((_, latency_ns, _, _),) = following.records()
        assert latency_ns == -1

    @pytest.mark.parametrize(("after_ms", "known"), [(20, False), (159, False), (160, True), (3000, True)])
    def test_is_given_if_it_is_much_longer_than_the_events_may_have_waited(
        self, following: Following, node: Place, after_ms: int, known: bool
    ) -> None:
        following.see(node, dnat(), established(dnat()), after_ns=after_ms * MS, waited_ns=20 * MS)
        ((_, latency_ns, _, _),) = following.records()
        assert latency_ns == (after_ms * MS if known else -1)

    def test_by_the_kernels_clock(self, following: Following, node: Place) -> None:
        arrival = Arrival(5, 20 * MS)
        following.flows.handle(node, dnat()._replace(time_ns=1_000_000), arrival)
        following.flows.handle(node, established(dnat())._replace(time_ns=1_000_070), arrival)
        ((time_ns, latency_ns, _, _),) = following.records()
        assert (time_ns, latency_ns) == (1_000_000, 70)

    def test_of_a_refused_one_where_only_its_end_has_the_kernels_times(self, following: Following, node: Place) -> None:
        end = destroy(dnat(), TCP_CLOSE)._replace(start_ns=2_000_000, time_ns=2_000_090)
        following.see(node, dnat(), end)
        ((time_ns, latency_ns, _, _),) = following.records()
        assert (time_ns, latency_ns) == (2_000_000, 90)

    @pytest.mark.parametrize(
        "end", [destroy(dnat(), TCP_SYN_SENT, timeout=None), destroy(dnat(), TCP_SYN_SENT, timeout=9)]
    )
    def test_of_what_only_the_process_knows(self, following: Following, node: Place, end: Message) -> None:
        following.see(node, dnat(), end)
        ((_, latency_ns, _, _),) = following.records()
        assert latency_ns == -1

    def test_time_of_the_request_since_the_epoch(self, following: Following, node: Place) -> None:
        following.see(node, dnat(), established(dnat()))
        following.flows.settle(0)
        ((time_ns, _, _, _),) = following.flows.settle(1_700_000_000_000_000_000)
        assert time_ns == 1_700_000_000_000_000_000 + MS
