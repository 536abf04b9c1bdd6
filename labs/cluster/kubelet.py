"""The kubelet: makes the pods that are bound to its node run, and says how they are.

Stands for cmd/kubelet, with one coroutine for each pod where the real one has pod workers. For each pod: a sandbox
(network namespace), its cable (`labs.cluster.network`), its containers (`labs.cluster.runtime`), its status; containers
that end are started again as restartPolicy says, with the back-off that shows as CrashLoopBackOff. A container counts
as started once its program says that it serves, or its ports listen; from then on it is probed (`labs.cluster.probes`),
and without a readiness probe it is ready at once. A pod that is being deleted gets its grace period, and is removed
from the API when all of it is gone. Left out: lifecycle hooks, sidecars (init
containers with a restartPolicy), eviction, resources.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from labs.cluster import cgroups
from labs.cluster.certificates import TokenIssuer
from labs.cluster.containerio import ContainerIO
from labs.cluster.containerlogs import ContainerLog, forget_pod, path_of
from labs.cluster.deletion import let_go
from labs.cluster.events import Recorder
from labs.cluster.firstobjects import is_mirror, mirror_status
from labs.cluster.images import UnknownImage
from labs.cluster.network import NetlinkThread, NodeNetwork
from labs.cluster.podentry import entering
from labs.cluster.podenv import MissingConfig, Sources
from labs.cluster.podspec import NodeFacts, container_spec, pod_cgroup
from labs.cluster.podstatus import RunningContainer, RunningPod, full_name, pod_status
from labs.cluster.probes import Prober, Reach
from labs.cluster.resources import CONFIGMAPS, PODS, SECRETS, SERVICES, Object, Resource, key_of
from labs.cluster.runtime.client import Runtime, Started
from labs.cluster.store import DELETED, AlreadyExists, Expired, NotFound, Store, now
from tracer.errors import K8snetError

RESTART_BASE_SECONDS = 10.0  # MaxContainerBackOff and its base (pkg/kubelet/kubelet.go)
RESTART_MAX_SECONDS = 300.0
RETRY_SECONDS = 1.0
LAST_WORDS_SECONDS = 0.2

T = TypeVar("T")

log = logging.getLogger(__name__)


class Kubelet:
    """Runs the pods of one node."""

    def __init__(
        self,
        node: NodeFacts,
        store: Store,
        runtime: Runtime,
        netlink: NetlinkThread,
        network: NodeNetwork,
        tokens: TokenIssuer,
        authority: str,
    ) -> None:
        self.node = node
        self.pods: dict[tuple[str, str], RunningPod] = {}
        self._store = store
        self._runtime = runtime
        self._netlink = netlink
        self._network = network
        self._tokens = tokens
        self._authority = authority
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._events = Recorder(store, "kubelet", node.name)

    @property
    def pod_cidrs(self) -> list[str]:
        """The networks of this node's pods."""
        return self._network.cidrs

    async def run(self) -> None:
        """Follow the pods of this node for ever."""
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

    async def stop(self) -> None:
        """Take all pods of this node apart; they stay in the store."""
        workers = [*self._workers.values(), *self._ending]
        self._workers.clear()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _consider(self, pod: Object) -> None:
        """Start a worker for a pod of ours that has none; end that of one which is to go."""
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") != self.node.name:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._stop(pod)
        elif is_mirror(pod):
            self._store.update(PODS, {**pod, "status": mirror_status(pod, self.node)})
        elif uid not in self._workers:
            # One that just went may have had the same name: it has to be gone first.
            self._workers[uid] = asyncio.create_task(self._work(pod), name=f"pod {'/'.join(key_of(pod))}")

    def _show_again(self, pod: Object) -> None:
        """A mirror pod of ours that is deleted comes back: what it shows is still there."""
        if is_mirror(pod) and pod["spec"].get("nodeName") == self.node.name:
            kept = ("name", "namespace", "labels", "annotations")
            metadata = {key: value for key, value in pod["metadata"].items() if key in kept}
            with contextlib.suppress(AlreadyExists):
                self._store.create(PODS, {**pod, "metadata": metadata})

    def _stop(self, pod: Object) -> None:
        """End a pod of ours, if it is one; when it is gone, it goes from the API too."""
        worker = self._workers.pop(pod["metadata"]["uid"], None)
        running = self.pods.get(key_of(pod))
        if running is not None and running.pod["metadata"]["uid"] == pod["metadata"]["uid"]:
            running.pod = pod
        if worker is not None:
            for entry in pod["spec"]["containers"]:
                self._tell(pod, entry["name"], "Killing", f"Stopping container {entry['name']}")
            worker.cancel()
            self._ending.add(worker)
            worker.add_done_callback(self._ending.discard)
            worker.add_done_callback(lambda _: self._remove(pod))
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

    def _tell(self, pod: Object, container: str, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event about one container of a pod."""
        write = self._events.warning if warning else self._events.normal
        current = self._store.find(PODS, *key_of(pod))
        if current is not None and current["metadata"]["uid"] == pod["metadata"]["uid"]:
            write(pod, reason, message, f"spec.containers{{{container}}}")

    async def _work(self, pod: Object) -> None:
        """A pod's whole life on this node, until it is cancelled; then its orderly end."""
        running = RunningPod(pod, start_time=now())
        self.pods[key_of(pod)] = running
        try:
            while True:
                try:
                    await self._sandbox(running)
                    break
                except (K8snetError, OSError) as error:
                    self._report(running, reason="FailedCreatePodSandBox", message=str(error))
                    message = f"Failed to create pod sandbox: {error}"
                    self._events.warning(running.pod, "FailedCreatePodSandBox", message)
                    await asyncio.sleep(RETRY_SECONDS)
            await self._run_containers(running)
            await asyncio.Event().wait()  # all containers have ended for good
        finally:
            await asyncio.shield(self._dismantle(running))

    async def _sandbox(self, running: RunningPod) -> None:
        cgroup = pod_cgroup(self.node.cgroup, running.pod)
        if cgroup is not None:
            Path(cgroup).mkdir(parents=True, exist_ok=True)
        if running.pod["spec"].get("hostNetwork"):
            running.addresses = self.node.addresses
            return
        if running.netns is None:
            running.sandbox = f"cni-{running.pod['metadata']['uid']}"
            await _to_the_end(self._runtime.make_sandbox(running.sandbox), running.set_netns)
        await _to_the_end(self._netlink.run(self._network.attach, running.netns), running.set_attachment)

    async def _run_containers(self, running: RunningPod) -> None:
        """Run the init containers to their end, one after the other, and then all others."""
        spec = running.pod["spec"]
        first = spec.get("initContainers") or []
        running.init = [RunningContainer(entry["name"], entry["image"], is_init=True) for entry in first]
        running.containers = [RunningContainer(entry["name"], entry["image"]) for entry in spec["containers"]]
        for container in (*running.init, *running.containers) if first else ():
            container.state = {"waiting": {"reason": "PodInitializing"}}
        policy = spec["restartPolicy"]
        for container, entry in zip(running.init, first, strict=True):
            await self._keep_running(running, container, entry, "Never" if policy == "Never" else "OnFailure")
            if not container.succeeded:
                return
        async with asyncio.TaskGroup() as group:
            for container, entry in zip(running.containers, spec["containers"], strict=True):
                group.create_task(self._keep_running(running, container, entry, policy))

    async def _keep_running(self, running: RunningPod, container: RunningContainer, entry: Object, policy: str) -> None:
        """Run one container again and again, as a restartPolicy says."""
        delay = RESTART_BASE_SECONDS
        while True:
            began = asyncio.get_running_loop().time()
            try:
                status = await self._run_once(running, container, entry)
            except UnknownImage as error:
                await self._report_unknown_image(running, container, error)
                return
            except (K8snetError, OSError) as error:
                missing = isinstance(error, MissingConfig)
                reason = "CreateContainerConfigError" if missing else "CreateContainerError"
                container.state = {"waiting": {"reason": reason, "message": str(error)}}
                self._tell(running.pod, container.name, "Failed", f"Error: {error}", warning=True)
                self._report(running)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if policy == "Never" or (policy == "OnFailure" and status == 0):
                return
            container.last_state = container.state
            if asyncio.get_running_loop().time() - began > 2 * RESTART_MAX_SECONDS:
                delay = RESTART_BASE_SECONDS
            if container.restarts > 0:  # the first restart is at once
                pod = full_name(running.pod)
                message = f"back-off {delay:.0f}s restarting failed container={container.name} pod={pod}"
                told = f"Back-off restarting failed container {container.name} in pod {pod}"
                self._tell(running.pod, container.name, "BackOff", told, warning=True)
                container.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
                self._report(running)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RESTART_MAX_SECONDS)
            container.restarts += 1

    async def _report_unknown_image(
        self, running: RunningPod, container: RunningContainer, error: UnknownImage
    ) -> None:
        """An image that can't be had: ErrImagePull, and after a while ImagePullBackOff, as for ever after."""
        pod, name, image = running.pod, container.name, container.image
        self._tell(pod, name, "Pulling", f'Pulling image "{image}"')
        self._tell(pod, name, "Failed", f'Failed to pull image "{image}": {error.message}', warning=True)
        self._tell(pod, name, "Failed", "Error: ErrImagePull", warning=True)
        container.state = {"waiting": {"reason": "ErrImagePull", "message": error.message}}
        self._report(running)
        await asyncio.sleep(RESTART_BASE_SECONDS)
        self._tell(pod, name, "BackOff", f'Back-off pulling image "{image}"')
        self._tell(pod, name, "Failed", "Error: ImagePullBackOff", warning=True)
        message = f'Back-off pulling image "{image}": {error.message}'
        container.state = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
        self._report(running)

    async def _run_once(self, running: RunningPod, container: RunningContainer, entry: Object) -> int:
        """Start a container, report, wait for its end; gives its exit status."""
        pod, account = running.pod, self._account(running.pod)
        spec = container_spec(pod, entry, self.node, running.addresses, account, self._sources(pod))
        if spec.cgroup is not None:
            Path(spec.cgroup).mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        io = container.io = self._make_io(running.pod, entry, spec.id)
        begun: list[Started] = []
        try:
            os.set_blocking(writer, True)
            await _to_the_end(self._runtime.start(spec, writer, io.ends, running.netns), begun.append)
        except BaseException:
            os.close(reader)
            io.abandon()
            for one in begun:  # the pod is to go: nobody else would know of this process
                await self._end(one, 0)
                os.close(one.pidfd)
            await cgroups.remove(spec.cgroup)
            raise
        finally:
            os.close(writer)
        (started,) = begun
        io.begin()
        container.id, container.started, container.cgroup, container.env = spec.id, started, spec.cgroup, spec.env
        container.said.clear()
        began = now()
        present = f'Container image "{container.image}" already present on machine'
        for reason, message in (
            ("Pulled", present),
            ("Created", f"Created container {container.name}"),
            ("Started", f"Started container {container.name}"),
        ):
            self._tell(running.pod, container.name, reason, message)
        listening = asyncio.create_task(self._listen(running, container, entry, reader, began))
        probing = asyncio.create_task(self._probe(running, container, entry, started))
        try:
            status = await asyncio.shield(started.ended)
            # Its last words may still be in the pipe.
            await asyncio.wait((listening,), timeout=LAST_WORDS_SECONDS)
        except asyncio.CancelledError:
            await self._end(started, running.grace)
            raise
        finally:
            listening.cancel()
            probing.cancel()
            await asyncio.gather(listening, probing, return_exceptions=True)
            os.close(started.pidfd)
            io.finish()
            container.started, container.ready, container.probed = None, False, False
            container.serving.clear()
            await cgroups.remove(spec.cgroup)
        ended = {
            "exitCode": status,
            "reason": "Completed" if status == 0 else "Error",
            "startedAt": began,
            "finishedAt": now(),
        }
        if "error" in container.said:
            ended["message"] = container.said["error"]
        container.state = {"terminated": {**ended, "containerID": f"k8snet://{spec.id}"}}
        self._report(running)
        return status

    async def _listen(
        self, running: RunningPod, container: RunningContainer, entry: Object, reader: int, began: str
    ) -> None:
        """Take in what the container's program says, until it closes its end."""
        async for line in _lines(reader):
            word, _, rest = line.partition(" ")
            container.said[word] = rest
            if word == "ready" and not container.serving.is_set():
                container.state = {"running": {"startedAt": began}}
                container.probed = not entry.get("startupProbe")
                container.ready = container.probed and not entry.get("readinessProbe")
                container.serving.set()
                self._report(running)

    async def _probe(self, running: RunningPod, container: RunningContainer, entry: Object, started: Started) -> None:
        """Probe a container while it runs; end it when a probe says that it has to be restarted."""
        await container.serving.wait()

        def on_start() -> None:
            if not container.probed:
                container.probed = True
                self._report(running)

        def on_ready(ready: bool) -> None:
            if container.ready != ready:
                container.ready = ready
                self._report(running)

        def on_failure(kind: str, message: str) -> None:
            if "deletionTimestamp" not in running.pod["metadata"]:  # then it may be half gone
                self._tell(running.pod, container.name, "Unhealthy", f"{kind} probe failed: {message}", warning=True)

        def enter(command: Sequence[str]) -> list[str]:
            return entering(started.pid, container.cgroup, container.env, command)

        reach = Reach(running.addresses[0], self._network.netns, enter)
        kind = await Prober(entry, reach, on_start, on_ready, on_failure).run()
        if "deletionTimestamp" in running.pod["metadata"]:
            return
        message = f"Container {container.name} failed {kind} probe, will be restarted"
        self._tell(running.pod, container.name, "Killing", message)
        await self._end(started, running.grace)

    @staticmethod
    async def _end(started: Started, grace: float) -> None:
        """Ask a container to end, and make it after `grace` seconds."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(started.pidfd, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(started.ended), patience)
                return

    async def _dismantle(self, running: RunningPod) -> None:
        """Take apart what `_sandbox` made."""
        if running.attachment is not None:
            await self._netlink.run(self._network.detach, running.attachment)
        if running.sandbox is not None:
            with contextlib.suppress(K8snetError):
                await self._runtime.remove_sandbox(running.sandbox)
        await cgroups.remove(pod_cgroup(self.node.cgroup, running.pod))
        if self.pods.get(key_of(running.pod)) is running:
            del self.pods[key_of(running.pod)]
        if running.netns is not None:  # last of all: whoever finds the pod in `pods` may use it
            os.close(running.netns)

    def _account(self, pod: Object) -> dict[str, str]:
        """The files of the pod's service account."""
        namespace, name = key_of(pod)
        token = self._tokens.issue(namespace, pod["spec"]["serviceAccountName"], name, pod["metadata"]["uid"])
        return {"namespace": namespace, "token": token, "ca.crt": self._authority}

    def _sources(self, pod: Object) -> Sources:
        """What the pod's environment may refer to."""
        namespace = pod["metadata"]["namespace"]

        def by_name(resource: Resource) -> dict[str, Object]:
            return {item["metadata"]["name"]: item for item in self._store.list(resource, namespace)}

        return Sources(self._store.list(SERVICES), by_name(CONFIGMAPS), by_name(SECRETS))

    @staticmethod
    def _make_io(pod: Object, entry: Object, identifier: str) -> ContainerIO:
        """A container's streams and log."""
        log = ContainerLog(path_of(pod, entry["name"], identifier))
        stdin, once, tty = (bool(entry.get(key)) for key in ("stdin", "stdinOnce", "tty"))
        return ContainerIO(log, stdin=stdin, stdin_once=once, tty=tty)

    def _report(self, running: RunningPod, **trouble: str) -> None:
        """Write the pod's status, if the pod is still there and is still the same."""
        key = key_of(running.pod)
        current = self._store.find(PODS, *key)
        if current is None or current["metadata"]["uid"] != running.pod["metadata"]["uid"]:
            return
        with contextlib.suppress(NotFound):
            self._store.update(PODS, {**current, "status": pod_status(running, current, self.node.addresses, trouble)})


async def _to_the_end(work: Awaitable[T], keep: Callable[[T], object]) -> None:
    """Wait for `work` and keep its result, even if cancelled meanwhile: what it makes has to be taken apart again."""
    task = asyncio.ensure_future(work)
    try:
        keep(await asyncio.shield(task))
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            keep(await task)
        raise


async def _lines(fd: int) -> AsyncIterator[str]:
    """The lines that come through a pipe, until its other end is closed; closes `fd`."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        while line := await reader.readline():
            yield line.decode(errors="replace").rstrip("\n")
    finally:
        transport.close()
