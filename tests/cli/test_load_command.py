"""k8snet-trace load through the front door: a user's own program in this kernel, and what is said of a bad one."""

from __future__ import annotations

import json
import secrets
import signal
import socket
from pathlib import Path

import pytest

from tests.cli.command import run, start, wait_for

pytestmark = pytest.mark.bpf

EVENT = "sock:inet_sock_set_state"
PROGRAM = """\
struct connect {
    u32 pid;
    char comm[16];
    u8 address[4];
    u16 port;
};
BPF_RINGBUF_OUTPUT(connects, 8);

TRACEPOINT_PROBE(sock, inet_sock_set_state) {
    struct connect it = {};

    if (args->newstate != 2)
        return 0;
    it.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&it.comm, sizeof(it.comm));
    __builtin_memcpy(it.address, args->daddr, 4);
    it.port = args->dport;
    connects.ringbuf_output(&it, sizeof(it), 0);
    return 0;
}
"""
COUNTING = """\
struct connect { u32 times; };
BPF_RINGBUF_OUTPUT(connects, 8);
BPF_HASH(seen, u32, u32);
TRACEPOINT_PROBE(sock, inet_sock_set_state) {
    struct connect it = {};
    u32 key = 1, *times = seen.lookup(&key);
    *times += 1;
    connects.ringbuf_output(&it, sizeof(it), 0);
    return 0;
}
"""
OTHER = "struct state { int newstate; u8 daddr[4]; u16 dport; };\nint other(struct state *args)"
# What is done to the program, and what the last line but the hint must say, with the exit code
BROKEN = {
    "a name": ("newstate", "newstat", "own.c:12:15: fatal error: no member named 'newstat'", 1),
    "syntax": ("it.port = args->dport;", "it.port = args->dport", "fatal error: expected ';'", 1),
    "no such tracepoint": ("inet_sock_set_state", "inet_set_state", f"there is {EVENT}", 2),
    "nothing attached": ("TRACEPOINT_PROBE(sock, inet_sock_set_state)", OTHER, "own.c attaches to nothing", 2),
    "nothing written": ("connects.ringbuf_output(&it, sizeof(it), 0);", "", "own.c writes nothing", 2),
    "a struct in it": ("u8 address[4];", "struct { u8 b[4]; } address[1];", "address is a struct", 2),
}


def own(directory: Path, text: str) -> str:
    path = directory / "own.c"
    path.write_text(text)
    return str(path)


def test_a_program_reports_each_connection(tmp_path: Path) -> None:
    address = f"127.{secrets.randbelow(255)}.{secrets.randbelow(255)}.{1 + secrets.randbelow(254)}"
    ready = tmp_path / "ready"
    with (
        socket.create_server((address, 0)) as server,
        start("load", own(tmp_path, PROGRAM), "-o", "json", "--ready-file", str(ready)) as process,
    ):
        wait_for(ready)
        port = server.getsockname()[1]
        for _ in range(7):
            socket.create_connection((address, port)).close()
        found = []
        assert process.stdout is not None
        while len(found) < 7:
            record = json.loads(process.stdout.readline())
            found += [record] if record["fields"]["address"] == address else []
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    assert address not in rest
    for record in found:
        assert record["buffer"] == "connects"
        assert record["time"].endswith("Z")
        assert record["fields"]["comm"].startswith(("pytest", "python"))
        assert record["fields"]["port"] == port


def test_count_ends_it_and_lines_are_for_people(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        start("load", own(tmp_path, PROGRAM), "--count", "1", "--ready-file", str(ready)) as process,
    ):
        wait_for(ready)
        socket.create_connection(server.getsockname()).close()
        lines, _ = process.communicate(timeout=10)
    (line,) = lines.splitlines()
    assert [word.partition("=")[0] for word in line.split()[1:]] == ["connects", "pid", "comm", "address", "port"]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_program_is_said(name: str, tmp_path: Path) -> None:
    old, new, words, code = BROKEN[name]
    assert old in PROGRAM
    done = run("load", own(tmp_path, PROGRAM.replace(old, new)), "--duration", "0")
    assert done.returncode == code
    assert words in done.stderr


def test_the_verifiers_reason_is_told_and_not_its_log(tmp_path: Path) -> None:
    done = run("load", own(tmp_path, COUNTING), "--duration", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the kernel refuses the program: R")
    assert "invalid mem access 'map_value_or_null'" in done.stderr
    assert "processed" not in done.stderr


def test_fields_of_a_tracepoint() -> None:
    done = run("load", "--fields", EVENT)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["int", "args->newstate"] in lines
    assert ["__u8[4]", "args->daddr"] in lines
    assert not any("common_" in line[-1] for line in lines)


def test_tracefs_is_seen_without_being_mounted_and_stays_unmounted(tmp_path: Path) -> None:
    script = 'umount /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; "$@" && ! mountpoint -q /sys/kernel/tracing'
    prefix = ("unshare", "-m", "sh", "-c", script, "sh")
    done = run("load", own(tmp_path, PROGRAM), "--duration", "0", prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_or_a_tracepoint_and_not_both(tmp_path: Path) -> None:
    for arguments in ((), ("own.c", "--fields", EVENT)):
        assert run("load", *arguments).returncode == 2
    assert "No such file" in run("load", str(tmp_path / "none.c")).stderr
