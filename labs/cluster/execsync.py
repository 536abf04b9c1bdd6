"""Running a command in a container to its end, for probes and hooks, which want to know how it ended and what it wrote.

Stands for ExecSync of the CRI, as containerd does it (internal/cri/server/container_execsync.go). Left out: its limit
of 16 MiB, since callers here look at the beginning only.

What belongs here: from start to end, or to a time limit. What does not: joining the container
(`labs.cluster.runtime.command`), commands that a client talks to (`labs.cluster.api.execution`).
"""

from __future__ import annotations

import asyncio
import os

from labs.cluster.containerio import Attachment, ContainerIO
from labs.cluster.containerlogs import STDERR, STDOUT
from labs.cluster.runtime.client import ContainerError, Started
from labs.cluster.runtime.container import CommandSpec
from tracer.errors import K8snetError

MAX_OUTPUT = 10 << 10  # bytes of each stream that are kept; maxReadLength, pkg/kubelet/prober/prober.go


class NotExecuted(K8snetError):
    """The command could not be started; the message is that of the CRI client."""


async def execute(container: Started, spec: CommandSpec, seconds: float | None) -> tuple[int, str]:
    """Run a command; gives its exit status, 128 + N for signal N, and what it wrote to stdout and then to stderr.

    `seconds`: how long it may take, or None for as long as it likes. Raises TimeoutError after that, and NotExecuted.
    """
    io = ContainerIO(None)
    attachment = io.attach()
    try:
        try:
            command = await container.runtime.execute(spec, io.ends)
        except ContainerError as error:
            raise NotExecuted(
                f'rpc error: code = Unknown desc = failed to exec in container: failed to start exec "{spec.id}": OCI '
                f"runtime exec failed: exec failed: unable to start container process: {error.message}: unknown"
            ) from error
        try:
            io.begin()
            async with asyncio.timeout(seconds):
                output = await _collect(attachment)
                return await asyncio.shield(command.ended), output
        finally:
            command.kill()
            os.close(command.pidfd)
    finally:
        io.finish()


async def _collect(attachment: Attachment) -> str:
    """The beginning of each stream, once both have ended."""
    kept = {STDOUT: b"", STDERR: b""}
    while (piece := await attachment.read()) is not None:
        stream, data = piece
        kept[stream] = (kept[stream] + data)[:MAX_OUTPUT]
    return (kept[STDOUT] + kept[STDERR])[:MAX_OUTPUT].decode(errors="replace")
