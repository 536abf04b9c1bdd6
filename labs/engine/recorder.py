"""The live trace that runs beside a lesson, so that a check can see what the learner made happen.

A small process of ours, the keeper, reads what `k8snet-trace -o json` prints and keeps the records of this cluster's
own processes: other clusters on this machine have the same names and addresses. The trace ends when the cluster ends,
and when the keeper is killed, so that nothing outlives the lesson.

What belongs here: starting and ending it, and that process. What does not: reading the file
(`labs.engine.checks.records`).
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from labs.cluster import linux
from labs.cluster.ledger import open_process, process_identity
from labs.engine.progress import Home
from tracer import procfs
from tracer.errors import K8snetError

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.02
READ_BYTES = 1 << 16
RING_BUFFER = "8M"  # a busy machine must not push a learner's one connection out
KEEPER = "recorder.json"


def start(where: Home, kubeconfig: Path, owner: int, cgroup: str | None = None) -> None:
    """Start the trace, and return when it sees connections. `owner`: the process that it must not outlive.

    `cgroup`: the cluster's, which holds all its processes; None: whatever the machine does is kept. Raises K8snetError
    with the trace's own words when it can't run.
    """
    stop(where)
    where.make(where.directory)
    ready, log = where.directory / "records.ready", where.directory / "records.log"
    command = [sys.executable, "-m", "labs.engine.recorder"]
    arguments = [str(owner), cgroup or "", str(where.records), str(ready), str(kubeconfig)]
    with log.open("wb") as complaints:
        done = subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, check=False
        )
    if done.returncode != 0:
        raise K8snetError(f"the live trace does not run: {_last_words(log)}", hint="sudo k8snet-trace doctor")
    pid, started = process_identity(int(done.stdout))
    where.write(KEEPER, {"pid": pid, "started": started})
    for path in (log, ready, where.records):
        where.own(path)


def stop(where: Home) -> None:
    """End the trace, wait until it has gone, and remove its files. No error when there is none."""
    keeper = _open_keeper(where)
    if keeper is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(keeper, number)
            if _has_ended(keeper, STOP_SECONDS):
                break
        os.close(keeper)
    for name in (KEEPER, "records.ready", "records.log", where.records.name):
        where.remove(name)


def is_running(where: Home) -> bool:
    """Whether the trace still runs."""
    keeper = _open_keeper(where)
    if keeper is None:
        return False
    try:
        return not _has_ended(keeper, 0.0)
    finally:
        os.close(keeper)


def _open_keeper(where: Home) -> int | None:
    """A pidfd of the keeper; None when it is gone."""
    document = where.read(KEEPER)
    return None if document is None else open_process((document["pid"], document["started"]))


def _has_ended(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it says nothing"


# ---- the keeper ----


class Own:
    """Tells the records of a cluster's processes from all others, by the cgroup that they run in."""

    def __init__(self, cgroup: str | None) -> None:
        self._name = Path(cgroup).name if cgroup else None
        self._cgroups = procfs.Cgroups(procfs.cgroup2_mount())
        self._known: dict[int, bool] = {}  # the kernel gives an id to one cgroup only

    def has(self, line: bytes) -> bool:
        """Whether a record, a line of JSON, is one of theirs. A record without a process may be."""
        found = re.search(rb'"cgroup_id": (\d+)', line)
        return self._name is None or found is None or self._is_inside(int(found[1]))

    def _is_inside(self, cgroup_id: int) -> bool:
        if cgroup_id not in self._known:
            path = self._cgroups.path(cgroup_id) or self._cgroups.walk(cgroup_id)
            if path is None:
                return False
            self._known[cgroup_id] = self._name in path.split("/")
        return self._known[cgroup_id]


def _keep(owner: int, own: Own, records: str, ready: str, kubeconfig: str) -> int:
    """Be the keeper."""
    cluster = os.pidfd_open(owner)
    options = ["-o", "json", "--ready-file", ready, "--kubeconfig", kubeconfig, "--ring-buffer", RING_BUFFER]
    trace = subprocess.Popen(
        [sys.executable, "-m", "tracer", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: linux.set_parent_death_signal(signal.SIGTERM),
    )
    signal.signal(signal.SIGTERM, lambda *_: trace.terminate())
    assert trace.stdout is not None
    out, waiting, rest = trace.stdout.fileno(), [trace.stdout.fileno(), cluster], b""
    with Path(records).open("ab", buffering=0) as file:
        while True:
            ready_now, _, _ = select.select(waiting, [], [])
            if cluster in ready_now:
                trace.terminate()
                waiting.remove(cluster)
            if out in ready_now:
                block = os.read(out, READ_BYTES)
                if not block:
                    return trace.wait()
                *lines, rest = (rest + block).split(b"\n")
                file.write(b"".join(line + b"\n" for line in lines if own.has(line)))


def _main(owner: int, cgroup: str, records: str, ready: str, kubeconfig: str) -> int:
    """Leave the keeper behind once the trace is ready, and print its process id."""
    keeper = os.fork()
    if keeper == 0:
        os.setsid()
        os.dup2(2, 1)  # whoever reads our output waits for its end
        Path(records).touch()
        os._exit(_keep(owner, Own(cgroup or None), records, ready, kubeconfig))
    deadline = time.monotonic() + READY_SECONDS
    while not Path(ready).exists():
        if os.waitpid(keeper, os.WNOHANG)[0]:
            return 1
        if time.monotonic() > deadline:
            os.kill(keeper, signal.SIGTERM)
            return 1
        time.sleep(POLL_SECONDS)
    os.write(1, f"{keeper}\n".encode())  # to the process that started this one
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), *sys.argv[2:]))
