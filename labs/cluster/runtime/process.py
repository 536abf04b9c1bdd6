"""From a fork of the runtime to a container's first process: namespaces, cgroup, descriptors, signals.

Stands for runc and the containerd shim. What does not belong here: what the process sees of files
(`labs.cluster.runtime.filesystem`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import sys
import termios
import time
import traceback
from pathlib import Path

from labs.cluster import linux
from labs.cluster.runtime.container import NOTIFY_FD, Container, ContainerSpec
from labs.cluster.runtime.filesystem import arrange
from labs.cluster.runtime.lookpath import find_program
from labs.cluster.runtime.root import Machine
from tracer.errors import K8snetError

ENDING = (signal.SIGTERM, signal.SIGINT)
NO_PROGRAM = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: {}: unknown"
)
LISTEN_SECONDS = 10.0
LISTEN_STATE = "0A"  # TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)


class StartError(K8snetError):
    """There is no such program in the container; the message is containerd's."""


def start(spec: ContainerSpec, fds: list[int], machine: Machine) -> int:
    """Start a container; gives the process id of its first process, whose parent will be the caller.

    Two forks: the namespace that unshare(CLONE_NEWPID) makes is for children only. The middle process goes away, and
    the container becomes a child of the runtime, which is the reaper of its orphans.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        try:
            _run_middle(spec, fds, machine, writer)
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
        raise K8snetError(rest or "the container's process ended before it began")
    return int(rest)


def _run_middle(spec: ContainerSpec, fds: list[int], machine: Machine, writer: int) -> None:
    notify, *rest = fds
    streams = [rest.pop(0) for _ in range(3 if spec.streams else 1)]
    signal.set_wakeup_fd(-1)
    if spec.cgroup is not None:
        Path(spec.cgroup, "cgroup.procs").write_text("0")
    if spec.netns:
        linux.setns(rest.pop(0), linux.CLONE_NEWNET)
    # Opened now: the container mounts a /proc of its own over this one, which does not know us.
    network = os.open("/proc/self/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
    if not spec.host_pid:
        linux.unshare(linux.CLONE_NEWPID)
    # A request to end that comes before the program can hear it waits for it: see _run_program.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        _run_container(spec, notify, streams, rest, machine)
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


def _run_container(spec: ContainerSpec, notify: int, streams: list[int], extra: list[int], machine: Machine) -> None:
    """Become the container's first process. Never returns."""
    status = 128
    try:
        arrange_descriptors(notify, streams, extra)
        reset_signals()
        os.setsid()
        if spec.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        arrange(spec, machine, range(NOTIFY_FD + 1, NOTIFY_FD + 1 + len(spec.mounts)))
        if spec.hostname is not None:
            socket.sethostname(spec.hostname)
        Path(spec.directory).mkdir(parents=True, exist_ok=True)
        os.chdir(spec.directory)
        os.environ.clear()
        os.environ.update(spec.env)
        linux.set_process_name(spec.name)
        linux.set_command_line(f"{spec.image} {spec.facts.get('namespace', '')}/{spec.facts.get('pod', spec.name)}")
        status = _run_program(spec)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        _notify(f"error {error}")
        if not isinstance(error, StartError):
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
        program = _find_program(argv[0], spec.env.get("PATH", ""))
        _notify("started" if spec.wait_for_ports else "started\nready")
        os.set_inheritable(NOTIFY_FD, False)
        become_user(spec.user)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.execv(program, argv)
    _notify("started")
    if spec.facts:  # a pod's: the kernel drops signals that the first process of a pid namespace has no handler for
        for number in ENDING:
            signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    find(spec.image).run(Container(spec))
    return 0


def become_user(user: list[int]) -> None:
    """Be user, group and further groups from now on, with streams that are the user's; root where there is nobody."""
    if not user:
        return
    for fd in range(NOTIFY_FD):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):  # not /dev/null, which is everybody's
            os.fchown(fd, user[0], -1)
    os.setgroups(user[2:])
    os.setgid(user[1])
    os.setuid(user[0])


def _find_program(name: str, path: str) -> str:
    try:
        return find_program(name, path)
    except K8snetError as error:
        raise StartError(NO_PROGRAM.format(error.message)) from None


def _notify(text: str) -> None:
    """Tell the kubelet, if it listens."""
    with contextlib.suppress(OSError):
        os.write(NOTIFY_FD, f"{text}\n".encode())


def arrange_descriptors(notify: int, streams: list[int], extra: list[int]) -> None:
    """Give the process what it keeps, at fixed numbers, and close all else. `streams`: all three, or for all output."""
    # Out of the way first, so that no dup2 overwrites a descriptor that is still to be moved.
    if len(streams) == 1:
        streams = [os.open(os.devnull, os.O_RDONLY), *streams * 2]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*streams, notify, *extra)]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < NOTIFY_FD)
    os.closerange(len(high), 1 << 16)


def reset_signals() -> None:
    """Undo what the runtime, guardian and supervisor set: dispositions and mask outlive a fork."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ENDING)


def _leave(number: int, _frame: object) -> None:
    """Being asked to end before the program has said how it ends."""
    os._exit(128 + number)
