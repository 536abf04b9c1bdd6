"""k8snet-trace services --watch: rules are changed in a namespace, and what it says of that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import run, start, wait_for
from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules.test_service_map import LETS_SHIP_IT

pytestmark = pytest.mark.root

SECONDS = 10.0  # the promise is 2; tests of many Services are those that hold it
NFT = """
table ip kube-proxy {
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.100.50 . tcp . 8000 : goto service-AAAAAAAA-fastapi/lets-ship-it/tcp/http }
  }
  chain one { meta l4proto tcp dnat to 10.244.0.11:8000; }
  chain two { meta l4proto tcp dnat to 10.244.0.12:8000; }
  chain service-AAAAAAAA-fastapi/lets-ship-it/tcp/http {
    numgen random mod 1 vmap { 0 : goto one }
  }
}
"""


class Watched:
    """A running watch: its lines, one after another, each within a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._rest = ""

    def line(self, seconds: float = SECONDS) -> str:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while "\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.process.stdout], [], [], left)[0], "nothing was said"
            self._rest += os.read(self.process.stdout.fileno(), 65536).decode()
        line, self._rest = self._rest.split("\n", 1)
        return line

    def words(self) -> str:
        """The line without its time."""
        line = self.line()
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line), line
        return line[13:]


@contextmanager
def watching(namespace: Namespace, directory: Path, *arguments: str) -> Iterator[Watched]:
    ready = directory / "ready"
    with start("services", "--watch", "--netns", namespace.path, "--ready-file", str(ready), *arguments) as process:
        wait_for(ready)
        yield Watched(process)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


def load(namespace: Namespace, text: str, program: str = "iptables-legacy-restore") -> None:
    subprocess.run(["nsenter", f"--net={namespace.path}", *program.split()], input=text, text=True, check=True)


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_each_change_in_words(namespace: Namespace, tmp_path: Path, variant: str) -> None:
    restore = f"iptables-{variant}-restore"
    fourth = (
        LETS_SHIP_IT.replace(
            "-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ONE",
            "-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.25000000000 -j KUBE-SEP-FOUR\n"
            "-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ONE",
        )
        .replace("COMMIT", "-A KUBE-SEP-FOUR -p tcp -m tcp -j DNAT --to-destination 10.244.1.7:8000\nCOMMIT")
        .replace(":KUBE-SEP-ONE", ":KUBE-SEP-FOUR - [0:0]\n:KUBE-SEP-ONE")
    )
    load(namespace, LETS_SHIP_IT, restore)
    with watching(namespace, tmp_path) as watched:
        load(namespace, fourth, restore)
        assert watched.words() == "fastapi/lets-ship-it gained 10.244.1.7:8000; each endpoint now 1/4"
        load(namespace, LETS_SHIP_IT, restore)
        assert watched.words() == "fastapi/lets-ship-it lost 10.244.1.7:8000; each endpoint now 1/3"
        namespace.sh(f"iptables-{variant} -t nat -D KUBE-NODEPORTS 1")
        assert watched.words() == "fastapi/lets-ship-it lost NodePort :30080"
        namespace.sh(f"iptables-{variant} -t nat -F KUBE-SERVICES")
        assert watched.words() == "fastapi/lets-ship-it is gone"
        load(namespace, LETS_SHIP_IT, restore)
        assert watched.words() == (
            "fastapi/lets-ship-it appeared: ClusterIP 10.96.100.50:8000, NodePort :30080; 3 endpoints"
        )
        watched.process.send_signal(signal.SIGTERM)
        assert watched.process.wait(SECONDS) == 0
        assert watched.process.communicate() == ("", "")


def test_one_endpoint_for_another_in_legacy_rules(namespace: Namespace, tmp_path: Path) -> None:
    """The kernel tells nothing of a change that leaves all lengths as they were: the rules are read again in time."""
    load(namespace, LETS_SHIP_IT)
    with watching(namespace, tmp_path) as watched:
        load(namespace, LETS_SHIP_IT.replace("10.244.0.12:8000", "10.244.0.99:8000"))
        assert watched.words() == (
            "fastapi/lets-ship-it gained 10.244.0.99:8000 and lost 10.244.0.12:8000; each endpoint now 1/3"
        )


def test_nftables_mode(namespace: Namespace, tmp_path: Path) -> None:
    load(namespace, NFT, "nft -f -")
    chain = "ip kube-proxy service-AAAAAAAA-fastapi/lets-ship-it/tcp/http"
    with watching(namespace, tmp_path) as watched:
        two = f"flush chain {chain}\nadd rule {chain} numgen random mod 2 vmap {{ 0 : goto one, 1 : goto two }}\n"
        load(namespace, two, "nft -f -")
        assert watched.words() == "fastapi/lets-ship-it gained 10.244.0.12:8000; each endpoint now 1/2"
        namespace.sh("nft delete element ip kube-proxy service-ips '{ 10.96.100.50 . tcp . 8000 }'")
        assert watched.words() == "fastapi/lets-ship-it is gone"


def test_a_watch_that_is_killed_leaves_no_process(namespace: Namespace, tmp_path: Path) -> None:
    load(namespace, NFT, "nft -f -")
    with watching(namespace, tmp_path) as watched:
        name = "nft\n"
        wait_until(lambda: name in processes_in(namespace))
        watched.process.kill()
        watched.process.wait()
        wait_until(lambda: name not in processes_in(namespace))


def processes_in(namespace: Namespace) -> list[str]:
    """The names of the processes in a network namespace, each with a newline."""
    names = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "ns" / "net").stat().st_ino == namespace.inode:
                names.append((process / "comm").read_text())
    return names


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_json_lines_names_and_count(namespace: Namespace, tmp_path: Path) -> None:
    other = LETS_SHIP_IT.replace("fastapi/lets-ship-it", "shop/cart")
    load(namespace, LETS_SHIP_IT)
    with watching(namespace, tmp_path, "-o", "json", "shop/*", "--count", "1") as watched:
        load(namespace, other)
        document: dict[str, Any] = json.loads(watched.line())
        assert (document["type"], document["change"]) == ("service-change", "appeared")
        assert (document["namespace"], document["name"], document["port_name"]) == ("shop", "cart", "http")
        assert [end["ip"] for end in document["gained"]] == ["10.244.0.11", "10.244.0.12", "10.244.1.13"]
        assert document["words"].startswith("shop/cart appeared: ")
        assert document["service"]["no_endpoints"] is False
        assert watched.process.wait(SECONDS) == 0


def test_duration(namespace: Namespace) -> None:
    began = time.monotonic()
    done = run("services", "--watch", "--netns", namespace.path, "--duration", "0.5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began >= 0.5


def test_a_namespace_that_vanishes_ends_it(tmp_path: Path) -> None:
    with namespaces(1) as (namespace,), watching(namespace, tmp_path) as watched:
        namespace.close()
        assert watched.process.wait(SECONDS) == 3
        errors = watched.process.communicate()[1]
    assert errors.startswith("error: ") and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--watch", "--rules", "x"], "saved rules do not change"),
        (["--count", "1"], "belong to --watch"),
        (["--duration", "1"], "belong to --watch"),
        (["--watch", "--count", "0"], "--count"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    done = run("services", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
