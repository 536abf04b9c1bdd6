"""The subresources exec and attach: a further command in a container, and the streams of its first one.

Stands for the kubelet's streaming server (k8s.io/kubelet/pkg/cri/streaming) with containerd behind it. Unlike there, a
command ends when its client goes.

What belongs here: what happens between the client's channels and the process. What does not: the channels
(`labs.cluster.api.channels`), the streams of the process (`labs.cluster.containerio`), starting it
(`labs.cluster.runtime`), entering a container by hand (`labs.cluster.enter`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import Any

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.api.channels import RESIZE, STDERR, STDIN, STDOUT, Channels, open_channels
from labs.cluster.api.containers import Locate, Place, container_of
from labs.cluster.containerio import Attachment, ContainerIO
from labs.cluster.containerlogs import STDOUT as STDOUT_STREAM
from labs.cluster.resources import Object
from labs.cluster.runtime.client import ContainerError
from labs.cluster.runtime.container import CommandSpec

PING_SECONDS = 1.0  # while the process takes no input, so that a client that is gone is noticed
SUCCESS: dict[str, Any] = {"metadata": {}, "status": "Success"}


async def execute(request: web.BaseRequest, pod: Object, locate: Locate) -> web.StreamResponse:
    """Run the command that the query names. Raises ApiError 400, 403 and 500."""
    command = request.query.getall("command", [])
    if not command:
        raise status.bad_request("you must specify at least one command for the container")
    container = container_of(pod, request.query.get("container", ""))
    place = _place(pod, container, locate)
    if place is None:
        return web.Response(status=500, text=f'container not found ("{container}")')
    wanted, tty = _wanted(request), _is_set(request, "tty")
    channels, response = await open_channels(request, wanted)
    io = ContainerIO(None, stdin=STDIN in wanted, stdin_once=True, tty=tty)
    try:
        await channels.end(await _run(channels, io, place, command))
    finally:
        io.finish()
    return response


async def attach(request: web.BaseRequest, pod: Object, locate: Locate) -> web.StreamResponse:
    """Have a part in the streams of a container, from now on. Raises ApiError 400, 403 and 500."""
    container = container_of(pod, request.query.get("container", ""))
    place = _place(pod, container, locate)
    if place is None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        return web.Response(status=500, text=f"container {container} not found in pod {name}_{namespace}")
    wanted = _wanted(request)
    channels, response = await open_channels(request, wanted)
    attachment = place.io.attach()
    try:
        await _talk(channels, place.io, attachment)
    finally:
        attachment.close()
    if STDIN in wanted:
        place.io.end_input()
    await channels.end(SUCCESS)
    return response


def _wanted(request: web.BaseRequest) -> set[int]:
    """The channels that a client asks for. Raises ApiError 400."""
    names = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR}
    wanted = {channel for name, channel in names.items() if _is_set(request, name)}
    if not wanted:
        raise status.bad_request("you must specify at least 1 of stdin, stdout, stderr")
    if _is_set(request, "tty"):
        wanted = wanted - {STDERR} | {RESIZE}
    return wanted


def _is_set(request: web.BaseRequest, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true")


def _place(pod: Object, container: str, locate: Locate) -> Place | None:
    """Where a container runs; None if it does not. Raises ApiError 400."""
    if not pod["spec"].get("nodeName"):
        raise status.bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
    return locate(pod, container)


async def _run(channels: Channels, io: ContainerIO, place: Place, command: list[str]) -> dict[str, Any]:
    """Run a command to its end, or to that of its client; gives the Status that tells of it."""
    env = {**({"TERM": "xterm"} if io.tty else {}), **place.env}
    spec = CommandSpec(os.urandom(32).hex(), place.id, command, env, place.cgroup, io.tty, place.directory, place.user)
    attachment = io.attach()
    try:
        started = await place.started.runtime.execute(spec, io.ends)
    except ContainerError as error:
        return _not_started(spec.id, error)
    try:
        io.begin()
        if not await _talk(channels, io, attachment, started.ended):
            started.kill()
        return _ended(command, await asyncio.shield(started.ended))
    finally:
        started.kill()
        os.close(started.pidfd)


async def _talk(
    channels: Channels, io: ContainerIO, attachment: Attachment, ended: asyncio.Future[int] | None = None
) -> bool:
    """Copy in both directions until all output is sent, and the process has ended; False when the client goes before.

    `ended`: None where it is of no interest.
    """
    sending = asyncio.create_task(_send(channels, attachment, ended))
    receiving = asyncio.create_task(_receive(channels, io))
    try:
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
        return sending.done() and sending.exception() is None
    finally:
        for task in (sending, receiving):
            task.cancel()
        for result in await asyncio.gather(sending, receiving, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result


async def _send(channels: Channels, attachment: Attachment, ended: asyncio.Future[int] | None) -> None:
    while (piece := await attachment.read()) is not None:
        stream, data = piece
        await channels.send(STDOUT if stream == STDOUT_STREAM else STDERR, data)
    if ended is not None:
        await asyncio.shield(ended)


async def _receive(channels: Channels, io: ContainerIO) -> None:
    """Pass on what the client sends, until it goes."""
    while (message := await channels.receive()) is not None:
        channel, data = message
        if channel == RESIZE:
            for line in data.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    size = json.loads(line)
                    io.resize(size["Width"], size["Height"])
        elif channel == STDIN and data:
            await _give(channels, io, data)
        elif channel == STDIN:
            io.end_input()


async def _give(channels: Channels, io: ContainerIO, data: bytes) -> None:
    """Give input, and look for the client from time to time as long as it is not taken. Raises ConnectionError."""
    giving = asyncio.create_task(io.write(data))
    try:
        while not (await asyncio.wait((giving,), timeout=PING_SECONDS))[0]:
            await channels.ping()
    finally:
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)


def _not_started(identifier: str, error: ContainerError) -> dict[str, Any]:
    """What the kubelet says when containerd could not start a command (apierrors.NewInternalError)."""
    words = (
        "error executing command in container: failed to exec in container: failed to start exec "
        f'"{identifier}": OCI runtime exec failed: exec failed: unable to start container process: '
        f"{error.message}: unknown"
    )
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {words}",
        "reason": "InternalError",
        "details": {"causes": [{"message": words}]},
        "code": 500,
    }


def _ended(command: list[str], code: int) -> dict[str, Any]:
    """What the kubelet says of a command's end (remotecommand/exec.go)."""
    if code == 0:
        return SUCCESS
    words = f"error executing command [{' '.join(command)}], exit code {code}"
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {words}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
