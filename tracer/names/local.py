"""What a scan of /proc tells about the pods of this machine: their addresses, and whether the API is their cluster's.

What belongs here: the scan, when it is needed, and what it found. What does not: single processes
(`tracer.names.processes`), the order of providers (`tracer.names.lookup`).

A machine may have pods of several clusters (two of kind, one of k8snet-lab), most often with the same addresses, and
the kubeconfig may be that of yet another one. A network namespace with pods that the API does not know is *foreign*:
what the API says about an address is not said about that address there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tracer import procfs
from tracer.names.changes import Changes
from tracer.names.model import PodName
from tracer.names.processes import pod_of_process

SCAN_SECONDS = 10.0
SCAN_SECONDS_AFTER_MISS = 1.0
NEWS_SECONDS = 5.0  # a process younger than this may be of a pod of which the API has not told yet
STARTING_SECONDS = 30.0  # a process younger than this may be of a pod that is being set up
MAX_ASKED = 8  # processes of a pod: the first, "pause", has no service account mounted


class Api(NamedTuple):
    """What is asked of the API's data: whether there are any, and whether they have a pod of this UID."""

    loaded: Callable[[], bool]
    knows: Callable[[str], bool]


class _Pod(NamedTuple):
    """The pod that has a network namespace for itself."""

    name: PodName | None
    addresses: frozenset[str]
    complete: bool  # nothing more is to be expected


class LocalPods:
    """The pods of this machine, as the last scan found them.

    `is_node` tells whether a network namespace is a node's: a hostname there is no pod's. Names are looked for only as
    long as the API has none, or is another cluster's.
    """

    def __init__(self, changes: Changes, is_node: Callable[[int], bool], api: Api) -> None:
        self._changes = changes
        self._is_node = is_node
        self._api = api
        self._uids: dict[tuple[int, int], str | None] = {}  # by netns and pid
        self._pods: dict[tuple[int, int], _Pod] = {}  # by netns and its oldest pid
        self._by_address: dict[str, PodName | None] = {}
        self._by_netns: dict[int, PodName] = {}
        self._foreign: frozenset[int] = frozenset()
        self._seen: frozenset[int] = frozenset()
        self._missed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local pods", daemon=True)

    def start(self) -> None:
        """Begin to scan."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        self._stop.set()
        self._missed.set()
        if self._thread.is_alive():
            self._thread.join(0.5)

    def is_foreign(self, netns: int) -> bool:
        """Whether the pods in this network namespace are of another cluster than the API's."""
        if netns not in self._seen:
            self._missed.set()
        return netns in self._foreign

    def any_foreign(self) -> bool:
        """Whether there is such a network namespace."""
        return bool(self._foreign)

    def pod_by_address(self, address: str) -> PodName | None:
        """The pod on this machine that has this address; None also if two have it."""
        self._changes.asked(address)
        if address not in self._by_address:
            self._missed.set()
        return self._by_address.get(address)

    def pod_by_netns(self, netns: int) -> PodName | None:
        """The pod on this machine whose network namespace this is."""
        self._changes.asked(_netns_key(netns))
        if netns not in self._by_netns:
            self._missed.set()
        return self._by_netns.get(netns)

    def scanned(self) -> set[tuple[int, PodName]]:
        """Scan now, without the thread, and give all pods with their network namespaces: see `local_pods`."""
        self._scan()
        logged = ((netns, procfs.logged_pod(uid)) for (netns, _), uid in self._uids.items() if uid is not None)
        return {(netns, PodName(*name)) for netns, name in logged if name is not None} | set(self._by_netns.items())

    def _run(self) -> None:
        while not self._stop.is_set():
            self._scan()
            self._missed.clear()
            if not self._stop.wait(SCAN_SECONDS_AFTER_MISS):
                self._missed.wait(SCAN_SECONDS - SCAN_SECONDS_AFTER_MISS)

    def _scan(self) -> None:
        """Look at every process once, and at one process of each network namespace more closely."""
        processes = _processes_by_netns()
        foreign = frozenset(self._find_foreign(processes))
        if foreign != self._foreign:
            self._foreign = foreign
            self._changes.mark()
        self._seen = frozenset(processes)
        wanted = foreign or not self._api.loaded()
        self._name(processes if wanted else {})

    def _find_foreign(self, processes: dict[int, list[int]]) -> Iterable[int]:
        """The namespaces with pods, none of which the API knows."""
        loaded = self._api.loaded()
        uids: dict[tuple[int, int], str | None] = {}
        for netns, pids in processes.items():
            for pid in pids:
                key = netns, pid
                uids[key] = self._uids[key] if key in self._uids else _pod_uid(pid)
            pods = {uid: pid for pid in pids if (uid := uids[netns, pid]) is not None}
            if not loaded or not pods or any(map(self._api.knows, pods)):
                continue
            if netns in self._foreign or any(_age(pid) > NEWS_SECONDS for pid in pods.values()):
                yield netns
        self._uids = uids

    def _name(self, processes: dict[int, list[int]]) -> None:
        """Find names and addresses of the pods that have these namespaces; what is known of one is not read again."""
        pods: dict[tuple[int, int], _Pod] = {}
        by_address: dict[str, PodName | None] = {}
        by_netns: dict[int, PodName] = {}
        for netns, pids in processes.items():
            if self._is_node(netns):
                continue
            pod = self._pods.get((netns, pids[0]))
            if pod is None or not pod.complete:
                pod = self._read(netns, pids[:MAX_ASKED])
            pods[netns, pids[0]] = pod
            if pod.name is None:
                continue
            by_netns[netns] = pod.name
            for address in pod.addresses:
                clash = address in by_address and by_address[address] != pod.name  # of two clusters
                by_address[address] = None if clash else pod.name
        self._pods = pods
        self._publish(by_address, by_netns)

    def _read(self, netns: int, pids: list[int]) -> _Pod:
        """The pod of these processes, and the addresses in their network namespace."""
        name = None
        for pid in pids:
            uid = self._uids.get((netns, pid))
            logged = procfs.logged_pod(uid) if uid is not None else None
            name = PodName(*logged) if logged is not None else pod_of_process(pid, uid) or name
            if name is not None and name.namespace is not None:
                break
        found = frozenset(filter(_is_own, procfs.addresses(pids[0]))) if name is not None else frozenset()
        complete = name is not None and name.namespace is not None and bool(found)
        return _Pod(name, found, complete or _age(pids[0]) > STARTING_SECONDS)

    def _publish(self, by_address: dict[str, PodName | None], by_netns: dict[int, PodName]) -> None:
        changed = {key for key, _ in self._by_address.items() ^ by_address.items()}
        changed |= {_netns_key(netns) for netns, _ in self._by_netns.items() ^ by_netns.items()}
        self._by_address, self._by_netns = by_address, by_netns
        self._changes.touch(changed)


