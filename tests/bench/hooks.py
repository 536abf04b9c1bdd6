"""What each hook of the tracepoint backend costs a connection, to a tenth of a microsecond, also on a busy machine.

What belongs here: one process that connects to itself through a DNAT rule, with one hook or another attached. What does
not: what a whole trace costs a whole machine (`tests.bench.overhead`).

On the loopback device a packet is queued once; between pods of two nodes four times.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.tracer.networks import Namespace, namespaces
from tracer.source import live
from tracer.source.arrivals import IDLE_SECONDS

_SOURCE = Path(__file__).with_name("connections.c")
_BATCHES = 1500
_SERVER, _CLIENT, _SERVICE = "10.1.0.1", "10.1.0.2", "10.96.0.1"
NOTHING, ALL = "no hook", "all of them"


def measure(runs: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Microseconds for a connection, by what is attached: `runs` values each, taken in turns."""
    chosen = {NOTHING: (), **{name: (name,) for name in live._TRACEPOINTS}, ALL: live._TRACEPOINTS}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as directory, namespaces(1) as (one,):
        program = Path(directory, "connections")
        subprocess.run(["gcc", "-O2", "-o", str(program), str(_SOURCE)], check=True)
        _prepare(one)
        for number in range(runs):
            for name, hooks in chosen.items():
                times[name].append(_with(hooks, lambda: _run(program, one)))
            say(f"{number + 1}/{runs}")
    return times


def table(times: dict[str, list[float]]) -> str:
    """A Markdown table of medians and of what they add to no hook at all."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = ["| attached | µs for a connection | more |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {value - medians[NOTHING]:.2f} |" for name, value in medians.items()]
    return "\n".join(lines)


def _prepare(one: Namespace) -> None:
    one.sh(
        f"ip address add {_SERVER}/32 dev lo; ip address add {_CLIENT}/32 dev lo",
        f"ip route add {_SERVICE}/32 dev lo src {_CLIENT}",
        f"iptables -t nat -A OUTPUT -d {_SERVICE} -p tcp --dport 80 -j DNAT --to-destination {_SERVER}:8080",
    )
    one.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1")


def _run(program: Path, one: Namespace) -> float:
    return float(one.sh(f"timeout 60 {program} {_SERVER} 8080 {_SERVICE} 80 {_BATCHES}"))


def _with(hooks: tuple[str, ...], action: Callable[[], float]) -> float:
    """The result of `action` while these hooks are attached and their records are read."""
    if not hooks:
        return action()
    with mock.patch.object(live, "_TRACEPOINTS", hooks), live.LiveSource("tracepoint") as source:
        quiet, stop = threading.Event(), threading.Event()

        def read() -> None:
            threading.Timer(IDLE_SECONDS + 0.5, quiet.set).start()
            while not stop.wait(0.05):
                source.read(0)

        reader = threading.Thread(target=read)
        reader.start()
        quiet.wait()
        try:
            return action()
        finally:
            stop.set()
            reader.join()
