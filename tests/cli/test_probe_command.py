"""The front door: k8snet-trace probe DST and k8snet-trace probe dns NAME, as processes of their own."""

from __future__ import annotations

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import POWERLESS, Terminal, environment, run, start
from tests.kernel.test_nat import inhabited
from tests.kernel.traffic import listener
from tests.labs.lab import Lab
from tests.tracer.networks import SERVICE, Namespace, routed
from tests.tracer.probe.rules_for import BACKENDS, kube_service
from tracer import conntrack

Net = tuple[Namespace, Namespace, Namespace]


@pytest.fixture(scope="module")
def shop() -> Iterator[Net]:
    """shop/web at a router, with somebody who answers at each of its three endpoints."""
    with routed() as net:
        client, router, server = net
        kube_service(router, *BACKENDS)
        with inhabited(client), inhabited(router), listener(server, "0.0.0.0", 8000):
            yield net


def document(*arguments: str) -> dict[str, Any]:
    done = run("probe", *arguments, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "Missing argument 'DST'", "k8snet-trace probe --help"),
        (["--count", "3"], "Missing argument 'DST'", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "10.0.0.2:80"], "unexpected extra argument", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "--count", "10001"], "--count", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "--count", "0"], "--count", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "--rate", "1001"], "--rate", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "--timeout", "0"], "--timeout", "k8snet-trace probe --help"),
        (["10.0.0.1:80", "--nonsense"], "No such option", "k8snet-trace probe --help"),
        (["10.0.0.1"], "has no port", "write 10.0.0.1:PORT"),
        (["10.0.0.1:80/sctp"], "TCP or UDP, not SCTP", None),
        (["--from", "no/such-pod", "10.0.0.1:80"], "no pod no/such-pod on this machine", "choose one"),
        (["--from", "nowhere", "10.0.0.1:80"], "no network namespace 'nowhere'", "ip netns list"),
        (["dns"], "Missing argument 'NAME'", "k8snet-trace probe dns --help"),
        (["dns", "a.b"], "Missing option '--server'", "k8snet-trace probe dns --help"),
        (["dns", "a..b", "--server", "10.0.0.1"], "is no DNS name", None),
        (["dns", "a.b", "--server", "ten"], "is no destination", "write IP:PORT"),
        (["dns", "a.b", "--server", "10.0.0.1", "--type", "X"], "is no type", "A, AAAA"),
    ],
)
@pytest.mark.root
def test_usage_errors(arguments: list[str], message: str, hint: str | None) -> None:
    done = run("probe", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    error, *hints = done.stderr.splitlines()
    assert error.startswith("error: ") and message in error
    assert len(hints) == (0 if hint is None else 1)
    assert hint is None or hints[0].startswith(f"hint: {hint}")


@pytest.mark.parametrize("words", [("probe", "--help"), ("probe", "10.0.0.1:80", "-h"), ("probe", "dns", "--help")])
def test_help_shows_options_and_examples(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    usage = "dns [OPTIONS] NAME" if "dns" in words else "[OPTIONS] DST"
    assert done.stdout.startswith(f"Usage: k8snet-trace probe {usage}\n")
    for word in ("--from", "--count", "--rate", "--timeout", "--output", "Examples:", "sudo k8snet-trace probe"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_it_starts_without_scapy() -> None:
    program = "import sys, tracer.cli, tracer.commands.probe; print({'scapy', 'dns'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("k8snet-trace probe d", {"dns"}),
        ("k8snet-trace probe --co", {"--count"}),
        ("k8snet-trace probe 10.0.0.1:80 --co", {"--count"}),
        ("k8snet-trace probe dns a.b --se", {"--server"}),
        ("k8snet-trace probe dns a.b -o ", {"table", "json"}),
    ],
)
def test_completion(words: str, offered: set[str]) -> None:
    request = {"_K8SNET_TRACE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    answer = run(env=environment(**request)).stdout
    assert {line.partition(",")[2] for line in answer.splitlines()} == offered


@pytest.mark.root
@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["shop/web:http", "--count", "3"], "sudo k8snet-trace probe shop/web:http"),
        (["dns", "a.b", "--server", "10.96.0.10"], "sudo k8snet-trace probe dns a.b --server 10.96.0.10"),
    ],
)
def test_without_the_privilege(arguments: list[str], command: str) -> None:
    done = run("probe", *arguments, prefix=POWERLESS)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"error: sending crafted packets needs root (CAP_NET_RAW)\nhint: {command}\n"


