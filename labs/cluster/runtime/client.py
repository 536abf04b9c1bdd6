"""The client's end of a container runtime, for the kubelet's event loop.

Stands for kubelet's client of the Container Runtime Interface. What does not belong here: what the runtime does
(`labs.cluster.runtime.service`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labs.cluster.runtime.container import CommandSpec, ContainerSpec
from labs.cluster.runtime.messages import receive, send
from tracer.errors import K8snetError


class ContainerError(K8snetError):
    """The runtime could not do what it was asked."""


@dataclass(slots=True)
class Started:
    """A running container. `pid` is that of its first process, in the pid namespace of the caller; `pidfd` refers to
    it.

    `ended` will hold its exit status, 128 + N for signal N; await it through asyncio.shield.
    """

    pid: int
    pidfd: int
    ended: asyncio.Future[int]

    @property
    def is_alive(self) -> bool:
        """Whether its first process has not ended, which `ended` tells only when all is gone that it had."""
        if self.ended.done():
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    runtime: Runtime

    def kill(self) -> None:
        """End a command, with what it has started, unless that has gone its own way (setsid)."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Runtime:
    """The client's end of a runtime. All methods belong to the event loop that `attach` was called in."""

    def __init__(self, connection: socket.socket, process: int) -> None:
        """`process`: a pidfd of the runtime, for it to close."""
        connection.setblocking(False)
        self._socket, self._process = connection, process
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._exits: dict[str, asyncio.Future[int]] = {}
        self.gone = False
        self.lost = asyncio.Event()  # set while it is gone

    def replace(self, connection: socket.socket, process: int) -> None:
        """Go on with another runtime process, after the first one is lost."""
        connection.setblocking(False)
        self._socket, self._process, self.gone = connection, process, False
        self.lost.clear()
        self.attach()

    def attach(self) -> None:
        """Listen for answers in the running event loop."""
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    async def make_sandbox(self, name: str) -> int:
        """Make a network namespace called `name` (in /run/netns); gives a descriptor for it."""
        _, fds = await self._ask({"op": "sandbox", "name": name})
        return fds[0]

    async def remove_sandbox(self, name: str) -> None:
        """Let go of the network namespace called `name`."""
        await self._ask({"op": "remove-sandbox", "name": name})

    async def host_path(self, path: str, kind: str, inner: str = "") -> int:
        """A descriptor for a mount of the node's file system that is attached nowhere; `kind`: a hostPath's type.

        `inner`: what of it to mount. Raises ContainerError when it is not of that type.
        """
        _, fds = await self._ask({"op": "host-path", "path": path, "type": kind, "inner": inner})
        return fds[0]

    async def start(
        self,
        spec: ContainerSpec,
        notify: int,
        output: int | tuple[int, int, int],
        netns: int | None = None,
        extra: Sequence[int] = (),
    ) -> Started:
        """Start a container. The caller closes its own descriptors.

        `notify` is for its messages, `output` for all that it prints, or what becomes its stdin, stdout and stderr.
        """
        spec.netns, spec.streams = netns is not None, not isinstance(output, int)
        streams = [output] if isinstance(output, int) else output
        fds = [notify, *streams, *([] if netns is None else [netns]), *extra]
        return await self._begin("start", spec, fds)

    async def execute(self, spec: CommandSpec, streams: tuple[int, int, int]) -> Started:
        """Start a further command in a container that runs; `streams` become its stdin, stdout and stderr. The caller
        closes its own descriptors.

        Raises ContainerError, in runc's words where the command can't be started.
        """
        beginning = asyncio.ensure_future(self._begin("execute", spec, streams))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_discard)  # nobody else will know of it
            raise

    async def _begin(self, what: str, spec: ContainerSpec | CommandSpec, fds: Sequence[int]) -> Started:
        ended = self._exits[spec.id] = asyncio.get_running_loop().create_future()
        try:
            _, answered = await self._ask({"op": what, "spec": asdict(spec)}, fds)
        except BaseException:
            self._exits.pop(spec.id, None)
            raise
        return Started(_pid_of(answered[0]), answered[0], ended, self)

    async def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        if self.gone:
            raise ContainerError("the node's container runtime is gone")
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"number": number, **request}, fds)
            message, received = await answer
            return message, received
        finally:
            del self._answers[number]

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        while True:
            try:
                send(self._socket, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.002)

    def _receive(self) -> None:
        while True:
            try:
                message, fds = receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                message, fds = None, []
            if message is None:
                self._closed()
                return
            if "exited" in message:
                future = self._exits.pop(message["exited"], None)
                if future is not None:
                    future.set_result(message["status"])
                continue
            answer = self._answers.get(message["number"])
            if answer is None or answer.done():
                for fd in fds:
                    os.close(fd)
            elif "error" in message:
                answer.set_exception(ContainerError(message["error"]))
            else:
                answer.set_result((message, fds))

    def _closed(self) -> None:
        """The runtime process is ending. It closes its files before the kernel kills who else is in its pid namespace
        (do_exit() in kernel/exit.c), and is gone when they are."""
        self.gone = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.close()
        loop.add_reader(self._process, self._lost)

    def _lost(self) -> None:
        """The runtime process ended: all its containers have ended with it."""
        asyncio.get_running_loop().remove_reader(self._process)
        with contextlib.suppress(ChildProcessError):  # not everybody's parent
            os.waitid(os.P_PIDFD, self._process, os.WEXITED | os.WNOHANG)
        os.close(self._process)
        self.lost.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ContainerError("the node's container runtime is gone"))
        for future in self._exits.values():
            future.set_result(128 + signal.SIGKILL)
        self._exits.clear()


def _discard(beginning: asyncio.Future[Started]) -> None:
    """End a command that is not wanted any more."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().kill()
        os.close(beginning.result().pidfd)


def _pid_of(pidfd: int) -> int:
    """The process id that a pidfd refers to, in the pid namespace that /proc was mounted in."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return int(value)
    raise ContainerError("the kernel does not tell the process id of a pidfd")
