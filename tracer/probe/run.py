"""A probe: begin flows at a bounded rate, and listen until each was answered or has had its time.

What belongs here: what is done when. What does not: what it means (`report`, `answers`).

The thread that calls `send` must be in the network namespace to send from: sockets are of where they are made.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom

from tracer.errors import K8snetError
from tracer.probe import packets
from tracer.probe.flows import Answer, Flow
from tracer.probe.packets import Ends, Reply
from tracer.probe.ports import Ports
from tracer.probe.tracking import Tracking
from tracer.probe.wire import Wire

MAX_COUNT = 10_000
MAX_RATE = 1_000.0
_TICK = 0.1  # how long a signal may have to wait

_random = SystemRandom()


@dataclass(frozen=True, slots=True)
class Plan:
    """How many flows, how many of them begin each second, and how many seconds each has to be answered."""

    count: int
    rate: float
    timeout: float


def send(
    ends: Ends,
    plan: Plan,
    tracking: Tracking | None,
    stopped: Callable[[], bool],
    payload: Callable[[int], bytes] = lambda number: packets.GREETING,
) -> list[Flow]:
    """Send what is planned and return the flows that were begun, with all that became of them.

    tracking: None where conntrack can't be listened to. payload: of the datagram with a number, from 0. Ends early when
    `stopped`. Raises NotRoot, and K8snetError when nothing can be sent.
    """
    remembered = tracking.remembered() if tracking is not None else ()
    with Ports(ends, plan.count, remembered) as ports, Wire(ends, ports.bounds) as wire:
        return _Sending(ends, plan, tracking, stopped, ports, wire).run(payload)


class _Sending:
    """One probe under way."""

    def __init__(
        self,
        ends: Ends,
        plan: Plan,
        tracking: Tracking | None,
        stopped: Callable[[], bool],
        ports: Ports,
        wire: Wire,
    ) -> None:
        self._ends, self._plan, self._tracking, self._stopped = ends, plan, tracking, stopped
        self._ports, self._wire = ports, wire
        self._flows: dict[int, Flow] = {}  # by source port
        self._open: deque[Flow] = deque()  # in the order sent, up to the first that is not over
        self._untracked: list[Flow] = []  # over, unanswered, and seen nowhere
        self._poll = select.poll()
        for fd in (*wire.filenos(), *(tracking.filenos() if tracking is not None else ())):
            self._poll.register(fd, select.POLLIN)

    def run(self, payload: Callable[[int], bytes]) -> list[Flow]:
        """See `send`."""
        began = time.monotonic()
        try:
            for number in range(self._plan.count):
                self._listen(began + number / self._plan.rate)
                if self._stopped():
                    break
                self._begin(Flow(self._ports.take(), _random.getrandbits(32), payload(number)))
            while self._open and not self._stopped():
                self._listen_once(self._deadline(self._open[0]))
        finally:
            for flow in self._open:
                self._end(flow)
            for flow in self._untracked:
                self._take_back(flow)
        if self._tracking is not None:
            self._tracking.settle()
            for flow in self._flows.values():
                flow.hops = self._tracking.hops(flow.port)
        return list(self._flows.values())

    def _begin(self, flow: Flow) -> None:
        packet = packets.opening(self._ends, flow)
        if self._tracking is not None:
            self._tracking.expect(flow.port)
        self._flows[flow.port] = flow
        self._open.append(flow)
        flow.sent_at = time.monotonic()
        flow.held_back = not self._wire.send(packet)

    def _listen(self, until: float) -> None:
        """Take in what comes until a time, which may be over already."""
        self._listen_once(until)
        while time.monotonic() < until and not self._stopped():
            self._listen_once(until)

    def _listen_once(self, until: float) -> None:
        """Wait for something, at most until a time and not for long; take it in, and end what is over."""
        if self._poll.poll(1000 * max(0.0, min(until - time.monotonic(), _TICK))):
            if self._tracking is not None:
                self._tracking.read()
            for reply, by in self._wire.receive():
                self._take_in(reply, by)
        now = time.monotonic()
        while self._open and (self._open[0].answer is not None or self._deadline(self._open[0]) <= now):
            self._end(self._open.popleft())

    def _take_in(self, reply: Reply, by: str) -> None:
        flow = self._flows.get(reply.port)
        if flow is None or flow.answer is not None:
            return
        if reply.acknowledged is not None and reply.acknowledged != (flow.sequence + 1) % (1 << 32):
            return  # it answers another SYN than ours
        flow.answer, flow.answered_at, flow.data = reply.answer, time.monotonic(), reply.data
        flow.answered_by, flow.answered_from = by, reply.by

    def _end(self, flow: Flow) -> None:
        """A flow is over. A SYN that got no TCP answer is taken back by a RST, or conntrack would keep it for minutes.

        Where a rule stopped it, a RST would be stopped in its turn, and ICMP errors are limited in number. So what
        nobody is known to have tracked is taken back when the probe ends, and not at all if it was rejected.
        """
        if self._ends.protocol == "TCP" and flow.answer not in (Answer.ANSWERED, Answer.RESET):
            if self._tracking is not None and self._tracking.tracked(flow.port):
                self._take_back(flow)
            elif flow.answer is None and not flow.held_back:
                self._untracked.append(flow)
        self._ports.release(flow.port)

    def _take_back(self, flow: Flow) -> None:
        with contextlib.suppress(K8snetError):
            self._wire.send(packets.reset(self._ends, flow))

    def _deadline(self, flow: Flow) -> float:
        return (flow.sent_at or 0.0) + self._plan.timeout
