"""What a live trace needs before it can begin, in the order that makes it ready soonest.

What belongs here: choosing and opening a source, waiting a little for names, telling that all is ready. What does not:
the trace itself (`tracer.trace`), how a source works (`tracer.source`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tracer import heap
from tracer.errors import BackendUnavailable, NotRoot, OutputError
from tracer.filters import Filter
from tracer.resolve import Resolver
from tracer.shapes import Shapes
from tracer.sinks import Sink
from tracer.source import Source
from tracer.tally import Tally
from tracer.trace import POLL_SECONDS, Limits, follow

if TYPE_CHECKING:
    from tracer.names import Names

NAMES_SECONDS = 0.3  # what a start may wait for names: records right at the start should have them

KEPT_BYTES = 4 << 20  # of memory that records leave: what becomes of some hundred of them is a tenth of that

FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h

# include/uapi/linux/capability.h
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked of a live trace.

    kubeconfig: None looks in the usual places. ring_buffer: bytes, None for the default. begin_file: attach, but begin
    only when this file is there, whose text is the path of the kubeconfig. rewrites_expected: see LiveSource.
    """

    backend: str = "auto"
    ring_buffer: int | None = None
    kubeconfig: str | None = None
    with_names: bool = True
    ready_file: str | None = None
    begin_file: str | None = None
    rewrites_expected: bool = False
    limits: Limits = field(default_factory=Limits)


def live(
    settings: Settings,
    wanted: Filter,
    sinks: Sequence[Sink],
    tally: Tally,
    *,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    on_ready: Callable[[Source], None] = lambda source: None,
) -> None:
    """Run a live trace until one of its limits, `stopped()`, or until nobody reads the output any more.

    Raises NotRoot, BackendUnavailable and other MissingErrors before it begins (`tally.backend` is then still empty),
    OutputError at any time.
    """
    if settings.ready_file is not None:
        clear_ready_file(settings.ready_file)
    with contextlib.ExitStack() as stack:
        names, kubeconfig = None, settings.kubeconfig
        if settings.with_names and settings.begin_file is None:
            names = _start_names(kubeconfig, stack)
        source = open_source(settings.backend, settings.ring_buffer, say, settings.rewrites_expected)
        stack.callback(source.close)
        if settings.begin_file is not None:
            kubeconfig = _await_beginning(Path(settings.begin_file), source, stopped)
            names = _start_names(kubeconfig, stack) if settings.with_names and kubeconfig is not None else None
        if names is not None:
            names.ready(NAMES_SECONDS)
            wanted = _on_this_node(wanted, names, say)
        gc.freeze()  # what is there now stays: later collections need not look at it
        heap.keep(KEPT_BYTES)
        tally.backend = source.backend
        if settings.ready_file is not None:
            write_ready_file(settings.ready_file)
        on_ready(source)
        notes = names.notes if names is not None else tuple
        shapes = Shapes(Resolver(names), wanted)
        follow(source, shapes, sinks, tally, limits=settings.limits, stopped=stopped, say=say, notes=notes)


def _await_beginning(file: Path, source: Source, stopped: Callable[[], bool]) -> str | None:
    """Wait for the file, and forget what happened before it came; gives its text, None when the trace is to end."""
    while True:
        there = file.exists()
        source.read(0)
        if there:
            return file.read_text()
        if stopped():
            return None
        time.sleep(POLL_SECONDS)


def _start_names(kubeconfig: str | None, stack: contextlib.ExitStack) -> Names:
    from tracer.names import Names

    names = Names(kubeconfig=kubeconfig)
    stack.callback(names.close)
    names.start()
    return names


def _on_this_node(wanted: Filter, names: Names, say: Callable[[str], None]) -> Filter:
    """Without --node, all is shown; but inside a node that shares its kernel with others, only what happens on it.

    The kernel tells of every network namespace. On kind each node is a container with the node's hostname, so there
    the events of all nodes come, and somebody who sits in one of them means that one. A container is told by its pid
    namespace, which is not the kernel's first.
    """
    node = names.own_node()
    if wanted.nodes or node is None or os.stat("/proc/self/ns/pid").st_ino == FIRST_PID_NAMESPACE:  # noqa: PTH116
        return wanted
    say(f"note: this node shares its kernel with others: only {node} is shown (--node '*' shows all)")
    return replace(wanted, nodes=(node,))


def open_source(
    backend: str, ring_buffer_bytes: int | None, say: Callable[[str], None], rewrites_expected: bool = False
) -> Source:
    """Attach the hooks of `backend`; "auto" takes the best that this kernel offers, conntrack's messages in the end.

    Raises NotRoot or BackendUnavailable. `say` learns when processes will be unknown. `rewrites_expected`: see
    LiveSource.
    """
    if backend == "conntrack":
        return _open_conntrack(say)
    require(CAP_SYS_ADMIN, "loading BPF programs into the kernel")
    try:
        return _open_live(backend, ring_buffer_bytes, rewrites_expected)
    except BackendUnavailable as error:
        if backend != "auto":
            raise
        say(f"note: {error.message}")
    return _open_conntrack(say)


def _open_live(backend: str, ring_buffer_bytes: int | None, rewrites_expected: bool) -> Source:
    from tracer.source.live import DEFAULT_RING_BYTES, open_live

    ring_bytes = DEFAULT_RING_BYTES if ring_buffer_bytes is None else ring_buffer_bytes
    return open_live(backend, ring_bytes=ring_bytes, rewrites_expected=rewrites_expected)


def _open_conntrack(say: Callable[[str], None]) -> Source:
    from tracer.source.conntrack import ConntrackSource

    require(CAP_NET_ADMIN, "listening to the kernel's connection tracking")
    source = ConntrackSource()
    say("note: the conntrack backend knows no processes, and sees only connections that are tracked")
    return source


def require(capability: int, purpose: str) -> None:
    """Raise NotRoot unless this process has the capability (root has), told by its number in capability.h."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> capability & 1:
            return
    raise NotRoot(f"{purpose} needs root", hint="sudo k8snet-trace")


def clear_ready_file(path: str) -> None:
    """Remove what an earlier trace left at `path`, so that nobody takes it for this one's. Raises OutputError."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OutputError(f"can't write {path}: it exists and is no regular file")
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}") from error


def write_ready_file(path: str) -> None:
    """Create `path`, holding our process id, in one step: whoever sees it sees it whole. Raises OutputError."""
    try:
        fd, temporary = tempfile.mkstemp(prefix=".k8snet-", dir=Path(path).absolute().parent)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(f"{os.getpid()}\n")
            os.chmod(temporary, 0o644)  # noqa: PTH101
            os.replace(temporary, path)  # noqa: PTH105
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}") from error
