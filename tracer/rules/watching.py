"""The Service map of a network namespace, again whenever its rules have changed.

What belongs here: when to read. What does not: what the kernel tells cheaply (`changes`), reading (`live`), what the
change means for people (`tracer.service_changes`).

Most changes show in the state that the kernel tells in a millisecond. Those of legacy tables that leave all lengths as
they were do not, and those of maps of eBPF never do, so those are read again now and then: more seldom the longer it
takes. nf_tables tells which chains
changed, so that only those are read again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from tracer import netns
from tracer.rules import nfnetlink, sockets_live
from tracer.rules.changes import State, state
from tracer.rules.live import read_rules
from tracer.rules.model import RuleSet
from tracer.rules.nfevents import Events
from tracer.rules.nftmonitor import Monitor
from tracer.rules.partial import KUBE_PROXY, Partial
from tracer.rules.refreshing import Refreshing
from tracer.rules.services import ServiceMap
from tracer.rules.sockets import Names

SETTLE_SECONDS = 0.05  # kube-proxy changes several tables one after another: read when none has changed for so long,
IMPATIENT_SECONDS = 0.5  # but wait no longer than this
LEGACY_SECONDS = 0.5  # between two readings of legacy tables whose state is the same
LEGACY_SHARE = 0.5  # and at least so many times what reading took


class Watching:
    """One network namespace (path None: the caller's own) whose Services are followed.

    names: what gives the names of Services in maps of eBPF, asked at each reading.
    """

    def __init__(self, netns_path: str | None = None, names: Callable[[], Names] = dict) -> None:
        self._path = netns_path
        self._names = names
        self._refreshing = Refreshing()
        self._rules: RuleSet | None = None
        self._partial = Partial(netns_path)
        self._events: Events | None = None
        self._monitor: Monitor | None = None
        self._state: State | None = None
        self._read = float("-inf")
        self._took = 0.0

    @property
    def services(self) -> ServiceMap:
        """The Services as they were when last looked at."""
        return self._refreshing.services

    def look(self) -> bool:
        """Look whether the rules changed; True when `services` may have. Raises as `live.read_rules` does."""
        now = state(self._path)
        if now == self._state and not self._may_hide(now):
            return False
        now = self._settled(now)
        rules = self._partly(now)
        if rules is None:
            began = time.monotonic()
            rules = self._whole(now)
            self._read = time.monotonic()
            self._took = self._read - began
        rules = replace(rules, sockets=sockets_live.met_in(self._path, self._names))
        self._rules, self._state = rules, now
        return self._refreshing.update(rules)

    def _whole(self, now: State) -> RuleSet:
        """All rules; those of before, where only maps of eBPF may have changed, which are read each time."""
        if self._rules is not None and now == self._state and not now.legacy:
            return self._rules
        self._begin_to_monitor()  # nft gets ready for that while another nft prints all
        return read_rules(self._path)

    def close(self) -> None:
        """Let go of what is open."""
        if self._events is not None:
            self._events.close()
        if self._monitor is not None:
            self._monitor.close()

    def _partly(self, now: State) -> RuleSet | None:
        """The rules with what nf_tables says has changed read anew; None where all have to be read."""
        before = self._state
        if now.generation is None or (before is not None and now.generation == before.generation):
            return None  # it is about legacy tables
        if self._events is None:
            with contextlib.suppress(OSError):
                self._events = Events(self._path)  # before all is read, so that nothing goes unheard
            return None
        touched = self._events.take(now.generation)
        if self._rules is None or before is None or now.legacy != before.legacy:
            return None
        lines = None if self._monitor is None else self._monitor.take(before.generation or 0, now.generation)
        return self._partial.read_again(self._rules, touched, lines)

    def _begin_to_monitor(self) -> None:
        """Have nft print changes, where there is a table in nftables mode: it takes long to print a large one."""
        if self._monitor is None:
            with contextlib.suppress(OSError):
                tables = netns.run_in(self._path, nfnetlink.tables)
                if any(name == KUBE_PROXY for _, name in tables):
                    self._monitor = Monitor(self._path)

    def _may_hide(self, now: State) -> bool:
        """Whether there may be changes that do not show, and it is time to see."""
        pause = max(LEGACY_SECONDS, LEGACY_SHARE * self._took)
        return now.may_hide and time.monotonic() - self._read >= pause

    def _settled(self, now: State) -> State:
        """The state once it stays the same for a moment."""
        if now == self._state or self._state is None:
            return now
        deadline = time.monotonic() + IMPATIENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)
            before, now = now, state(self._path)
            if before == now:
                break
        return now
