"""From connection-tracking events to one record per connection: the bookkeeping of the conntrack source.

What belongs here: which events belong to one connection, and what they say of its outcome. What does not: sockets,
namespaces and threads (`tracer.source.conntrack`), bytes (`tracer.ctnetlink`). It needs no kernel.

What an event says (net/netfilter/nf_conntrack_proto_tcp.c, nf_conntrack_core.c):

    protocol  event                                                   outcome
    TCP       UPDATE to ESTABLISHED or a later state, or ASSURED      established
              DESTROY in CLOSE, no reply seen before                  refused: a RST in answer to a SYN deletes it
              UPDATE to CLOSE; DESTROY in CLOSE, reply seen before    reset: during the handshake
              DESTROY in SYN_SENT or SYN_RECV, no time left           timeout: two minutes after the last SYN
              DESTROY in them, time left                              unknown: someone deleted the entry
              UPDATE to SYN_RECV, not under way                       it begins again, see tracer.ctnetlink
    UDP       UPDATE with SEEN_REPLY                                  answered
              none for UDP_PATIENCE_NS, or DESTROY                    sent
    SCTP      UPDATE to ESTABLISHED; DESTROY in CLOSED, COOKIE_*      established; refused, timeout

What can't be told: a rejection by ICMP leaves a TCP entry in SYN_SENT and a UDP one unanswered, so it shows as timeout
or sent. A packet that a rule of the same namespace drops or rejects is never confirmed, so there is no event at all.
Where answers take another way than requests, established looks like timeout. Connections picked up in the
middle (nf_conntrack_tcp_loose) are no requests, and left out.

One connection, several entries. A packet that crosses several namespaces (pod, node, other node), or zones of one, has
an entry in each. What one translates it to is the original tuple of the next, and so they are joined: an entry belongs
to a connection when its original tuple, or what it translates that to, is one that the connection's packets have had.
In kernel time all NEW events of a connection come before its outcome, but each namespace has a socket of its own and
they are not read at the same moment. So a connection that has ended is held until every socket has been read once
more; then all its entries are known. It is reported as it was first asked for and finally sent, with the namespace that
rewrote the destination (else the source); one that nobody translated, with the namespace that it was seen in first.
Two things can't be known: which namespace that was if both events were waiting; and that two connections with equal
protocol, addresses and ports, under way at the same time in namespaces that have nothing to do with each
other, are two. They become one record.

Latency. The kernel's own times are exact. It gives them where net.netfilter.nf_conntrack_timestamp is on (since v6.14;
before, for refused connections only). Else the times at which events were read are used, if they are known well enough
beside their difference: two events that waited together say nothing, and the latency is -1. For timeout and sent it
always is, since only the process knows how long it waited.
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.ctnetlink import (
    DESTROY,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_NAT_MASK,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    NEW,
    SCTP_CLOSED,
    SCTP_COOKIE_ECHOED,
    SCTP_COOKIE_WAIT,
    SCTP_ESTABLISHED,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_RECV,
    TCP_SYN_SENT,
    TCP_SYN_SENT2,
    UPDATE,
    Message,
)
from tracer.events import Flag, Outcome, Shape

# A resolver asks again after 5 s (resolv.conf(5), options timeout); two seconds of silence are worth a line.
UDP_PATIENCE_NS = 2_000_000_000
# Longer than an entry waits in SYN_SENT: 127 s of retries (tcp_syn_retries) and 120 s after the last one.
PATIENCE_NS = 300_000_000_000
MAX_WAITING = 262_144  # as many as an entry table holds by default (nf_conntrack_max); more are reported as unknown
_NEGLIGIBLE_NS = 20_000

_HANDSHAKES = {
    IPPROTO_TCP: frozenset({TCP_SYN_SENT, TCP_SYN_RECV, TCP_SYN_SENT2}),
    IPPROTO_SCTP: frozenset({SCTP_COOKIE_WAIT, SCTP_COOKIE_ECHOED}),
}
_FIRST = {
    IPPROTO_TCP: frozenset({TCP_SYN_SENT, None}),
    IPPROTO_SCTP: frozenset({SCTP_COOKIE_WAIT, None}),
    IPPROTO_UDP: frozenset({None}),
}
_ESTABLISHED = {IPPROTO_TCP: TCP_ESTABLISHED, IPPROTO_SCTP: SCTP_ESTABLISHED}
_CLOSED = {IPPROTO_TCP: TCP_CLOSE, IPPROTO_SCTP: SCTP_CLOSED}
_LATENCY_UNKNOWN = frozenset({Outcome.TIMEOUT, Outcome.SENT, Outcome.UNKNOWN})
_DNAT, _SNAT, _NO_PROCESS = int(Flag.DNAT), int(Flag.SNAT), int(Flag.NO_PROCESS)  # "|" of an IntFlag takes 2 µs

Tuple = tuple[int, bytes, int, bytes, int]  # protocol, source, port, destination, port
# By what a namespace knows an entry: its original tuple and, unless that is 0, its zone.
EntryKey = Tuple | tuple[int, bytes, int, bytes, int, int]
Record = tuple[int, int, int, bytes]  # RawConnection


class Arrival(NamedTuple):
    """When events were read: at `time_ns` of the monotonic clock; they had waited for at most `waited_ns`."""

    time_ns: int
    waited_ns: int


class Place:
    """A network namespace as the bookkeeping knows it: its inode, and its entries that are part of a connection."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.entries: dict[EntryKey, _Flow] = {}


