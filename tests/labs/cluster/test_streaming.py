"""`kubectl exec`, `cp`, `attach`, `run -i` and `port-forward`, by the oldest and the newest kubectl of this machine:
those before 1.30 (1.31 for port-forward) speak SPDY, newer ones WebSocket."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.labs.kubectl import Kubectl, name_of, oldest_and_newest, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

SECONDS = 30
FAILURE = (
    'failed to start exec "[0-9a-f]{64}": OCI runtime exec failed: exec failed: unable to start container process: '
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab(("--nodes", "1")) as up:
        yield up


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(params=oldest_and_newest() or [None], ids=lambda one: name_of(one) if one else "none")
def kubectl(request: pytest.FixtureRequest, cluster: Lab, home: Path) -> Kubectl:
    """The oldest and the newest kubectl of this machine."""
    if request.param is None:
        pytest.skip("needs kubectl; to run it: scripts/setup")
    return Kubectl(request.param, cluster.kubeconfig(), home, "default")


@pytest.fixture
def newest(cluster: Lab, home: Path) -> Kubectl:
    """One kubectl, where it makes no difference which."""
    found = programs()
    if not found:
        pytest.skip("needs kubectl; to run it: scripts/setup")
    return Kubectl(found[-1], cluster.kubeconfig(), home, "default")


def run(kubectl: Kubectl, *arguments: str, feed: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """What it says and how it ends, in bytes."""
    env = {"HOME": str(kubectl.home), "KUBECONFIG": kubectl.kubeconfig, "PATH": os.environ["PATH"]}
    stdin = {"input": feed} if feed is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run([kubectl.program, *arguments], env=env, capture_output=True, timeout=SECONDS, **stdin)


@contextlib.contextmanager
def started(kubectl: Kubectl, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A kubectl that runs meanwhile."""
    env = {"HOME": str(kubectl.home), "KUBECONFIG": kubectl.kubeconfig, "PATH": os.environ["PATH"], "TERM": "xterm"}
    with subprocess.Popen([kubectl.program, *arguments], env=env, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def commands(cluster: Lab) -> str:
    """The processes in the container of default/client."""
    return cluster.exec("default/client", "ps", "-eo", "args").stdout


# --- exec -------------------------------------------------------------------------------------------------------------


def test_how_a_command_ends(kubectl: Kubectl) -> None:
    for code in (0, 1, 126, 127, 255):
        done = run(kubectl, "exec", "client", "--", "sh", "-c", f"echo out; echo wrong >&2; exit {code}")
        assert (done.returncode, done.stdout) == (code, b"out\n")
        told = f"command terminated with exit code {code}\n" if code else ""
        assert done.stderr.decode() == f"wrong\n{told}"
    assert run(kubectl, "exec", "client", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_a_program_that_is_not_there(kubectl: Kubectl) -> None:
    for program, words in (
        ("no-such", r'exec: "no-such": executable file not found in \$PATH: unknown'),
        ("/no/such", 'exec: "/no/such": stat /no/such: no such file or directory: unknown'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied: unknown'),
        ("/etc", 'exec: "/etc": is a directory: unknown'),
    ):
        done = run(kubectl, "exec", "client", "--", program)
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.fullmatch(f"error: (Internal error occurred: )+.*{FAILURE}{words}\n", done.stderr.decode())


def test_a_container_that_does_not_run(newest: Kubectl) -> None:
    newest("apply", "-f", "-", feed=yaml.safe_dump(pod("over", "exit", restartPolicy="Never")))
    until(lambda: "Completed" in newest("get", "pod", "over"))
    done = run(newest, "exec", "over", "--", "true")
    assert done.returncode == 1
    assert b"cannot exec into a container in a completed pod" in done.stderr
    newest("delete", "pod", "over")
    newest("apply", "-f", "-", feed=yaml.safe_dump(pod("lost", "exit", image="no-such-image")))
    until(lambda: "Err" in newest("get", "pod", "lost") or "BackOff" in newest("get", "pod", "lost"))
    done = run(newest, "exec", "lost", "--", "true")
    assert (done.returncode, done.stderr) == (1, b'error: unable to upgrade connection: container not found ("a")\n')
    newest("delete", "pod", "lost")


def test_much_and_binary_data_in_both_directions(kubectl: Kubectl) -> None:
    data = os.urandom(1 << 20) * 10 + b"odd"
    back = run(kubectl, "exec", "-i", "client", "--", "cat", feed=data)
    assert (back.returncode, len(back.stdout), back.stderr) == (0, len(data), b"")
    assert hashlib.sha256(back.stdout).digest() == hashlib.sha256(data).digest()
    count = run(kubectl, "exec", "-i", "client", "--", "wc", "-c", feed=b"")
    assert count.stdout == b"0\n"


def test_a_long_command(kubectl: Kubectl) -> None:
    assert run(kubectl, "exec", "client", "--", "echo", "x" * 50000).stdout == b"x" * 50000 + b"\n"


def test_copying_files(kubectl: Kubectl, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "data").write_bytes(os.urandom(3_000_001))
    (there / "empty").write_bytes(b"")
    kubectl("cp", str(there), "client:/run/there")
    kubectl("cp", "default/client:/run/there", str(back))
    for name in ("deep/data", "empty"):
        assert (back / name).read_bytes() == (there / name).read_bytes()
    kubectl("exec", "client", "--", "rm", "-r", "/run/there")


def test_a_client_that_goes_takes_its_command_with_it(kubectl: Kubectl, cluster: Lab) -> None:
    with started(
        kubectl, "exec", "client", "--", "sh", "-c", "echo here; sleep 4711 & exec sleep 4712", stdout=subprocess.PIPE
    ) as one:
        assert one.stdout is not None and one.stdout.readline() == b"here\n"
        assert "sleep 4711" in commands(cluster)
    until(lambda: "sleep 471" not in commands(cluster))


def test_also_one_whose_input_nobody_takes(kubectl: Kubectl, cluster: Lab) -> None:
    with (
        Path("/dev/zero").open("rb") as zero,
        started(kubectl, "exec", "-i", "client", "--", "sleep", "4713", stdin=zero),
    ):
        until(lambda: "sleep 4713" in commands(cluster))
        time.sleep(0.5)
    until(lambda: "sleep 4713" not in commands(cluster))


# --- terminals --------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal that a kubectl has, and what it shows."""

    def __init__(self, kubectl: Kubectl, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(31, 97)
        env = {"HOME": str(kubectl.home), "KUBECONFIG": kubectl.kubeconfig, "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [kubectl.program, *arguments], env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until it shows `text`, and forget all before its end."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            assert select.select([self.ours], [], [], max(deadline - time.monotonic(), 0))[0], self.shown
            try:
                self.shown += os.read(self.ours, 4096).decode()
            except OSError:
                raise AssertionError(f"ended after {self.shown!r}") from None
        self.shown = self.shown.partition(text)[2]


def test_a_terminal(kubectl: Kubectl, cluster: Lab) -> None:
    with Terminal(kubectl, "exec", "-it", "client", "--", "sh", "-c", "PS1='> ' exec sh -i") as terminal:
        terminal.wait_for("> ")
        terminal.type("tty; stty size; echo $TERM\n")
        terminal.wait_for("31 97\r\nxterm\r\n> ")
        terminal.resize(50, 120)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        time.sleep(0.3)
        terminal.type("stty size\n")
        terminal.wait_for("50 120\r\n> ")
        terminal.type("sleep 4714\n")
        until(lambda: "sleep 4714" in commands(cluster))
        terminal.type("\x03")
        terminal.wait_for("> ")
        assert "sleep 4714" not in commands(cluster)
        terminal.type("exit 5\n")
        assert terminal.process.wait(SECONDS) == 5


def test_a_terminal_that_goes(kubectl: Kubectl, cluster: Lab) -> None:
    with Terminal(kubectl, "exec", "-it", "client", "--", "sh", "-c", "echo here; sleep 4715; echo never") as terminal:
        terminal.wait_for("here\r\n")
        assert "sleep 4715" in commands(cluster)
    until(lambda: "sleep 4715" not in commands(cluster))


# --- attach and run ---------------------------------------------------------------------------------------------------


def pod(name: str, script: str, image: str = "client", **spec: Any) -> dict[str, Any]:
    streams = {key: spec.pop(key) for key in ("stdin", "stdinOnce", "tty") if key in spec}
    container = {"name": "a", "image": image, "command": ["sh", "-c", script], **streams}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def made(newest: Kubectl) -> Iterator[Callable[..., None]]:
    """Makes pods that run, for one test."""
    names = []

    def make(name: str, script: str, **spec: Any) -> None:
        names.append(name)
        newest("apply", "-f", "-", feed=yaml.safe_dump(pod(name, script, **spec)))
        until(lambda: newest("get", "pod", name, "-o", "jsonpath={.status.phase}") != "Pending")

    yield make
    newest("delete", "pod", *names, "--wait")


def test_attaching_shows_what_comes_from_now_on(newest: Kubectl, made: Callable[..., None]) -> None:
    made(
        "teller",
        "echo before; while ! test -e /run/go; do sleep 0.1; done; echo out; echo wrong >&2; sleep 1",
        restartPolicy="Never",
    )
    with started(newest, "attach", "teller", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attached:
        time.sleep(1)
        newest("exec", "teller", "--", "touch", "/run/go")
        out, wrong = attached.communicate(timeout=SECONDS)
    assert (attached.returncode, out) == (0, b"out\n")
    assert wrong.splitlines()[-1] == b"wrong"


def test_attaching_with_input(kubectl: Kubectl, made: Callable[..., None]) -> None:
    made("cat", "cat; echo end", stdin=True, stdinOnce=True, restartPolicy="Never")
    done = run(kubectl, "attach", "-i", "cat", feed=b"one\ntwo\n")
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\nend\n")
    assert kubectl("logs", "cat") == "one\ntwo\nend\n"
    until(lambda: "Completed" in kubectl("get", "pod", "cat"))


def test_input_that_stays_open(newest: Kubectl, made: Callable[..., None]) -> None:
    made("reader", "while read line; do echo got $line; done; echo never", stdin=True)
    for line in ("one", "two"):
        with started(newest, "attach", "-i", "reader", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attached:
            assert attached.stdin is not None and attached.stdout is not None
            attached.stdin.write(f"{line}\n".encode())
            attached.stdin.flush()
            assert attached.stdout.readline() == f"got {line}\n".encode()
    assert newest("logs", "reader") == "got one\ngot two\n"


def test_a_shell_in_a_pod_of_its_own(kubectl: Kubectl) -> None:
    arguments = (
        "run",
        "-it",
        "--rm",
        "--restart=Never",
        "--image=client",
        "own",
        "--",
        "sh",
        "-c",
        "sleep 1; exec sh -i",
    )
    with Terminal(kubectl, *arguments) as terminal:
        terminal.wait_for("# ")
        terminal.type("hostname; stty size\n")
        terminal.wait_for("own\r\n31 97\r\n")
        terminal.type("exit 7\n")
        terminal.wait_for('pod "own" deleted')
        assert terminal.process.wait(SECONDS) == 7
    assert "NotFound" in kubectl.fails("get", "pod", "own")


def test_a_pod_in_a_pipeline(kubectl: Kubectl) -> None:
    done = run(
        kubectl,
        "run",
        "-i",
        "--rm",
        "--quiet",
        "--restart=Never",
        "--image=client",
        "piped",
        "--",
        "sha256sum",
        feed=b"hello",
    )
    assert (done.returncode, done.stdout.split()[0].decode()) == (0, hashlib.sha256(b"hello").hexdigest())


# --- port-forward -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, *arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A port on loopback that leads to a pod."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(kubectl, "port-forward", "--address=127.0.0.1", *arguments, **options) as process:
        assert process.stdout is not None
        match = re.match(rb"Forwarding from 127\.0\.0\.1:(\d+) -> \d+\n", process.stdout.readline())
        assert match is not None
        yield int(match[1]), process


def test_forwarding_a_port(kubectl: Kubectl) -> None:
    with forwarded(kubectl, "-n", "fastapi", "svc/lets-ship-it", ":8000") as (port, _):
        for number in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}", timeout=SECONDS) as answer:
                said = json.load(answer)
            assert said["pod"].startswith("lets-ship-it-") and said["path"] == f"/{number}"
            assert said["client"]["ip"] == "127.0.0.1"


def test_forwarding_much_to_many(kubectl: Kubectl) -> None:
    kubectl("run", "echo", "--image=tcp-echo", "--port=7", "--restart=Never")
    kubectl("wait", "pod/echo", "--for=condition=Ready", "--timeout=20s")
    data = os.urandom(1 << 20)
    with forwarded(kubectl, "pod/echo", ":7") as (port, _):
        connections = [socket.create_connection(("127.0.0.1", port), timeout=SECONDS) for _ in range(5)]
        for connection in connections:
            connection.sendall(data[: 1 << 16])
        for connection in reversed(connections):
            with connection, connection.makefile("rb") as answer:
                assert answer.readline() == b"echo\n"
                assert answer.read(1 << 16) == data[: 1 << 16]
                connection.sendall(data[1 << 16 : 1 << 19])
                connection.shutdown(socket.SHUT_WR)
                assert answer.read() == data[1 << 16 : 1 << 19]
    kubectl("delete", "pod", "echo", "--grace-period=0", "--force")


def test_forwarding_to_where_nobody_listens(kubectl: Kubectl) -> None:
    with forwarded(kubectl, "client", ":9") as (port, process):
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            assert connection.recv(1) == b""
        assert process.stderr is not None
        words = process.stderr.readline().decode()
    assert "error forwarding port 9 to pod client, uid" in words
    assert "dial tcp4 127.0.0.1:9: connect: connection refused IPv6 dial tcp6 [::1]:9: connect:" in words
