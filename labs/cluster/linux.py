"""The Linux calls that Python 3.11 does not wrap: unshare, setns, mount, prctl; each raises OSError as os.* would.

What belongs here: one thin function for each call, and entering a network namespace for the length of a `with`. What
does not: any decision about which namespaces a node or a pod gets (`labs.cluster.runtime`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

# System calls without a wrapper in glibc 2.35; these numbers are the same on every architecture.
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD = -100
AT_RECURSIVE = 0x8000

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` (CLONE_NEW*) names for new ones: unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace that `fd` stands for; `kind`: CLONE_NEW*, or 0 for any: setns(2)."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Attach a file system: mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags))
    _check(_libc.mount(*arguments, data.encode() if data else None), f"mount {target}")


def unmount(target: str, flags: int = 0) -> None:
    """Detach a file system: umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make the mount at `new_root` this mount namespace's root, and show the old one at `put_old`: pivot_root(2)."""
    _check(_libc.pivot_root(new_root.encode(), put_old.encode()), f"pivot_root {new_root}")


def clone_mount(path: str, *, recursive: bool = False) -> int:
    """A descriptor for a copy of what is at `path`, a mount that is attached nowhere: open_tree(2) (Linux 5.2).

    `recursive`: with what is mounted below.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), ctypes.c_uint(flags)), f"open_tree {path}")


def attach_mount(fd: int, target: str) -> None:
    """Attach a mount that `clone_mount` gave: move_mount(2) (Linux 5.2)."""
    result = _libc.syscall(SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, target.encode(), ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH))
    _check(result, f"move_mount {target}")


def set_parent_death_signal(number: int) -> None:
    """Have `number` sent to this process when the thread that forked it ends: prctl(2), PR_SET_PDEATHSIG."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_process_name(name: str) -> None:
    """Set the 15 bytes that ps and /proc/PID/comm show: prctl(2), PR_SET_NAME."""
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl(PR_SET_NAME)")


def set_command_line(text: str) -> None:
    """Overwrite this process's command line, as far as `text` fits into it (proc_pid_stat(5), arg_start)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    data = text.encode()[: max(end - start - 1, 0)]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, data, len(data))


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process, to be waited for: prctl(2), PR_SET_CHILD_SUBREAPER."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


@contextlib.contextmanager
def network_namespace(fd: int) -> Iterator[None]:
    """Run the body in the network namespace that `fd` stands for; never `await` inside: the whole thread has moved.

    Sockets opened and processes started inside stay there.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
