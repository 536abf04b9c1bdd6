"""The kubelet: makes the pods that are bound to its node run, and removes those that are to go.

Stands for cmd/kubelet (pkg/kubelet/kubelet.go, syncLoop), with one coroutine for each pod where the real one has pod
workers (`labs.cluster.podworker`). A pod that is being deleted gets its grace period, and is removed from the API when
all of it is gone. Left out: eviction, enforcing resources, ephemeral containers (so there is no `kubectl debug`), and
static pods that run: the control plane's only show (mirror pods).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from labs.cluster.certificates import TokenIssuer
from labs.cluster.containerlogs import forget_pod
from labs.cluster.deletion import let_go
from labs.cluster.events import Recorder
from labs.cluster.firstobjects import is_mirror, mirror_status
from labs.cluster.imagefiles import ImageFiles
from labs.cluster.network import NetlinkThread, NodeNetwork
from labs.cluster.podspec import NodeFacts
from labs.cluster.podstatus import RunningPod
from labs.cluster.podwork import Means
from labs.cluster.podworker import PodWorker
from labs.cluster.resources import PODS, Object, key_of
from labs.cluster.runtime.client import Runtime
from labs.cluster.store import DELETED, AlreadyExists, Expired, Store, now

REFRESH_SECONDS = 10.0  # how often volumes follow ConfigMaps and Secrets; the real one takes up to a minute and more

log = logging.getLogger(__name__)


class Kubelet:
    """Runs the pods of one node."""

    def __init__(
        self,
        node: NodeFacts,
        store: Store,
        runtime: Runtime,
        images: ImageFiles,
        netlink: NetlinkThread,
        network: NodeNetwork,
        tokens: TokenIssuer,
    ) -> None:
        self.node = node
        self.pods: dict[tuple[str, str], RunningPod] = {}
        self._store = store
        self._network = network
        events = Recorder(store, "kubelet", node.name)
        self._means = Means(node, store, runtime, images, netlink, network, tokens, events)
        self._workers: dict[str, PodWorker] = {}  # by uid
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def pod_cidrs(self) -> list[str]:
        """The networks of this node's pods."""
        return self._network.cidrs

    async def run(self) -> None:
        """Follow the pods of this node for ever."""
        refreshing = asyncio.create_task(self._refresh_volumes())
        try:
            while True:
                with contextlib.suppress(Expired), self._store.watch(PODS) as watch:
                    for pod in self._store.list(PODS):
                        self._consider(pod)
                    async for change in watch:
                        if change.kind == DELETED:
                            self._stop(change.item)
                            self._show_again(change.item)
                        else:
                            self._consider(change.item)
        finally:
            refreshing.cancel()

    async def stop(self) -> None:
        """Take all pods of this node apart; they stay in the store."""
        tasks = [*self._tasks.values(), *self._ending]
        self._tasks.clear()
        self._workers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh_volumes(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            for worker in list(self._workers.values()):
                worker.refresh_volumes()
                await asyncio.sleep(0)  # many pods take a while

    def _consider(self, pod: Object) -> None:
        """Start a worker for a pod of ours that has none; end that of one which is to go."""
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") != self.node.name:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._stop(pod)
        elif is_mirror(pod):
            self._store.update(PODS, {**pod, "status": mirror_status(pod, self.node)})
        elif uid in self._workers:
            self._workers[uid].notice(pod)
        else:
            # One that just went may have had the same name: it has to be gone first.
            running = RunningPod(pod, start_time=now())
            worker = self._workers[uid] = PodWorker(self._means, running)
            self._tasks[uid] = asyncio.create_task(self._work(worker, running), name=f"pod {'/'.join(key_of(pod))}")

    async def _work(self, worker: PodWorker, running: RunningPod) -> None:
        self.pods[key_of(running.pod)] = running
        try:
            await worker.run()
        finally:
            if self.pods.get(key_of(running.pod)) is running:
                del self.pods[key_of(running.pod)]
            worker.close()

    def _show_again(self, pod: Object) -> None:
        """A mirror pod of ours that is deleted comes back: what it shows is still there."""
        if is_mirror(pod) and pod["spec"].get("nodeName") == self.node.name:
            kept = ("name", "namespace", "labels", "annotations")
            metadata = {key: value for key, value in pod["metadata"].items() if key in kept}
            with contextlib.suppress(AlreadyExists):
                self._store.create(PODS, {**pod, "metadata": metadata})

    def _stop(self, pod: Object) -> None:
        """End a pod of ours, if it is one; when it is gone, it goes from the API too."""
        uid = pod["metadata"]["uid"]
        worker, task = self._workers.pop(uid, None), self._tasks.pop(uid, None)
        if worker is not None and task is not None:
            worker.end_soon(pod)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.add_done_callback(lambda _: self._remove(pod))
        elif not self._is_ending(pod):
            self._remove(pod)

    def _is_ending(self, pod: Object) -> bool:
        running = self.pods.get(key_of(pod))
        return running is not None and running.pod["metadata"]["uid"] == pod["metadata"]["uid"]

    def _remove(self, pod: Object) -> None:
        """Remove a pod that has ended from the API."""
        forget_pod(pod)
        current = self._store.find(PODS, *key_of(pod))
        if current is None or current["metadata"]["uid"] != pod["metadata"]["uid"]:
            return
        if "deletionTimestamp" in current["metadata"]:
            metadata = {**current["metadata"], "deletionGracePeriodSeconds": 0}
            let_go(self._store, PODS, {**current, "metadata": metadata})
