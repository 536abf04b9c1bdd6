"""Exactly 37 connections over several Services, nodes and pods give exactly those 37 records.

Each is checked twice over by others than the tracer: by the connection-tracking table of the node that translated it,
and by the pod that answered, which says its own name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.command import start, wait_for
from tests.labs.lab import Lab
from tracer import conntrack
from tracer.events import IPPROTO_TCP

pytestmark = pytest.mark.bpf

Asked = tuple[str, int, str, int]  # source address and port, destination address and port
NODE1, NODE2 = "172.18.0.2", "172.18.0.3"


@dataclass(frozen=True)
class Plan:
    """`count` requests from `client` (NODE or NAMESPACE/POD) to `url`; what the records must say of them."""

    client: str
    url: str
    count: int
    service: str
    kind: str
    backends: int | None = None  # how many different pods at most


PLANS = (
    Plan("default/client", "http://10.96.100.50:8000/", 7, "fastapi/lets-ship-it", "ClusterIP"),
    Plan("shop/client", "http://10.96.100.50:8000/", 5, "fastapi/lets-ship-it", "ClusterIP"),
    Plan("default/client", "http://10.96.20.1/", 4, "shop/web", "ClusterIP"),
    Plan("shop/client", "http://10.96.20.4/", 5, "shop/sticky", "ClusterIP", backends=1),
    Plan("node1", "http://10.96.20.1/", 3, "shop/web", "ClusterIP"),
    Plan("node2", "http://10.96.100.50:8000/", 3, "fastapi/lets-ship-it", "ClusterIP"),
    Plan("default/client", "http://10.96.20.8/", 3, "shop/host", "ClusterIP", backends=1),
    Plan("default/client", f"http://{NODE1}:30080/", 3, "shop/door", "NodePort"),
    Plan("default/client", f"http://{NODE2}:30080/", 4, "shop/door", "NodePort"),
)
TOTAL = 37
SERVICES = sorted({plan.service for plan in PLANS})


@dataclass(frozen=True)
class Call:
    """One request made: the client's own address and port, and what the server said."""

    plan: Plan
    ip: str
    port: int
    answer: dict[str, Any]

    @property
    def asked(self) -> Asked:
        """What tells it from all others: two destinations may be asked from one port."""
        url = urlsplit(self.plan.url)
        return self.ip, self.port, str(url.hostname), url.port or 80


def asked_of(record: dict[str, Any]) -> Asked:
    """The same of a record."""
    source, destination = record["source"], record["destination"]
    return source["ip"], source["port"], destination["ip"], destination["port"]


def call(lab: Lab, plan: Plan) -> list[Call]:
    """Make the requests of a plan, one process each."""
    calls = []
    for _ in range(plan.count):
        form = "%{local_ip} %{local_port}"
        answer, local = lab.exec(plan.client, "curl", "-sS", "-m", "5", "-w", form, plan.url).stdout.strip().split("\n")
        ip, port = local.split()
        calls.append(Call(plan, ip, int(port), json.loads(answer)))
    return calls


