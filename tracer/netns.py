"""Network namespaces of this machine: the path that leads to an inode, what a user means by a name, entering one.

What belongs here: finding, naming and entering network namespaces that exist. What does not: making or removing them
(the tracer changes nothing on the machine), and reading anything inside them (`tracer.rules`, `tracer.source`).

A network namespace is known by the inode number of its nsfs file, as the kernel's `net->ns.inum` and `stat` of
/proc/PID/ns/net give it (namespaces(7)). Three things keep one alive, and are looked at in this order: a bind mount in
our own mount namespace (`ip netns add`, container runtimes), a process in it, a bind mount in another mount namespace
(a runtime with a private /run/netns). One held only by an open file descriptor or socket is not found.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from tracer.errors import K8snetError, MissingError, NotRoot, UsageError

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h: _IO(0xb7, 0x3)

NAMED_DIRECTORIES = ("/run/netns", "/var/run/netns", "/run/docker/netns", "/var/run/docker/netns")
RESCAN_SECONDS = 1.0
MAX_MOUNT_NAMESPACES = 256  # other mount namespaces looked into in one scan

_NSFS_ROOT = re.compile(r"net:\[(\d+)\]")  # field 4 of a mountinfo line for a bind-mounted network namespace
_OCTAL = re.compile(r"\\([0-7]{3})")  # mountinfo escapes space, tab, newline and backslash so (fs/proc_namespace.c)

T = TypeVar("T")


def own() -> int:
    """The inode of the calling thread's network namespace."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def inode(path: str) -> int:
    """The inode of the network namespace at `path`.

    Raises MissingError when it is gone, NotRoot when it may not be looked at.
    """
    try:
        return os.stat(path).st_ino  # noqa: PTH116 (Path costs more than the system call)
    except OSError as error:
        raise _wrapped(error, path) from error


def find(inode: int) -> str | None:
    """A path that leads to the network namespace with this inode, or None when none is found.

    A known one costs one stat. An unknown one may cost a scan of /proc (about 5 µs for each process), at most once in
    RESCAN_SECONDS whoever asks, so call it where that does not matter. The path may cease to be valid at any time.
    """
    return _index.find(inode)


def every(*, max_age: float | None = None) -> dict[int, str]:
    """All network namespaces that can be found: inode to a path that leads there, as a scan found them that began at
    most `max_age` seconds ago (None: RESCAN_SECONDS). Costs what `find` costs at worst.
    """
    return _index.every(max_age)


def resolve(spec: str) -> str:
    """The path of the network namespace that a user names: a name as in `ip netns`, a process id, or a path.

    A number is a process id unless only a namespace of that name exists. Raises UsageError when there is none such,
    NotRoot when it may not be looked at.
    """
    for path in _candidates(spec):
        try:
            if _is_network_namespace(path):
                return path
        except (FileNotFoundError, ValueError):  # ValueError: a NUL in it
            continue
        except OSError as error:
            raise _wrapped(error, path) from error
        raise UsageError(f"{path} is not a network namespace")
    raise UsageError(
        f"there is no network namespace {spec!r}: neither a name, nor a process id, nor a path",
        hint="ip netns list; lsns -t net",
    )


def run_in(path: str | None, function: Callable[[], T]) -> T:
    """Call `function` in the network namespace at `path` (None: the caller's own) and return what it returns.

    It runs in a thread of its own that ends with the call, so no other thread ever changes its namespace; processes
    that it starts and sockets that it opens live in the namespace. What it raises is raised here. Raises NotRoot
    without CAP_SYS_ADMIN, MissingError when the namespace is gone, UsageError when the path is no network namespace.
    """
    if path is None:
        return function()
    outcome: Future[T] = Future()
    thread = threading.Thread(target=_call_in, args=(path, function, outcome), name="netns", daemon=True)
    thread.start()
    return outcome.result()


def _call_in(path: str, function: Callable[[], T], outcome: Future[T]) -> None:
    """The thread of `run_in`."""
    try:
        _enter(path)
        outcome.set_result(function())
    except BaseException as error:
        outcome.set_exception(error)


