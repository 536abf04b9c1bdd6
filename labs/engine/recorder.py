"""The live trace that runs beside a lesson, so that a check can see what the learner made happen.

A small process of ours, the keeper, reads what `k8snet-trace -o json` prints and keeps the records of this cluster's
own processes: other clusters on this machine have the same names and addresses. The trace ends when the cluster ends,
and when the keeper is killed, so that nothing outlives the lesson. To compile and attach takes as long as a cluster
does to start: so both are done at the same time, and the trace begins when it is told of the cluster.

What belongs here: starting and ending it, and that process. What does not: reading the file
(`labs.engine.checks.records`).
"""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

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
READY, BEGIN, LOG = "records.ready", "records.begin", "records.log"


class Prepared:
    """A trace that is made ready, and begins when it is told of its cluster. `tell`: the pipe for that."""

    def __init__(self, where: Home, tell: IO[bytes]) -> None:
        self._where = where
        self._tell = tell

    def begin(self, kubeconfig: Path, owner: int, cgroup: str | None = None) -> None:
        """Return when the trace sees connections; what happened before is not kept. `owner`: the process that it must
        not outlive.

        `cgroup`: the cluster's, which holds all its processes; None: whatever the machine does is kept. Raises
        K8snetError with the trace's own words when it can't run.
        """
        with suppress(BrokenPipeError):
            self._tell.write(json.dumps([str(kubeconfig), owner, cgroup]).encode() + b"\n")
        deadline = time.monotonic() + READY_SECONDS
        while not (self._where.directory / READY).exists():
            if not is_running(self._where) or time.monotonic() > deadline:
                words = _last_words(self._where.directory / LOG)
                raise K8snetError(f"the live trace does not run: {words}", hint="sudo k8snet-trace doctor")
            time.sleep(POLL_SECONDS)
        self._where.remove(BEGIN)
        for name in (LOG, READY, self._where.records.name):
            self._where.own(self._where.directory / name)


@contextmanager
def prepared(where: Home, *, rewrites_expected: bool = False) -> Iterator[Prepared]:
    """Make a trace ready, which takes as long as making a cluster. Unless it begins in the body, it ends with that.

    `rewrites_expected`: the cluster's Services will be served at sockets.
    """
    stop(where)
    where.make(where.directory)
    with (where.directory / LOG).open("wb") as complaints:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "labs.engine.recorder", str(where.records), *["sockets"] * rewrites_expected],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=complaints,
            stderr=complaints,
            start_new_session=True,  # the terminal's Ctrl-C is not for it
        )
    assert keeper.stdin is not None
    with keeper.stdin:
        pid, started = process_identity(keeper.pid)
        where.write(KEEPER, {"pid": pid, "started": started})
        keeper.returncode = 0  # it outlives us on purpose, and must not be warned about
        yield Prepared(where, keeper.stdin)


def stop(where: Home) -> None:
    """End the trace, wait until it has gone, and remove its files. No error when there is none."""
    keeper = _open_keeper(where)
    if keeper is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(keeper, number)
            if _has_ended(keeper, STOP_SECONDS):
                break
        with suppress(ChildProcessError):  # mostly it is no child of ours
            os.waitid(os.P_PIDFD, keeper, os.WEXITED | os.WNOHANG)
        os.close(keeper)
    for name in (KEEPER, READY, BEGIN, LOG, where.records.name):
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
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it says nothing"])[-1]


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


class Keeper:
    """Writes down what the trace prints, once it is told of a cluster, until that ends or the trace does."""

    def __init__(self, records: Path, trace: subprocess.Popen[bytes]) -> None:
        assert trace.stdout is not None
        self._directory = records.parent
        self._trace = trace
        self._own = Own(None)
        self._rest = b""
        self._file = records.open("ab", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(trace.stdout, selectors.EVENT_READ, self._take)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._hear)

    def run(self) -> int:
        """Gives the trace's exit status."""
        while self._selector.get_map():
            for key, _ in self._selector.select():
                key.data(key)
        return self._trace.wait()

    def _hear(self, key: selectors.SelectorKey) -> None:
        """Of the cluster; or that who started us is gone, or has given up."""
        self._selector.unregister(key.fileobj)
        said = sys.stdin.buffer.readline()
        if not said:
            self._end()
            return
        kubeconfig, owner, cgroup = json.loads(said)
        self._own = Own(cgroup)
        self._selector.register(os.pidfd_open(owner), selectors.EVENT_READ, self._see_end)
        draft = self._directory / f"{BEGIN}.new"
        draft.write_text(kubeconfig)
        draft.replace(self._directory / BEGIN)

    def _see_end(self, key: selectors.SelectorKey) -> None:
        """Of the cluster."""
        self._selector.unregister(key.fileobj)
        self._end()

    def _end(self) -> None:
        """What the trace still prints then is taken."""
        self._trace.terminate()

    def _take(self, key: selectors.SelectorKey) -> None:
        block = os.read(key.fd, READ_BYTES)
        if not block:
            for other in list(self._selector.get_map().values()):
                self._selector.unregister(other.fileobj)
            return
        *lines, self._rest = (self._rest + block).split(b"\n")
        self._file.write(b"".join(line + b"\n" for line in lines if self._own.has(line)))


def _main(records: str, sockets: str = "") -> int:
    """Be the keeper of a trace."""
    directory = Path(records).parent
    files = ["--ready-file", str(directory / READY), "--begin-file", str(directory / BEGIN)]
    options = ["-o", "json", "--ring-buffer", RING_BUFFER, *["--rewrites-expected"] * bool(sockets)]
    trace = subprocess.Popen(
        [sys.executable, "-m", "tracer", *files, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: linux.set_parent_death_signal(signal.SIGTERM),
    )
    signal.signal(signal.SIGTERM, lambda *_: trace.terminate())
    return Keeper(Path(records), trace).run()


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
