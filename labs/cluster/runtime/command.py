"""A further command in a container that runs, for `kubectl exec`.

Stands for runc exec.

What belongs here: joining a container and becoming a program there. What does not: the container's own first process
(`labs.cluster.runtime.process`), commands whose caller stays their parent (`labs.cluster.enter`).
"""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from pathlib import Path
from typing import NoReturn

from labs.cluster import linux
from labs.cluster.runtime.container import NOTIFY_FD, CommandSpec
from labs.cluster.runtime.lookpath import find_program
from labs.cluster.runtime.process import arrange_descriptors, become_user, reset_signals
from tracer.errors import K8snetError

JOINED = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWNS


def execute(spec: CommandSpec, target: int, streams: list[int]) -> int:
    """Run a command beside process `target` of a container; gives its process id. Its parent will be the caller.

    Returns once the program runs. Raises K8snetError, in runc's words where there is no such program.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)  # whoever becomes the program closes its end by that
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        try:
            _join(spec, target, streams, writer)
        except BaseException as error:
            os.write(writer, f"error {error}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as answer:
        told = dict(line.rstrip("\n").split(" ", 1) for line in answer)
    if "error" in told:
        raise K8snetError(told["error"])
    if "pid" not in told:
        raise K8snetError("the process ended before it began")
    return int(told["pid"])


def _join(spec: CommandSpec, target: int, streams: list[int], writer: int) -> None:
    """Go to where the target is; a child, being born in its pid namespace, becomes the command."""
    signal.set_wakeup_fd(-1)
    pidfd = os.pidfd_open(target)
    if spec.cgroup is not None:
        Path(spec.cgroup, "cgroup.procs").write_text("0")
    linux.setns(pidfd, JOINED)
    pid = os.fork()
    if pid == 0:
        _become(spec, streams, writer)
    os.write(writer, f"pid {pid}\n".encode())


def _become(spec: CommandSpec, streams: list[int], writer: int) -> NoReturn:
    path = spec.command[0]
    try:
        arrange_descriptors(writer, streams, [])  # `writer` is NOTIFY_FD from here on
        reset_signals()
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        if spec.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(spec.directory)
        path = find_program(spec.command[0], spec.env.get("PATH", ""))
        become_user(spec.user)
        os.execve(path, spec.command, spec.env)
    except OSError as error:
        os.write(NOTIFY_FD, f"error exec {path}: {(error.strerror or '').lower()}\n".encode())
    except BaseException as error:
        os.write(NOTIFY_FD, f"error {error}\n".encode())
    finally:
        os._exit(1)
