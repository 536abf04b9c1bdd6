"""Bringing the programs of the eBPF Service datapath into the kernel, so that they outlive whoever loaded them.

Stands for Cilium's loader (pkg/datapath/loader) and its socket LB (pkg/socketlb). Everything is pinned in the node's
own bpffs, which goes with the node's mount namespace; links hold the programs at the node's cgroup, which the node's
own processes and those of its pods are in, and nothing else.

A proxy that starts again finds the maps, and keeps them; loads its programs anew, since they may be newer; and puts
them in the place of the old ones without a moment between.

What belongs here: pinning, linking. What does not: compiling (`labs.cluster.ebpfcompiler`), what maps hold
(`labs.cluster.proxy.ebpf_maps`).
"""

from __future__ import annotations

import os
from pathlib import Path

from tracer import bpfmaps, netprograms
from tracer.bpfmaps import Map, MapInfo
from tracer.bpfobject import BpfObject, MapShape
from tracer.errors import K8snetError
from tracer.netprograms import SocketHook

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
PACKET_PROGRAMS = (FROM_OUTSIDE, FROM_POD, TO_DEVICE)


def load(pins: Path, cgroup: Path, compiled: BpfObject) -> None:
    """Have the programs of an object at `cgroup`, and all of it pinned in the directory `pins` of a bpffs.

    Raises K8snetError with what the kernel said.
    """
    pins.mkdir(exist_ok=True)
    maps = _have_maps(pins, compiled)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for hook, function in SOCKET_PROGRAMS.items():
            program = netprograms.load_socket_program(hook, function, compiled.bytecode(function, maps))
            _put_at_cgroup(hook, program, directory, pins / f"link_{hook.name.lower()}")
            os.close(program)
    finally:
        os.close(directory)
    for function in PACKET_PROGRAMS:
        program = netprograms.load_tc_program(function, compiled.bytecode(function, maps))
        (pins / function).unlink(missing_ok=True)
        bpfmaps.pin(program, pins / function)
        os.close(program)
    for fd in maps.values():
        os.close(fd)


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


def _have_maps(pins: Path, compiled: BpfObject) -> dict[str, int]:
    """The object's maps: those that are pinned, and where none is, or one of another shape, a new one, pinned."""
    types = compiled.load_types()
    found = {}
    for name, shape in compiled.maps.items():
        there = Map.pinned(pins / name)
        if there is not None:
            if _sizes(there.info) == _sizes(shape):
                found[name] = there.fd
                continue
            (pins / name).unlink()
            there.close()
        found[name] = compiled.make_map(name, types)
        bpfmaps.pin(found[name], pins / name)
    if types is not None:
        os.close(types)
    return found


def _sizes(of: MapInfo | MapShape) -> tuple[int, int, int]:
    return of.key_size, of.value_size, of.max_entries


def _put_at_cgroup(hook: SocketHook, program: int, cgroup: int, pin: Path) -> None:
    """Let a program run at a hook, in the place of the one whose link is pinned, if there is one."""
    link = bpfmaps.pinned(pin)
    if link is None:
        link = netprograms.link_to_cgroup(hook, program, cgroup)
        bpfmaps.pin(link, pin)
    else:
        netprograms.replace_program(link, program)
    os.close(link)
