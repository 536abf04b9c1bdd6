"""Running a command inside a pod or on a node, as if it had been started there.

Stands for `kubectl exec` and, for nodes, `docker exec` on a kind node, without a server in between: the caller's own
child process enters namespaces and cgroup, so it keeps the caller's terminal and files. It belongs to the cluster from
then on: when the cluster goes, so does it; and when the caller goes, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from labs.cluster import control, linux
from tracer.errors import K8snetError, UsageError

# What a terminal session needs of the caller's environment; all the rest is the container's.
KEPT_VARIABLES = ("TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE", "NO_COLOR")
FORWARDED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT),
)
SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h: the terminal sent it, to its whole foreground process group
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as a shell says it
TIMED_OUT = 124  # as timeout(1) says it
SHELLS = ("/bin/bash", "/bin/sh")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command can run. `pid`: a process there, as we see it; `cgroup`: None without cgroups."""

    cluster: str
    name: str
    pid: int
    cgroup: str | None
    env: Mapping[str, str]


def find(cluster: str, target: str) -> Place:
    """What a user calls NODE, client-host or NAMESPACE/POD. Raises NotUp, or UsageError naming those that exist."""
    document = control.status(cluster)
    if "/" in target:
        namespace, _, name = target.partition("/")
        found = [entry for entry in document["pods"] if (entry["namespace"], entry["name"]) == (namespace, name)]
    else:
        found = [entry for entry in (*document["nodes"], *document["hosts"]) if entry["name"] == target]
    if not found:
        raise UsageError(
            f"there is no {'pod' if '/' in target else 'node'} {target}", hint=_suggestion(document, target)
        )
    entry = found[0]
    if entry["pid"] is None:
        raise K8snetError(f"{target} has no running container", hint="k8snet-lab status")
    return Place(cluster, target, entry["pid"], entry["cgroup"], entry["env"])


def targets(cluster: str) -> list[str]:
    """All that can be named as a target of a running cluster, nodes first."""
    document = control.status(cluster)
    return [entry["name"] for entry in (*document["nodes"], *document["hosts"])] + [
        f"{entry['namespace']}/{entry['name']}" for entry in document["pods"]
    ]


def _suggestion(document: dict[str, Any], target: str) -> str:
    names = [entry["name"] for entry in (*document["nodes"], *document["hosts"])] + [
        f"{pod['namespace']}/{pod['name']}" for pod in document["pods"]
    ]
    word = target.rpartition("/")[2]
    near = [name for name in names if word and word in name] or names
    return "there are " + ", ".join(near)