@pytest.mark.root
class TestFlows:
    def test_every_flow_is_counted(self, shop: Net) -> None:
        client, router, _ = shop
        told = document("shop/web:http", "--from", client.path, "--count", "37", "--no-names")
        held = Counter(
            entry.reply.src_text
            for entry in conntrack.dump(router.path)
            if entry.timeout is not None and entry.timeout > 7  # of this probe: ten seconds from its RST on
        )
        assert (told["sent"], told["answered"]) == (37, 37)
        assert {each["ip"]: each["observed"] for each in told["reached"]} == {ip: held[ip] for ip in BACKENDS}
        assert sum(each["observed"] for each in told["reached"]) == 37
        assert [each["share"] for each in told["reached"]] == pytest.approx([1 / 3] * 3)
        assert [each["expected"] for each in told["reached"]] == pytest.approx([37 / 3] * 3)
        assert (told["destination"], told["protocol"], told["source"]) == ("shop/web:http", "TCP", "10.0.1.2")
        assert told["degrees"] == 2 and 0 < told["p_value"] <= 1
        assert (told["from"], told["notes"]) == (client.path, [])

    def test_a_table_for_people(self, shop: Net) -> None:
        client, _, _ = shop
        done = run("probe", f"{SERVICE}:80", "--from", client.path, "--count", "60", "--no-names")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert re.fullmatch(r"BACKEND +OBSERVED  EXPECTED  SHARE", lines[3 if lines[1].startswith(" ") else 2])
        rows = [line.split() for line in lines if line.startswith("10.0.2.")]
        assert [(row[0], row[2], row[3]) for row in rows] == [(f"{ip}:8000", "20.0", "1/3") for ip in BACKENDS]
        assert sum(int(row[1]) for row in rows) == 60
        assert "Answers: 60 answered." in lines
        assert re.search(r"^Chi-square \d+\.\d\d with 2 degrees of freedom, p = ", done.stdout, re.M)
        assert "\x1b" not in done.stdout

    def test_colour_on_a_terminal_only(self, shop: Net) -> None:
        client, _, _ = shop
        arguments = ("probe", f"{SERVICE}:80", "--from", client.path, "--count", "3", "--no-names")
        with Terminal(*arguments, columns=80) as terminal:
            coloured = terminal.finish()
        with Terminal(*arguments, columns=80, env=environment(NO_COLOR="1")) as terminal:
            plain = terminal.finish()
        assert any("\x1b[32m10.0.2.2:8000" in line for line in coloured)
        assert not any("\x1b" in line for line in plain)
        assert max(map(len, plain)) <= 80

    def test_ctrl_c_ends_it_with_what_was_found(self, shop: Net) -> None:
        client, _, _ = shop
        arguments = ("probe", f"{SERVICE}:80", "--from", client.path, "--count", "1000", "--rate", "20", "--no-names")
        with start(*arguments, "-o", "json") as process:
            _wait_for_flows(shop[1], 5)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=10)
        told = json.loads(output)
        assert (process.returncode, errors) == (0, "")
        assert 5 <= told["sent"] < 1000
        assert told["notes"][0] == f"ended early: {told['sent']} of 1000 were sent"
        assert sum(each["observed"] for each in told["reached"]) == told["sent"]

    def test_no_way_to_go(self, shop: Net) -> None:
        _, _, server = shop
        server.sh("ip route add unreachable 192.0.2.0/24")
        done = run("probe", "192.0.2.1:80", "--from", server.path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            "error: nothing can be sent to 192.0.2.1 from here: No route to host\nhint: ip route"
        )

    def test_a_service_that_there_is_not(self, shop: Net) -> None:
        client, _, _ = shop
        done = run("probe", "shop/wep:http", "--from", client.path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: the rules hold no Service shop/wep\nhint: did you mean shop/web?\n"


def _wait_for_flows(router: Namespace, count: int) -> None:
    before = conntrack.count(router.path)
    deadline = time.monotonic() + 30
    while conntrack.count(router.path) < before + count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


MANIFEST = """\
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: asker, namespace: {namespace}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: node2}}
  containers: [{{name: client, image: client}}]
"""


@pytest.fixture(scope="module")
def namespace() -> str:
    """Other clusters of this machine have pods called default/client, too."""
    return f"probe-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def cluster(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A miniature cluster with a pod of a name that no other has."""
    manifest: Path = tmp_path_factory.mktemp("probe") / "asker.yaml"
    manifest.write_text(MANIFEST.format(namespace=namespace))
    with Lab(("-f", str(manifest))) as running:
        yield running


@pytest.mark.root
class TestCluster:
    """In the miniature cluster: pods by name, kube-proxy's own rules, the cluster's DNS."""

    def test_from_a_pod(self, cluster: Lab, namespace: str) -> None:
        told = document(
            "fastapi/lets-ship-it:http",
            "--from",
            f"{namespace}/asker",
            "--count",
            "37",
            "--kubeconfig",
            cluster.kubeconfig(),
        )
        pods = {pod["addresses"][0]: pod["name"] for pod in cluster.pods("fastapi", "lets-ship-it")}
        assert (told["sent"], told["answered"], told["from"]) == (37, 37, f"{namespace}/asker")
        assert {each["ip"]: each["pod"] for each in told["reached"]} == pods
        assert {each["namespace"] for each in told["reached"]} == {"fastapi"}
        assert sum(each["observed"] for each in told["reached"]) == 37
        assert [each["expected"] for each in told["reached"]] == pytest.approx([37 / 3] * 3, abs=1e-5)
        assert told["degrees"] == 2

    def test_from_a_node(self, cluster: Lab) -> None:
        node = next(node for node in cluster.status()["nodes"] if node["name"] == "node1")
        told = document("kube-system/kube-dns:dns", "--from", str(node["pid"]), "--count", "37", "--no-names")
        assert (told["protocol"], told["sent"]) == ("UDP", 37)
        assert sum(each["observed"] for each in told["reached"]) == 37
        assert {each["port"] for each in told["reached"]} == {53}
        assert len(told["reached"]) == 2

    def test_dns(self, cluster: Lab, namespace: str) -> None:
        name = "lets-ship-it.fastapi.svc.cluster.local"
        told = document("dns", name, "--server", "10.96.0.10", "--from", f"{namespace}/asker", "--no-names")
        servers = {pod["addresses"][0] for pod in cluster.pods("kube-system", "coredns")}
        assert [query["rd"] for query in told["queries"]] == [True, False]
        assert [query["flags"] for query in told["queries"]] == [["qr", "aa", "rd"], ["qr", "aa"]]
        for query in told["queries"]:
            assert query["rcode"] == "NOERROR"
            assert query["answers"] == [{"name": f"{name}.", "type": "A", "ttl": 30, "data": "10.96.100.50"}]
            assert query["backend"]["ip"] in servers
        assert ["no error" in note for note in told["notes"]] == [True, False]
        assert "ndots:5" in told["notes"][1]

    @pytest.mark.parametrize(("option", "desired"), [("--rd", True), ("--no-rd", False)])
    def test_dns_with_one_kind_of_query(self, cluster: Lab, namespace: str, option: str, desired: bool) -> None:
        told = document(
            "dns", "example.org.", "--server", "kube-system/kube-dns:dns", "--from", f"{namespace}/asker", option
        )
        (query,) = told["queries"]
        assert (query["rd"], query["rcode"]) == (desired, "REFUSED")
        assert len(told["notes"]) == desired
