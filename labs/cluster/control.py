"""Starting, finding and ending clusters, from outside: what `k8snet-lab up`, `down` and `status` do.

What belongs here: everything about a cluster that happens in the caller's process. What does not: the cluster itself,
and printing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labs.cluster.ledger import ClusterLock, Ledger, open_process, state_directory
from labs.cluster.options import ClusterOptions
from tracer.errors import K8snetError, MissingError, NotRoot, ToolMissing

DOWN_SECONDS = 10.0
READY_SECONDS = 60.0
ASK_SECONDS = 10.0
POLL_SECONDS = 0.01
FORMAT = 2  # of the document that tells of a cluster; another number when names in it get another meaning

NEEDED_PROGRAMS = {
    "iptables-restore": ("kube-proxy writes its rules with it", "apt install iptables"),
    "iptables-save": ("kube-proxy reads its rules with it", "apt install iptables"),
}

Progress = Callable[[str], None]


class NotUp(MissingError):
    """There is no such cluster."""


class UpFailed(K8snetError):
    """The cluster did not become ready, and nothing of it is left but `log`: what its components had to say."""

    def __init__(self, message: str, log: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.log = log


def up(options: ClusterOptions, progress: Progress = lambda _: None) -> bool:
    """Have a cluster with these options, ready. True when it was started now, False when it was there already.

    Raises UsageError, NotRoot, ToolMissing, or K8snetError when the cluster can't be had, or there is one with other
    options.
    """
    options.check()
    _require_root()
    _require_programs()
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        lock = ClusterLock.take(options.name)
        if lock is not None:
            try:
                progress("namespaces")
                Ledger.read(options.name).remove_leftovers()
                _start(options, lock, progress)
            finally:
                lock.release()
            return True
        if _is_ready(options.name):
            _check_same(options)
            return False
        progress("waiting for another `up` or `down`")
        time.sleep(POLL_SECONDS)
    raise K8snetError(f"cluster {options.name} is neither up nor down", hint=f"k8snet-lab down --name {options.name}")


def down(name: str) -> bool:
    """End a cluster and wait until nothing of it is left. False when there was none. Raises NotRoot or K8snetError."""
    _require_root()
    if not state_directory(name).exists():
        return False
    deadline = time.monotonic() + DOWN_SECONDS
    forced = time.monotonic() + DOWN_SECONDS / 2
    while ClusterLock.is_held(name):
        ledger = Ledger.read(name)
        # The guardian kills the supervisor and cleans up. If it does not answer, both are killed, and we clean up.
        _signal(ledger.guardian, signal.SIGTERM if time.monotonic() < forced else signal.SIGKILL)
        if time.monotonic() > forced:
            _signal(ledger.supervisor, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise K8snetError(f"cluster {name} does not end", hint=f"kill -9 {ledger.guardian} {ledger.supervisor}")
        time.sleep(POLL_SECONDS)
    # What two processes that were killed at once have left behind is removed here.
    while (lock := ClusterLock.take(name)) is None:
        if _is_ready(name):
            return True  # somebody started another one meanwhile
        time.sleep(POLL_SECONDS)
    try:
        Ledger.read(name).remove_everything()
    finally:
        lock.release()
    return True


def status(name: str) -> dict[str, Any]:
    """Everything about a running cluster, process ids as the caller sees them. Raises NotUp or NotRoot."""
    document = _whole(name, ask(name, {"ask": "status"}))
    supervisor = document["supervisor"]
    host_pids = _host_pids(supervisor)
    for entry in (*document["nodes"], *document["hosts"], *document["pods"]):
        if entry["pid"] is not None:
            entry["pid"] = host_pids.get(entry["pid"])
    guardian = Ledger.read(name).guardian
    document["guardian"] = None if guardian is None else guardian[0]
    return document


def _whole(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """What a cluster tells, also when another version of k8snet started it: what that did not know of yet is empty.

    Raises K8snetError when it tells less than any version did.
    """
    if not all(key in document for key in ("nodes", "pods", "services", "options", "ready", "unready")):
        raise K8snetError(
            f"cluster {name} was started by another version of k8snet, and can't be understood",
            hint=f"k8snet-lab down --name {name}, then up again",
        )
    lists: dict[str, list[Any]] = {"hosts": [], "control_plane": [], "components": [], "notes": []}
    whole = {**lists, **document}
    if document.get("format") != FORMAT:
        note = "another version of k8snet started this cluster; something may be missing here"
        whole["notes"] = [*whole["notes"], note]
    return whole


def kubeconfig(name: str) -> Path:
    """The path of a running cluster's kubeconfig. Raises NotUp."""
    path = state_directory(name) / "kubeconfig"
    if not path.exists():
        raise _not_up(name)
    return path


def ask(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a running cluster's supervisor; the answer gets `supervisor`, its process id as the caller sees it.

    Raises NotUp when there is no cluster, or it has just ended.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ASK_SECONDS)
        try:
            connection.connect(str(state_directory(name) / "control.sock"))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except PermissionError as error:
            raise NotRoot("talking to a cluster needs root", hint="run it with sudo") from error
        except (FileNotFoundError, ConnectionError, TimeoutError) as error:
            raise _not_up(name) from error
    if not line:
        raise _not_up(name)
    document: dict[str, Any] = json.loads(line)
    document["supervisor"] = int.from_bytes(credentials[:4], sys.byteorder)
    return document


