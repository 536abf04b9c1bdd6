"""What reading rules costs: our commands beside the programs that print them, in each of kube-proxy's modes.

What belongs here: loading rules into a namespace, timing, the table. What does not: the rules themselves
(`tests.tracer.rules.scale`).

Everything is a process of its own, Python's start included, as whoever types it waits for it; what differs from run to
run is other work on the machine, so the fastest run counts, and each is told beside the program of the same mode.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules import scale

TRACE = (sys.executable, "-m", "tracer")
DUMP = "import iptc; iptc.easy.dump_table('nat')"
PARSE = (
    "import sys, time; from pathlib import Path; from tracer.rules.files import read_files; read_files(sys.argv[1:])"
)
WATCH = "k8snet-trace services --watch, from a change to its line"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Mode:
    """One of the ways in which kube-proxy's rules come into the kernel."""

    name: str
    load: str  # reads the rules from standard input
    printer: tuple[str, ...]
    text: Callable[[int], str]
    change: Callable[[int], tuple[str, str]]  # takes an endpoint from a Service: a command, and its standard input


def _delete_rule(program: str) -> Callable[[int], tuple[str, str]]:
    return lambda number: (f"{program} -t nat -D {scale.service_chain(number)} 2", "")


def _replace_nft_rule(number: int) -> tuple[str, str]:
    chain, _, *choice = scale.nft_service(number, endpoints=2)[-1].split("\n")
    name = f"ip kube-proxy {chain.split()[1]}"
    return "nft -f -", f"flush chain {name}\nadd rule {name} {choice[0].strip()}\n"


MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "legacy",
            "iptables-legacy-restore",
            ("iptables-legacy-save",),
            scale.iptables_save,
            _delete_rule("iptables-legacy"),
        ),
        Mode("nft", "iptables-nft-restore", ("iptables-nft-save",), scale.iptables_save, _delete_rule("iptables-nft")),
        Mode("nftables", "nft -f -", ("nft", "list", "ruleset"), scale.nftables, _replace_nft_rule),
    )
}


@dataclass
class Result:
    """What one command cost. seconds: of the fastest run; None when it did not end within `limit`."""

    mode: str
    services: int
    what: str
    seconds: float | None
    processor: float
    megabytes: float
    limit: float

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return asdict(self)


def measure(modes: Sequence[str], services: Sequence[int], runs: int, limit: float, say: Say) -> list[Result]:
    """Time every command with each number of Services in each mode."""
    results = []
    for mode in (MODES[name] for name in modes):
        for count in services:
            with loaded(mode, count) as (namespace, file):
                for what, command, times in _commands(mode, count, namespace, file, runs):
                    result = _fastest(mode, count, what, command, times, limit)
                    say(_line(result))
                    results.append(result)
                results.append(watched(mode, count, namespace, runs))
                say(_line(results[-1]))
    return results


@contextmanager
def loaded(mode: Mode, count: int) -> Iterator[tuple[Namespace, Path]]:
    """A namespace with the rules of so many Services, and a file with what the mode's program prints of them."""
    with namespaces(1) as (namespace,), tempfile.TemporaryDirectory() as directory:
        subprocess.run([*inside(namespace), *mode.load.split()], input=mode.text(count), text=True, check=True)
        file = Path(directory, "rules")
        with file.open("wb") as output:
            subprocess.run([*inside(namespace), *mode.printer], stdout=output, check=True)
        yield namespace, file


def inside(namespace: Namespace) -> tuple[str, ...]:
    """What a command is run by in a namespace."""
    return ("nsenter", f"--net={namespace.path}", "--")


def _commands(
    mode: Mode, count: int, namespace: Namespace, file: Path, runs: int
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """What is measured, by which command, how many times."""
    there = inside(namespace)
    destination = f"{scale.cluster_ip(count // 2)}:80"
    yield " ".join(mode.printer), (*there, *mode.printer), runs
    yield "k8snet-trace explain", (*there, *TRACE, "explain", destination, "-o", "json"), runs
    yield "k8snet-trace services -o json", (*there, *TRACE, "services", "-o", "json"), runs
    megabytes = file.stat().st_size / 1e6
    yield f"reading a file of {megabytes:.1f} MB", (sys.executable, "-c", PARSE, str(file)), runs
    if mode.name == "legacy":
        yield "iptc.easy.dump_table", (*there, sys.executable, "-c", DUMP), 1


def _fastest(mode: Mode, count: int, what: str, command: Sequence[str], runs: int, limit: float) -> Result:
    found = [run(command, limit) for _ in range(runs)]
    ended = [seconds for seconds, _, _ in found if seconds is not None]
    processor = min(each for _, each, _ in found)
    return Result(mode.name, count, what, min(ended, default=None), processor, max(each for *_, each in found), limit)


def run(command: Sequence[str], limit: float) -> tuple[float | None, float, float]:
    """Seconds (None: more than `limit`), seconds of processor time, and the most MB resident, of one run."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    seconds: float | None = None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        elapsed = time.monotonic() - began
        if pid:
            break
        if elapsed > limit:
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            break
        time.sleep(0.002)
    process.returncode = os.waitstatus_to_exitcode(status)
    if elapsed <= limit:
        seconds = elapsed
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {process.stderr.read().decode()}")
    process.stderr.close()
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def watched(mode: Mode, count: int, namespace: Namespace, runs: int) -> Result:
    """From a change of one Service to the line that tells of it: the slowest of some runs."""
    times, usage = change_times(mode, count, namespace, runs)
    return Result(
        mode.name, count, WATCH, max(times), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, max(times)
    )


def change_times(mode: Mode, count: int, namespace: Namespace, runs: int) -> tuple[list[float], resource.struct_rusage]:
    """Seconds from each change of one Service to the line that tells of it, and what the watching process used."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory, "ready")
        command = (*inside(namespace), *TRACE, "services", "--watch", "--ready-file", str(ready))
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        while not ready.exists():
            time.sleep(0.01)
        times = []
        for number in range(1, runs + 1):
            change, text = mode.change(count // 2 + number)
            subprocess.run([*inside(namespace), *change.split()], input=text, text=True, check=True)
            began = time.monotonic()
            line = process.stdout.readline().decode()
            assert f"service-{count // 2 + number} lost" in line, line
            times.append(time.monotonic() - began)
            time.sleep(0.5)
        process.terminate()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        process.stdout.close()
    return times, usage


def _line(result: Result) -> str:
    return f"{result.mode}, {result.services:,} Services: {result.what}: {_seconds(result)}"


def _seconds(result: Result) -> str:
    return f"> {result.limit:.0f} s" if result.seconds is None else f"{result.seconds:.2f} s"


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| rules | command | time | beside the program | processor time | largest process |",
        "|---|---|---|---|---|---|",
    ]
    programs = {(each.mode, each.services): each for each in reversed(results) if each.what in _PROGRAMS}
    for result in results:
        program = programs[result.mode, result.services]
        ratio = (
            f"{result.seconds / program.seconds:.1f} ×"
            if result.seconds and program.seconds and result.what != WATCH
            else ""
        )
        lines.append(
            f"| {result.mode}, {result.services:,} Services | {result.what} | {_seconds(result)} | {ratio} "
            f"| {result.processor:.2f} s | {result.megabytes:.0f} MB |"
        )
    return "\n".join(lines)


_PROGRAMS = {" ".join(mode.printer) for mode in MODES.values()}
