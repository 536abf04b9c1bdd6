"""One pod's whole life on a node: volumes, sandbox, init containers, sidecars, containers, and the orderly end.

Stands for a pod worker of pkg/kubelet (pod_workers.go, and syncPod with kuberuntime's SyncPod). Sidecars (init
containers with restartPolicy Always) start in their order among the init containers, and end after the containers, in
the opposite one.

What belongs here: the order of things. What does not: a container's runs (`labs.cluster.containerworker`), which pods
there are (`labs.cluster.kubelet`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from labs.cluster import cgroups
from labs.cluster.containerworker import ContainerWorker
from labs.cluster.podspec import pod_cgroup
from labs.cluster.podstatus import DEADLINE, RunningContainer, RunningPod
from labs.cluster.podvolumes import SetUpFailed
from labs.cluster.podwork import Means, PodWork, to_the_end
from labs.cluster.resources import Object
from tracer.errors import K8snetError

RETRY_SECONDS = 1.0
MOUNT_RETRY_SECONDS = 0.5  # doubles with each attempt (pkg/util/goroutinemap/exponentialbackoff) ...
MOUNT_RETRY_MAX_SECONDS = 8.0  # ... there up to two minutes


class PodWorker:
    """Works on one pod, until `run` is cancelled."""

    def __init__(self, means: Means, running: RunningPod) -> None:
        self._means = means
        self._work = PodWork(means, running)
        self._workers: list[ContainerWorker] = []
        self._began = 0.0
        self._deadline = asyncio.timeout(None)

    async def run(self) -> None:
        """Have the pod run until this is cancelled; then end it."""
        self._began = asyncio.get_running_loop().time()
        try:
            self._expect_containers()
            self._work.report()
            try:
                async with self._deadline:
                    self._set_deadline()
                    await self._set_up_volumes()
                    await self._have_sandbox()
                    await self._run_containers()
            except TimeoutError:
                if not self._deadline.expired():
                    raise
                self._fail_by_deadline()
            await asyncio.Event().wait()  # all containers have ended for good
        finally:
            await asyncio.shield(self._dismantle())

    def notice(self, pod: Object) -> None:
        """The pod has changed in the API."""
        self._work.running.pod = self._work.volumes.pod = pod
        self._set_deadline()
        for worker in self._workers:
            worker.notice()

    def _set_deadline(self) -> None:
        """Have the pod end activeDeadlineSeconds after its start."""
        seconds = self._work.pod["spec"].get("activeDeadlineSeconds")
        with contextlib.suppress(RuntimeError):  # it has not begun yet, or is over
            self._deadline.reschedule(None if seconds is None else self._began + seconds)

    def _fail_by_deadline(self) -> None:
        self._work.running.expired = True
        self._work.tell_of_pod(*DEADLINE)
        self._work.report()

    def end_soon(self, pod: Object) -> None:
        """The pod is to go: from now on its grace period runs."""
        self._work.running.pod = pod
        self._work.ending_at = asyncio.get_running_loop().time() + self._work.running.grace
        for container in (*self._work.running.containers, *self._work.running.init):
            if container.started is not None:
                self._work.tell(container.name, "Killing", f"Stopping container {container.name}")

    def refresh_volumes(self) -> None:
        """Take over what has changed in ConfigMaps, Secrets and the pod itself."""
        with contextlib.suppress(OSError):
            self._work.volumes.refresh(self._work.origin())

    # --- what it needs ------------------------------------------------------------------------------------------------

    async def _set_up_volumes(self) -> None:
        delay = MOUNT_RETRY_SECONDS
        while True:
            try:
                await self._work.volumes.set_up(self._work.origin())
                return
            except SetUpFailed as error:
                self._work.warn("FailedMount", error.message)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MOUNT_RETRY_MAX_SECONDS)

    async def _have_sandbox(self) -> None:
        while True:
            try:
                await self._make_sandbox()
                return
            except (K8snetError, OSError) as error:
                self._work.report(reason="FailedCreatePodSandBox", message=str(error))
                self._work.warn("FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _make_sandbox(self) -> None:
        means, running = self._means, self._work.running
        cgroup = pod_cgroup(means.node.cgroup, running.pod)
        if cgroup is not None:
            Path(cgroup).mkdir(parents=True, exist_ok=True)
        if running.pod["spec"].get("hostNetwork"):
            running.addresses = means.node.addresses
            return
        if running.netns is None:
            running.sandbox = f"cni-{running.pod['metadata']['uid']}"
            await to_the_end(means.runtime.make_sandbox(running.sandbox), running.set_netns)
        await to_the_end(means.netlink.run(means.network.attach, running.netns), running.set_attachment)

    # --- its containers -----------------------------------------------------------------------------------------------

    def _expect_containers(self) -> None:
        """Say of all containers that they wait."""
        running = self._work.running
        spec = running.pod["spec"]
        running.init = [_init_container(entry) for entry in spec.get("initContainers") or ()]
        running.containers = [RunningContainer(entry["name"], entry["image"]) for entry in spec["containers"]]
        for container in (*running.init, *running.containers) if running.init else ():
            container.state = {"waiting": {"reason": "PodInitializing"}}
        self._workers = [ContainerWorker(self._work, one) for one in (*running.init, *running.containers)]

    async def _run_containers(self) -> None:
        """Run the init containers to their end, one after the other, sidecars beside them, and then all others."""
        policy = self._work.pod["spec"]["restartPolicy"]
        sidecars: list[asyncio.Task[None]] = []
        try:
            for worker in self._workers:
                container = worker.container
                if container.is_sidecar:
                    sidecars.append(asyncio.create_task(worker.keep_running("Always")))
                    await container.first_start.wait()
                elif container.is_init:
                    await worker.keep_running("Never" if policy == "Never" else "OnFailure")
                    if not container.succeeded:
                        return
            async with asyncio.TaskGroup() as group:
                for worker in self._workers:
                    if not worker.container.is_init:
                        group.create_task(worker.keep_running(policy))
        finally:
            await self._end_sidecars(sidecars)

    async def _end_sidecars(self, sidecars: list[asyncio.Task[None]]) -> None:
        """End what ran beside the others, the last one first."""
        if not self._work.is_deleted:
            for container in self._work.running.init:
                if container.is_sidecar and container.started is not None:
                    self._work.tell(container.name, "Killing", f"Stopping container {container.name}")
        for task in reversed(sidecars):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if sidecars:
            self._work.report()

    # --- its end ------------------------------------------------------------------------------------------------------

    async def _dismantle(self) -> None:
        """Take apart what it needed."""
        means, running = self._means, self._work.running
        if running.attachment is not None:
            await means.netlink.run(means.network.detach, running.attachment)
        if running.sandbox is not None:
            with contextlib.suppress(K8snetError):
                await means.runtime.remove_sandbox(running.sandbox)
        self._work.volumes.tear_down()
        await cgroups.remove(pod_cgroup(means.node.cgroup, running.pod))

    def close(self) -> None:
        """Let go of the pod's network namespace, when nobody can find it any more."""
        if self._work.running.netns is not None:
            os.close(self._work.running.netns)


def _init_container(entry: Object) -> RunningContainer:
    is_sidecar = entry.get("restartPolicy") == "Always"
    return RunningContainer(entry["name"], entry["image"], is_init=True, is_sidecar=is_sidecar)
