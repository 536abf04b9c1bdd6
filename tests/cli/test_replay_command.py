"""k8snet-trace --replay through the front door: output forms, filters, damaged files, bad days of the output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import POWERLESS, TRACE, environment, run, start, wait_for
from tests.tracer.fakes import EXAMPLE
from tracer import recording

DNS = {"type": "dns", "time": EXAMPLE["time"], "node": "node1", "process": None, "query": "a.b"}
REFUSED = {**EXAMPLE, "outcome": "refused", "errno": 111, "process": {**EXAMPLE["process"], "comm": "wget", "pid": 7}}
LINE = (
    "09:00:00.123 curl[4242] default/client → fastapi/lets-ship-it:8000 ⇒ "
    "lets-s…htx9q 10.244.0.12  KUBE-SEP-… 1/3  OK 0.4ms"
)


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in (recording.header(), *records)))
    return str(path)


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "x.jsonl", EXAMPLE, DNS, REFUSED, EXAMPLE)


@pytest.fixture
def long(tmp_path: Path) -> str:
    """Far more than a pipe holds."""
    return write(tmp_path / "long.jsonl", *[EXAMPLE] * 5003)


def test_json_is_what_was_recorded(path: str) -> None:
    done = run("--replay", path, "-o", "json")
    assert done.returncode == 0
    assert documents(done.stdout) == [EXAMPLE, DNS, REFUSED, EXAMPLE]
    assert done.stderr.startswith("4 records, 0 events lost, 0.")
    assert done.stderr.endswith(" s, backend replay\n")


def test_line_form(path: str) -> None:
    done = run("--replay", path)
    assert done.returncode == 0
    first, second, third = done.stdout.splitlines()
    assert first == third == LINE
    assert second.startswith("09:00:00.123 wget[7] ") and second.endswith("  REFUSED 0.4ms")
    note, summary = done.stderr.splitlines()
    assert note == "note: 1 record of types that the line form can't show (dns 1): see -o json"
    assert summary.startswith("3 records, 0 events lost, ")


def test_columns_are_honoured(path: str) -> None:
    done = run("--replay", path, "--count", "1", env=environment(COLUMNS="200"))
    assert (
        "(10.96.100.50) ⇒ lets-ship-it-584c4f66f8-htx9q 10.244.0.12:8000  KUBE-SEP-RHQ3LXHZHN6YS7UZ 1/3" in done.stdout
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ("--namespace fastapi", 3),
        ("--namespace default --comm wget", 1),
        ("--pod default/client", 3),
        ("--pod lets-*", 3),
        ("--service fastapi/lets-ship-it", 3),
        ("--service other", 0),
        ("--node node1", 4),
        ("--comm curl", 2),
        ("--comm curl --comm wget", 3),
        ("--pid 7", 1),
        ("--port 8000", 3),
        ("--port 80", 0),
        ("--protocol tcp", 3),
        ("--protocol UDP", 0),
        ("--failed", 1),
        ("--failed --comm curl", 0),
        ("--count 2", 2),
        ("--count 2 --comm curl", 2),
        ("--duration 0", 0),
    ],
)
def test_filters_and_limits(path: str, options: str, count: int) -> None:
    done = run("--replay", path, "-o", "json", *options.split())
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == count
    assert done.stderr.startswith(f"{count} record{'' if count == 1 else 's'}, ")


def test_standard_input(path: str) -> None:
    done = run("--replay", "-", "-o", "json", input=Path(path).read_text())
    assert (done.returncode, documents(done.stdout)) == (0, [EXAMPLE, DNS, REFUSED, EXAMPLE])


def test_standard_input_is_followed_until_a_signal(tmp_path: Path) -> None:
    with start("--replay", "-", "-o", "json", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(EXAMPLE) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == EXAMPLE
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert errors.startswith("1 record, ")


def test_needs_neither_root_nor_bpf(path: str) -> None:
    prefix = POWERLESS if os.geteuid() == 0 else ()
    done = run("--replay", path, prefix=prefix)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)


def test_recording_a_replay_keeps_what_was_chosen(path: str, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.jsonl"
    assert run("--replay", path, "--comm", "curl", "--record", str(chosen)).returncode == 0
    header, *rest = documents(chosen.read_text())
    assert (header["type"], header["version"]) == ("header", 1)
    assert rest == [EXAMPLE, EXAMPLE]
    assert documents(run("--replay", str(chosen), "-o", "json").stdout) == [EXAMPLE, EXAMPLE]


def test_ready_file(path: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text("stale")
    assert run("--replay", path, "--ready-file", str(ready)).returncode == 0
    assert int(ready.read_text()) > 0


def test_cut_in_half(path: str) -> None:
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:-300])
    done = run("--replay", path, "-o", "json")
    assert done.returncode == 1
    assert documents(done.stdout) == [EXAMPLE, DNS, REFUSED]
    summary, error = done.stderr.splitlines()
    assert summary.startswith("3 records, ")
    assert error == f"error: {path}:5: cut off in the middle of a record"


def test_another_version(path: str) -> None:
    later = {**recording.header(), "version": 2, "tool": "k8snet-trace 7.0\x1b[2J"}
    Path(path).write_text(json.dumps(later) + "\n" + json.dumps(EXAMPLE) + "\n")
    done = run("--replay", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {path}:1: recorded in version 2 of the format by k8snet-trace 7.0\\x1b[2J; " in done.stderr


def test_no_such_file(tmp_path: Path) -> None:
    done = run("--replay", str(tmp_path / "none"))
    assert done.returncode == 1
    assert f"error: can't read {tmp_path / 'none'}: No such file or directory\n" in done.stderr


@pytest.mark.parametrize("output", ["line", "json"])
def test_head(long: str, output: str) -> None:
    with start("--replay", long, "-o", output) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert len(errors.splitlines()) == 1 and " records, 0 events lost, " in errors


@pytest.mark.parametrize("output", ["line", "json"])
def test_standard_output_is_full(path: str, output: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("--replay", path, "-o", output, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    *_, summary, error, hint = done.stderr.splitlines()
    assert " events lost, " in summary
    assert error == "error: can't write standard output: No space left on device"
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(("closed", "code"), [(">&-", 1), ("2>&-", 0), (">&- 2>&-", 1)])
def test_closed_descriptors(path: str, closed: str, code: int) -> None:
    done = run("-c", f'"$@" {closed}', "sh", *TRACE, "--replay", path, program=("sh",))
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if closed == ">&-":
        assert "error: standard output is closed" in done.stderr


def test_recording_is_full(path: str) -> None:
    done = run("--replay", path, "--record", "/dev/full")
    assert done.returncode == 1
    assert "error: can't write /dev/full: No space left on device\n" in done.stderr


def test_recording_can_not_be_made(path: str, tmp_path: Path) -> None:
    done = run("--replay", path, "--record", str(tmp_path / "none" / "y"))
    assert done.returncode == 1
    assert "error: can't write " in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_although_nobody_reads(long: str, number: int) -> None:
    with start("--replay", long, "-o", "json") as process:
        time.sleep(1.0)
        assert process.poll() is None  # the pipe is full
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_names_in_records_can_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;x\x07\x9b31m\u202egpj\nnext\u2028"
    record = {
        **EXAMPLE,
        "node": evil,
        "process": {**EXAMPLE["process"], "comm": evil},
        "source": {**EXAMPLE["source"], "namespace": evil, "pod": evil},
        "destination": {**EXAMPLE["destination"], "namespace": evil, "service": evil},
        "backend": {**EXAMPLE["backend"], "namespace": evil, "pod": evil},
        "translation": {**EXAMPLE["translation"], "via": [evil]},
        "protocol": evil,
        "outcome": evil,
        "time": evil,
    }
    path = write(tmp_path / "evil.jsonl", record, {"type": evil, "time": "", "node": None, "process": None})
    for width in ("120", "500"):
        done = run("--replay", path, env=environment(COLUMNS=width))
        assert done.returncode == 0
        (line,) = done.stdout.splitlines()
        assert line.isprintable()
        assert all(each.isprintable() for each in done.stderr.splitlines())
    assert "\\x1b]0;x\\x07" in line
    done = run("--replay", path, "-o", "json")
    first, *_ = done.stdout.splitlines()
    assert first.isascii() and first.isprintable()
    assert json.loads(first) == record


def test_started_by_wait_for(tmp_path: Path, path: str) -> None:
    """A script that waits for the ready file, as the contract wants it, never waits in vain."""
    ready = tmp_path / "ready"
    with start("--replay", "-", "--ready-file", str(ready), stdin=subprocess.PIPE) as process:
        wait_for(ready)
        assert process.poll() is None
