"""What a cluster has outside its own namespaces, written down before it is made, so that anyone can remove exactly
that.

A cluster lives in the namespaces of its supervisor, and the kernel removes those with it. Three things outlive
processes: its state directory (/run/k8snet/NAME), its cgroups, and nothing else. The ledger names them. Whoever is left
removes them: the guardian when the supervisor dies, the supervisor when the guardian dies, the next command when both
died at once.

Whether a cluster lives is told by a lock (flock(2) on the file `lock` in the state directory): `up` takes it, guardian
and supervisor inherit it, and the kernel lets go of it when the last of them is gone. No process id is trusted for
that.

What belongs here: the state directory, the ledger, removing what it names. What does not: starting or stopping
anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tracer.errors import K8snetError, NotRoot, UsageError

STATE_ROOT = Path("/run/k8snet")
# Where cgroup v2 is mounted: alone, beside cgroup v1 (systemd's hybrid layout).
CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
CGROUP_PREFIX = "k8snet-"
REMOVE_SECONDS = 5.0
# What the state directory may hold; nothing else is removed from it.
STATE_FILES = (
    "ledger.json",
    "ledger.json.new",
    "control.sock",
    "control.new",
    "kubeconfig",
    "kubeconfig.new",
    "log",
    "lock",
)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def state_directory(name: str) -> Path:
    """The directory that holds all files of cluster `name`, and that is removed with it.

    Raises UsageError for a name that is none: what is at this path gets deleted, so it must not lead elsewhere.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't name a cluster: use a-z, 0-9 and -, at most 32 characters")
    return STATE_ROOT / name


@dataclass(slots=True)
class Ledger:
    """The things of one cluster that outlive its processes, and who they are.

    `cgroup`: path of the cluster's cgroup, None when the machine has no cgroup v2 to use. `guardian`: its process id
    and start time (field 22 of /proc/PID/stat), so that a reused id is not mistaken for it.
    """

    name: str
    cgroup: str | None = None
    guardian: tuple[int, int] | None = None
    supervisor: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """The state directory."""
        return state_directory(self.name)

    def write(self) -> None:
        """Put the ledger on record, whole or not at all."""
        draft = self.directory / "ledger.json.new"
        draft.write_text(json.dumps(asdict(self)) + "\n")
        draft.replace(self.directory / "ledger.json")

    @classmethod
    def read(cls, name: str) -> Ledger:
        """The ledger of cluster `name`; an empty one when nothing was ever recorded."""
        try:
            document = json.loads((state_directory(name) / "ledger.json").read_text())
            ledger = cls(**document)
            ledger.guardian = None if ledger.guardian is None else (ledger.guardian[0], ledger.guardian[1])
            ledger.supervisor = None if ledger.supervisor is None else (ledger.supervisor[0], ledger.supervisor[1])
        except (OSError, ValueError, TypeError, LookupError):
            return cls(name)
        return ledger

    def remove_everything(self) -> None:
        """Remove what the ledger names, the ledger last. Idempotent; several processes may do it at the same time.

        Raises K8snetError when a cgroup can't be removed, because a process that can't be killed is in it.
        """
        directory = self.directory
        if self.cgroup is not None:
            remove_cgroup(Path(self.cgroup))
        for name in STATE_FILES:
            (directory / name).unlink(missing_ok=True)
        for empty in (directory, STATE_ROOT):  # the last one turns off the light
            with contextlib.suppress(OSError):
                empty.rmdir()

    def remove_leftovers(self) -> None:
        """Remove what the ledger names, but keep the state directory and its lock, which the caller holds."""
        if self.cgroup is not None:
            remove_cgroup(Path(self.cgroup))
        for name in STATE_FILES:
            if name != "lock":
                (self.directory / name).unlink(missing_ok=True)


class ClusterLock:
    """The lock that tells that a cluster lives, as an open file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def take(cls, name: str) -> ClusterLock | None:
        """Take the lock of cluster `name`, making its state directory; None when somebody has it.

        Raises NotRoot when /run may not be written.
        """
        directory = state_directory(name)
        while True:
            try:
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # removed by somebody between the two calls
            except PermissionError as error:
                raise NotRoot(f"{directory} may not be written: clusters need root", hint="run it with sudo") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            if _same_file(fd, directory / "lock"):
                return cls(fd)
            os.close(fd)  # the directory was removed while we took it

    @staticmethod
    def is_held(name: str) -> bool:
        """Whether somebody has the lock of cluster `name`, that is, whether the cluster lives. Changes nothing."""
        try:
            fd = os.open(state_directory(name) / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except PermissionError as error:
            raise NotRoot("looking at a cluster needs root", hint="run it with sudo") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """Close this process's copy; the lock goes with the last copy."""
        os.close(self.fd)


def names() -> list[str]:
    """The clusters that have a state directory, living or not."""
    try:
        return sorted(entry.name for entry in STATE_ROOT.iterdir() if entry.is_dir())
    except OSError:
        return []


def process_identity(pid: int) -> tuple[int, int]:
    """A process id with the start time that makes it unique. Raises OSError when there is no such process."""
    # proc_pid_stat(5): the command, in parentheses, may hold spaces and parentheses itself.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pid, int(fields[22 - 3])


def open_process(identity: tuple[int, int] | None) -> int | None:
    """A pidfd for the process with that identity, or None when it is gone."""
    if identity is None:
        return None
    try:
        pidfd = os.pidfd_open(identity[0])
    except OSError:
        return None
    try:
        if process_identity(identity[0]) == identity:
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def find_cgroup_root() -> Path | None:
    """Where cgroup v2 is mounted, writable; None when it is not."""
    for root in CGROUP_ROOTS:
        if (root / "cgroup.controllers").exists() and os.access(root, os.W_OK):
            return root
    return None


def remove_cgroup(path: Path, patience: float = REMOVE_SECONDS) -> None:
    """Kill what is left in a cluster's cgroup and below, and remove it all. No error when it is gone already.

    Raises K8snetError when it is still busy after `patience` seconds, or is no cgroup of ours, whatever a ledger says.
    """
    if path.parent not in CGROUP_ROOTS or not path.name.startswith(CGROUP_PREFIX):
        raise K8snetError(f"{path} is no cgroup of a cluster; it is left alone")
    deadline = time.monotonic() + patience
    while path.exists():
        with contextlib.suppress(OSError):
            (path / "cgroup.kill").write_text(
                "1"
            )  # Linux commit 661ee6280931 ("cgroup: introduce cgroup.kill") (in v5.14)
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(directory)  # noqa: PTH106
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise K8snetError(f"can't remove the cgroup {directory}: {error.strerror}") from error
        if not path.exists():
            return
        if time.monotonic() > deadline:
            raise K8snetError(f"processes are still in the cgroup {path}", hint=f"cat {path}/cgroup.procs")
        time.sleep(0.005)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False
