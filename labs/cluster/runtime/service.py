"""The runtime process: makes sandboxes, starts containers, waits for them and tells of their ends.

Stands for containerd and its CRI plugin. What does not belong here: what becomes of a fork
(`labs.cluster.runtime.process`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from labs.cluster import linux
from labs.cluster.runtime.client import Runtime
from labs.cluster.runtime.command import execute
from labs.cluster.runtime.container import EXTRA_FD, CommandSpec, ContainerSpec, Mount
from labs.cluster.runtime.filesystem import host_path
from labs.cluster.runtime.messages import receive, send
from labs.cluster.runtime.process import reset_signals, start
from labs.cluster.runtime.root import Machine
from tracer.errors import K8snetError


def fork_runtime(name: str) -> Runtime:
    """Fork a runtime: PID 1 of a pid namespace, so that its containers end with it; the other namespaces are the
    caller's, who has a single thread and no event loop."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _pid_namespace_for_children():
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(theirs.fileno(), EXTRA_FD)
                os.closerange(3, EXTRA_FD)
                os.closerange(EXTRA_FD + 1, 1 << 16)
                be_runtime(name, EXTRA_FD)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
    theirs.close()
    return Runtime(ours, os.pidfd_open(pid))


def start_again(name: str) -> tuple[socket.socket, int]:
    """Start a runtime as `fork_runtime` does, in place of one that died with all its containers; slower, but from a
    process that has threads. Gives our end of the connection, and a pidfd."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, _pid_namespace_for_children():
        command = [sys.executable, "-m", "labs.cluster.runtime", name, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    process.returncode = 0  # the client waits for it
    return ours, os.pidfd_open(process.pid)


def be_runtime(name: str, fd: int) -> None:
    """Serve the client at the other end of the socket `fd` for the rest of this process."""
    reset_signals()
    linux.set_process_name(name)
    linux.set_command_line(name)
    serve(socket.socket(fileno=fd))


@contextlib.contextmanager
def _pid_namespace_for_children() -> Iterator[None]:
    """Have the first process that this thread starts in the body be PID 1 of a new pid namespace."""
    home = os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWPID)
        try:
            yield
        finally:
            linux.setns(home, linux.CLONE_NEWPID)
    finally:
        os.close(home)


def serve(connection: socket.socket) -> None:
    """Do what the client asks, until it is gone. The caller has no event loop and no threads, and reaps its orphans."""
    wakeup_reader, wakeup_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
    machine = Machine.look()
    names: dict[int, str] = {}  # process id -> container id
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(wakeup_reader, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == wakeup_reader:
                    os.read(wakeup_reader, 4096)
                    _report_exits(connection, names)
                elif not _answer(connection, names, machine):
                    return


def _report_exits(connection: socket.socket, names: dict[int, str]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in names:
            code = os.waitstatus_to_exitcode(status)
            send(connection, {"exited": names.pop(pid), "status": code if code >= 0 else 128 - code})


def _answer(connection: socket.socket, names: dict[int, str], machine: Machine) -> bool:
    """Receive and carry out one request; False when the client is gone."""
    message, fds = receive(connection)
    if message is None:
        return False
    result: list[int] = []
    try:
        match message["op"]:
            case "sandbox":
                result = [_make_sandbox(message["name"])]
            case "remove-sandbox":
                _remove_sandbox(message["name"])
            case "host-path":
                result = [host_path(message["path"], message["type"], message["inner"])]
            case "start":
                mounts = [Mount(**mount) for mount in message["spec"].pop("mounts")]
                spec = ContainerSpec(**message["spec"], mounts=mounts)
                pid = start(spec, fds, machine)
                names[pid] = spec.id
                result = [os.pidfd_open(pid)]
            case "execute":
                command = CommandSpec(**message["spec"])
                pid = execute(command, _process_of(names, command.container), fds)
                names[pid] = command.id
                result = [os.pidfd_open(pid)]
        send(connection, {"number": message["number"]}, result)
    except Exception as error:
        send(connection, {"number": message["number"], "error": str(error)})
    finally:
        for fd in (*fds, *result):
            os.close(fd)
    return True


def _process_of(names: dict[int, str], container: str) -> int:
    for pid, name in names.items():
        if name == container:
            return pid
    raise K8snetError(f"container {container} is not running")


def _make_sandbox(name: str) -> int:
    path = Path("/run/netns", name)
    path.parent.mkdir(exist_ok=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWNET)
        try:
            path.touch()
            linux.mount("/proc/self/ns/net", str(path), flags=linux.MS_BIND)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            linux.setns(home, linux.CLONE_NEWNET)
    finally:
        os.close(home)


def _remove_sandbox(name: str) -> None:
    path = Path("/run/netns", name)
    if path.exists():
        linux.unmount(str(path), linux.MNT_DETACH)
        path.unlink()
