"""What processes pass to connect() itself, watched from the moment on that a program could rewrite it.

Belongs to the tracepoint backend, whose other hooks see only what connect() leads to. Every system call of the machine
then costs two small programs more, 7 % of the throughput of short connections: so they are compiled and attached once
there is a program at some cgroup's sockets. On a busy machine that takes seconds, in which connections go on: a thread
does it.

What belongs here: when, and that thread. What does not: the programs (`bpf/hooks_syscall.c`), compiling (`tracer.bpf`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tracer import bpf, libbpf
from tracer.bpf import Hook, Kind

CLONE_FILES = 0x400  # include/uapi/linux/sched.h

_FILES = ("connections.c", "hooks_syscall.c")
_ELSEWHERE = frozenset({"TYPED_ARGUMENTS", "LOOKS_UP"})


class Syscalls:
    """The programs at sys_enter and sys_exit, which use the maps of `programs`. Use `close` at the end.

    `defines`: those of `programs`; here arguments are never typed, and nothing is looked up. `expected`: a program that
    could rewrite addresses is to come, so that nobody should wait for it.
    """

    def __init__(self, programs: bpf.Programs, defines: Mapping[str, int], *, expected: bool = False) -> None:
        self._programs = programs
        self._expected = expected
        self._defines = {name: value for name, value in defines.items() if name not in _ELSEWHERE}
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()  # attached, or failed
        self._stop = threading.Event()
        self._error: Exception | None = None

    @property
    def attached(self) -> bool:
        """Whether connect() is watched."""
        return self._settled.is_set() and self._error is None

    def look(self, *, wait: bool = False) -> None:
        """Begin, if there is a program now that could rewrite addresses, or one to come. `wait`: until connect() is
        watched.

        Raises what went wrong since: BpfCompileError, BackendUnavailable.
        """
        if self._thread is None and (self._expected or libbpf.has_socket_address_programs()):
            self._thread = threading.Thread(target=self._run, name="connect()", daemon=True)
            self._thread.start()
        if wait and self._thread is not None:
            self._settled.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Detach and unload, also when that was about to be done. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """The thread: attach, and stay, as the descriptors are its own."""
        try:
            _own_descriptors()
            programs = bpf.Programs(_FILES, self._defines, maps_of=self._programs)
        except Exception as error:  # of whatever kind: `look` raises it in the thread that reads
            self._error = error
            self._settled.set()
            return
        try:
            for name in ("sys_enter", "sys_exit"):
                programs.attach(Hook(Kind.RAW_TRACEPOINT, name, f"on_{name}"))
        except Exception as error:  # the same
            self._error = error
        self._settled.set()
        if self._error is None:
            self._stop.wait()
        programs.close()


def _own_descriptors() -> None:
    """Give this thread a table of file descriptors of its own, until it ends.

    While BCC compiles, descriptor 2 is caught (`tracer.bpf`): what the other threads write there must come through.
    A copied socket would outlive its close() elsewhere, so those are let go of.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_FILES) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_FILES)")
    for link in Path("/proc/thread-self/fd").iterdir():
        with suppress(OSError):
            if os.readlink(link).startswith("socket:"):  # noqa: PTH115 (Path costs more than the system call)
                os.close(int(link.name))
