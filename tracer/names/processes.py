"""Which pod a process belongs to, by what this machine knows about it: its cgroup, the kubelet's logs, its hostname.

What belongs here: reading /proc (`tracer.procfs`) at the right time and keeping what was read. What does not: the API's
word on the same pod, which wins (`tracer.names.lookup`).

The UID of a pod, from the cgroup, is read when it is asked for: about 10 µs. All else may block (a container's file
system may be a network's) and is read by a thread, at once, since a process may not live long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tracer import procfs
from tracer.names.changes import Changes
from tracer.names.model import PodName

MAX_CACHED = 16_384  # answers kept of each kind; then all are dropped and read again
MAX_WAITING = 4_096
MAX_SIBLINGS = 4  # other processes of a container asked when the one in question has ended
RETRY_SECONDS = 2.0  # a pod that could not be named is looked at again, by the next process that is seen in it

K = TypeVar("K")
V = TypeVar("V")


class _Question(NamedTuple):
    """A process whose pod is not known yet."""

    key: str
    uid: str | None
    netns: int
    cgroup_id: int
    pid: int


class Processes:
    """Pods of this machine. `is_node` tells whether a network namespace is a node's: a hostname there is no pod's."""

    def __init__(self, changes: Changes, is_node: Callable[[int], bool]) -> None:
        self._changes = changes
        self._is_node = is_node
        self._mount = procfs.cgroup2_mount()
        self._cgroups = procfs.Cgroups(self._mount)
        self._uids: dict[int, str | None] = {}
        self._uids_by_process: dict[tuple[int, int, int], str | None] = {}
        self._names: dict[str, PodName] = {}
        self._tried: dict[str, float] = {}
        self._waiting: deque[_Question] = deque(maxlen=MAX_WAITING)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(0.5)
        if not self._thread.is_alive():
            self._cgroups.close()

    def pod_uid(self, netns: int, cgroup_id: int, pid: int) -> str | None:
        """The UID of the pod that a process runs in, by its cgroup; None: in no pod, or not known."""
        if cgroup_id in self._uids:
            return self._uids[cgroup_id]
        process = (pid, netns, cgroup_id)
        if process in self._uids_by_process:
            return self._uids_by_process[process]
        path = self._cgroups.path(cgroup_id)
        if path is not None and path != "/":
            uid = procfs.pod_uid(path)
            _keep(self._uids, cgroup_id, uid)
        else:
            uid = self._uid_of_process(path, netns, cgroup_id, pid)
            _keep(self._uids_by_process, process, uid)
        return uid

    def pod(self, uid: str | None, netns: int, cgroup_id: int, pid: int) -> PodName | None:
        """The pod of a process by what /proc says, if that is known already; else it will be, if it can be."""
        key = uid or f"process {pid} in {netns}"
        self._changes.asked(key)
        name = self._names.get(key)
        if name is None:
            now = time.monotonic()
            if now - self._tried.get(key, float("-inf")) >= RETRY_SECONDS:
                _keep(self._tried, key, now)
                self._waiting.append(_Question(key, uid, netns, cgroup_id, pid))
                self._wake.set()
        return name

    def _uid_of_process(self, path: str | None, netns: int, cgroup_id: int, pid: int) -> str | None:
        """The UID by /proc/PID/cgroup: with cgroup v1 the v2 cgroup is the root; and ids may not be openable."""
        paths = procfs.cgroup_paths(pid)
        if procfs.netns_inode(pid) != netns:
            return None  # the process has ended, and its number is another's now
        if path is None and self._mount is not None and (not paths or not self._is_cgroup(paths[0], cgroup_id)):
            return None
        return next(filter(None, map(procfs.pod_uid, paths)), None)

    def _is_cgroup(self, path: str, cgroup_id: int) -> bool:
        """Whether the cgroup at this path has this id."""
        try:
            return Path(f"{self._mount}{path}").stat().st_ino == cgroup_id
        except OSError:
            return False

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._stop.is_set():
                question = self._waiting.popleft()
                name = self._read(question)
                if name is not None:
                    _keep(self._names, question.key, name)
                    self._changes.touch((question.key,))

    def _read(self, question: _Question) -> PodName | None:
        """Ask the kubelet's logs, then the process, then others of its container if it has ended."""
        uid = question.uid
        if uid is None and procfs.netns_inode(question.pid) == question.netns:
            uid = self._walked_uid(question.cgroup_id)
        logged = procfs.logged_pod(uid) if uid is not None else None
        if logged is not None:
            return PodName(*logged)
        if self._is_node(question.netns):
            return None
        for pid in (question.pid, *self._siblings(question.cgroup_id)):
            if procfs.netns_inode(pid) == question.netns:
                name = pod_of_process(pid, uid)
                if name is not None:
                    return name
        return None

    def _walked_uid(self, cgroup_id: int) -> str | None:
        """The UID by a walk of the cgroups, where they can't be opened by id."""
        if self._cgroups.path(cgroup_id) is not None:
            return None  # it can be opened: there is no UID in its path
        path = self._cgroups.walk(cgroup_id)
        return procfs.pod_uid(path) if path is not None else None

    def _siblings(self, cgroup_id: int) -> list[int]:
        """Processes in the same cgroup, unless that is the root."""
        path = self._cgroups.path(cgroup_id)
        if path is None or path == "/":
            return []
        try:
            return [int(pid) for pid in Path(f"{self._mount}{path}/cgroup.procs").read_text().split()[:MAX_SIBLINGS]]
        except (OSError, ValueError):
            return []


def pod_of_process(pid: int, uid: str | None) -> PodName | None:
    """The pod of a process by its hostname and mounted service account; None when nothing shows that it is in one."""
    namespace = procfs.service_account_namespace(pid)
    if uid is None and namespace is None:
        return None  # some other container
    hostname = procfs.hostname(pid)
    return PodName(namespace, hostname) if hostname is not None else None


def _keep(cache: dict[K, V], key: K, value: V) -> None:
    """Add to a cache that is emptied when it is full."""
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = value
