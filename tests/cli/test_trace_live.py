"""k8snet-trace through the front door, against the kernel: connections on loopback, and the bad days of a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import POWERLESS, Terminal, run, start, wait_for

pytestmark = pytest.mark.bpf


class Server:
    """Accepts connections on loopback and closes them; remembers nothing but its port."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def connect(port: int, count: int = 1) -> list[int]:
    """Make connections; returns their source ports."""
    ports = []
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as client:
            ports.append(client.getsockname()[1])
            # the server's end closes first, so that no source port stays in TIME_WAIT
            client.recv(1)
    return ports


def options(server: Server, ready: Path, *more: str) -> list[str]:
    return ["--no-names", "--port", str(server.port), "--ready-file", str(ready), *more]


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_exactly_37(server: Server, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start(*options(server, ready, "-o", "json", "--count", "37")) as process:
        wait_for(ready)
        assert int(ready.read_text()) == process.pid
        ports = connect(server.port, 40)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    records = documents(out)
    assert [record["source"]["port"] for record in records] == ports[:37]
    assert {record["outcome"] for record in records} == {"established"}
    assert {record["process"]["comm"] for record in records} == {Path("/proc/self/comm").read_text().strip()}
    assert errors.splitlines()[-1].startswith("37 records, 0 events lost, ")


def test_recorded_beside_lines_and_replayed(server: Server, tmp_path: Path) -> None:
    ready, recorded = tmp_path / "ready", tmp_path / "x.jsonl"
    with start(*options(server, ready, "--record", str(recorded))) as process:
        wait_for(ready)
        ports = connect(server.port, 11)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        lines, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    header, *records = documents(recorded.read_text())
    assert header["type"] == "header"
    assert [record["source"]["port"] for record in records] == ports
    assert run("--replay", str(recorded)).stdout == lines
    assert len(lines.splitlines()) == 11


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_came_just_before_a_signal_is_shown(server: Server, tmp_path: Path, number: int) -> None:
    ready = tmp_path / "ready"
    with start(*options(server, ready, "-o", "json")) as process:
        wait_for(ready)
        connect(server.port, 5)
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(documents(out)) == 5
    assert errors.splitlines()[-1].startswith("5 records, ")


def test_a_line_appears_soon(server: Server, tmp_path: Path, patience: float) -> None:
    ready = tmp_path / "ready"
    delays = []
    with start(*options(server, ready)) as process:
        assert process.stdout is not None
        wait_for(ready)
        for _ in range(9):
            time.sleep(0.1)
            connect(server.port)
            began = time.monotonic()
            assert process.stdout.readline()
            delays.append(time.monotonic() - began)
    assert statistics.median(delays) <= 0.05 * patience, delays


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    ready = (tmp_path / "ready1", tmp_path / "ready2")
    limits = ("-o", "json", "--count", "7")
    with start(*options(server, ready[0], *limits)) as one, start(*options(server, ready[1], *limits)) as two:
        for path in ready:
            wait_for(path)
        ports = connect(server.port, 7)
        for process in (one, two):
            out, _ = process.communicate(timeout=30)
            assert process.returncode == 0
            assert [record["source"]["port"] for record in documents(out)] == ports


@pytest.mark.parametrize("output", ["line", "json"])
def test_a_reader_that_left_is_noticed_without_events(server: Server, tmp_path: Path, output: str) -> None:
    ready = tmp_path / "ready"
    with start(*options(server, ready, "-o", output)) as process:
        assert process.stdout is not None
        wait_for(ready)
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[-1].startswith("0 records, ")


def test_disk_full(server: Server, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start(*options(server, ready, "--record", "/dev/full")) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error: can't write /dev/full: No space left on device\n" in errors
    with Path("/dev/full").open("w") as full, start(*options(server, ready, "-o", "json"), stdout=full) as process:
        wait_for(ready)
        connect(server.port)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    summary, error, _ = errors.splitlines()
    assert " events lost, " in summary
    assert error == "error: can't write standard output: No space left on device"


def test_a_small_ring_buffer_loses_and_says_so(server: Server, tmp_path: Path) -> None:
    ready, out = tmp_path / "ready", tmp_path / "out"
    arguments = options(server, ready, "-o", "json", "--ring-buffer", "4K")
    with out.open("w") as file, start(*arguments, stdout=file) as process:
        wait_for(ready)
        connect(server.port, 3000)
        time.sleep(1.5)
        after = connect(server.port)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    records = documents(out.read_text())
    assert records[-1]["source"]["port"] == after[0]  # the trace went on
    *notices, summary = errors.splitlines()
    assert notices and all("lost (ring buffer)" in notice for notice in notices)
    lost = int(summary.split(", ")[1].split()[0])
    assert lost > 0
    assert len(records) + lost >= 3001


def lines_shown(terminal: Terminal, count: int) -> int:
    """How many lines of connections appear; waits for `count`, and a moment for one too many."""
    shown = ""
    until = time.monotonic() + 10
    while shown.count("OK") < count and time.monotonic() < until:
        shown += terminal.read(0.1).decode()
    return (shown + terminal.read(0.3).decode()).count("OK")


def test_rate_switching(server: Server, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with Terminal(*options(server, ready)) as terminal:
        wait_for(ready)
        connect(server.port, 3)
        assert lines_shown(terminal, 3) == 3
        connect(server.port, 500)
        fast = terminal.read(2.5).decode()
        assert " connections in a second" in fast
        assert fast.count("OK") <= 51
        connect(server.port, 2)
        assert lines_shown(terminal, 2) == 2  # lines again
        terminal.process.send_signal(signal.SIGINT)
        terminal.finish()
        assert terminal.process.returncode == 0


def test_a_process_name_can_not_reach_the_terminal(server: Server, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import socket, sys\n"
        "open('/proc/self/comm', 'w').write('\\x1b]0;x\\x07\\x9b\\u202e')\n"
        f"socket.create_connection(('127.0.0.1', {server.port})).recv(1)\n"
    )
    with Terminal(*options(server, ready)) as terminal:
        wait_for(ready)
        subprocess.run(["python3", "-c", code], check=True)
        shown = terminal.read(1.0)
        terminal.process.send_signal(signal.SIGINT)
    assert b"\\x1b]0;x\\x07\\x9b\\u202e" in shown
    assert b"\x1b]" not in shown and "\u202e".encode() not in shown and "\x9b".encode() not in shown


def test_sigkill_leaves_no_program_behind(server: Server, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start(*options(server, ready)) as process:
        wait_for(ready)
        assert bpf_descriptors(process.pid)
        process.kill()
        process.wait()
        assert not Path(f"/proc/{process.pid}").exists()
    # Nothing of it is pinned, and no other process holds its descriptors: the kernel frees all with the process.
    assert not [path for path in Path("/sys/fs/bpf").glob("*") if "k8snet" in path.name]


def bpf_descriptors(pid: int) -> list[str]:
    """The anonymous BPF files that a process has open."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115
    return [link for link in links if "bpf" in link]


def test_conntrack_tells_what_it_can_not_know(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start("--no-names", "--backend", "conntrack", "--ready-file", str(ready)) as process:
        wait_for(ready)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    note, summary = errors.splitlines()
    assert note == "note: the conntrack backend knows no processes, and sees only connections that are tracked"
    assert summary.endswith(" s, backend conntrack")


def test_without_powers() -> None:
    done = run("--duration", "1", prefix=POWERLESS)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "error: loading BPF programs into the kernel needs root\nhint: sudo k8snet-trace\n"
    done = run("--duration", "1", "--backend", "conntrack", prefix=POWERLESS)
    assert done.returncode == 3
    assert done.stderr.startswith("error: listening to the kernel's connection tracking needs root\n")


def test_ready_file_that_can_not_be(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "ready", Path("/dev/null")):
        done = run("--no-names", "--duration", "0", "--ready-file", str(path))
        assert done.returncode == 1
        assert f"error: can't write {path}: " in done.stderr
    assert Path("/dev/null").is_char_device()
