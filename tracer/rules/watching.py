"""The Service map of a network namespace, again whenever its rules have changed.

What belongs here: when to read. What does not: what the kernel tells cheaply (`changes`), reading (`live`), what the
change means for people (`tracer.service_changes`).

Most changes show in the state that the kernel tells in a millisecond. Those of legacy tables that leave all lengths as
they were do not, so those are read again now and then: more seldom the longer it takes.
"""

from __future__ import annotations

import time

from tracer.rules.changes import State, state
from tracer.rules.live import read_rules
from tracer.rules.refreshing import Refreshing
from tracer.rules.services import ServiceMap

SETTLE_SECONDS = 0.05  # kube-proxy changes several tables one after another: read when none has changed for so long,
IMPATIENT_SECONDS = 0.5  # but wait no longer than this
LEGACY_SECONDS = 1.0  # between two readings of legacy tables whose state is the same
LEGACY_SHARE = 3.0  # and at least so many times what reading took


class Watching:
    """One network namespace (path None: the caller's own) whose Services are followed."""

    def __init__(self, netns_path: str | None = None) -> None:
        self._path = netns_path
        self._refreshing = Refreshing()
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
        began = time.monotonic()
        changed = self._refreshing.update(read_rules(self._path))
        self._state = now
        self._read = time.monotonic()
        self._took = self._read - began
        return changed

    def _may_hide(self, now: State) -> bool:
        """Whether there may be changes that do not show, and it is time to see."""
        pause = max(LEGACY_SECONDS, LEGACY_SHARE * self._took)
        return bool(now.legacy) and time.monotonic() - self._read >= pause

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
