"""What watching costs, with the trace switched on and off under a load that goes on: hundreds of pairs in some minutes.

What belongs here: switching, rates within windows, what is told of them. What does not: the load (`tests.bench.load`),
letting go of hooks (`tests.bench.pausable`), other tools, and whether all connections have their record
(`tests.bench.overhead`).

On a virtual machine whose neighbours can be heard, two runs some seconds apart differ by a tenth, windows of a second
side by side by less. Each window with the trace lies between two without, and counts as its ratio to their mean.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.bench.load import Load, cluster
from tests.bench.overhead import CONFIDENCE, await_ready, interval
from tests.bench.pausable import OFF, ON, STATE_FD

# Connections under way, and caches: not counted after each switch
MARGIN_SECONDS = 0.2
WARM_UP_SECONDS = 5.0  # until as many connections are closed as are opened, and memory is used again
# More sockets than these do not wait in TIME_WAIT: under a load that goes on, ports come round again within that
# minute, and to take one over costs the kernel more than a connection does.
TIME_WAIT_SOCKETS = 10_000


class Switched(Protocol):
    """Something that can be switched."""

    def on(self) -> None:
        """Switch it on; returns when it is."""
        ...

    def off(self) -> None:
        """Switch it off; returns when it is."""
        ...


class Nothing:
    """What the way of measuring adds."""

    def on(self) -> None:
        """See Switched."""

    def off(self) -> None:
        """See Switched."""


class Trace:
    """The trace, every record as JSON into a file, names and rules included. Begins switched on.

    `file`: is emptied each time. It would grow to gigabytes, and memory that a virtual machine has not used before is
    dear: its host has to find it first, which at times took from the load as much as half the trace.
    """

    def __init__(self, process: subprocess.Popen[str], told: int, file: int) -> None:
        self._process, self._told, self._file = process, told, file

    def on(self) -> None:
        """See Switched."""
        self._process.send_signal(signal.SIGCONT)
        self._expect(ON)

    def off(self) -> None:
        """See Switched."""
        self._process.send_signal(signal.SIGUSR1)
        self._expect(OFF)
        os.ftruncate(self._file, 0)

    def _expect(self, state: bytes) -> None:
        told = os.read(self._told, 1)
        if told != state:
            raise RuntimeError(f"the trace said {told!r} instead of {state!r}, and ended with {self._process.poll()}")


@dataclass(frozen=True)
class Result:
    """Connections per second in each window: `without` has one more than `watched`, the last is after it."""

    tool: str
    watched: list[float]
    without: list[float]
    summary: str | None = None

    @property
    def slowdowns(self) -> list[float]:
        """Share of throughput that is gone, of each window with the tool."""
        before_and_after = zip(self.without, self.without[1:], strict=False)
        return [
            1 - rate / ((before + after) / 2)
            for rate, (before, after) in zip(self.watched, before_and_after, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {**vars(self), "slowdowns": self.slowdowns}


@contextlib.contextmanager
def trace(load: Load) -> Iterator[tuple[Switched, list[str]]]:
    """A trace, and a list that will hold the summary that it ended with."""
    summary: list[str] = []
    told, tells = os.pipe()
    with tempfile.TemporaryDirectory() as directory, Path(directory, "records").open("wb") as file:
        ready = Path(directory, "ready")
        command = [sys.executable, "-m", "tests.bench.pausable", "--backend", "tracepoint", "-o", "json"]
        command += ["--ready-file", str(ready), "--kubeconfig", load.kubeconfig()]
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(tells,),
            env={**os.environ, STATE_FD: str(tells)},
        )
        os.close(tells)
        try:
            await_ready(process, ready)
            yield Trace(process, told, file.fileno()), summary
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            summary += process.communicate()[1].strip().splitlines()[-1:]
            os.close(told)


@contextlib.contextmanager
def nothing(_: Load) -> Iterator[tuple[Switched, list[str]]]:
    """No tool."""
    yield Nothing(), []


TOOLS: dict[str, Callable[[Load], contextlib.AbstractContextManager[tuple[Switched, list[str]]]]] = {
    "k8snet-trace": trace,
    "nothing": nothing,
}


def measure(tool: str, pairs: int, seconds: float, say: Callable[[str], None]) -> Result:
    """`pairs` windows of `seconds` with the tool, each between two without."""
    watched: list[float] = []
    with cluster(time_wait_sockets=TIME_WAIT_SOCKETS) as load, TOOLS[tool](load) as (switched, summary):
        whole = WARM_UP_SECONDS + (2 * pairs + 1) * (seconds + MARGIN_SECONDS)
        with load.going_on(whole * 1.2 + 5):
            time.sleep(WARM_UP_SECONDS)
            switched.off()
            without = [_rate(load, seconds)]
            for number in range(pairs):
                switched.on()
                watched.append(_rate(load, seconds))
                switched.off()
                without.append(_rate(load, seconds))
                if (number + 1) % 20 == 0:
                    say(f"{number + 1}/{pairs}: {statistics.median(Result(tool, watched, without).slowdowns):.1%}")
    return Result(tool, watched, without, summary[0] if summary else None)


def _rate(load: Load, seconds: float) -> float:
    """Connections per second, from a little later on."""
    time.sleep(MARGIN_SECONDS)
    began, before = time.monotonic(), load.active_opens()
    time.sleep(seconds)  # the window
    after, ended = load.active_opens(), time.monotonic()
    return (after - before) / (ended - began)


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"| tool | slowdown, median | {CONFIDENCE:.0%} sure | middle half | connections/s with it | without "
        "| windows |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        slowdowns = sorted(result.slowdowns)
        low, high = interval(slowdowns)
        quarter = len(slowdowns) // 4
        lines.append(
            f"| {result.tool} | {statistics.median(slowdowns):.1%} | {low:.1%} to {high:.1%} "
            f"| {slowdowns[quarter]:.1%} to {slowdowns[-1 - quarter]:.1%} "
            f"| {statistics.median(result.watched):,.0f} | {statistics.median(result.without):,.0f} "
            f"| {len(slowdowns)} |"
        )
    lines += ["", *(f"{result.tool}: {result.summary}" for result in results if result.summary)]
    return "\n".join(lines)
