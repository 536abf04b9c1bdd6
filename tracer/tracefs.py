"""The kernel's tracepoints as tracefs tells of them: their fields, and that this process can see tracefs at all.

What belongs here: reading tracefs. What does not: attaching (`tracer.bpf`). The live trace needs none of it.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import MissingError, NotRoot, UsageError

MOUNTED = Path("/sys/kernel/tracing")
_BY_DEBUGFS = Path("/sys/kernel/debug/tracing")
_FIELD = re.compile(r"^\tfield:(?P<type>.+?) ?(?P<name>\w+)(?P<array>\[[^]]*\])?;", re.MULTILINE)
# include/uapi/linux/sched.h, include/uapi/linux/mount.h
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a tracepoint, its type as in C."""

    name: str
    type: str


def directory() -> Path:
    """Where tracefs is. Where the machine has not mounted it, this process gets mounts of its own, and it there.

    Raises NotRoot, or MissingError for a kernel without it.
    """
    for path in (MOUNTED, _BY_DEBUGFS):
        if (path / "events").is_dir():
            return path
    if not MOUNTED.is_dir():
        raise MissingError("this kernel has no tracefs (/sys/kernel/tracing): its tracepoints have no names here")
    _mount()
    return MOUNTED


def fields(event: str) -> list[Field]:
    """The fields of a tracepoint, given as CATEGORY:EVENT. Raises UsageError, NotRoot or MissingError."""
    category, _, name = event.partition(":")
    if not re.fullmatch(r"\w+:\w+", event):
        raise UsageError(f"{event}: a tracepoint is named CATEGORY:EVENT, such as sock:inet_sock_set_state")
    events = directory() / "events"
    path = events / category / name / "format"
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        known = (f"{one.parent.name}:{one.name}" for one in events.glob("*/*"))
        close = difflib.get_close_matches(event, known, n=1)
        likely = f"; there is {close[0]}" if close else ""
        raise UsageError(f"this kernel has no tracepoint {event}{likely}") from error
    except OSError as error:
        raise NotRoot(f"{path}: {error.strerror}", hint=f"sudo k8snet-trace load --fields {event}") from error
    found = [Field(match["name"], match["type"] + (match["array"] or "")) for match in _FIELD.finditer(text)]
    return [field for field in found if not field.name.startswith("common_")]


def _mount() -> None:
    """In mounts that only this process has: the machine's stay as they are."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12
    where = str(MOUNTED).encode()
    if (
        libc.unshare(_CLONE_NEWNS) != 0
        or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0
        or libc.mount(b"tracefs", where, b"tracefs", ctypes.c_ulong(0), None) != 0
    ):
        reason = os.strerror(ctypes.get_errno())
        raise NotRoot(f"tracefs is not mounted, and can't be: {reason}", hint=f"mount -t tracefs tracefs {MOUNTED}")