def _enter(path: str) -> None:
    """Move the calling thread into the network namespace at `path` (setns(2))."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
            if libc.setns(fd, CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
        finally:
            os.close(fd)
    except OSError as error:
        raise _wrapped(error, path) from error


def _candidates(spec: str) -> Iterator[str]:
    """The paths that `spec` may mean, likeliest first."""
    if "/" in spec:
        yield spec
        return
    if spec.isascii() and spec.isdigit():
        yield f"/proc/{spec}/ns/net"
    if spec not in ("", ".", ".."):
        yield from (f"{directory}/{spec}" for directory in NAMED_DIRECTORIES)


def _is_network_namespace(path: str) -> bool:
    """Whether the file at `path` stands for a network namespace. Raises OSError when it can't be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    finally:
        os.close(fd)


def _wrapped(error: OSError, path: str) -> K8snetError:
    """The error of our tree for what the kernel said about `path`."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return NotRoot(f"the network namespace {path} may not be entered: {error.strerror}", hint="run it with sudo")
    if error.errno in (errno.EINVAL, errno.ENOTDIR):
        return UsageError(f"{path} is not a network namespace")
    return MissingError(f"the network namespace {path} is gone: {error.strerror}", hint="ip netns list; lsns -t net")


class _Index:
    """What the last scan found: one path for each inode. Bounded by the number of namespaces that the machine has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._scanned = float("-inf")

    def find(self, inode: int) -> str | None:
        """See the module's `find`."""
        path = self._paths.get(inode)
        if path is not None and _leads_to(path, inode):
            return path
        path = self._scanned_paths().get(inode)
        return path if path is not None and _leads_to(path, inode) else None

    def every(self, max_age: float | None) -> dict[int, str]:
        """See the module's `every`."""
        return dict(self._scanned_paths(max_age))

    def _scanned_paths(self, max_age: float | None = None) -> dict[int, str]:
        """What a scan found that is not older than that, see `every`."""
        with self._lock:
            now = time.monotonic()
            if now - self._scanned >= (RESCAN_SECONDS if max_age is None else max_age):
                self._paths = _scan()
                self._scanned = now
            return self._paths


def _leads_to(path: str, inode: int) -> bool:
    """Whether `path` still stands for that namespace: names are used again, and so are process ids."""
    try:
        return os.stat(path).st_ino == inode  # noqa: PTH116
    except OSError:
        return False


def _scan() -> dict[int, str]:
    """Every network namespace that can be found, with the path that is likeliest to last."""
    paths = dict(_mounted("/proc/self/mountinfo", ""))
    mount_namespaces = {_stat_inode("/proc/self/ns/mnt"): 0}
    for pid in _pids():
        net = _stat_inode(f"/proc/{pid}/ns/net")
        if net is None:
            continue
        paths.setdefault(net, f"/proc/{pid}/ns/net")
        if len(mount_namespaces) <= MAX_MOUNT_NAMESPACES:
            mount_namespaces.setdefault(_stat_inode(f"/proc/{pid}/ns/mnt"), pid)
    for pid in mount_namespaces.values():
        if pid:
            for net, path in _mounted(f"/proc/{pid}/mountinfo", f"/proc/{pid}/root"):
                paths.setdefault(net, path)
    return paths


def _pids() -> Iterator[int]:
    """The ids of all processes, oldest first as a rule: a container's init outlives what it started."""
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _mounted(mountinfo: str, prefix: str) -> Iterator[tuple[int, str]]:
    """Network namespaces that are bind-mounted according to a mountinfo file (proc_pid_mountinfo(5)): inode, path."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
            for line in lines:
                if " net:[" not in line:
                    continue
                fields = line.split(" ", 5)
                match = _NSFS_ROOT.fullmatch(fields[3])
                if match:
                    yield int(match[1]), prefix + _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
    except OSError:
        return  # the process ended, or may not be looked at


def _stat_inode(path: str) -> int | None:
    """The inode of a file, or None when the process is gone or may not be looked at."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except OSError:
        return None


_index = _Index()
