"""One run of one container: from its start, through hooks and probes, to its end.

Stands for startContainer and killContainer of pkg/kubelet/kuberuntime (kuberuntime_container.go). A container runs once
its program says that it serves, or its ports listen, and its postStart hook is through; from then on it is probed, and
without a readiness probe it is ready at once. Before it is ended, its preStop hook has a part of the grace period.

What belongs here: a single run. What does not: whether there is another one (`labs.cluster.containerworker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

from labs.cluster import cgroups, execsync, linux, terminationmessage
from labs.cluster.containerio import ContainerIO
from labs.cluster.containerlogs import ContainerLog, path_of
from labs.cluster.hooks import HookFailed, run_hook
from labs.cluster.podspec import container_spec
from labs.cluster.podstatus import RunningContainer
from labs.cluster.podvolumes import close_all
from labs.cluster.podwork import PodWork, to_the_end
from labs.cluster.probes import Prober, Reach
from labs.cluster.resources import Object
from labs.cluster.runtime.client import Started
from labs.cluster.runtime.container import CommandSpec, ContainerSpec, Mount
from labs.cluster.store import now
from tracer.errors import K8snetError

LAST_WORDS_SECONDS = 0.2
LEAST_GRACE_SECONDS = 2.0  # minimumGracePeriodInSeconds: what a preStop hook leaves at least
NEVER_STARTED = "1970-01-01T00:00:00Z"


class NotStarted(K8snetError):
    """The container's program, or its postStart hook, could not run. `reason`: of the waiting container."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ContainerRun:
    """One run of a container. `entry`: the container in its pod's spec."""

    def __init__(self, work: PodWork, container: RunningContainer, entry: Object) -> None:
        self._work = work
        self._container = container
        self._entry = entry
        self._begun = asyncio.Event()  # its program runs, or can't
        self._serves = asyncio.Event()
        self._pre_stopped = False
        self._trouble: NotStarted | None = None
        self._started: Started
        self._spec: ContainerSpec
        self._message: Path
        self._began = NEVER_STARTED

    async def run(self) -> int:
        """Start it and wait for its end; gives the exit status. When cancelled, ends it with its grace period.

        Raises NotStarted when it has ended without having run; NotPulled, MissingConfig, another K8snetError or
        OSError when it could not be made.
        """
        container, reader = self._container, await self._start()
        listening = asyncio.create_task(self._listen(reader))
        living = asyncio.create_task(self._live())
        try:
            status = await asyncio.shield(self._started.ended)
            # Its last words may still be in the pipe.
            await asyncio.wait((listening,), timeout=LAST_WORDS_SECONDS)
        except asyncio.CancelledError:
            living.cancel()  # it may be ending the container already, with more patience than there is now
            await asyncio.gather(living, return_exceptions=True)
            await self.end(self._work.grace())
            container.state = {"terminated": self._epitaph(self._started.ended.result())}
            raise
        finally:
            listening.cancel()
            living.cancel()
            await asyncio.gather(listening, living, return_exceptions=True)
            os.close(self._started.pidfd)
            assert container.io is not None
            container.io.finish()
            container.started, container.ready, container.probed = None, False, False
            if self._spec.host_pid:
                cgroups.kill(self._spec.cgroup)  # no pid namespace has ended with its first process
            await cgroups.remove(self._spec.cgroup)
        container.state = {"terminated": self._epitaph(status)}
        if "error" in container.said and not self._begun.is_set():
            self._trouble = NotStarted("RunContainerError", container.said["error"])
            self._tell("Failed", f"Error: {self._trouble}", warning=True)
        self._work.report()
        if self._trouble is not None:
            raise self._trouble
        return status

    async def end(self, grace: float) -> None:
        """Have its preStop hook run, ask it to end, and make it after `grace` seconds."""
        begun = asyncio.get_running_loop().time()
        hook = (self._entry.get("lifecycle") or {}).get("preStop")
        if hook and grace > 0 and self._begun.is_set() and not self._pre_stopped:
            self._pre_stopped = True
            await self._run_pre_stop(hook, grace)
            grace = max(grace - (asyncio.get_running_loop().time() - begun), LEAST_GRACE_SECONDS)
        await kill(self._started, grace)

    # --- its start ----------------------------------------------------------------------------------------------------

    async def _start(self) -> int:
        """Start it; gives the pipe of its messages."""
        work, container = self._work, self._container
        running = work.running
        spec = container_spec(work.pod, self._entry, work.means.node, running.addresses, work.sources())
        files = await work.means.images.of(self._entry["image"])
        spec.mounts, mounts = await work.volumes.mounts(self._entry, spec.env)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        io = container.io = _make_io(work.pod, self._entry, spec.id)
        begun: list[Started] = []
        try:
            os.set_blocking(writer, True)
            if spec.cgroup is not None:
                Path(spec.cgroup).mkdir(parents=True, exist_ok=True)  # from here on it is removed again, however we end
            self._message = terminationmessage.make_file(work.pod, container.name, spec.id)
            spec.mounts.append(Mount(self._entry["terminationMessagePath"]))
            mounts.append(linux.clone_mount(str(self._message)))
            for target, file in files.items():
                spec.mounts.append(Mount(str(target), read_only=True))
                mounts.append(linux.clone_mount(str(file)))
            starting = work.means.runtime.start(spec, writer, io.ends, running.netns, mounts)
            await to_the_end(starting, begun.append)
        except BaseException:
            os.close(reader)
            io.abandon()
            for one in begun:  # the pod is to go: nobody else would know of this process
                await kill(one, 0)
                os.close(one.pidfd)
            await cgroups.remove(spec.cgroup)
            raise
        finally:
            os.close(writer)
            close_all(mounts)
        (self._started,) = begun
        io.begin()
        self._spec = spec
        container.id, container.started, container.cgroup, container.env = spec.id, begun[0], spec.cgroup, spec.env
        container.image, container.directory, container.user = self._entry["image"], spec.directory, spec.user
        container.said.clear()
        self._tell("Pulled", f'Container image "{container.image}" already present on machine')
        self._tell("Created", f"Created container {container.name}")
        return reader

    async def _listen(self, reader: int) -> None:
        """Take in what the container's program says, until it closes its end."""
        async for line in _lines(reader):
            word, _, rest = line.partition(" ")
            self._container.said[word] = rest
            if word == "started":
                self._began = now()
                self._tell("Started", f"Started container {self._container.name}")
                self._begun.set()
            elif word == "ready":
                self._serves.set()

    # --- its life -----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Run its postStart hook, count it as running, and probe it; end it when a probe says so."""
        await self._begun.wait()
        hook = (self._entry.get("lifecycle") or {}).get("postStart")
        if hook:
            await self._run_post_start(hook)
        await self._serves.wait()
        container, entry = self._container, self._entry
        container.state = {"running": {"startedAt": self._began}}
        container.probed = not entry.get("startupProbe")
        container.ready = container.probed and not entry.get("readinessProbe")
        if container.probed:
            container.first_start.set()
        self._work.report()
        await self._probe()

    async def _run_post_start(self, hook: Object) -> None:
        try:
            await run_hook(hook, self._work.pod, self._entry, self._reach())
        except HookFailed as error:
            self._tell("FailedPostStartHook", "PostStartHook failed", warning=True)
            self._tell("Killing", "FailedPostStartHook")
            self._trouble = NotStarted("PostStartHookError", str(error))
            await self.end(self._work.grace())
            await asyncio.Event().wait()  # nothing follows

    async def _run_pre_stop(self, hook: Object, grace: float) -> None:
        running = asyncio.create_task(run_hook(hook, self._work.pod, self._entry, self._reach()))
        try:
            await asyncio.wait((running, self._started.ended), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()  # unless it is done
            (result,) = await asyncio.gather(running, return_exceptions=True)
        if isinstance(result, HookFailed):
            self._tell("FailedPreStopHook", "PreStopHook failed", warning=True)

    async def _probe(self) -> None:
        container, work = self._container, self._work

        def on_start() -> None:
            if not container.probed:
                container.probed = True
                container.first_start.set()
                work.report()

        def on_ready(ready: bool) -> None:
            if container.ready != ready:
                container.ready = ready
                work.report()

        def on_failure(kind: str, message: str) -> None:
            if not work.is_deleted:  # then it may be half gone
                self._tell("Unhealthy", f"{kind} probe {message}", warning=True)

        kind = await Prober(self._entry, self._reach(), on_start, on_ready, on_failure).run()
        if work.is_deleted:
            return
        restarts = work.pod["spec"]["restartPolicy"] != "Never" or container.is_sidecar
        self._tell("Killing", f"Container {container.name} failed {kind} probe" + (", will be restarted" * restarts))
        own = self._entry[f"{kind}Probe"].get("terminationGracePeriodSeconds")
        await self.end(work.grace() if own is None else own)

    def _reach(self) -> Reach:
        def execute(command: Sequence[str], seconds: float | None) -> Awaitable[tuple[int, str]]:
            spec = self._spec
            further = CommandSpec(
                id=os.urandom(32).hex(),
                container=spec.id,
                command=list(command),
                env=spec.env,
                cgroup=spec.cgroup,
                directory=spec.directory,
                user=spec.user,
            )
            return execsync.execute(self._started, further, seconds)

        return Reach(self._work.running.addresses[0], self._work.means.network.netns, execute)

    def _epitaph(self, status: int) -> Object:
        """What is told of its end."""
        failed = self._began == NEVER_STARTED and status != 0
        ended = {
            "exitCode": status,
            "reason": "StartError" if failed else "Completed" if status == 0 else "Error",
            "startedAt": self._began,
            "finishedAt": now(),
            "containerID": f"k8snet://{self._spec.id}",
        }
        message = self._container.said.get("error") or self._last_words(status)
        return {**ended, "message": message} if message else ended

    def _last_words(self, status: int) -> str:
        """The message that its program left; "" when it left none, or its file is gone with the pod's."""
        log = path_of(self._work.pod, self._container.name, self._spec.id)
        with contextlib.suppress(OSError):
            return terminationmessage.take(self._message, self._entry["terminationMessagePolicy"], status, log)
        return ""

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._work.tell(self._container.name, reason, message, warning=warning)


async def kill(started: Started, grace: float) -> None:
    """Ask a container to end, and make it after `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(started.pidfd, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(started.ended), patience)
            return


def _make_io(pod: Object, entry: Object, identifier: str) -> ContainerIO:
    """A container's streams and log."""
    log = ContainerLog(path_of(pod, entry["name"], identifier))
    stdin, once, tty = (bool(entry.get(key)) for key in ("stdin", "stdinOnce", "tty"))
    return ContainerIO(log, stdin=stdin, stdin_once=once, tty=tty)


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
