"""Which eBPF Service datapath is met in a network namespace: by the processes in it, or as the node whose it is.

What belongs here: from a namespace to its processes' cgroups, and the datapath there. What does not: what its maps mean
(`tracer.service_lb`), and what they mean for Services (`tracer.rules.sockets`).

A datapath belongs to a cgroup, and all processes below it meet it: those of a node and of its pods. It tells itself
which network namespace is its node's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tracer import libbpf, netns, procfs, service_lb
from tracer.errors import K8snetError
from tracer.service_lb import Datapath, NodeFacts

RESCAN_SECONDS = 10.0  # between two looks at all processes, for whoever asks again and again
FIRST_RESCAN_SECONDS = 1.0  # the same, for a namespace that was not there at the last


class Met(NamedTuple):
    """A datapath: what it is known by while it lasts, its node, and the cgroup of a process that meets it."""

    id: int
    node: NodeFacts | None
    cgroup: Path

    def read(self) -> Datapath | None:
        """All that it holds; None when it is gone. Raises OSError."""
        return service_lb.of_cgroup(self.cgroup)


def met_in(path: str | None) -> Met | None:
    """The datapath that processes in the network namespace at `path` meet; None: none of them does.

    Where they differ, the oldest counts. path None: what the calling process meets. Raises MissingError for a namespace
    that is gone.
    """
    if path is None:
        return next(_met_by((os.getpid(),)), None)
    return _index.find(netns.inode(path))


def of_node(path: str | None) -> Met | None:
    """The datapath whose node has the network namespace at `path` (None: our own)."""
    inode = netns.own() if path is None else netns.inode(path)
    met = _index.find(inode)
    return met if met is not None and met.node is not None and met.node.netns == inode else None


def met_at(address: str) -> list[tuple[int, Met]]:
    """Network namespaces other than a node's own that have this address, by inode, and the datapath met there."""
    found = []
    for inode, pids in _processes().items():
        met = next(_met_by(pids), None)
        if met is None or (met.node is not None and met.node.netns == inode):
            continue
        if any(address in procfs.addresses(pid) for pid in pids[:1]):
            found.append((inode, met))
    return found


def _met_by(pids: Iterable[int]) -> Iterator[Met]:
    """What processes meet, each cgroup looked at once."""
    mount = procfs.cgroup2_mount()
    seen = set()
    for pid in pids if mount is not None else ():
        cgroup = next(iter(procfs.cgroup_paths(pid)), None)
        if cgroup is None or cgroup in seen:
            continue
        seen.add(cgroup)
        met = _met(Path(f"{mount}{cgroup}"))
        if met is not None:
            yield met


def _met(cgroup: Path) -> Met | None:
    """The datapath of a cgroup; None also for one that is gone, or that we may not ask about."""
    try:
        known = service_lb.node_of_cgroup(cgroup)
    except (OSError, K8snetError):
        return None
    return None if known is None else Met(*known, cgroup)


def _processes() -> dict[int, list[int]]:
    """The processes in each network namespace, oldest first."""
    found: dict[int, list[int]] = {}
    for pid in sorted(procfs.pids()):
        inode = procfs.netns_inode(pid)
        if inode is not None:
            found.setdefault(inode, []).append(pid)
    return found


class _Index:
    """What the last scan of all processes found: a cgroup with a datapath for each network namespace that has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cgroups: Mapping[int, Path | None] = {}
        self._scanned = float("-inf")

    def find(self, inode: int) -> Met | None:
        """The datapath met there, as it is now."""
        with self._lock:
            cgroup = self._cgroups.get(inode)
            met = None if cgroup is None else _met(cgroup)
            if met is None and self._is_old(inode):
                self._scan()
                cgroup = self._cgroups.get(inode)
                met = None if cgroup is None else _met(cgroup)
            return met

    def _is_old(self, inode: int) -> bool:
        patience = RESCAN_SECONDS if inode in self._cgroups else FIRST_RESCAN_SECONDS
        return time.monotonic() - self._scanned >= patience

    def _scan(self) -> None:
        """Look at all processes (0.1 ms each), unless no program is at any cgroup's sockets."""
        self._scanned = time.monotonic()
        if not libbpf.has_socket_address_programs():
            self._cgroups = {}
            return
        mets = {inode: next(_met_by(pids), None) for inode, pids in _processes().items()}
        self._cgroups = {inode: None if met is None else met.cgroup for inode, met in mets.items()}


_index = _Index()