class _Part(NamedTuple):
    """One entry of a connection: the NEW event, the tuples before and after its translation."""

    message: Message
    place: Place
    key: EntryKey
    asked: Tuple
    sent: Tuple


class _Flow:
    """One connection: its entries, and its end."""

    __slots__ = ("arrival", "joined", "latency_ns", "open", "outcome", "parts", "reported", "start_ns")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.parts: list[_Part] = []
        self.open = 0  # entries whose own end has not been seen
        self.outcome: Outcome | None = None  # None: it goes on
        self.reported = False
        self.joined = False  # another one stands for it
        self.latency_ns = -1
        self.start_ns: int | None = None

    def tuples(self) -> set[Tuple]:
        """All tuples that its packets have had."""
        return {one for part in self.parts for one in (part.asked, part.sent)}


class Flows:
    """All connections under way. Not thread-safe."""

    def __init__(self, *, udp_patience_ns: int = UDP_PATIENCE_NS) -> None:
        self._udp_patience_ns = udp_patience_ns
        # Those that packets with a tuple may belong to, oldest first: a port is soon used again after a reset.
        self._by_tuple: dict[Tuple, list[_Flow]] = {}
        self._datagrams: dict[_Flow, None] = {}  # not reported, or with open entries; oldest first
        self._streams: dict[_Flow, None] = {}
        self._ended: list[_Flow] = []
        self._held: list[_Flow] = []

    def __len__(self) -> int:
        """How many connections are remembered."""
        return len(self._datagrams) + len(self._streams)

    @property
    def holding(self) -> bool:
        """Whether a connection has ended that `settle` has not given yet."""
        return bool(self._held or self._ended)

    def handle(self, place: Place, message: Message, arrival: Arrival) -> None:
        """Take in one event of a namespace."""
        asked: Tuple = message[2:7]
        key: EntryKey = (*asked, message.zone) if message.zone else asked
        if message.kind == NEW:
            if message.state in _FIRST[message.protocol]:
                self._begin(place, key, asked, message, arrival)
            return
        flow = place.entries.get(key)
        if flow is None:
            if _is_answer(message):  # an entry that is used again
                self._begin(place, key, asked, message, arrival)
            return
        outcome = _outcome(message)
        if outcome is None:
            return
        if flow.outcome is None:
            flow.start_ns = message.start_ns
            if outcome not in _LATENCY_UNKNOWN:
                flow.latency_ns = _latency(flow, message, arrival)
            self._end(flow, outcome)
        self._close(flow, place, key)

    def settle(self, epoch_ns: int) -> list[Record]:
        """The connections that had ended before the last call, in order of their end.

        Call it after each round of reading all sockets. `epoch_ns`: what makes a monotonic time one since the epoch.
        """
        ready, self._held, self._ended = self._held, self._ended, []
        records = []
        for flow in ready:
            if not flow.joined:
                flow.reported = True
                if not flow.open:
                    self._forget(flow)
                records.append(_record(flow, epoch_ns))
        return records

    def expire(self, now_ns: int) -> None:
        """End what has waited too long; `now_ns` of the monotonic clock."""
        for waiting, patience_ns in ((self._datagrams, self._udp_patience_ns), (self._streams, PATIENCE_NS)):
            while waiting:
                oldest = next(iter(waiting))
                if oldest.arrival.time_ns >= now_ns - patience_ns:
                    break
                del waiting[oldest]
                self._give_up(oldest)

    def forget(self, place: Place) -> None:
        """Let go of a namespace whose events come no more."""
        for key, flow in list(place.entries.items()):
            self._close(flow, place, key)
            if not flow.open:
                self._give_up(flow)

    def _begin(self, place: Place, key: EntryKey, asked: Tuple, message: Message, arrival: Arrival) -> None:
        """Take in a new entry: of a connection that is known, or of a new one."""
        if key in place.entries:  # the event about its end was lost
            self._give_up(place.entries[key])
        part = _Part(message, place, key, asked, _after(message) if _translates(message) else asked)
        flow = self._known(part.asked, part)
        if part.sent is not part.asked:
            flow = self._joined(flow, self._known(part.sent, part))
        if flow is None:
            flow = _Flow(arrival)
            waiting = self._waiting(message)
            waiting[flow] = None
            if len(waiting) > MAX_WAITING:
                oldest = next(iter(waiting))
                del waiting[oldest]
                self._give_up(oldest)
        flow.parts.append(part)
        flow.open += 1
        place.entries[key] = flow
        self._find_by(flow, part.asked)
        if part.sent is not part.asked:
            self._find_by(flow, part.sent)

    def _known(self, one: Tuple, part: _Part) -> _Flow | None:
        """The connection under way that has this tuple and that the new entry `part` belongs to, if any.

        None of those that its namespace has told of in the same words, or for which another has translated the same
        tuple: it can't be translated twice.
        """
        for flow in self._by_tuple.get(one, ()):
            if not flow.reported and not any(
                (other.place is part.place and other.key == part.key)
                or (part.sent != part.asked and other.sent != other.asked and other.asked == part.asked)
                for other in flow.parts
            ):
                return flow
        return None

    def _joined(self, flow: _Flow | None, other: _Flow | None) -> _Flow | None:
        """One connection of two that a new entry shows to be one: `flow`, with all that was known of `other`."""
        if flow is None or other is None or flow is other:
            return flow or other
        flow.parts += other.parts
        flow.open += other.open
        flow.arrival = min(flow.arrival, other.arrival)
        for part in other.parts:
            if part.place.entries.get(part.key) is other:
                part.place.entries[part.key] = flow
        self._forget(other)
        for one in other.tuples():
            self._find_by(flow, one)
        if other.outcome is not None:
            other.joined = True
            if flow.outcome is None:
                flow.latency_ns, flow.start_ns = other.latency_ns, other.start_ns
                self._end(flow, other.outcome)
        return flow

    def _find_by(self, flow: _Flow, one: Tuple) -> None:
        """Let a connection be found by one of its tuples."""
        flows = self._by_tuple.setdefault(one, [])
        if flow not in flows:
            flows.append(flow)

    def _waiting(self, message: Message) -> dict[_Flow, None]:
        return self._datagrams if message.protocol == IPPROTO_UDP else self._streams

    def _end(self, flow: _Flow, outcome: Outcome) -> None:
        flow.outcome = outcome
        self._ended.append(flow)

    def _give_up(self, flow: _Flow) -> None:
        """End a connection of which no more will be heard, and let go of all its entries."""
        if flow.outcome is None:
            datagram = flow.parts[0].message.protocol == IPPROTO_UDP
            self._end(flow, Outcome.SENT if datagram else Outcome.UNKNOWN)
        for part in flow.parts:
            if part.place.entries.get(part.key) is flow:
                self._close(flow, part.place, part.key)

    def _close(self, flow: _Flow, place: Place, key: EntryKey) -> None:
        """Let go of one entry; with the last one a connection that has been reported is forgotten."""
        del place.entries[key]
        flow.open -= 1
        if flow.reported and not flow.open:
            self._forget(flow)

    def _forget(self, flow: _Flow) -> None:
        """Drop a connection that has been reported and of which no entry is left."""
        self._datagrams.pop(flow, None)
        self._streams.pop(flow, None)
        for one in flow.tuples():
            flows = self._by_tuple[one]
            if len(flows) == 1:
                del self._by_tuple[one]
            else:
                flows.remove(flow)


