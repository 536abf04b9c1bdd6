"""Keeps one container of a pod running: again and again, as its restartPolicy says, with growing pauses.

Stands for the decisions of pkg/kubelet/kuberuntime (computePodActions, doBackOff) and of pkg/kubelet/images, for one
container. What belongs here: whether and when it runs again, and what is told of that. What does not: a single run
(`labs.cluster.containerrun`).
"""

from __future__ import annotations

import asyncio
import contextlib

from labs.cluster.containerrun import ContainerRun, NotStarted
from labs.cluster.images import NotPulled
from labs.cluster.podenv import MissingConfig
from labs.cluster.podstatus import RunningContainer, full_name
from labs.cluster.podwork import PodWork
from labs.cluster.resources import Object
from tracer.errors import K8snetError

RESTART_BASE_SECONDS = 10.0  # MaxContainerBackOff and its base (pkg/kubelet/kubelet.go)
RESTART_MAX_SECONDS = 300.0
RETRY_SECONDS = 1.0


class RestartBackOff:
    """How long to wait before each restart: not at all, then 10 s, and twice as long each time up to five minutes.

    All over again after a run of ten minutes (client-go, util/flowcontrol/backoff.go, hasExpired).
    """

    def __init__(self) -> None:
        self._next: float | None = None

    def after(self, seconds: float) -> float:
        """The seconds to wait after a run of so many seconds."""
        if self._next is None or seconds > 2 * RESTART_MAX_SECONDS:
            self._next = RESTART_BASE_SECONDS
            return 0.0
        wait, self._next = self._next, min(self._next * 2, RESTART_MAX_SECONDS)
        return wait


class ContainerWorker:
    """Keeps one container running."""

    def __init__(self, work: PodWork, container: RunningContainer) -> None:
        self._work = work
        self._container = container
        self._changed = asyncio.Event()
        self._run: ContainerRun | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def container(self) -> RunningContainer:
        """What is known of it."""
        return self._container

    def notice(self) -> None:
        """The pod's spec has changed: have the container run again if that concerns it."""
        container = self._container
        if self._entry()["image"] == container.image or self._changed.is_set():
            return
        self._changed.set()
        if self._run is not None and container.started is not None:
            self._tell("Killing", f"Container {container.name} definition changed, will be restarted")
            self._ending = asyncio.create_task(self._run.end(self._work.grace()))

    async def keep_running(self, policy: str) -> None:
        """Run it until it has ended for good. `policy`: the restartPolicy that counts for it."""
        container, back_off, loop = self._container, RestartBackOff(), asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._changed.clear()
            trouble: NotStarted | None = None
            try:
                status = await self._run_once()
            except NotStarted as error:
                trouble, status = error, 128
            except NotPulled as error:
                await self._report_not_pulled(error)
                back_off = RestartBackOff()
                continue
            except (K8snetError, OSError) as error:
                await self._report_not_created(error)
                continue
            changed = self._changed.is_set()
            if not changed and (policy == "Never" or (policy == "OnFailure" and status == 0)):
                return
            container.last_state = container.state
            if trouble is not None:
                container.state = {"waiting": {"reason": trouble.reason, "message": trouble.message}}
                self._work.report()
            if changed:
                back_off = RestartBackOff()
            elif wait := back_off.after(loop.time() - began):
                await self._back_off(wait)
            container.restarts += 1

    async def _run_once(self) -> int:
        self._run = ContainerRun(self._work, self._container, self._entry())
        try:
            return await self._run.run()
        finally:
            if self._ending is not None:
                self._ending.cancel()
            self._run = self._ending = None

    def _entry(self) -> Object:
        """The container in its pod's spec, as that is now."""
        spec = self._work.pod["spec"]
        every: list[Object] = [*spec["containers"], *(spec.get("initContainers") or ())]
        return next(entry for entry in every if entry["name"] == self._container.name)

    async def _back_off(self, seconds: float) -> None:
        """Wait before a restart, in the words of CrashLoopBackOff; not if the container changes meanwhile."""
        name, pod = self._container.name, full_name(self._work.pod)
        message = f"back-off {_duration(seconds)} restarting failed container={name} pod={pod}"
        self._tell("BackOff", f"Back-off restarting failed container {name} in pod {pod}", warning=True)
        self._container.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        self._work.report()
        await self._wait(seconds)

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _report_not_created(self, error: Exception) -> None:
        reason = "CreateContainerConfigError" if isinstance(error, MissingConfig) else "CreateContainerError"
        self._container.state = {"waiting": {"reason": reason, "message": str(error)}}
        self._tell("Failed", f"Error: {error}", warning=True)
        self._work.report()
        await self._wait(RETRY_SECONDS)

    async def _report_not_pulled(self, error: NotPulled) -> None:
        """An image that can't be had: ErrImagePull, and after a while ImagePullBackOff, until it is another one."""
        container = self._container
        image = container.image = self._entry()["image"]
        self._tell("Pulling", f'Pulling image "{image}"')
        self._tell("Failed", f'Failed to pull image "{image}": {error.message}', warning=True)
        self._tell("Failed", "Error: ErrImagePull", warning=True)
        container.state = {"waiting": {"reason": "ErrImagePull", "message": error.message}}
        self._work.report()
        await self._wait(RESTART_BASE_SECONDS)
        if self._changed.is_set():
            return
        self._tell("BackOff", f'Back-off pulling image "{image}"')
        self._tell("Failed", "Error: ImagePullBackOff", warning=True)
        message = f'Back-off pulling image "{image}": {error.message}'
        container.state = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
        self._work.report()
        await self._wait(None)

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._work.tell(self._container.name, reason, message, warning=warning)


def _duration(seconds: float) -> str:
    """As Go prints a duration: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
