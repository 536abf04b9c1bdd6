"""PID 1 of a cluster's own pid namespace: when it goes, everything in the cluster goes.

It lives in network, mount and IPC namespaces of its own as well, with a /run of its own, so nothing that is made here
is to be seen from the machine, and the kernel takes all of it apart when this process ends, however it ends. It stands
for the machine that a kind cluster runs on. Should the guardian die first, the supervisor kills the cluster and removes
what the guardian would have removed.

What belongs here: namespaces, the order of the start, dying. What does not: the cluster (`labs.cluster.world`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from labs.cluster import linux
from labs.cluster.ledger import STATE_ROOT, Ledger
from labs.cluster.options import ClusterOptions
from tracer.errors import K8snetError

CONTROL_SOCKET = "control.sock"
OPEN_FILES = 1 << 20  # containerd's LimitNOFILE, as most distributions set it
LOG_LINES = 20  # of each pod, shown when a cluster does not become ready


def run(
    options: ClusterOptions, ledger: Ledger, host_socket: socket.socket, alive: int, report_fd: int, lock: int
) -> NoReturn:
    """Be the supervisor; never returns.

    `alive`: the reading end of a pipe that is closed when the guardian is gone. `lock` is held by being open.
    """
    if os.getpid() != 1:
        raise RuntimeError("the supervisor must be PID 1 of a pid namespace: it ends by killing all that is in there")
    report = _Report(report_fd)
    mortal = _Mortality(ledger, alive)
    mortal.watch_guardian()
    try:
        _raise_file_limit()
        with mortal.undisturbed():
            _enter_own_namespaces()
            mortal.has_own_run = True
        from labs.cluster.ebpfcompiler import Compiler

        # It takes as long as the nodes and the control plane do, which need not wait for it.
        compiler = Compiler() if options.proxy == "ebpf" else None
        from labs.cluster import images, world  # takes longest of all, so the guardian is watched before
        from labs.cluster.runtime.root import refusal
        from labs.cluster.runtime.service import fork_runtime

        images.preload()
        if (why := refusal()) is not None:
            ledger.notes.append(f"nodes and pods share the machine's files read-only: no overlay over its root: {why}")
        machine = fork_runtime(world.MACHINE)
        os.set_inheritable(lock, False)
        linux.set_process_name("k8snet-lab")
        linux.set_command_line(f"k8snet-lab supervisor of {options.name}")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
        cluster = world.World(options, ledger, machine, report.progress, compiler)
        asyncio.run(_supervise(cluster, host_socket, report))
        raise RuntimeError("the control socket was closed")
    except Exception as error:
        _fail(report, error)


async def _supervise(world: Any, host_socket: socket.socket, report: _Report) -> None:
    from labs.cluster import control_server

    try:
        server = await control_server.start(world, world.ledger.directory / CONTROL_SOCKET)
        await world.start(host_socket)
        report.ready()
        await server.serve_forever()
    except Exception as error:
        _fail(report, error)


def _fail(report: _Report, error: Exception) -> NoReturn:
    """Say why there is no cluster, and end at once: an orderly end of every pod would take its grace period."""
    if isinstance(error, K8snetError):
        _print_pod_logs()
        report.failed(error)
    else:
        logging.getLogger(__name__).error("the cluster failed", exc_info=error)
        report.failed(K8snetError(f"the cluster failed: {error}"))
    os._exit(1)


def _print_pod_logs() -> None:
    """Put what the pods last said into our own log: theirs go with the cluster."""
    from labs.cluster.containerlogs import LOG_ROOT, parse

    for path in sorted(LOG_ROOT.glob("*/*/*.log")):
        for line in path.read_bytes().splitlines()[-LOG_LINES:]:
            text = parse(line).text.decode(errors="replace").rstrip("\n")
            print(f"{path.parent.parent.name}: {text}", file=sys.stderr)
    sys.stderr.flush()


class _Report:
    """Tells `up` how it goes: one JSON object for each line. A reader that is gone does not matter."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        os.set_inheritable(fd, False)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def progress(self, what: str) -> None:
        """Say what comes next."""
        self._write({"progress": what})

    def ready(self) -> None:
        """Say that the cluster is ready; the last word."""
        self._write({"ready": True})
        self._close()

    def failed(self, error: K8snetError) -> None:
        """Say why there will be no cluster; the last word."""
        self._write({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        self._close()

    def _write(self, message: dict[str, Any]) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, json.dumps(message).encode() + b"\n")

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _Mortality:
    """How the supervisor ends: at once when told to, and with a clean-up when there is no guardian left to do it."""

    def __init__(self, ledger: Ledger, alive: int) -> None:
        self._ledger = ledger
        self._alive = alive
        self.has_own_run = False  # until then /run is the machine's, and unmounting it would take it from everybody

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put off an end until the body is through."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def watch_guardian(self) -> None:
        """Have the kernel send SIGTERM when the guardian dies, and find out whether it is dead already."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        linux.set_parent_death_signal(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not self._guardian_lives():
            self._end(signal.SIGTERM, None)

    def _guardian_lives(self) -> bool:
        """The pipe's other end is only the guardian's: it is readable (end of file) once that is gone."""
        return not select.select([self._alive], [], [], 0)[0]

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if self._guardian_lives():
            os._exit(0)  # the kernel ends the rest of the pid namespace, the guardian cleans up
        try:
            self._clean_up()
        finally:
            os._exit(0)

    def _clean_up(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all processes of this pid namespace but ourselves, who are its PID 1
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        # Our /run hides the machine's, whose directory is to be removed.
        if self.has_own_run:
            with contextlib.suppress(OSError):
                linux.unmount("/run", linux.MNT_DETACH)
        self._ledger.remove_everything()


def _raise_file_limit() -> None:
    """Let the cluster have as many open files as containers have: a shell's limit of 1,024 is 1,000 watches too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _enter_own_namespaces() -> None:
    """Leave the machine's network, mount and IPC namespaces; keep its file system, with another /proc and /run."""
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC)
    state = os.open(STATE_ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # The machine's mounts still come and go here, ours don't there.
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.mount("k8snet", "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    STATE_ROOT.mkdir()
    linux.mount(f"/proc/self/fd/{state}", str(STATE_ROOT), flags=linux.MS_BIND)
    os.close(state)
    for directory in ("/run/netns", "/run/log"):
        os.makedirs(directory)  # noqa: PTH103
