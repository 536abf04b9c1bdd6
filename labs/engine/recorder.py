"""The live trace that runs beside a lesson, so that a check can see what the learner made happen.

`k8snet-trace --record` writes all records of this machine to a file. A small process of ours owns it: it ends the trace
when the cluster ends, and with it when it is ended itself, so that nothing outlives the lesson, also after SIGKILL.

What belongs here: starting it, and that process. What does not: reading the file (`labs.engine.checks.records`).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from labs.cluster import linux
from labs.engine.progress import Home
from tracer.errors import K8snetError

READY_SECONDS = 30.0
POLL_SECONDS = 0.02


def start(where: Home, kubeconfig: Path, owner: int) -> None:
    """Start the trace, and return when it sees connections. `owner`: the process that it must not outlive.

    Raises K8snetError with the trace's own words when it can't run.
    """
    where.make(where.directory)
    ready, log = where.directory / "records.ready", where.directory / "records.log"
    ready.unlink(missing_ok=True)
    where.records.unlink(missing_ok=True)
    with log.open("wb") as complaints:
        command = [
            sys.executable,
            "-m",
            "labs.engine.recorder",
            str(owner),
            str(where.records),
            str(ready),
            str(kubeconfig),
        ]
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints, start_new_session=True
        )
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            keeper.terminate()
            raise K8snetError(f"the live trace does not run: {_last_words(log)}", hint="k8snet-trace doctor")
        time.sleep(POLL_SECONDS)
    for path in (log, ready, where.records):
        if path.exists():
            where.own(path)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it says nothing"


def _keep(owner: int, records: str, ready: str, kubeconfig: str) -> int:
    """Be the process that owns the trace."""
    pidfd = os.pidfd_open(owner)
    command = [
        sys.executable,
        "-m",
        "tracer",
        "--record",
        records,
        "--ready-file",
        ready,
        "--kubeconfig",
        kubeconfig,
    ]
    trace = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: linux.set_parent_death_signal(signal.SIGTERM),
    )
    child = os.pidfd_open(trace.pid)
    signal.signal(signal.SIGTERM, lambda *_: trace.terminate())
    found, _, _ = select.select([pidfd, child], [], [])
    if child not in found:
        trace.terminate()
    return trace.wait()


if __name__ == "__main__":
    sys.exit(_keep(int(sys.argv[1]), *sys.argv[2:]))
