"""A container's standard streams: from its pipes, or its terminal, to its log and to who is attached.

Stands for containerd's container IO (internal/cri/io) and the shim's copying. All containers of all nodes are read in
the supervisor's event loop, without a thread or process for any of them. As with containerd, somebody attached who does
not read holds the container up; and one that writes as fast as it can is read with pauses, so that all else goes on.

What belongs here: pipes, terminals, copying. What does not: the form of logs (`labs.cluster.containerlogs`), how a
client attaches (`labs.cluster.api.execution`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections import deque

from labs.cluster.containerlogs import STDERR, STDOUT, ContainerLog

CHUNK = 1 << 16  # what a pipe holds
RUSH = 1 << 12  # who has written so much when we come to read it, writes fast
REST = 3.0  # after that, pause so many times as long as it took
LAST_READS = 64  # a pipe that nobody writes to any more is empty sooner
BACKLOG = 1 << 18  # bytes for an attached client, from which on the container waits


class ContainerIO:
    """The standard streams of a container, or of a further command in one, made before that is started. Belongs to the
    running event loop."""

    def __init__(
        self, log: ContainerLog | None, *, stdin: bool = False, stdin_once: bool = False, tty: bool = False
    ) -> None:
        """`log`: None for a further command, whose output has no log. `stdin`: it gets input from who attaches;
        `stdin_once`: until the first of them ends or goes; `tty`: it has a terminal."""
        self.log = log
        self.has_stdin, self.tty = stdin, tty
        self._stdin_once = stdin_once
        self._loop = asyncio.get_running_loop()
        self._attached: set[Attachment] = set()
        self._resting: dict[int, asyncio.TimerHandle] = {}
        self._writing = asyncio.Lock()
        self._writable = asyncio.Event()
        self._input: int | None = None
        if tty:
            ours, theirs = pty.openpty()
            self._streams, self._theirs = {ours: STDOUT}, [theirs] * 3
            self._input = ours if stdin else None
        else:
            pipes = {stream: os.pipe2(os.O_CLOEXEC) for stream in (STDOUT, STDERR)}
            self._streams = {reader: stream for stream, (reader, _) in pipes.items()}
            reader = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            if stdin:
                os.close(reader)
                reader, self._input = os.pipe2(os.O_CLOEXEC)
            self._theirs = [reader, *(writer for _, writer in pipes.values())]
        for fd in (*self._streams, *(() if self._input is None else (self._input,))):
            os.set_blocking(fd, False)

    @property
    def ends(self) -> tuple[int, int, int]:
        """The container's ends: what becomes its stdin, stdout and stderr."""
        stdin, stdout, stderr = self._theirs
        return stdin, stdout, stderr

    def begin(self) -> None:
        """Close the container's ends, which it has by now, and copy what it writes."""
        for fd in set(self._theirs):
            os.close(fd)
        self._theirs = []
        if self.log is not None:
            self.log.forget_older()
        for fd in self._streams:
            self._loop.add_reader(fd, self._read, fd)

    def finish(self) -> None:
        """Copy what is left, now that nobody writes any more, and close all."""
        for fd in set(self._theirs):
            os.close(fd)
        self._theirs = []
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        for fd in list(self._streams):
            with contextlib.suppress(BlockingIOError):
                for _ in range(LAST_READS):
                    if not self._copy(fd):
                        break
            if fd in self._streams:
                self._close(fd)
        self.close_stdin()
        if self.log is not None:
            self.log.close()
        self._end_attachments()

    def abandon(self) -> None:
        """Close all, since there will be no container."""
        self.finish()
        if self.log is not None:
            self.log.path.unlink()

    def attach(self) -> Attachment:
        """Have a part in what is written from now on; whoever asks for it has to `close` it."""
        attachment = Attachment(self)
        if not self._streams:
            attachment.end()
        self._attached.add(attachment)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Somebody attached is gone."""
        self._attached.discard(attachment)
        self.go_on()

    def end_input(self) -> None:
        """Who gave input gives no more."""
        if self._stdin_once:
            self.close_stdin()

    async def write(self, data: bytes) -> None:
        """Give the container input; waits until it is taken. Input that nobody can take is dropped."""
        async with self._writing:
            while data and (fd := self._input) is not None:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    self._writable.clear()
                    self._loop.add_writer(fd, self._writable.set)
                    try:
                        await self._writable.wait()
                    finally:
                        if self._input is not None:
                            self._loop.remove_writer(fd)
                except OSError:
                    self.close_stdin()

    def close_stdin(self) -> None:
        """End the container's input. A terminal's can't end on its own."""
        fd, self._input = self._input, None
        self._writable.set()
        if fd is not None and not self.tty:
            self._loop.remove_writer(fd)
            os.close(fd)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, if there is one."""
        for fd in self._streams if self.tty else ():
            with contextlib.suppress(OSError, struct.error):
                fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def go_on(self) -> None:
        """Read again, if nobody attached is behind any more."""
        if not self._held:
            for fd in self._streams.keys() - self._resting.keys():
                self._loop.add_reader(fd, self._read, fd)

    @property
    def _held(self) -> bool:
        return any(attachment.backlog > BACKLOG for attachment in self._attached)

    def _read(self, fd: int) -> None:
        began = self._loop.time()
        try:
            size = self._copy(fd)
        except BlockingIOError:
            return
        if self._held:
            for held in self._streams:
                self._loop.remove_reader(held)
        elif size >= RUSH and fd in self._streams:
            self._loop.remove_reader(fd)
            self._resting[fd] = self._loop.call_at(
                self._loop.time() + REST * (self._loop.time() - began), self._wake, fd
            )

    def _wake(self, fd: int) -> None:
        del self._resting[fd]
        if not self._held:
            self._loop.add_reader(fd, self._read, fd)

    def _copy(self, fd: int) -> int:
        """Copy one piece; gives its size, 0 at the end. Raises BlockingIOError when there is nothing now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            raise
        except OSError:  # EIO: nobody has the terminal open
            data = b""
        if not data:
            self._close(fd)
            return 0
        stream = self._streams[fd]
        if self.log is not None:
            self.log.write(stream, data)
        for attachment in self._attached:
            attachment.take(stream, data)
        return len(data)

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)  # a terminal's
        if self._input == fd:
            self.close_stdin()
        del self._streams[fd]
        os.close(fd)
        if not self._streams:
            self._end_attachments()

    def _end_attachments(self) -> None:
        for attachment in self._attached:
            attachment.end()


class Attachment:
    """One reader of a container's output, from a moment on."""

    def __init__(self, io: ContainerIO) -> None:
        self._io = io
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self.backlog = 0  # bytes

    def take(self, stream: bytes, data: bytes) -> None:
        """The container wrote something."""
        self._queue.append((stream, data))
        self.backlog += len(data)
        self._news.set()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._news.set()

    async def read(self) -> tuple[bytes, bytes] | None:
        """The next piece with its stream; None at the end."""
        while not self._queue:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        stream, data = self._queue.popleft()
        was_behind = self.backlog > BACKLOG
        self.backlog -= len(data)
        if was_behind and self.backlog <= BACKLOG:
            self._io.go_on()
        return stream, data

    def close(self) -> None:
        """Have no part in it any more."""
        self._io.detach(self)
