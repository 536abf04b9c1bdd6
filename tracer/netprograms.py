"""Programs at sockets of a cgroup and at network devices: loading their bytecode, and attaching it so that it lasts.

What belongs here: bpf(2) through libbpf.so.1 for BPF_PROG_TYPE_CGROUP_SOCK_ADDR and BPF_PROG_TYPE_SCHED_CLS. What does
not: compiling (`tracer.bpf`), tracing programs (`tracer.libbpf`), devices themselves (tc is rtnetlink's).
"""

from __future__ import annotations

import ctypes
import enum
import os

from tracer import btf, libbpf
from tracer.errors import BackendUnavailable

_SCHED_CLS, _CGROUP_SOCK_ADDR = 3, 18  # enum bpf_prog_type (include/uapi/linux/bpf.h)


class SocketHook(enum.IntEnum):
    """Where a cgroup's program may see and change a socket's addresses: enum bpf_attach_type (uapi/linux/bpf.h).

    The getpeername hooks came with Linux commit 1b66d253610c ("bpf: Add get{peer, sock}name attach types for
    sock_addr") (in v5.8).
    """

    CONNECT4 = 10
    CONNECT6 = 11
    SENDMSG4 = 14
    SENDMSG6 = 15
    RECVMSG4 = 19
    RECVMSG6 = 20
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30


class DeviceHook(enum.IntEnum):
    """Where a program sees a device's packets without a filter of tc before it: BPF_TCX_… (uapi/linux/bpf.h).

    Linux commit e420bed02507 ("bpf: Add fd-based tcx multi-prog infra with link support") (in v6.6).
    """

    INGRESS = 46
    EGRESS = 47


def load_socket_program(hook: SocketHook, function: str, instructions: bytes) -> int:
    """Load bytecode for a hook; gives the program's descriptor. Raises BackendUnavailable."""
    return libbpf.load(_CGROUP_SOCK_ADDR, function, instructions, expected_attach_type=int(hook))


def load_tc_program(function: str, instructions: bytes) -> int:
    """Load bytecode for packets at a device; gives the program's descriptor. Raises BackendUnavailable."""
    return libbpf.load(_SCHED_CLS, function, instructions)


def link_to_cgroup(hook: SocketHook, program: int, cgroup: int) -> int:
    """Attach a program to a cgroup and all below it, beside those that are there; gives the link's descriptor.

    The program stays for as long as the link has a descriptor or a pin (Linux commit af6eea57437a ("bpf: Implement
    bpf_link-based cgroup BPF program attachment") (in v5.7)). Raises BackendUnavailable.
    """
    link = btf.library().bpf_link_create(program, cgroup, int(hook), None)
    if link < 0:
        code = ctypes.get_errno()
        raise BackendUnavailable(f"{hook.name.lower()} can't be attached to the cgroup: {os.strerror(code)}")
    return int(link)


def link_to_device(hook: DeviceHook, program: int, index: int) -> int:
    """Attach a program to a device of this network namespace; gives the link's descriptor.

    Raises BackendUnavailable: kernels before 6.6 don't know such links.
    """
    link = btf.library().bpf_link_create(program, index, int(hook), None)
    if link < 0:
        code = ctypes.get_errno()
        raise BackendUnavailable(f"{hook.name.lower()} of a device can't be attached to: {os.strerror(code)}")
    return int(link)


def replace_program(link: int, program: int) -> None:
    """Let a link run another program from now on, without a moment between. Raises BackendUnavailable."""
    if btf.library().bpf_link_update(link, program, None) != 0:
        raise BackendUnavailable(f"a program can't be replaced: {os.strerror(ctypes.get_errno())}")
