"""A miniature cluster for tests: started and ended through the command, under a name of its own.

What belongs here: driving `k8snet-lab`, and what is left of a cluster when it has ended. What does not: assertions.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.labs.machine import REPOSITORY, Machine

MANIFEST = Path(__file__).with_name("shop.yaml")
COMMAND_SECONDS = 60.0


def lab(
    *arguments: str, check: bool = True, feed: str | None = None, enter: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `k8snet-lab`; with `check`, a failure is an AssertionError that shows what it said.

    `enter`: a command that runs another one elsewhere.
    """
    command = [*enter, sys.executable, "-m", "labs.cli", *arguments]
    options = {"cwd": REPOSITORY, "timeout": COMMAND_SECONDS, "capture_output": True, "text": True, **options}
    done = subprocess.run(command, input=feed, **options)
    assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass
class Lab:
    """One cluster. Use it as a context manager: it is up inside and gone afterwards."""

    options: Sequence[str] = ()
    name: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    machine: Machine | None = None  # that it runs on; None: this one

    def run(self, command: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of `k8snet-lab` about this cluster."""
        return lab(command, "--name", self.name, *arguments, enter=self._enter, **options)

    def command(self, command: str, *arguments: str) -> list[str]:
        """What to run for a command of `k8snet-lab` about this cluster."""
        return [*self._enter, sys.executable, "-m", "labs.cli", command, "--name", self.name, *arguments]

    @property
    def _enter(self) -> Sequence[str]:
        return () if self.machine is None else self.machine.enter

    def __enter__(self) -> Lab:
        try:
            self.run("up", *self.options)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("down")

    def status(self) -> dict[str, Any]:
        """What `status -o json` prints."""
        document: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return document

    def status_or_reasons(self) -> list[str]:
        """What keeps the cluster from being ready; [] when nothing does."""
        done = self.run("status", "-o", "json", check=False)
        reasons: list[str] = json.loads(done.stdout)["unready"]
        assert done.returncode == (1 if reasons else 0)
        return reasons

    def exec(self, target: str, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a node or in a pod."""
        return self.run("exec", target, "--", *command, check=check, **options)

    def spawn(self, target: str, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on a node or in a pod, and don't wait for it."""
        arguments = self.command("exec", target, "--", *command)
        return subprocess.Popen(arguments, cwd=REPOSITORY, text=True, **options)

    def kubeconfig(self) -> str:
        """The path of the cluster's kubeconfig."""
        return self.run("kubeconfig").stdout.strip()

    def get(self, target: str, url: str, *options: str) -> dict[str, Any]:
        """What an HTTP server of the cluster answers to curl on `target`."""
        answer: dict[str, Any] = json.loads(self.exec(target, "curl", "-sS", "--max-time", "5", *options, url).stdout)
        return answer

    def pods(self, namespace: str, prefix: str = "") -> list[dict[str, Any]]:
        """The pods of a namespace whose names start so, whether the cluster is ready or not."""
        pods = json.loads(self.run("status", "-o", "json", check=False).stdout)["pods"]
        return [pod for pod in pods if pod["namespace"] == namespace and pod["name"].startswith(prefix)]

    @property
    def directory(self) -> Path:
        """The cluster's state directory."""
        return Path("/" if self.machine is None else self.machine.root, "run/k8snet", self.name)

    def ledger(self) -> dict[str, Any]:
        """The cluster's ledger; {} when there is none (yet)."""
        try:
            document: dict[str, Any] = json.loads((self.directory / "ledger.json").read_text())
        except (OSError, ValueError):
            return {}
        return document


@dataclass
class Trace:
    """What a cluster consists of while it lives, to find what is left of it afterwards."""

    directory: Path
    cgroup: Path | None
    processes: dict[int, str] = field(default_factory=dict)  # pid -> start time
    namespaces: set[int] = field(default_factory=set)  # inodes

    @classmethod
    def of(cls, cluster: Lab) -> Trace:
        """Everything of a cluster, as far as it has come."""
        ledger = cluster.ledger()
        trace = cls(cluster.directory, Path(ledger["cgroup"]) if ledger.get("cgroup") else None)
        for known in (ledger.get("guardian"), ledger.get("supervisor")):
            if known:
                trace._add(known[0])
        return trace

    def _add(self, pid: int) -> None:
        host = Path("/proc/self/ns/net").stat().st_ino
        for process in descendants(pid):
            try:
                self.processes[process] = start_time(process)
                inode = Path(f"/proc/{process}/ns/net").stat().st_ino
            except OSError:
                continue
            if inode != host:
                self.namespaces.add(inode)

    def remains(self) -> list[str]:
        """What is still there of it, one line each."""
        left = [f"file {path}" for path in (self.directory, self.cgroup) if path is not None and path.exists()]
        left += [describe(pid) for pid, started in self.processes.items() if started and start_time(pid) == started]
        left += [f"network namespace {inode}" for inode in self.namespaces & used_namespaces()]
        return left

    def wait_until_gone(self, seconds: float) -> list[str]:
        """Wait until nothing is left, at most so long; gives what is still left then."""
        deadline = time.monotonic() + seconds
        while (left := self.remains()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left


def describe(pid: int) -> str:
    """A process in words."""
    try:
        words = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        waiting = Path(f"/proc/{pid}/wchan").read_text()
    except (OSError, ValueError):
        return f"process {pid}"
    return f"process {pid} {words['Name']}, {words['State']}, parent {words['PPid']}, in {waiting}"


def start_time(pid: int) -> str:
    """When a process started, in clock ticks; "" when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def descendants(pid: int) -> Iterator[int]:
    """A process and all that descend from it, whichever thread forked them."""
    yield pid
    children: list[str] = []
    with contextlib.suppress(OSError):  # it may go meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
    for child in children:
        yield from descendants(int(child))


def used_namespaces() -> set[int]:
    """The network namespaces that some process lives in, or that are mounted for us to see."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.add((entry / "ns" / "net").stat().st_ino)
            except OSError:
                continue
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        root = line.split()[3]
        if root.startswith("net:["):
            found.add(int(root[5:-1]))
    return found