@contextlib.contextmanager
def trace(lab: Lab, directory: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A trace of a cluster, once it is ready."""
    ready = directory / "ready"
    with start("-o", "json", "--kubeconfig", lab.kubeconfig(), "--ready-file", str(ready), *more) as process:
        wait_for(ready)
        yield process


def held(lab: Lab) -> dict[Asked, list[Asked]]:
    """By what a client asked (its address and port, the destination's): where each node's conntrack sent it."""
    found: dict[Asked, list[Asked]] = {}
    for node in lab.status()["nodes"]:
        for entry in conntrack.dump(f"/proc/{node['pid']}/ns/net", protocol=IPPROTO_TCP):
            if entry.dnat or entry.snat:
                asked = (entry.orig.src_text, entry.orig.sport, entry.orig.dst_text, entry.orig.dport)
                after = entry.reply.reversed()
                found.setdefault(asked, []).append((after.src_text, after.sport, after.dst_text, after.dport))
    return found


def backend_by_conntrack(table: dict[Asked, list[Asked]], asked: Asked) -> tuple[str, int]:
    """Follow a request through the nodes' tables to its last destination."""
    while asked in table:
        (asked,) = table[asked]
    return asked[2], asked[3]


@pytest.fixture(scope="module")
def outcome(
    cluster: Lab, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Call], list[dict[str, Any]], Any, str]:
    """The calls made, the records seen, what conntrack held right after, and the trace's last words."""
    assert sum(plan.count for plan in PLANS) == TOTAL
    only = [word for service in SERVICES for word in ("--service", service)]
    status = cluster.status()
    namespaces = {one["netns"] for one in (*status["nodes"], *status["pods"])}
    with trace(cluster, tmp_path_factory.mktemp("trace"), *only) as process:
        calls = [made for plan in PLANS for made in call(cluster, plan)]
        table = held(cluster)
        time.sleep(0.2)
        process.terminate()
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    records = [json.loads(line) for line in out.splitlines()]
    # Another cluster on the machine has the same names and addresses, but not the same namespaces.
    return calls, [record for record in records if record["process"]["netns"] in namespaces], table, errors


def test_there_is_one_record_for_each_connection(outcome: Any) -> None:
    calls, records, _, errors = outcome
    assert len(records) == TOTAL
    asked = {made.asked for made in calls}
    assert len(asked) == TOTAL
    assert {asked_of(record) for record in records} == asked
    assert ", 0 events lost, " in errors.splitlines()[-1]


def test_each_backend_is_what_conntrack_holds(outcome: Any) -> None:
    _, records, table, _ = outcome
    for record in records:
        asked, backend = asked_of(record), record["backend"]
        assert asked in table, record
        assert (backend["ip"], backend["port"]) == backend_by_conntrack(table, asked), record


def test_each_backend_is_the_pod_that_answered(outcome: Any) -> None:
    calls, records, _, _ = outcome
    answers = {made.asked: made for made in calls}
    for record in records:
        made = answers[asked_of(record)]
        expected = (made.answer["namespace"], made.answer["pod"])
        if made.plan.service == "shop/host":
            # Several pods share a node's address: the address alone names none of them.
            assert record["backend"]["pod"] in (None, made.answer["pod"])
        else:
            assert (record["backend"]["namespace"], record["backend"]["pod"]) == expected, record


def test_each_record_names_who_asked_and_for_what(outcome: Any) -> None:
    calls, records, _, _ = outcome
    plans = {made.asked: made.plan for made in calls}
    for record in records:
        plan = plans[asked_of(record)]
        destination, source = record["destination"], record["source"]
        assert f"{destination['namespace']}/{destination['service']}" == plan.service
        assert destination["kind"] == plan.kind
        assert destination["port_name"] == (None if plan.service == "shop/sticky" else "http")
        if "/" in plan.client:
            assert f"{source['namespace']}/{source['pod']}" == plan.client
            assert record["node"] == ("node1" if plan.client == "default/client" else "node2")
        else:
            assert (source["namespace"], source["pod"], record["node"]) == (None, None, plan.client)
        assert record["process"]["comm"] == "curl"
        assert record["outcome"] == "established"


def test_each_record_says_which_rule_chose(outcome: Any) -> None:
    calls, records, _, _ = outcome
    plans = {made.asked: made.plan for made in calls}
    for record in records:
        plan = plans[asked_of(record)]
        translation = record["translation"]
        assert (translation["by"], translation["dnat"]) == ("netfilter", True)
        first, *_, last = translation["via"]
        assert last.startswith("KUBE-SEP-")
        assert first.startswith("KUBE-EXT-" if plan.kind == "NodePort" else "KUBE-SVC-")
        expected = 1 if plan.service == "shop/host" else 1 / 3
        assert translation["probability"] == pytest.approx(expected, abs=0.001)


def test_session_affinity_keeps_to_one_pod(outcome: Any) -> None:
    _, records, _, _ = outcome
    sticky = [record for record in records if record["destination"]["service"] == "sticky"]
    assert len({record["backend"]["pod"] for record in sticky}) == 1


def test_a_service_without_endpoints_is_said_to_have_none(cluster: Lab, tmp_path: Path) -> None:
    with trace(cluster, tmp_path, "--service", "shop/nobody", "--count", "1") as process:
        refused = cluster.exec("default/client", "curl", "-sS", "-m", "5", "http://10.96.20.5/", check=False)
        out, _ = process.communicate(timeout=30)
    assert refused.returncode == 7  # CURLE_COULDNT_CONNECT
    record = json.loads(out)
    assert (record["outcome"], record["errno"]) == ("no-endpoints", errno.ECONNREFUSED)
    assert record["destination"]["service"] == "nobody"
    assert record["backend"] is None


def test_a_name_that_is_looked_up_is_traced_like_the_call(cluster: Lab, tmp_path: Path) -> None:
    """DNS is a Service too: the query's backend is the pod that answered it."""
    with trace(cluster, tmp_path, "--service", "kube-system/kube-dns", "--protocol", "udp") as process:
        cluster.exec("default/client", "dig", "+short", "+tries=1", "lets-ship-it.fastapi.svc.cluster.local")
        time.sleep(0.3)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    records = [json.loads(line) for line in out.splitlines() if '"kube-dns"' in line]
    assert len(records) == 1
    (record,) = records
    assert (record["protocol"], record["outcome"]) == ("UDP", "answered")
    assert record["backend"]["pod"].startswith("coredns-")