def local_pods() -> set[tuple[int, PodName]]:
    """The pods on this machine, each with its network namespace, from one scan of /proc; the API is not asked.

    Pods on the node's network are found where the kubelet keeps logs: hostname and address are the node's.
    """
    pods = LocalPods(Changes(), lambda netns: False, Api(lambda: False, lambda uid: False))
    return pods.scanned()


def _processes_by_netns() -> dict[int, list[int]]:
    """The processes in each network namespace, oldest first: that of a pod's sandbox lives as long as the pod."""
    processes: dict[int, list[int]] = {}
    for pid in sorted(procfs.pids()):
        netns = procfs.netns_inode(pid)
        if netns is not None:
            processes.setdefault(netns, []).append(pid)
    return processes


def _pod_uid(pid: int) -> str | None:
    return next(filter(None, map(procfs.pod_uid, procfs.cgroup_paths(pid))), None)


def _age(pid: int) -> float:
    """How long ago a process began, in seconds; 0 when it is gone."""
    try:
        return time.time() - os.stat(f"/proc/{pid}").st_ctime  # noqa: PTH116
    except OSError:
        return 0.0


def _is_own(address: str) -> bool:
    """Whether an address can tell a pod from others: every pod has loopback and link-local ones."""
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        return not parsed.is_loopback and not parsed.is_link_local
    return False


def _netns_key(netns: int) -> str:
    return f"netns {netns}"
