"""How the doctor tries each thing: by using it, never by comparing versions or looking for files alone.

What belongs here: one function for each thing; it returns what it saw, or raises a K8snetError whose hint is the one
command that mends it (None: no command does). What does not: the order, and what the results mean (`tracer.doctor`).
Nothing is left behind on the machine, and no kernel module is loaded on purpose.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

from tracer.errors import K8snetError, MissingError, NotRoot, ToolMissing

TOOL_SECONDS = 10.0
_BPF_MAP_TYPE_RINGBUF = 27  # include/uapi/linux/bpf.h


def root() -> str:
    """Whether this process may load BPF programs and listen to netlink."""
    from tracer.session import CAP_NET_ADMIN, CAP_SYS_ADMIN, require

    for capability in (CAP_SYS_ADMIN, CAP_NET_ADMIN):
        try:
            require(capability, "tracing")
        except NotRoot as error:
            raise NotRoot(f"user id {os.geteuid()}: {error.message}", hint="sudo k8snet-trace doctor") from error
    return f"user id {os.geteuid()}"


def bcc() -> str:
    """Import bcc, which loads libbcc and with it LLVM."""
    from tracer import bpf

    return f"bcc {bpf.bcc_version()}"


def kernel_btf() -> str:
    """Find every kernel field that the programs read."""
    from tracer import btf

    started = time.perf_counter()
    found = btf.offsets()
    return f"{len(found)} fields found in {(time.perf_counter() - started) * 1000:.0f} ms"


def ring_buffer() -> str:
    """Create a BPF ring buffer (since v5.8) of one page."""
    from tracer import btf

    library = btf.library()
    library.bpf_map_create.argtypes = (ctypes.c_int, ctypes.c_char_p, *[ctypes.c_uint32] * 3, ctypes.c_void_p)
    fd = library.bpf_map_create(_BPF_MAP_TYPE_RINGBUF, b"k8snet_doctor", 0, 0, os.sysconf("SC_PAGESIZE"), None)
    if fd < 0:
        hint = None if os.geteuid() == 0 else "sudo k8snet-trace doctor"
        raise MissingError(f"the kernel refuses a BPF ring buffer: {os.strerror(ctypes.get_errno())}", hint=hint)
    os.close(fd)
    return "created"


def raw_tracepoints() -> str:
    """Load a program that does nothing, and attach it for a moment."""
    from tracer import libbpf

    libbpf.try_tracing("raw_tp", "sys_enter")
    return "attached"


def backend(name: str) -> str:
    """Compile, load, attach and remove a backend."""
    started = time.perf_counter()
    if name == "conntrack":
        from tracer.session import open_source

        _require_nf_conntrack()
        open_source("conntrack", None, lambda note: None).close()
    else:
        from tracer.source.live import probe_backend

        probe_backend(name)
    return f"attached in {(time.perf_counter() - started) * 1000:.0f} ms"


def nf_conntrack() -> str:
    """Whether connections are tracked: without, nothing is translated, and nothing is told about it."""
    _require_nf_conntrack()
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    most = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    return f"{count.read_text().strip()} of {most.read_text().strip()} entries in use in this network namespace"


def conntrack_netlink() -> str:
    """Read the conntrack table of this network namespace."""
    from tracer import conntrack

    _require_nf_conntrack()
    started = time.perf_counter()
    entries = sum(1 for _ in conntrack.dump())
    return f"{entries} entries read in {(time.perf_counter() - started) * 1000:.0f} ms"


def cgroup2() -> str:
    """Find the mounted cgroup v2 hierarchy: pods are told by their cgroups where their addresses do not tell."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[:1] == ["cgroup2"]:
            path = before.split()[4].encode().decode("unicode_escape")
            return f"{path}, root inode {Path(path).stat().st_ino}"
    fix = "mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2"
    raise MissingError("no cgroup v2 is mounted: pods on the host's network stay without names", hint=fix)


def network_namespace() -> str:
    """Which network namespace this is; rules are read from it, connections are seen in all."""
    from tracer import netns

    own = netns.own()
    try:
        host = netns.inode("/proc/1/ns/net")
    except NotRoot:
        return f"{own}"
    same = "that of process 1" if own == host else f"not that of process 1 ({host})"
    return f"{own}, {same}; connections are seen in all"


def tool(program: str, *arguments: str, package: str) -> str:
    """Run a program that reads rules."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        hint = f"apt-get install {package}"
        raise ToolMissing(f"not installed: rules that it would show are not read ({program})", hint=hint)
    try:
        done = subprocess.run([path, *arguments], capture_output=True, timeout=TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{path} can't be run: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[0] if said else f"exit code {done.returncode}"
        raise MissingError(f"{path} fails: {why}", hint=None if os.geteuid() == 0 else "sudo k8snet-trace doctor")
    return f"{path}, {len(done.stdout.splitlines())} lines"


def kubernetes_api(kubeconfig: str | None) -> str:
    """Ask the API for a pod, as names do. No one command mends all that can be wrong with it."""
    from tracer.kubeapi import find
    from tracer.kubeapi.connection import Connection

    started = time.perf_counter()
    try:
        access = find(kubeconfig)
        connection = Connection(access)
        try:
            connection.get("/api/v1/pods", limit=1)
        finally:
            connection.close()
    except K8snetError as error:
        raise MissingError(error.message) from error
    return f"{access.server} ({access.source}) answers in {(time.perf_counter() - started) * 1000:.0f} ms"


def _require_nf_conntrack() -> None:
    if not Path("/proc/sys/net/netfilter/nf_conntrack_count").exists():
        raise MissingError("nf_conntrack is not loaded: nothing is translated yet", hint="modprobe nf_conntrack")