def _not_up(name: str) -> NotUp:
    option = "" if name == "k8snet" else f" --name {name}"
    return NotUp(f"cluster {name} is not up", hint=f"k8snet-lab up{option}")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise NotRoot("a cluster is made of network namespaces, which only root can make", hint="run it with sudo")


def _require_programs() -> None:
    for program, (why, mend) in NEEDED_PROGRAMS.items():
        if shutil.which(program) is None:
            raise ToolMissing(f"{program} is not installed; {why}", hint=mend)


def _start(options: ClusterOptions, lock: ClusterLock, progress: Progress) -> None:
    """Start guardian and supervisor, and wait until the cluster is ready. Leaves nothing when it does not get there."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    log_path = state_directory(options.name) / "log"
    with os.fdopen(reader, "rb") as reports, log_path.open("w+b") as log_file:
        command = [sys.executable, "-m", "labs.cluster.guardian", "--report", str(writer), "--lock", str(lock.fd)]
        options_fd = _anonymous_file(options.to_json())
        try:
            guardian = subprocess.Popen(
                command,
                stdin=options_fd,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(writer, lock.fd),
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join([_root(), *_inherited_path()])},
            )
        finally:
            os.close(writer)
            os.close(options_fd)
        try:
            outcome = _follow(reports, progress)
        except BaseException:  # Ctrl-C: half a cluster is of no use
            guardian.terminate()
            guardian.wait()
            raise
        if outcome.get("ready"):
            # It outlives us on purpose; it must not be reaped, nor warned about.
            guardian.returncode = 0
            return
        guardian.terminate()
        guardian.wait()
        Ledger.read(options.name).remove_everything()  # in case the guardian could not
        raise _failure(outcome, log_file)


def _anonymous_file(text: str) -> int:
    """A descriptor that reads `text`: manifests may be longer than a command line, or a pipe, can be."""
    fd = os.memfd_create("options", os.MFD_CLOEXEC)
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _root() -> str:
    """The directory that `labs` is imported from: the guardian must run this very code."""
    return str(Path(__file__).resolve().parents[2])


def _inherited_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return [path] if path else []


def _follow(reports: Any, progress: Progress) -> dict[str, Any]:
    """Read what supervisor and guardian report until they are done; {} when they ended without a word."""
    while True:
        line = reports.readline()
        if not line:
            return {}
        message: dict[str, Any] = json.loads(line)
        if "progress" not in message:
            return message
        progress(message["progress"])


def _failure(outcome: dict[str, Any], log_file: Any) -> UpFailed:
    log_file.seek(0)
    log = log_file.read().decode(errors="replace")
    if "error" not in outcome:
        last = log.strip().splitlines()[-1:]
        return UpFailed("the cluster ended before it was ready" + (f": {last[0]}" if last else ""), log)
    error = UpFailed(outcome["error"], log, hint=outcome["hint"])
    error.exit_code = outcome["exit_code"]
    return error


def _is_ready(name: str) -> bool:
    try:
        return bool(ask(name, {"ask": "ready"})["ready"])
    except NotUp:
        return False


def _check_same(options: ClusterOptions) -> None:
    """Raise K8snetError when the running cluster is not the one that was asked for."""
    running = ask(options.name, {"ask": "status"})["options"]
    wanted = {key: value for key, value in asdict(options).items() if key in running}
    different = [f"{key.replace('_', '-')} {running[key]}" for key in running if running[key] != wanted[key]]
    if different:
        raise K8snetError(
            f"cluster {options.name} is up already, with {', '.join(different)}",
            hint=f"k8snet-lab down --name {options.name}, or another --name",
        )


def _signal(identity: tuple[int, int] | None, number: int) -> None:
    pidfd = open_process(identity)
    if pidfd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        select.select([pidfd], [], [], 0.5)
        os.close(pidfd)


def _host_pids(supervisor: int) -> dict[int, int]:
    """Process ids in the supervisor's pid namespace -> the same processes' ids as we see them."""
    ids: dict[int, int] = {}
    levels = len(_ns_pids(supervisor))
    for pid in _descendants(supervisor):
        with contextlib.suppress(OSError, ValueError):
            seen = _ns_pids(pid)
            if len(seen) >= levels:
                ids[seen[levels - 1]] = pid
    return ids


def _ns_pids(pid: int) -> list[int]:
    """A process's ids, outermost (ours) first, one for each pid namespace that it is in (proc_pid_status(5), NSpid)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return []


def _descendants(pid: int) -> Iterator[int]:
    """A process and all that descend from it, whichever thread forked them (needs CONFIG_PROC_CHILDREN, as container
    engines do)."""
    yield pid
    children: list[str] = []
    with contextlib.suppress(OSError):  # it may go meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
    for child in children:
        yield from _descendants(int(child))
