"""`k8snet-lab bench scale`: what is measured, and in which order.

Every datapath is loaded with every number of Services, each in a worker of its own; then all of them are measured in
turns, in another order each time, new flows fifty at a time. So whatever else the machine does meanwhile falls on
all alike, and figures of ten Services can be compared with those of ten thousand.

What belongs here: plan, order, talking to the workers. What does not: measuring (`worker`), arithmetic (`results`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from labs.bench import enclosure, objects
from labs.bench.names import DATAPATHS, EBPF, IPTABLES_LEGACY, IPTABLES_NFT, NFTABLES, variant_of
from labs.bench.rates import require_programs
from labs.bench.resume import FILE, Journal
from tracer.errors import K8snetError, MissingError, NotRoot, ToolMissing, UsageError

SIZES = (10, 100, 1_000, 5_000, 10_000)
QUICK_SIZES = (10, 100, 1_000)
FEWEST = 5  # Services: three targets, and another one that changes
END_SECONDS = 10.0
# What loading takes, roughly, for the progress bar: seconds for each Service, and for each of their pairs.
LOAD_SECONDS = {
    IPTABLES_LEGACY: (3e-4, 0.0),
    IPTABLES_NFT: (1e-3, 1.1e-6),
    NFTABLES: (2e-3, 2e-7),
    EBPF: (1e-4, 0.0),
}
START_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Method:
    """How each is measured: in `rounds`, in each of which new flows are measured `sweeps` times, the rest once.

    `samples`: new flows to each target in a sweep; `seconds`: for each of the rates; `updates`: changes of an endpoint.
    """

    rounds: int
    sweeps: int
    samples: int
    seconds: int
    updates: int


THOROUGH = Method(rounds=5, sweeps=40, samples=50, seconds=1, updates=3)
QUICK = Method(rounds=1, sweeps=32, samples=50, seconds=1, updates=3)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how. `flows_only`: new flows and loading, neither rates nor changes."""

    datapaths: tuple[str, ...]
    sizes: tuple[int, ...]
    method: Method
    flows_only: bool = False


def plan(
    *, quick: bool = False, most: int | None = None, datapaths: Sequence[str] = (), flows_only: bool = False
) -> Plan:
    """The plan for what was asked. `most`: the greatest number of Services. Raises UsageError."""
    sizes: tuple[int, ...] = QUICK_SIZES if quick else SIZES
    if most is not None:
        if not FEWEST <= most <= objects.MAX_SERVICES:
            raise UsageError(f"--max {most}: from {FEWEST} to {objects.MAX_SERVICES:,} Services can be measured")
        sizes = (*(size for size in sizes if size < most), most)
    chosen = tuple(name for name in DATAPATHS if name in datapaths or not datapaths)
    return Plan(chosen, sizes, QUICK if quick else THOROUGH, flows_only)


class Progress(Protocol):
    """Is told what goes on."""

    def start(self, seconds: float) -> None:
        """All of it will take so long, roughly."""

    def show(self, what: str) -> None:
        """What is done now."""

    def advance(self, seconds: float) -> None:
        """Something is done that was thought to take so long."""


def open_journal(plan: Plan, directory: Path | None, machine: dict[str, Any]) -> Journal:
    """What was measured before in `directory`, or a new one; None: it is not kept. Raises UsageError, OutputError."""
    path = None if directory is None else directory / FILE
    return Journal.open(path, machine, asdict(plan.method))


def run(plan: Plan, journal: Journal, progress: Progress) -> None:
    """Measure what `journal` lacks of `plan`. Raises K8snetError; what was measured until then is in the journal."""
    _require(plan)
    enclosure.sweep()
    todo = [step for step in schedule(plan) if step.number >= len(journal.of(step.datapath, step.services, step.kind))]
    pairs = list(dict.fromkeys((step.datapath, step.services) for step in todo))
    pairs.sort(key=lambda pair: pair[1])
    progress.start(sum(_load_seconds(*pair) for pair in pairs) + sum(step.seconds for step in todo))
    try:
        with contextlib.ExitStack() as stack:
            workers = {}
            for datapath, services in pairs:
                progress.show(f"{datapath}: loading {services:,} Services")
                worker = workers[datapath, services] = stack.enter_context(started(datapath, services))
                journal.add(datapath, services, "load", worker.ask("load"))
                progress.advance(_load_seconds(datapath, services))
            for step in todo:
                progress.show(f"{step.datapath}, {step.services:,} Services: {step.kind}")
                answer = workers[step.datapath, step.services].ask(step.kind, **step.options)
                journal.add(step.datapath, step.services, step.kind, answer)
                progress.advance(step.seconds)
    finally:
        enclosure.sweep()


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is asked of one worker for the `number`th time; takes `seconds`, roughly."""

    kind: str
    datapath: str
    services: int
    number: int
    options: dict[str, int]
    seconds: float


def schedule(plan: Plan) -> list[Step]:
    """All steps in their order. The same each time, so that a run that goes on knows where it is."""
    method, chance = plan.method, random.Random(0)
    pairs = [(datapath, services) for services in plan.sizes for datapath in plan.datapaths]
    steps: list[Step] = []

    def add(kind: str, number: int, options: dict[str, int], seconds: float) -> None:
        for datapath, services in chance.sample(pairs, len(pairs)):
            asked = {**options, "seed": chance.getrandbits(32)} if kind == "flows" else options
            steps.append(Step(kind, datapath, services, number, asked, seconds))

    for number in range(method.rounds):
        for sweep in range(method.sweeps):
            add("flows", number * method.sweeps + sweep, {"samples": method.samples}, 6e-4 * method.samples)
        if plan.flows_only:
            continue
        add("rates", number, {"seconds": method.seconds}, 2.0 * method.seconds + 0.2)
        add("updates", number, {"count": method.updates}, 0.1 * method.updates)
    return steps


class Worker:
    """A worker that was started, from our side."""

    def __init__(self, process: subprocess.Popen[str], errors: Callable[[], str]) -> None:
        self._process = process
        self._errors = errors

    def ask(self, what: str, **options: Any) -> dict[str, Any]:
        """Have it do something, and wait. Raises K8snetError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"ask": what, **options}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise K8snetError(f"a worker of the measurement has ended: {self._errors() or 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = MissingError if answer["missing"] else K8snetError
            raise kind(answer["error"], hint=answer["hint"])
        return answer


@contextlib.contextmanager
def started(datapath: str, services: int) -> Iterator[Worker]:
    """A worker for one datapath and number of Services, gone afterwards. Call it in the main thread."""
    with tempfile.TemporaryFile("w+") as errors:

        def said() -> str:
            errors.seek(0)
            return errors.read().strip()[-2000:]

        process = subprocess.Popen(
            [sys.executable, "-m", "labs.bench.worker", datapath, str(services)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *_inherited_path()])},
        )
        try:
            yield Worker(process, said)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _inherited_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _require(plan: Plan) -> None:
    if os.geteuid() != 0:
        raise NotRoot("network namespaces can only be made by root", hint="run it with sudo")
    if not plan.flows_only:
        require_programs()
    needed = {f"iptables-{variant_of(datapath)}-restore": "iptables" for datapath in plan.datapaths}
    if NFTABLES in plan.datapaths:
        needed["nft"] = "nftables"
    for program, package in needed.items():
        if shutil.which(program) is None:
            raise ToolMissing(f"{program} is not installed; rules are loaded with it", hint=f"apt install {package}")


def _load_seconds(datapath: str, services: int) -> float:
    each, pairs = LOAD_SECONDS[datapath]
    return START_SECONDS + each * services + pairs * services**2
