"""Bringing the programs of the eBPF Service datapath into the kernel, so that they outlive whoever loaded them.

Stands for Cilium's loader (pkg/datapath/loader) and its socket LB (pkg/socketlb). Everything is pinned in the node's
own bpffs, which goes with the node's mount namespace; links hold the programs at the node's cgroup, which the node's
own processes and those of its pods are in, and nothing else.

A proxy that starts again finds the maps, and keeps them; compiles the programs anew, since it may be a newer one; and
puts them in the place of the old ones without a moment between. The compiler takes 80 MB, so it runs in a process of
its own that ends when all is pinned.

What belongs here: compiling, pinning, linking. What does not: what maps hold (`labs.cluster.proxy.ebpf_maps`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from labs.cluster import linux
from tracer import bpf, bpfmaps, netprograms
from tracer.bpfmaps import Map, MapInfo
from tracer.errors import K8snetError
from tracer.netprograms import SocketHook

FILES = ("service_lb.c", "service_lb_packets.c")
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
MAPS = ("services", "slots", "members", "source_ranges", "node", "affinities", "asked", "rewrites")
SOCKET_PROGRAMS = {
    SocketHook.CONNECT4: "lb_connect4",
    SocketHook.CONNECT6: "lb_connect6",
    SocketHook.SENDMSG4: "lb_sendmsg4",
    SocketHook.SENDMSG6: "lb_sendmsg6",
    SocketHook.RECVMSG4: "lb_answer4",
    SocketHook.RECVMSG6: "lb_answer6",
    SocketHook.GETPEERNAME4: "lb_answer4",
    SocketHook.GETPEERNAME6: "lb_answer6",
}
FROM_OUTSIDE, FROM_POD, TO_DEVICE = "lb_from_outside", "lb_from_pod", "lb_to_device"


def load(pins: Path, cgroup: Path, defines: Mapping[str, int] = DEFINES) -> None:
    """Have the newest programs at `cgroup`, and all of it pinned in the directory `pins` of a bpffs.

    Forks, so the caller has no threads. Raises K8snetError with what the compiler or the kernel said.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            linux.set_parent_death_signal(signal.SIGKILL)  # nobody pins anything once the proxy has ended
            os.close(reader)
            _load(pins, cgroup, defines)
            status = 0
        except (K8snetError, OSError) as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        complaint = said.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if status:
        raise K8snetError(complaint or f"the loader of the Service datapath ended with status {status}")


def open_maps(pins: Path) -> dict[str, Map]:
    """The pinned maps by name. Raises K8snetError for one that is missing."""
    maps = {name: Map.pinned(pins / name) for name in MAPS}
    missing = [name for name, opened in maps.items() if opened is None]
    if missing:
        raise K8snetError(f"{pins} lacks the maps {', '.join(missing)}")
    return {name: opened for name, opened in maps.items() if opened is not None}


def open_program(pins: Path, function: str) -> int:
    """A descriptor of the pinned program for packets. Raises K8snetError."""
    fd = bpfmaps.pinned(pins / function)
    if fd is None:
        raise K8snetError(f"{pins} lacks the program {function}")
    return fd


def _load(pins: Path, cgroup: Path, defines: Mapping[str, int]) -> None:
    pins.mkdir(exist_ok=True)
    programs = bpf.Programs(FILES, defines)
    redirected = {programs.map_fd(name): _keep_map(pins / name, programs.map_fd(name)) for name in MAPS}
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for hook, function in SOCKET_PROGRAMS.items():
        program = netprograms.load_socket_program(hook, function, programs.bytecode(function, redirected))
        link = bpfmaps.pinned(pins / f"link_{hook.name.lower()}")
        if link is None:
            bpfmaps.pin(netprograms.link_to_cgroup(hook, program, directory), pins / f"link_{hook.name.lower()}")
        else:
            netprograms.replace_program(link, program)
    for function in (FROM_OUTSIDE, FROM_POD, TO_DEVICE):
        program = netprograms.load_tc_program(function, programs.bytecode(function, redirected))
        (pins / function).unlink(missing_ok=True)
        bpfmaps.pin(program, pins / function)


def _keep_map(path: Path, ours: int) -> int:
    """The map that is pinned at `path`, or ours, pinned there; one of another shape is replaced."""
    there = Map.pinned(path)
    if there is not None:
        if _shape(there.info) == _shape(Map(os.dup(ours)).info):
            return there.fd
        path.unlink()
    bpfmaps.pin(ours, path)
    return ours


def _shape(info: MapInfo) -> tuple[int, int, int]:
    return info.key_size, info.value_size, info.max_entries
