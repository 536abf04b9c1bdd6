"""A container's log: what it wrote, line by line, each with its time.

Stands for containerd's CRI logger (internal/cri/io/logger.go) and the kubelet's container log manager. The format is
the CRI's (kubernetes/design-proposals-archive, node/kubelet-cri-logging.md), one line for each line:

    2026-11-22T09:00:00.123456789Z stdout F text      F: a full line; P: the line goes on, or never ended

Times are those of reading, so lines that came together share one. A log that has grown to the kubelet's
containerLogMaxSize begins anew; what was in it is dropped, where the kubelet keeps four such files: `kubectl logs`
shows only the newest, and nobody could read the others here.

What belongs here: the format, in both directions, and the file. What does not: where the bytes come from
(`labs.cluster.containerio`), which part of a log somebody wants (`labs.cluster.api.logs`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from labs.cluster.resources import Object, key_of

LOG_ROOT = Path("/run/log/pods")
MAX_LINE = 16 * 1024  # containerd's max_container_log_line_size
MAX_BYTES = 10 * 1024 * 1024  # containerLogMaxSize
STDOUT, STDERR = b"stdout", b"stderr"

log = logging.getLogger(__name__)


class Line(NamedTuple):
    """One line of a log. `time`: RFC 3339 with nine digits, in UTC, so that it sorts as text; `text` has its newline
    unless the line goes on."""

    time: bytes
    stream: bytes
    text: bytes


def parse(line: bytes) -> Line:
    """A line of the file, with or without its newline."""
    when, stream, tag, text = line.removesuffix(b"\n").split(b" ", 3)
    return Line(when, stream, text if tag == b"P" else text + b"\n")


def stamp(nanoseconds: int) -> bytes:
    """A time (since 1970) as logs have it."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z").encode()


def pod_directory(pod: Object) -> Path:
    """Where the logs of a pod are, named as kubelet names it."""
    namespace, name = key_of(pod)
    return LOG_ROOT / f"{namespace}_{name}_{pod['metadata']['uid']}"


def path_of(pod: Object, container: str, identifier: str) -> Path:
    """The log of one container, which has that id; kubelet names the file by the number of restarts."""
    return pod_directory(pod) / container / f"{identifier}.log"


def forget_pod(pod: Object) -> None:
    """Remove the logs of a pod that is gone."""
    shutil.rmtree(pod_directory(pod), ignore_errors=True)


class ContainerLog:
    """The log of a container that runs."""

    def __init__(self, path: Path) -> None:
        """Begin a log. Of its directory's others, which are of former containers, `forget_older` keeps the newest."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rest: dict[bytes, bytes] = {}  # of each stream, the line that has not ended yet
        self._waiting: set[asyncio.Future[None]] = set()
        self._open()
        self.closed = False

    def forget_older(self) -> None:
        """Remove the logs of former containers but the last one, which `kubectl logs --previous` shows."""
        others = (path for path in self.path.parent.glob("*.log") if path != self.path)
        for path in sorted(others, key=lambda one: one.stat().st_mtime_ns)[:-1]:
            path.unlink()

    def write(self, stream: bytes, data: bytes) -> None:
        """Add what was read from a stream."""
        # containerd takes the line end of terminals for one, too.
        *lines, rest = (self._rest.pop(stream, b"") + data).replace(b"\r\n", b"\n").split(b"\n")
        head = stamp(time.time_ns()) + b" " + stream
        full, partial = head + b" F ", head + b" P "
        parts = []
        for line in lines:
            if len(line) > MAX_LINE:
                pieces, line = _cut(line)
                parts += [partial + piece for piece in pieces]
            parts.append(full + line)
        if len(rest) > MAX_LINE:
            pieces, rest = _cut(rest)
            parts += [partial + piece for piece in pieces]
        if rest:
            self._rest[stream] = rest
        if parts:
            self._append(b"\n".join(parts) + b"\n")

    def close(self) -> None:
        """Write down lines that never ended; there will be no more."""
        if self.closed:
            return
        head = stamp(time.time_ns())
        for stream, rest in self._rest.items():
            self._append(b"%s %s P %s\n" % (head, stream, rest))
        self._rest.clear()
        self.closed = True
        os.close(self._fd)
        self._wake()

    async def changed(self) -> None:
        """Wait until there is more, or an end."""
        if self.closed:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = 0

    def _append(self, data: bytes) -> None:
        if self._size > MAX_BYTES:
            os.close(self._fd)
            self.path.unlink(missing_ok=True)  # not emptied: who reads it now has it to its end
            self._open()
        try:
            os.write(self._fd, data)
        except OSError as error:  # such as a full disk: the container is not to stop for that
            log.warning("%s: %s", self.path, error)
        self._size += len(data)
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


def _cut(line: bytes) -> tuple[list[bytes], bytes]:
    """A line's pieces of MAX_LINE bytes, and what is left, which is not empty."""
    last = (len(line) - 1) // MAX_LINE * MAX_LINE
    return [line[start : start + MAX_LINE] for start in range(0, last, MAX_LINE)], line[last:]


def tail_start(fd: int, lines: int) -> int:
    """Where the last so many lines of a file begin (pkg/util/tail, FindTailLineStartIndex)."""
    end = os.fstat(fd).st_size
    if lines <= 0:
        return end
    position, missing = end, lines + 1  # the newline before the first of them is wanted, too
    while position > 0:
        start = max(position - (1 << 16), 0)
        block = os.pread(fd, position - start, start)
        count = block.count(b"\n")
        if count < missing:
            position, missing = start, missing - count
            continue
        index = len(block)
        for _ in range(missing):
            index = block.rindex(b"\n", 0, index)
        return start + index + 1
    return 0
