"""Where one datapath is measured: namespaces and cgroups that nobody else uses, gone with it however it ends.

    the command ──starts──▶ keeper ──forks──▶ worker: PID 1 of a pid namespace, with network, mounts, cgroups

When the worker dies, the kernel ends all that it started and frees rules, maps, links and mounts. Cgroups outlive
processes: the keeper removes them, also when the command is killed; the command does when the keeper is killed; and
when both are at once, the next command does, since a cgroup of a living measurement is locked (flock(2)).

What belongs here: making that, and its end. What does not: networks inside (`wiring`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from labs.cluster import linux
from labs.cluster.ledger import CGROUP_PREFIX, CGROUP_ROOTS
from tracer.errors import K8snetError

PREFIX = f"{CGROUP_PREFIX}bench-"
BPF_FILESYSTEM = "/sys/fs/bpf"
REMOVE_SECONDS = 5.0
# The memory controller of cgroup v1 counts what the kernel allocates in a file of its own.
_MEMORY_ROOT_V1 = Path("/sys/fs/cgroup/memory")
_KERNEL_MEMORY_V1 = "memory.kmem.usage_in_bytes"


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Of one measurement: `sockets` (v2) for programs at sockets; `memory` counts what the kernel allocates.

    Each is None when the machine does not offer it; on a machine with cgroup v2 alone both are the same one.
    """

    sockets: Path | None
    memory: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(dict.fromkeys(path for path in (self.sockets, self.memory) if path is not None))

    def kernel_bytes(self) -> int | None:
        """What the kernel keeps on behalf of the processes that are, or were, in it; None when nobody counts."""
        if self.memory is None:
            return None
        with contextlib.suppress(OSError):
            return int((self.memory / _KERNEL_MEMORY_V1).read_text())
        try:
            lines = (self.memory / "memory.stat").read_text().splitlines()
        except OSError:
            return None
        # Linux commit a8c49af3be5f ("memcg: add per-memcg total kernel memory stat") (in v5.18)
        return next((int(line.split()[1]) for line in lines if line.startswith("kernel ")), None)


def run(body: Callable[[Cgroups], None]) -> int:
    """Be the keeper: run `body` as the worker, wait for its end, remove what is left; gives its exit status.

    Raises OSError where namespaces may not be made.
    """
    linux.set_parent_death_signal(signal.SIGTERM)
    # Only the worker and its children will be in it.
    linux.unshare(linux.CLONE_NEWPID)
    with _cgroups() as cgroups:
        keeper = os.getpid()
        worker = os.fork()
        if worker == 0:
            _be_worker(keeper, cgroups, body)

        def end(_number: int, _frame: FrameType | None) -> None:
            os.kill(worker, signal.SIGKILL)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        _, status = os.waitpid(worker, 0)
        for path in cgroups.all:
            _remove(path)
    return os.waitstatus_to_exitcode(status)


def sweep() -> None:
    """Remove the cgroups of measurements that nobody is alive of."""
    for root in (*CGROUP_ROOTS, _MEMORY_ROOT_V1):
        for path in root.glob(f"{PREFIX}*"):
            lock = _lock(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


def _be_worker(keeper: int, cgroups: Cgroups, body: Callable[[Cgroups], None]) -> None:
    """Never returns."""
    status = 1
    try:
        linux.set_parent_death_signal(signal.SIGKILL)
        if Path(f"/proc/{keeper}/stat").exists():  # it did not die before the line above
            for path in cgroups.all:
                (path / "cgroup.procs").write_text("0")
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
            linux.mount("proc", "/proc", "proc")
            linux.mount("tmpfs", "/run", "tmpfs")  # a lock of iptables' own, and room for files
            if Path(BPF_FILESYSTEM).exists():
                linux.mount("bpf", BPF_FILESYSTEM, "bpf")
            body(cgroups)
            status = 0
    finally:
        os._exit(status)


@contextlib.contextmanager
def _cgroups() -> Iterator[Cgroups]:
    """New ones, locked until the end."""
    name = f"{PREFIX}{secrets.token_hex(4)}"
    root = next((root for root in CGROUP_ROOTS if _is_writable_v2(root)), None)
    sockets = None if root is None else root / name
    memory = None
    if root is not None and "memory" in (root / "cgroup.subtree_control").read_text().split():
        memory = sockets
    elif (_MEMORY_ROOT_V1 / _KERNEL_MEMORY_V1).exists() and os.access(_MEMORY_ROOT_V1, os.W_OK):
        memory = _MEMORY_ROOT_V1 / name
    cgroups = Cgroups(sockets, memory)
    locks = [_make(path) for path in cgroups.all]
    try:
        yield cgroups
    finally:
        for lock in locks:
            os.close(lock)


def _is_writable_v2(root: Path) -> bool:
    return (root / "cgroup.controllers").exists() and os.access(root, os.W_OK)


def _make(path: Path) -> int:
    """Make a cgroup and lock it; a `sweep` of somebody else may come between, and then once more."""
    while True:
        path.mkdir(exist_ok=True)
        lock = _lock(path)
        if lock is not None:
            if path.exists():
                return lock
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a cgroup; None when somebody else has it, or the cgroup is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove(path: Path) -> None:
    """Remove a cgroup; its last processes may take a moment to go. Raises K8snetError when they don't."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise K8snetError(f"can't remove the cgroup {path}: {error.strerror}") from error
            time.sleep(0.01)