def _is_answer(message: Message) -> bool:
    """Whether the event tells of the second packet of a TCP handshake."""
    return message.kind == UPDATE and message.protocol == IPPROTO_TCP and message.state == TCP_SYN_RECV


def _translates(message: Message) -> bool:
    return bool((message.status or 0) & IPS_NAT_MASK)


def _after(message: Message) -> Tuple:
    """The tuple of packets once this entry has translated them."""
    return message.protocol, message.reply_dst, message.reply_dport, message.reply_src, message.reply_sport


def _outcome(message: Message) -> Outcome | None:
    """What an UPDATE or DESTROY event says of the connection; None when it goes on."""
    protocol, state = message.protocol, message.state
    status = message.status or 0
    seen_reply = status & IPS_SEEN_REPLY
    if protocol == IPPROTO_UDP:
        if seen_reply:
            return Outcome.ANSWERED
        return Outcome.SENT if message.kind == DESTROY else None
    if protocol == IPPROTO_TCP and status & IPS_ASSURED:
        return Outcome.ESTABLISHED  # whatever came after it before the event was written: see tracer.ctnetlink
    if state == _CLOSED[protocol]:
        return Outcome.RESET if seen_reply else Outcome.REFUSED
    if state is not None and state not in _HANDSHAKES[protocol]:
        return Outcome.ESTABLISHED if state >= _ESTABLISHED[protocol] else None
    if message.kind != DESTROY:
        return None
    return Outcome.UNKNOWN if state is None or message.timeout else Outcome.TIMEOUT


