"""Where records go as text: file descriptors, and the JSON form.

What belongs here: writing whole lines at once, and turning what the kernel says to that (disk full, reader gone) into
errors. What does not: the line form (`tracer.lines`), what a record says (`tracer.encode`).
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tracer.encode import JsonLines, document_line
from tracer.errors import OutputError
from tracer.events import Connection
from tracer.shapes import Item

POLL_MS = 100


class ReaderGone(Exception):
    """Whoever read our output has closed it (`| head`): no failure, but the end."""


class Interrupted(Exception):
    """The user ended the trace while its output was stuck (a pager that does not read)."""


class Sink(Protocol):
    """Something that takes records: connections fast, as items; any record, of a recording, as documents."""

    every_type: bool
    """Whether it shows records of types that this version does not know."""
    patient: bool
    """Whether records, where there are thousands a second, may come some tenths of a second later: no eye looks."""

    def items(self, items: Sequence[Item]) -> None:
        """Take connections. Raises OutputError, ReaderGone or Interrupted."""
        ...

    def documents(self, documents: Sequence[tuple[Mapping[str, Any], Connection | None]]) -> None:
        """Take records as JSON objects, each with the Connection it is, or None. Raises as `items`."""
        ...

    def tick(self, now: float) -> None:
        """Called many times a second, with time.monotonic(). Raises as `items`."""
        ...

    def close(self) -> None:
        """Write what is still held back. Raises as `items`."""
        ...


class Writer:
    """Writes text to a file descriptor at once, whole lines at a time, and never leaves it half-buffered.

    `stopped` is asked while the other side of a pipe or terminal does not read, so that a signal still ends the trace.
    """

    def __init__(self, fd: int, name: str, *, encoding: str = "utf-8", stopped: Callable[[], bool] = lambda: False):
        self._fd = fd
        self._name = name
        self._encoding = encoding
        self._stopped = stopped
        self._patient = stat.S_ISREG(os.fstat(fd).st_mode)  # a file never keeps us waiting for a reader

    def write(self, text: str) -> None:
        """Write all of `text`; what the encoding lacks is escaped. Raises as `write_bytes` does."""
        self.write_bytes(text.encode(self._encoding, "backslashreplace"))

    def write_bytes(self, content: bytes) -> None:
        """Write all of `content`. Raises ReaderGone, Interrupted, or OutputError naming the file."""
        data = memoryview(content)
        try:
            while data:
                data = data[self._write_some(data) :]
        except BrokenPipeError as error:
            raise ReaderGone from error
        except OSError as error:
            raise OutputError(
                f"can't write {self._name}: {error.strerror}", hint=_HINTS.get(error.errno or 0)
            ) from error

    def _write_some(self, data: memoryview) -> int:
        if self._patient:
            return os.write(self._fd, data)
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        while not poller.poll(POLL_MS):
            if self._stopped():
                raise Interrupted
        try:
            return os.write(
                self._fd, data[: select.PIPE_BUF]
            )  # so much fits without blocking once POLLOUT is set, pipe(7)
        except BlockingIOError:
            return 0

    def check_reader(self) -> None:
        """Raise ReaderGone when the reading end is closed, which a trace without events would not notice by writing."""
        if not self._patient:
            poller = select.poll()
            poller.register(self._fd, 0)
            if any(events & select.POLLERR for _, events in poller.poll(0)):
                raise ReaderGone


class JsonSink:
    """JSON lines to one or more writers."""

    every_type = True
    patient = True

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers
        self._lines = JsonLines()

    def items(self, items: Sequence[Item]) -> None:
        """See Sink."""
        for block in self._lines.blocks(items):
            self._write(block)

    def documents(self, documents: Sequence[tuple[Mapping[str, Any], Connection | None]]) -> None:
        """See Sink."""
        self._write(b"".join(document_line(document) for document, _ in documents))

    def tick(self, now: float) -> None:
        """See Sink."""
        for writer in self._writers:
            writer.check_reader()

    def close(self) -> None:
        """See Sink."""

    def _write(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write_bytes(data)


_HINTS = {errno.ENOSPC: "free some space, or write elsewhere", errno.EDQUOT: "free some space, or write elsewhere"}
