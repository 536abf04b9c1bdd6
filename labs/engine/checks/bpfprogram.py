"""The check of a BPF program that the learner wrote: it is loaded, connections are made, and what it reports is read.

The connections come from this very process, to an address of loopback that nobody else asks for, where nothing listens:
so exactly these can be told from whatever else the machine does meanwhile.

What belongs here: that. What does not: loading (`k8snet-trace load` does that, in a process of its own).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import Blocked
from tracer.errors import K8snetError

READY_SECONDS = 30.0
# What `k8snet-trace load` says -> the reason, and what was expected
REFUSED = {
    "don't compile": ("compile", "to compile"),
    "the kernel refuses": ("refused", "to be accepted by the kernel's verifier"),
}

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """Who connects, and where to: by this its records are known."""

    pid: int
    comm: str
    address: str
    port: int

    @classmethod
    def new(cls) -> Probe:
        """With a name and an address that nobody else has."""
        address = ".".join(str(part) for part in (127, *(1 + secrets.randbelow(253) for _ in range(3))))
        return cls(os.getpid(), f"check-{secrets.token_hex(4)}", address, 1024 + secrets.randbelow(60000))

    def connect(self, times: int) -> None:
        """Call connect(), which is refused, in a thread that has this name."""
        thread = threading.Thread(target=self._connect, args=(times,))
        thread.start()
        thread.join()

    def _connect(self, times: int) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self.comm)
        for _ in range(times):
            with socket.socket() as client, suppress(ConnectionRefusedError):
                client.connect((self.address, self.port))

    def fill(self, expect: Fields, number: int) -> dict[str, str]:
        """What is expected of the record of one of the connections."""
        known = {"pid": self.pid, "comm": self.comm, "address": self.address, "port": self.port, "number": number}
        return {name: str(value).format(**known) for name, value in expect.items()}


def bpf_program(context: Context, *, file: str, expect: Mapping[str, Any], connections: int = 3) -> Outcome:
    """A BPF program of the workspace reports each of some connections, once, with these fields.

    `expect`: field -> value, in which {pid}, {comm}, {address}, {port} and {number} (1, 2, …) stand for those of the
    connection. Reasons: missing, compile, refused, program, none, fields, too-many.
    """
    path = context.workspace / file
    look = f"sudo k8snet-trace load {path}"
    if not path.exists():
        return failed("missing", expected=f"the file {path}", seen="it is not there", look="k8snet-lab reset --step")
    probe = Probe.new()
    with _loaded(path) as (program, is_ready):
        if is_ready:
            probe.connect(connections)
            program.send_signal(signal.SIGINT)
        out, complaint = program.communicate(timeout=READY_SECONDS)
    if program.returncode != 0:
        return _refused(file, complaint, look)
    records = [json.loads(line)["fields"] for line in out.splitlines()]
    return judge(probe, records, expect, connections, look)


def judge(probe: Probe, records: Sequence[Fields], expect: Fields, connections: int, look: str) -> Outcome:
    """Whether all of a program's records are what connections of `probe` should give, once each."""
    wanted = [probe.fill(expect, number) for number in range(1, connections + 1)]
    words = f"one record for each of {connections} connections, with {_words(expect)}"
    lacking = next((name for name in expect if records and name not in records[0]), None)
    if lacking is not None:
        has = ", ".join(records[0])
        return failed("fields", expected=words, seen=f"no field {lacking}; there are {has}", look=look)
    ours = [record for record in records if _is_ours(record, wanted[0], expect)]
    if not ours:
        return failed("none", expected=words, seen=_nothing(records), look=look)
    if len(ours) > connections:
        return failed("too-many", expected=words, seen=f"{len(ours)} records of {connections} connections", look=look)
    for record, one in zip(ours, wanted, strict=False):
        for name, value in one.items():
            if str(record[name]) != value:
                seen = f"{name} is {record[name]}, and should be {value}"
                return failed("fields", expected=words, seen=seen, look=look)
    if len(ours) < connections:
        return failed("none", expected=words, seen=f"{len(ours)} records of {connections} connections", look=look)
    return passed(f"{connections} connections, {connections} records: {_example(ours[-1])}")


def _is_ours(record: Fields, wanted: Fields, expect: Fields) -> bool:
    """By the first field that tells: what other fields hold may be wrong, and is then said."""
    telling = [name for name, value in expect.items() if value in ("{comm}", "{pid}", "{address}")]
    return any(str(record[name]) == wanted[name] for name in telling)


def _words(expect: Fields) -> str:
    return ", ".join(expect)


def _nothing(records: Sequence[Fields]) -> str:
    return f"none of them; {len(records)} of others" if records else "none"


def _example(record: Fields) -> str:
    return " ".join(f"{name}={value}" for name, value in record.items())


def _refused(file: str, complaint: str, look: str) -> Outcome:
    """What `k8snet-trace load` says of a program. Raises Blocked when it is about the machine."""
    words = complaint.strip().removeprefix("error: ")
    reason, expected = next((found for text, found in REFUSED.items() if text in words), ("program", "to run"))
    if reason == "program" and "hint: " in words and "--help" not in words:
        text, _, hint = words.partition("\nhint: ")
        raise Blocked(text, hint=hint)
    return failed(reason, expected=f"{file} {expected}", seen=words, look=look)


@contextmanager
def _loaded(path: Path) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """The program in the kernel, its reports on standard output, and whether it could be loaded."""
    with tempfile.TemporaryDirectory(prefix="k8snet-lab-") as directory:
        ready = Path(directory, "ready")
        command = [sys.executable, "-m", "tracer", "load", str(path), "-o", "json", "--ready-file", str(ready)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process, _wait_until_ready(process, ready)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _wait_until_ready(process: subprocess.Popen[str], ready: Path) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise K8snetError("the program was not loaded in time")
        time.sleep(0.01)
    return True