def _latency(flow: _Flow, message: Message, arrival: Arrival) -> int:
    """Nanoseconds from request to outcome, -1 if not known well enough."""
    first = flow.parts[0].message
    if first.kind != NEW:
        return -1
    start_ns = message.start_ns or first.time_ns
    if start_ns and message.time_ns:
        return max(-1, message.time_ns - start_ns)
    if arrival is flow.arrival:
        return -1
    latency_ns = arrival.time_ns - flow.arrival.time_ns
    unsure_ns = arrival.waited_ns + flow.arrival.waited_ns
    return latency_ns if unsure_ns <= max(latency_ns // 4, _NEGLIGIBLE_NS) else -1


def _record(flow: _Flow, epoch_ns: int) -> Record:
    """The RawConnection of a connection that has ended."""
    way = _way(flow.parts) if len(flow.parts) > 1 else flow.parts
    first, last = way[0].message, way[-1].message
    flags, netns = 0, 0
    for part in way:
        status = part.message.status or 0
        flags |= (_DNAT if status & IPS_DST_NAT else 0) | (_SNAT if status & IPS_SRC_NAT else 0)
        if status & IPS_DST_NAT or not netns:
            netns = part.place.inode
    shape = Shape(
        0, 0, 0, netns, first.family, first.protocol, flow.outcome or 0, flags | _NO_PROCESS, 0,
        first.dport, last.reply_sport if flags & _DNAT else 0,
        first.src, first.dst, last.reply_src if flags & _DNAT else b"", b"",
    )  # fmt: skip
    time_ns = flow.start_ns or flow.parts[0].message.time_ns or flow.arrival.time_ns + epoch_ns
    return time_ns, flow.latency_ns, first.sport, shape.pack()


def _way(parts: list[_Part]) -> list[_Part]:
    """The entries that translated a connection, in the order in which packets meet them; the first seen if none did."""
    translating = {part.asked: part for part in parts if part.sent != part.asked}
    results = {part.sent for part in translating.values()}
    here = next((part for part in translating.values() if part.asked not in results), None)
    if here is None:
        return parts[:1]
    way = [here]
    while (following := translating.get(way[-1].sent)) is not None and following not in way:
        way.append(following)
    return way