def run(place: Place, command: Sequence[str]) -> int:
    """Run `command` there with our standard streams; gives its exit status, 128 + N for signal N.

    Signals that we get are passed on; a command that is stopped stops us. Raises K8snetError when the place is gone.
    """
    watched = {signal.SIGCHLD, *FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        with _open_place(place) as (pidfd, procs):
            alive_reader, alive_writer = os.pipe2(os.O_CLOEXEC)
            # A terminal is handed over only when the command is what the user talks to, not amid a pipeline.
            interactive = os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
            child = os.fork()
            if child == 0:
                os.close(alive_writer)
                _become(place, command, pidfd, procs, alive_reader, interactive)
            os.close(alive_reader)
            try:
                return _Job(child, interactive).wait(watched)
            finally:
                os.close(alive_writer)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def capture(place: Place, command: Sequence[str], *, feed: str | None = None, seconds: float) -> tuple[int, str, str]:
    """Run `command` there without our streams: exit status, output, complaints. 124: it took longer, and was killed.

    `feed`: what it reads. Several threads may do so at once. Raises K8snetError when the place is gone.
    """
    with _open_place(place) as (pidfd, procs), _born_here_afterwards():

        def go() -> None:
            linux.set_parent_death_signal(signal.SIGKILL)  # the parent is the thread that waits for it
            _go(pidfd, procs)

        reads: dict[str, Any] = {"stdin": subprocess.DEVNULL} if feed is None else {"input": feed}
        texts: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
        env = _environment(place)
        try:
            done = subprocess.run(command, env=env, timeout=seconds, check=False, preexec_fn=go, **reads, **texts)
        except FileNotFoundError:
            return NOT_FOUND, "", f"error: {_not_found(place, command)}\n"
        except subprocess.TimeoutExpired as late:
            return TIMED_OUT, _text(late.output), _text(late.stderr)
        except (OSError, subprocess.SubprocessError) as error:
            raise K8snetError(f"{command[0]} can't run in {place.name}: {error}", hint="k8snet-lab status") from error
        return _exit_status(done.returncode), done.stdout, done.stderr


def _text(output: bytes | str | None) -> str:
    """What a command that took too long had printed; Python gives bytes although text was asked for."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


@contextlib.contextmanager
def _born_here_afterwards() -> Iterator[None]:
    """The calling thread's children are born in our own pid namespace again, in the end."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        linux.setns(own, linux.CLONE_NEWPID)
        os.close(own)


@contextlib.contextmanager
def _open_place(place: Place) -> Any:
    """Descriptors for a place: its process, and the file that a process writes to to join its cgroup (None without).

    From here on, children of ours are born in its pid namespace.
    """
    try:
        pidfd = os.pidfd_open(place.pid)
        try:
            procs = None
            if place.cgroup is not None:
                procs = os.open(Path(place.cgroup, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
            linux.setns(pidfd, linux.CLONE_NEWPID)
        except BaseException:
            os.close(pidfd)
            raise
    except OSError as error:
        raise K8snetError(f"{place.name} has just gone: {error.strerror}", hint="k8snet-lab status") from error
    try:
        yield pidfd, procs
    finally:
        os.close(pidfd)
        if procs is not None:
            os.close(procs)


def _become(
    place: Place, command: Sequence[str], pidfd: int, procs: int | None, alive: int, interactive: bool
) -> NoReturn:
    """In the child: go there and become the command."""
    status = NOT_EXECUTABLE
    try:
        linux.set_parent_death_signal(signal.SIGKILL)
        if select.select([alive], [], [], 0)[0]:
            os._exit(status)  # our parent went before it could be told of
        _go(pidfd, procs)
        if interactive:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
        # Python ignores SIGPIPE, and we blocked some: a command must not inherit that.
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTTOU, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        env = _environment(place)
        os.environ.clear()
        os.environ.update(env)
        os.execvp(command[0], list(command))
    except FileNotFoundError:
        status = NOT_FOUND
        _complain(_not_found(place, command))
    except OSError as error:
        _complain(f"{command[0]}: {error.strerror}")
    finally:
        os._exit(status)


def _go(pidfd: int, procs: int | None) -> None:
    """Be in a place's cgroup and namespaces, but for that of process ids, into which one is born."""
    if procs is not None:
        os.write(procs, b"0")
    linux.setns(pidfd, linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWNS)
    os.chdir("/")


def _environment(place: Place) -> dict[str, str]:
    return {**place.env, **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}}


def _not_found(place: Place, command: Sequence[str]) -> str:
    return f"{command[0]}: not found in {place.name}"


def _complain(text: str) -> None:
    os.write(2, f"error: {text}\n".encode(errors="replace"))


def _exit_status(code: int) -> int:
    """As a shell says it: 128 + N for signal N, which Python gives as -N."""
    return code if code >= 0 else 128 - code


class _Job:
    """Our one child, in job-control terms."""

    def __init__(self, child: int, interactive: bool) -> None:
        self._child = child
        self._interactive = interactive
        if interactive:
            # Both sides do it, whoever is first.
            with contextlib.suppress(OSError):
                os.setpgid(child, child)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def wait(self, watched: set[signal.Signals]) -> int:
        """Pass signals on until the child has ended; gives its exit status."""
        while True:
            info = signal.sigwaitinfo(watched)
            if info.si_signo == signal.SIGCHLD:
                status = self._look()
                if status is not None:
                    return status
            # Without a process group of its own the child has the terminal's signals already.
            elif self._interactive or info.si_code != SI_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, info.si_signo)

    def _look(self) -> int | None:
        """The child's exit status if it has ended; if it has stopped, stop with it."""
        pid, status = os.waitpid(self._child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None
        if os.WIFSTOPPED(status):
            self._take_terminal(os.getpgrp())
            os.kill(os.getpid(), signal.SIGSTOP)
            self._take_terminal(self._child)  # somebody has continued us
            os.kill(-self._child if self._interactive else self._child, signal.SIGCONT)
            return None
        self._take_terminal(os.getpgrp())
        return _exit_status(os.waitstatus_to_exitcode(status))

    def _take_terminal(self, group: int) -> None:
        if self._interactive:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, group)


def find_shell() -> str:
    """The shell to start. Raises K8snetError when the machine has none."""
    for path in SHELLS:
        if os.access(path, os.X_OK):
            return path
    raise K8snetError(f"no shell: neither {' nor '.join(SHELLS)}")
