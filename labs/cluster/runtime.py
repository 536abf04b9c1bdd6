"""The container runtime: makes sandboxes and starts containers, each in namespaces and a cgroup of its own.

Stands for containerd with runc, and on the outermost level for the machine that runs kind's node containers: a node is
started by the same code as a pod. A runtime is a process (`serve`) that forks for each container rather than starting a
program, since its servers are Python and loaded already: 5 ms instead of 200. It talks to one client over a socket
(`Runtime`).

    supervisor ── forks ─▶ runtime of the machine ── starts ─▶ node1: a container whose program is again a runtime
                                                                 └─ starts ─▶ containers of node1's pods

A container has its own mount, PID, UTS and IPC namespaces and cgroup; the network namespace is the pod's (its sandbox,
held by a mount in /run/netns as CNI runtimes do), or the node's. Left out: images are no file systems (a container sees
the machine's files, with its own /proc, /run, /etc and network part of /sys), there is no pause process, UTS and IPC
are per container rather than per pod, and there is no isolation from hostile programs: everything runs as root.

What belongs here: forking, namespaces, mounts, waiting. What does not: what runs in a container
(`labs.cluster.images`), when and where it runs (`labs.cluster.kubelet`), its network (`labs.cluster.network`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labs.cluster import linux
from tracer.errors import K8snetError

OURS = "k8snet"  # the source of the mounts made here, by which they are known
MAX_MESSAGE = 1 << 17
ENDING = (signal.SIGTERM, signal.SIGINT)
NOTIFY_FD = 3  # where a container finds the pipe for `Container.notify`
EXTRA_FD = 4  # where a container finds the first extra descriptor
LISTEN_SECONDS = 10.0
LISTEN_STATE = "0A"  # TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)


@dataclass(slots=True)
class ContainerSpec:
    """All that a runtime needs to know to start one container.

    `hostname`: None shares the node's. `netns` tells whether a sandbox's descriptor comes with the request; otherwise
    the network is the runtime's own. `files`: texts for /etc, by path. `volumes`: directories of small files, each its
    own mount. `binds`: files and directories of the node, by where the container sees them; missing files are made.
    `wait_for_ports`: TCP ports that must listen before the container counts as started (for programs that can't tell).
    `facts` is for the program: pod, namespace, node, addresses, ports.
    """

    id: str
    name: str
    image: str
    command: list[str] | None = None
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    hostname: str | None = None
    netns: bool = False
    cgroup: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    binds: dict[str, str] = field(default_factory=dict)
    wait_for_ports: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


Program = Callable[["Container"], None]


class Container:
    """What a program in a container knows of itself, and how it talks to the kubelet."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.args = spec.args
        self.facts = spec.facts

    def notify(self, line: str) -> None:
        """Tell the kubelet something, such as "ready" or "synced 42"."""
        with contextlib.suppress(OSError):
            os.write(NOTIFY_FD, f"{line}\n".encode())

    def ready(self) -> None:
        """Tell the kubelet that this program serves."""
        self.notify("ready")


# --- the client -------------------------------------------------------------------------------------------------------


class ContainerError(K8snetError):
    """The runtime could not do what it was asked."""


@dataclass(slots=True)
class Started:
    """A running container. `pid` is that of its first process, in the pid namespace of the caller; `pidfd` refers to
    it.

    `ended` will hold its exit status, 128 + N for signal N; await it through asyncio.shield.
    """

    pid: int
    pidfd: int
    ended: asyncio.Future[int]


class Runtime:
    """The client's end of a runtime. All methods belong to the event loop that `attach` was called in."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._exits: dict[str, asyncio.Future[int]] = {}
        self.gone = False

    def attach(self) -> None:
        """Listen for answers in the running event loop."""
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    async def make_sandbox(self, name: str) -> int:
        """Make a network namespace called `name` (in /run/netns); gives a descriptor for it."""
        _, fds = await self._ask({"op": "sandbox", "name": name})
        return fds[0]

    async def remove_sandbox(self, name: str) -> None:
        """Let go of the network namespace called `name`."""
        await self._ask({"op": "remove-sandbox", "name": name})

    async def start(
        self, spec: ContainerSpec, notify: int, log: int, netns: int | None = None, extra: Sequence[int] = ()
    ) -> Started:
        """Start a container; `notify` and `log`: descriptors for its messages and output. The caller closes its own."""
        spec.netns = netns is not None
        fds = [notify, log, *([] if netns is None else [netns]), *extra]
        ended = self._exits[spec.id] = asyncio.get_running_loop().create_future()
        try:
            _, answered = await self._ask({"op": "start", "spec": asdict(spec)}, fds)
        except BaseException:
            self._exits.pop(spec.id, None)
            raise
        return Started(_pid_of(answered[0]), answered[0], ended)

    async def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        if self.gone:
            raise ContainerError("the node's container runtime is gone")
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"number": number, **request}, fds)
            message, received = await answer
            return message, received
        finally:
            del self._answers[number]

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        while True:
            try:
                _send(self._socket, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.002)

    def _receive(self) -> None:
        while True:
            try:
                message, fds = _receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                message, fds = None, []
            if message is None:
                self._lost()
                return
            if "exited" in message:
                future = self._exits.pop(message["exited"], None)
                if future is not None:
                    future.set_result(message["status"])
                continue
            answer = self._answers.get(message["number"])
            if answer is None or answer.done():
                for fd in fds:
                    os.close(fd)
            elif "error" in message:
                answer.set_exception(ContainerError(message["error"]))
            else:
                answer.set_result((message, fds))

    def _lost(self) -> None:
        """The runtime process ended: all its containers have ended with it."""
        self.gone = True
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ContainerError("the node's container runtime is gone"))
        for future in self._exits.values():
            future.set_result(128 + signal.SIGKILL)
        self._exits.clear()


def _pid_of(pidfd: int) -> int:
    """The process id that a pidfd refers to, in the pid namespace that /proc was mounted in."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return int(value)
    raise ContainerError("the kernel does not tell the process id of a pidfd")


# --- the runtime process ----------------------------------------------------------------------------------------------


def fork_runtime(name: str) -> Runtime:
    """Fork a runtime that lives in the caller's namespaces. The caller has a single thread and no event loop."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        status = 1
        try:
            os.dup2(theirs.fileno(), EXTRA_FD)
            os.closerange(3, EXTRA_FD)
            os.closerange(EXTRA_FD + 1, 1 << 16)
            _reset_signals()
            linux.set_process_name(name)
            linux.set_command_line(name)
            linux.become_subreaper()
            serve(socket.socket(fileno=EXTRA_FD))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    return Runtime(ours)


def serve(connection: socket.socket) -> None:
    """Do what the client asks, until it is gone. The caller has no event loop and no threads, and reaps its orphans."""
    wakeup_reader, wakeup_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
    names: dict[int, str] = {}  # process id -> container id
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(wakeup_reader, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == wakeup_reader:
                    os.read(wakeup_reader, 4096)
                    _report_exits(connection, names)
                elif not _answer(connection, names):
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
            _send(connection, {"exited": names.pop(pid), "status": code if code >= 0 else 128 - code})


def _answer(connection: socket.socket, names: dict[int, str]) -> bool:
    """Receive and carry out one request; False when the client is gone."""
    message, fds = _receive(connection)
    if message is None:
        return False
    result: list[int] = []
    try:
        match message["op"]:
            case "sandbox":
                result = [_make_sandbox(message["name"])]
            case "remove-sandbox":
                _remove_sandbox(message["name"])
            case "start":
                spec = ContainerSpec(**message["spec"])
                pid = _start(spec, fds)
                names[pid] = spec.id
                result = [os.pidfd_open(pid)]
        _send(connection, {"number": message["number"]}, result)
    except Exception as error:
        _send(connection, {"number": message["number"], "error": str(error)})
    finally:
        for fd in (*fds, *result):
            os.close(fd)
    return True


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


def _start(spec: ContainerSpec, fds: list[int]) -> int:
    """Start a container; gives the process id of its first process, whose parent will be the caller.

    Two forks: the namespace that unshare(CLONE_NEWPID) makes is for children only. The middle process goes away, and
    the container becomes a child of the runtime, which is the reaper of its orphans.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        try:
            _run_middle(spec, fds, writer)
        except BaseException as error:
            os.write(writer, f"error {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        word, _, rest = os.read(reader, 4096).decode(errors="replace").partition(" ")
    finally:
        os.close(reader)
    if word != "pid":
        raise ContainerError(rest or "the container's process ended before it began")
    return int(rest)


def _run_middle(spec: ContainerSpec, fds: list[int], writer: int) -> None:
    notify, log, *rest = fds
    signal.set_wakeup_fd(-1)
    if spec.cgroup is not None:
        Path(spec.cgroup, "cgroup.procs").write_text("0")
    if spec.netns:
        linux.setns(rest.pop(0), linux.CLONE_NEWNET)
    # Opened now: the container mounts a /proc of its own over this one, which does not know us.
    network = os.open("/proc/self/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
    # A request to end that comes before the program can hear it waits for it: see _run_program.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        _run_container(spec, notify, log, rest)
    os.write(writer, f"pid {pid}".encode())
    os.close(writer)
    if spec.wait_for_ports and _wait_for_listeners(set(spec.wait_for_ports), network, pid):
        os.write(notify, b"ready\n")


def _wait_for_listeners(ports: set[int], network: int, pid: int) -> bool:
    """Wait until all of `ports` listen, untouched; False when `pid` ends first. `network`: open on /proc/self/net."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < deadline:
        listening = set()
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=network)) as table:
                    rows = [line.split() for line in table.readlines()[1:]]
                listening |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTEN_STATE}
        if ports <= listening:
            return True
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.003)
    return False


def _run_container(spec: ContainerSpec, notify: int, log: int, extra: list[int]) -> None:
    """Become the container's first process. Never returns."""
    status = 128
    try:
        _arrange_descriptors(notify, log, extra)
        _reset_signals()
        os.setsid()
        _mount_own_file_systems(spec)
        if spec.hostname is not None:
            socket.sethostname(spec.hostname)
        os.chdir("/")
        os.environ.clear()
        os.environ.update(spec.env)
        linux.set_process_name(spec.name)
        linux.set_command_line(f"{spec.image} {spec.facts.get('namespace', '')}/{spec.facts.get('pod', spec.name)}")
        status = _run_program(spec)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(NOTIFY_FD, f"error {error}\n".encode())
        traceback.print_exc()
        status = 128  # what containerd gives for a container that could not start
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def _run_program(spec: ContainerSpec) -> int:
    """Run what the image or `command` says, in this process; gives the exit status."""
    from labs.cluster.images import find  # images know containers, not the other way round

    if spec.command is not None:
        argv = [*spec.command, *spec.args]
        if not spec.wait_for_ports:
            os.write(NOTIFY_FD, b"ready\n")
        os.set_inheritable(NOTIFY_FD, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.execvp(argv[0], argv)
    if spec.facts:  # a pod's: the kernel drops signals that the first process of a pid namespace has no handler for
        for number in ENDING:
            signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    find(spec.image).run(Container(spec))
    return 0


def _arrange_descriptors(notify: int, log: int, extra: list[int]) -> None:
    """Give the process what it keeps, at fixed numbers, and close all else."""
    # Out of the way first, so that no dup2 overwrites a descriptor that is still to be moved.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (log, notify, *extra)]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(high[0], 1)
    os.dup2(high[0], 2)
    for index, fd in enumerate(high[1:]):
        os.dup2(fd, NOTIFY_FD + index, inheritable=False)
    os.closerange(NOTIFY_FD + len(high) - 1, 1 << 16)


def _reset_signals() -> None:
    """Undo what the runtime, guardian and supervisor set: dispositions and mask outlive a fork."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ENDING)


def _leave(number: int, _frame: object) -> None:
    """Being asked to end before the program has said how it ends."""
    os._exit(128 + number)


def _mount_own_file_systems(spec: ContainerSpec) -> None:
    """Give the container its own /proc, /run, /etc, volumes, and the devices of its own network namespace in /sys."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    # Before /run goes: it may be what they are taken from.
    taken = {target: _take(source) for target, source in spec.binds.items()}
    own_run()
    _mount_sysfs_network()
    if spec.files:
        _write_etc(spec.files)
    for directory, files in spec.volumes.items():
        path = Path(os.path.realpath(directory))
        path.mkdir(parents=True, exist_ok=True)
        linux.mount("tmpfs", str(path), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=755")
        for name, text in files.items():
            (path / name).write_text(text)
        linux.mount("none", str(path), flags=linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY)
    for target, mount in taken.items():
        _put(mount, Path(os.path.realpath(target)))


def _take(source: str) -> int:
    """A mount of a file or directory of the node; a file that is missing is made (hostPath type FileOrCreate)."""
    path = Path(source)
    if not path.exists():
        path.touch()
    return linux.clone_mount(source)


def _put(mount: int, target: Path) -> None:
    """Attach what `_take` gave."""
    if Path(f"/proc/self/fd/{mount}").is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    linux.attach_mount(mount, str(target))
    os.close(mount)


def own_run() -> None:
    """Give the caller's mount namespace an empty /run of its own.

    The one that it inherited, if we made it, goes away with all that is mounted in it: a copy of somebody else's
    /run/netns would keep network namespaces alive.
    """
    _detach_ours("/run")
    linux.mount(OURS, "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")


def _detach_ours(target: str) -> None:
    """Unmount what this module mounted at `target`, if anything."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == target and rest.split()[1] == OURS:
            linux.unmount(target, linux.MNT_DETACH)
            return


def _mount_sysfs_network() -> None:
    """Show the devices of this network namespace in /sys, and leave all else that is mounted below /sys where it is."""
    staging = Path("/run/.sys")
    staging.mkdir()
    linux.mount("sysfs", str(staging), "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for part in ("class/net", "devices/virtual/net"):
        linux.mount(str(staging / part), f"/sys/{part}", flags=linux.MS_BIND)
    linux.unmount(str(staging), linux.MNT_DETACH)
    staging.rmdir()


def _write_etc(files: dict[str, str]) -> None:
    """Put files into /etc that only this container sees: an overlay whose upper layer is in its own /run."""
    _detach_ours("/etc")  # the node's: overlays may only be stacked two deep
    for layer in ("/run/.etc/upper", "/run/.etc/work"):
        Path(layer).mkdir(parents=True)
    layers = "lowerdir=/etc,upperdir=/run/.etc/upper,workdir=/run/.etc/work"
    linux.mount(OURS, "/etc", "overlay", linux.MS_NODEV, layers)
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # such as systemd-resolved's resolv.conf: the link itself is replaced, in the overlay
        path.write_text(text)


# --- messages between the two: one JSON object for each packet, with descriptors beside it ----------------------------


def _send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([json.dumps(message).encode()], rights)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message with its descriptors; (None, []) when the other side is gone."""
    data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 16, socket.MSG_CMSG_CLOEXEC)
    if not data:
        for fd in fds:
            os.close(fd)
        return None, []
    return json.loads(data), list(fds)
