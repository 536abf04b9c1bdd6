"""Compiling the C of the eBPF Service datapath, in a process of its own: the compiler takes 80 MB, and seconds.

In a real cluster this is done where an image is built, and not on each node: Cilium's images bring object files with
them. So is it here: a cluster compiles once, while it starts, for all of its nodes (`labs.cluster.imagefiles`). Only on
a node of a real cluster, which has no image of ours, the proxy compiles by itself (`labs.cluster.ebpfproxy`).

What belongs here: which C, with which macros, and that process. What does not: loading (`labs.cluster.ebpfloader`), and
compiling as such (`tracer.bpf`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from labs.cluster import ebpfloader, linux
from tracer.bpfobject import BpfObject
from tracer.errors import K8snetError

FILES = ("service_lb.c", "service_lb_packets.c")
OBJECT = Path("/run/k8snet/service_lb.json")  # in containers of the image service-lb
FIRST_SNAT_PORT = 49152
# Macros of the C: entries of each map (hash maps grow as they are filled; LRU maps take their memory at once), and the
# first of the ports that masqueraded connections get.
DEFINES = {
    "MAX_SERVICES": 1 << 18,
    "MAX_SLOTS": 1 << 20,
    "MAX_RANGES": 1 << 14,
    "MAX_AFFINITIES": 1 << 14,
    "MAX_SOCKETS": 1 << 15,
    "MAX_REWRITES": 1 << 16,
    "FIRST_SNAT_PORT": FIRST_SNAT_PORT,
}


class Compiler:
    """A compiler at work from now on, until its `result` is asked for. It ends when the caller's thread does.

    Forks, so the caller has no threads.
    """

    def __init__(self, defines: Mapping[str, int] = DEFINES) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self._child = os.fork()
        if self._child == 0:
            status = 1
            try:
                linux.set_parent_death_signal(signal.SIGKILL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ours may be the supervisor's
                os.close(self._reader)
                _write_all(writer, _compile(defines).pack())
                status = 0
            except (K8snetError, OSError) as error:
                _write_all(writer, str(error).encode())
            finally:
                os._exit(status)
        os.close(writer)

    def result(self) -> bytes:
        """Wait for its end; gives what `BpfObject.unpack` reads. To be called once.

        Raises K8snetError with what the compiler or the kernel said.
        """
        with os.fdopen(self._reader, "rb") as said:
            words = said.read()
        _, status = os.waitpid(self._child, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise K8snetError(
                words.decode(errors="replace") or f"the compiler of the Service datapath ended with status {code}"
            )
        return words


def compiled(defines: Mapping[str, int] = DEFINES) -> BpfObject:
    """The datapath, compiled now. Forks, so the caller has no threads. Raises K8snetError."""
    return BpfObject.unpack(Compiler(defines).result())


def _compile(defines: Mapping[str, int]) -> BpfObject:
    from tracer import bpf

    functions = sorted({*ebpfloader.SOCKET_PROGRAMS.values(), *ebpfloader.PACKET_PROGRAMS})
    return BpfObject.of(bpf.Programs(FILES, defines, with_types=True), functions)


def _write_all(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        file.write(data)
