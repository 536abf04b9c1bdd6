"""What watching costs: throughput of short connections with a tool, beside the same without, in turns.

What belongs here: the tools compared, pairs of runs, the table. What does not: the load (`tests.bench.load`).

Machines are noisy, so no absolute rate is compared with one of another time: each run with a tool lies between two
without, and counts as its ratio to their mean; of those ratios the median is told, and between which of them the median
of endlessly many would lie. The tool "nothing" tells what the way of measuring adds.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.load import CLIENTS, CONNECTIONS, Load, Run, cluster

TRACE = str(Path(__file__).parents[2] / ".venv" / "bin" / "k8snet-trace")
SETTLE_SECONDS = 2.0
CONFIDENCE = 0.95
STATES = 'tracepoint:sock:inet_sock_set_state { printf("%s %d %d %d\\n", comm, pid, args->oldstate, args->newstate); }'


@dataclass
class Pair:
    """A run with a tool between two without. `records`: how many connections the tool told of, where it says so."""

    before: Run
    watched: Run
    after: Run
    records: int | None = None
    lost: int | None = None

    @property
    def slowdown(self) -> float:
        """Share of throughput that is gone: 0.03 for 3 %."""
        return 1 - self.watched.requests_per_second / (
            (self.before.requests_per_second + self.after.requests_per_second) / 2
        )


@dataclass
class Result:
    """All the pairs of one tool."""

    tool: str
    pairs: list[Pair] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {"tool": self.tool, "pairs": [{**_plain(pair), "slowdown": pair.slowdown} for pair in self.pairs]}


@contextlib.contextmanager
def k8snet_trace(load: Load, pair: list[int]) -> Iterator[None]:
    """The live trace: every record as JSON into a file, names and rules included."""
    with tempfile.TemporaryDirectory() as directory:
        output, ready = Path(directory, "records"), Path(directory, "ready")
        command = [
            TRACE,
            "--backend",
            "tracepoint",
            "-o",
            "json",
            "--ready-file",
            str(ready),
            "--kubeconfig",
            load.kubeconfig(),
        ]
        with output.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)
            try:
                await_ready(process, ready)
                time.sleep(SETTLE_SECONDS)  # as for the others: what its start costs is not measured here
                yield
                time.sleep(0.3)
            finally:
                process.terminate()
                errors = process.communicate()[1]
        # Those of the client pods; the machine connects for itself, too.
        pair.append(sum(b'"namespace": "bench"' in line.split(b'"destination"')[0] for line in output.open("rb")))
        pair.append(int(errors.rsplit(" records, ", 1)[1].split(" ")[0]) if " records, " in errors else -1)


def await_ready(process: subprocess.Popen[str], ready: Path) -> None:
    """Wait for the ready file, which is all that tells of a trace. Raises RuntimeError when it ends before."""
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the trace has ended with {process.returncode}")
        time.sleep(0.01)


@contextlib.contextmanager
def _command(command: list[str], settle: float = SETTLE_SECONDS) -> Iterator[None]:
    """Another tool that prints a line for each event, into a file."""
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        try:
            time.sleep(settle)  # none of them says when it is ready
            if process.poll() is not None:
                raise RuntimeError(f"{command} has ended with {process.returncode}")
            yield
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def nothing(_: Load, __: list[int]) -> Iterator[None]:
    """The same rest as before a run with the trace, and no tool."""
    time.sleep(SETTLE_SECONDS)
    yield


def conntrack(load: Load, _: list[int]) -> contextlib.AbstractContextManager[None]:
    """conntrack -E -e NEW on the node that the clients' connections are translated on."""
    return _command(load.command("node1", "conntrack", "-E", "-e", "NEW"))


def tcpdump(load: Load, _: list[int]) -> contextlib.AbstractContextManager[None]:
    """tcpdump of the SYNs on that node."""
    syn = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
    return _command(load.command("node1", "tcpdump", "-n", "-l", "-i", "any", syn))


def bpftrace(_: Load, __: list[int]) -> contextlib.AbstractContextManager[None]:
    """A line for each change of a socket's state."""
    # In mounts of its own, because it wants tracefs, which need not be mounted on the machine.
    script = 'mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; exec bpftrace -e "$0"'
    return _command(["unshare", "--mount", "sh", "-c", script, STATES], settle=4)


TOOLS: dict[str, Callable[[Load, list[int]], contextlib.AbstractContextManager[None]]] = {
    "k8snet-trace": k8snet_trace,
    "conntrack -E": conntrack,
    "tcpdump": tcpdump,
    "bpftrace": bpftrace,
    "nothing": nothing,
}


def measure(tools: Sequence[str], pairs: int, seconds: float, say: Callable[[str], None]) -> list[Result]:
    """Run `pairs` pairs with each tool, the tools in turns, and give the results in the order of `tools`."""
    results = {tool: Result(tool) for tool in tools}
    with cluster() as load:
        load.run(1)  # warm up
        before = load.run(seconds)
        for number in range(pairs):
            for tool in tools:
                told: list[int] = []
                with TOOLS[tool](load, told):
                    watched = load.run(seconds)
                time.sleep(SETTLE_SECONDS)  # as before the run with the tool: rest is part of the load
                after = load.run(seconds)
                pair = Pair(before, watched, after, *told)
                results[tool].pairs.append(pair)
                before = after
                say(f"{number + 1}/{pairs} {tool}: {_words(pair)}")
    return list(results.values())


def _words(pair: Pair) -> str:
    """A pair in one line, for whoever waits."""
    rates = [f"{run.requests_per_second:,.0f}" for run in (pair.watched, pair.before, pair.after)]
    told = "" if pair.records is None else f", {pair.records:,} records of {pair.watched.connections:,} connections"
    return f"{rates[0]}/s beside {rates[1]} and {rates[2]}: {pair.slowdown:.1%} slower{told}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which of the values the median of what they are drawn from lies, with CONFIDENCE.

    Whatever the distribution: how many of n values lie below its median is binomial, n times one half. Too few values
    (5 and less) give their whole range.
    """
    ordered, number, below = sorted(values), len(values), 0
    outside = 2 * math.comb(number, 0) / 2**number
    while below + 1 < number / 2 and outside + 2 * math.comb(number, below + 1) / 2**number <= 1 - CONFIDENCE:
        below += 1
        outside += 2 * math.comb(number, below) / 2**number
    return ordered[below], ordered[-1 - below]


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"{CLIENTS} client pods, {CONNECTIONS} connections at once, each closed after one request:",
        "",
        f"| tool | slowdown, median | {CONFIDENCE:.0%} sure | range | requests/s with it | without "
        "| records / connections |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        slowdowns = sorted(pair.slowdown for pair in result.pairs)
        low, high = interval(slowdowns)
        watched = statistics.median(pair.watched.requests_per_second for pair in result.pairs)
        without = statistics.median(pair.before.requests_per_second for pair in result.pairs)
        told = [pair for pair in result.pairs if pair.records is not None]
        records = (
            f"{sum(p.records or 0 for p in told):,} / {sum(p.watched.connections for p in told):,}" if told else ""
        )
        lines.append(
            f"| {result.tool} | {statistics.median(slowdowns):.1%} | {low:.1%} to {high:.1%} "
            f"| {slowdowns[0]:.1%} to {slowdowns[-1]:.1%} "
            f"| {watched:,.0f} | {without:,.0f} | {records} |"
        )
    return "\n".join(lines)


def _plain(pair: Pair) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(pair, default=vars))
    return plain
