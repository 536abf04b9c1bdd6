"""Each check passes where it should, and fails with its reason; what goes wrong in one is never the learner's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from labs.engine.checks import CHECKS, check, problem_with, traffic
from labs.engine.outcome import Result
from labs.engine.spec import Named
from labs.engine.world import RUN_SECONDS, Blocked, Ran
from tests.labs.engine.fake import FakeWorld, context, prints

WEB = {
    "metadata": {"namespace": "default", "name": "web"},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.7",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
    },
}
FAR = {"spec": {"nodeName": "node2"}, "status": {"podIP": "10.244.1.5"}}
READY = [{"addresses": ["10.244.0.5"], "conditions": {"ready": True}}, {"addresses": ["10.244.1.5"], "conditions": {}}]
UNREADY = {"addresses": ["10.244.1.6"], "conditions": {"ready": False}}


def slices(*endpoints: dict[str, Any], port: int = 8080) -> list[dict[str, Any]]:
    return [
        {
            "metadata": {"namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": list(endpoints),
            "ports": [{"port": port}],
        }
    ]


def result(world: FakeWorld, name: str, tmp_path: Path | None = None, /, **parameters: Any) -> str:
    """ "pass", or the reason of the failure."""
    outcome = check(context(world, tmp_path), Named(name, parameters))
    assert outcome.result in (Result.PASS, Result.FAIL), outcome
    if outcome.passed:
        return "pass"
    assert outcome.expected and outcome.seen and outcome.look, outcome
    return outcome.reason


def pod(name: str, created: str, ready: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(
    ("third", "parameters", "reason"),
    [
        (pod("c", "2026-11-29T10:00:05Z"), {"ready": 3, "anew": True}, "pass"),
        (pod("c", "2026-11-29T10:00:05Z"), {"ready": 2}, "count"),
        (pod("c", "2026-11-29T10:00:05Z", "False"), {"ready": 3}, "count"),
        (pod("c", "2026-11-29T10:00:05Z", "False"), {"ready": 2}, "count"),
        (pod("c", "2026-11-29T09:59:59Z"), {"ready": 3, "anew": True}, "old"),
        (pod("c", "2026-11-29T09:59:59Z"), {"ready": 3}, "pass"),
        (pod("c", "2026-11-29T09:59:59Z"), {"kept": True}, "new"),
    ],
)
def test_pods(third: dict[str, Any], parameters: dict[str, Any], reason: str) -> None:
    found = [pod("a", "2026-11-29T10:00:00Z"), pod("b", "2026-11-29T10:00:01Z"), third]
    asked = context(FakeWorld({"pods default": found}), since=1795946400.9)  # 10:00:00.9
    outcome = check(asked, Named("pods", {"selector": "app=web", **parameters}))
    assert (outcome.reason or outcome.result) == reason


BEGAN = 1795946400.9  # 10:00:00.9, and the pod was made within that second


@pytest.mark.parametrize(
    ("restarts", "since", "reason"),
    [(0, 2e9, "pass"), (1, 2e9, "new"), (0, 1e9, "new"), (0, BEGAN, "pass"), (0, BEGAN - 1, "new")],
)
def test_pods_that_should_be_the_same_as_before(restarts: int, since: float, reason: str) -> None:
    found = pod("a", "2026-11-29T10:00:00Z")
    found["status"]["containerStatuses"] = [{"restartCount": restarts}]
    outcome = check(
        context(FakeWorld({"pods default": [found]}), since=since), Named("pods", {"selector": "a", "kept": True})
    )
    assert (outcome.reason or outcome.result) == reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "ClusterIP", "port": 80, "target_port": 8080, "selector": {"app": "web"}}, "pass"),
        ({"type": "NodePort"}, "type"),
        ({"port": 81}, "port"),
        ({"port": 80, "target_port": 80}, "target-port"),
        ({"selector": {"app": "shop"}}, "selector"),
        ({"headless": True}, "headless"),
        ({"headless": False}, "pass"),
        ({"name": "other"}, "missing"),
    ],
)
def test_service(parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld({"service default/web": WEB})
    assert result(world, "service", **{"name": "web", **parameters}) == reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "pass"),
        ({"absent": True}, "there"),
        ({"path": "$.spec.type", "equals": "ClusterIP"}, "pass"),
        ({"path": "$.spec.type", "one_of": ["NodePort", "ClusterIP"]}, "pass"),
        ({"path": "$.spec.type", "equals": "NodePort"}, "different"),
        ({"path": "$.spec.externalName", "equals": "x"}, "different"),
        ({"path": "$.spec.externalName", "absent": True}, "pass"),
        ({"path": "$.spec.type", "absent": True}, "there"),
        ({"name": "other"}, "missing"),
        ({"name": "other", "absent": True}, "pass"),
        ({"name": "other", "path": "$.spec.type", "equals": "x"}, "missing"),
    ],
)
def test_object(parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld({"service default/web": WEB})
    assert result(world, "object", **{"kind": "service", "name": "web", **parameters}) == reason


@pytest.mark.parametrize(
    ("endpoints", "parameters", "reason"),
    [
        (READY, {}, "pass"),
        (READY, {"ready": 2, "port": 8080}, "pass"),
        ([*READY, UNREADY], {"ready": 2}, "pass"),
        (READY, {"ready": 3}, "count"),
        (READY, {"at_least": 3}, "count"),
        (READY, {"port": 80}, "port"),
        ([UNREADY], {}, "no-endpoints"),
        ([], {"ready": 0}, "pass"),
        (READY, {"ready": 0}, "count"),
        ([*READY, UNREADY], {"ready": 2, "unready": 1}, "pass"),
        (READY, {"ready": 2, "unready": 1}, "unready"),
        ([*READY, UNREADY], {"unready": 0}, "unready"),
    ],
)
def test_endpoint(endpoints: list[dict[str, Any]], parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld({"endpointslices default": slices(*endpoints)})
    assert result(world, "endpoint", service="web", **parameters) == reason


def test_a_service_without_endpointslices_has_no_endpoints() -> None:
    assert result(FakeWorld(), "endpoint", service="web") == "no-endpoints"


EXPLAINED = {
    "verdict": "dnat",
    "backends": [{"ip": "10.244.0.5"}, {"ip": "10.244.1.5"}],
    "masquerade": False,
    "affinity_seconds": None,
}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "pass"),
        ({"backends": 2, "masquerade": False, "affinity": False}, "pass"),
        ({"verdict": "drop"}, "verdict"),
        ({"backends": 3}, "backends"),
        ({"masquerade": True}, "masquerade"),
        ({"affinity": True}, "affinity"),
    ],
)
def test_rule(parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld(commands={"node1: k8snet-trace explain 10.96.0.7:80 -o json": prints(EXPLAINED)})
    assert result(world, "rule", node="node1", to="10.96.0.7:80", **parameters) == reason


def test_rule_about_packets_of_a_pod() -> None:
    pods = {"pod default/client": {"status": {"podIP": "10.244.0.2"}}}
    command = "node1: k8snet-trace explain 10.96.0.7:80 -o json --source 10.244.0.2"
    world = FakeWorld(pods, {command: prints({**EXPLAINED, "masquerade": True})})
    parameters = {"node": "node1", "to": "10.96.0.7:80", "source": "{default/client}"}
    assert result(world, "rule", **parameters, masquerade=True) == "pass"
    outcome = check(context(world), Named("rule", {**parameters, "masquerade": False}))
    assert "10.96.0.7:80 from 10.244.0.2" in outcome.expected and "--source 10.244.0.2" in outcome.look


CONNTRACK = """<?xml version="1.0" encoding="utf-8"?>
<conntrack><flow><meta direction="original"><layer3 protonum="2" protoname="ipv4"><src>10.244.0.2</src>
<dst>10.96.0.7</dst></layer3><layer4 protonum="6" protoname="tcp"><sport>40000</sport><dport>80</dport></layer4></meta>
<meta direction="reply"><layer3 protonum="2" protoname="ipv4"><src>10.244.1.5</src><dst>10.244.0.2</dst></layer3>
<layer4 protonum="6" protoname="tcp"><sport>8080</sport><dport>40000</dport></layer4></meta>
<meta direction="independent"><state>TIME_WAIT</state><timeout>100</timeout></meta></flow></conntrack>"""


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"original": {"dst": "10.96.0.7", "dport": 80}}, "pass"),
        ({"original": {"dst": "10.96.0.7"}, "reply": {"src": "10.244.1.5", "sport": 8080}}, "pass"),
        ({"original": {"dst": "10.96.0.8"}}, "no-entry"),
        ({"original": {"dst": "10.96.0.7"}, "reply": {"src": "10.96.0.7"}}, "no-entry"),
        ({"original": {"dst": "10.96.0.7"}, "present": False}, "entry"),
        ({"original": {"dst": "10.96.0.8"}, "present": False}, "pass"),
        ({"original": {"src": "{default/client}", "dst": "10.96.0.7"}}, "pass"),
        ({"original": {"src": "{default/other}", "dst": "10.96.0.7"}}, "no-entry"),
        ({"original": {"dst": "10.96.0.7"}, "state": "TIME_WAIT"}, "pass"),
        ({"original": {"dst": "10.96.0.7"}, "state": "ESTABLISHED"}, "no-entry"),
    ],
)
def test_conntrack(parameters: dict[str, Any], reason: str) -> None:
    pods = {
        f"pod default/{name}": {"status": {"podIP": ip}} for name, ip in (("client", "10.244.0.2"), ("other", "::1"))
    }
    world = FakeWorld(pods, {"node1: conntrack -L -p tcp -o xml": prints(CONNTRACK)})
    assert result(world, "conntrack", node="node1", **parameters) == reason


def test_an_empty_connection_tracking_table() -> None:
    world = FakeWorld(commands={"node1: conntrack": prints("")})
    assert result(world, "conntrack", node="node1", original={"dst": "10.96.0.7"}, present=False) == "pass"


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "pass"),
        ({"via": "172.18.0.3", "device": "eth0"}, "pass"),
        ({"via": "172.18.0.4"}, "via"),
        ({"device": "eth1"}, "device"),
        ({"present": False}, "route"),
        ({"to": "10.244.2.0/24"}, "no-route"),
        ({"to": "10.244.2.0/24", "present": False}, "pass"),
    ],
)
def test_route(parameters: dict[str, Any], reason: str) -> None:
    routes = [{"dst": "10.244.1.0/24", "gateway": "172.18.0.3", "dev": "eth0"}]
    commands = {"node1: ip -j route show 10.244.1.0/24": prints(routes), "node1: ip -j route show": prints([])}
    parameters = {"to": "10.244.1.0/24", **parameters}
    assert result(FakeWorld(commands=commands), "route", target="node1", **parameters) == reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "pass"),
        ({"via": "172.18.0.3", "device": "eth0"}, "pass"),
        ({"via": "{default/far}"}, "via"),
        ({"device": "overlay0"}, "device"),
        ({"to": "10.99.0.1"}, "no-route"),
        ({"to": "{default/other}"}, "no-pod"),
    ],
)
def test_route_get(parameters: dict[str, Any], reason: str) -> None:
    found = [{"dst": "10.244.1.5", "gateway": "172.18.0.3", "dev": "eth0"}]
    commands = {"node1: ip -j route get 10.244.1.5": prints(found), "node1: ip": Ran(2, "", "unreachable")}
    world = FakeWorld({"pod default/far": FAR}, commands)
    assert result(world, "route_get", target="node1", **{"to": "{default/far}", **parameters}) == reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"state": "UP", "mtu": 1450, "kind": "vxlan"}, "pass"),
        ({"state": "DOWN"}, "state"),
        ({"mtu": 1500}, "mtu"),
        ({"kind": "veth"}, "kind"),
    ],
)
def test_link(parameters: dict[str, Any], reason: str) -> None:
    found = [{"flags": ["BROADCAST", "UP"], "mtu": 1450, "linkinfo": {"info_kind": "vxlan"}}]
    world = FakeWorld(commands={"node1: ip -j -d link show dev flannel.1": prints(found)})
    assert result(world, "link", target="node1", name="flannel.1", **parameters) == reason


def test_no_link() -> None:
    world = FakeWorld(commands={"node1: ip": Ran(1, "", 'Device "eth7" does not exist.')})
    assert result(world, "link", target="node1", name="eth7") == "no-link"


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"endpoints": 2}, "pass"),
        ({"endpoints": 3}, "endpoints"),
        ({"endpoints": 2, "service": "no"}, "no-service"),
        ({}, "pass"),
        ({"service": "old"}, "addresses"),
    ],
)
def test_bpf_map(parameters: dict[str, Any], reason: str) -> None:
    has = {"web": ["10.244.0.5", "10.244.1.5"], "old": ["10.244.0.5", "10.244.1.9"]}
    found = [
        {"namespace": "default", "name": name, "endpoints": [{"ip": ip} for ip in ips]} for name, ips in has.items()
    ]
    world = FakeWorld(
        {"endpointslices default": slices(*READY)}, {"node1: k8snet-trace services -o json": prints(found)}
    )
    assert result(world, "bpf_map", **{"node": "node1", "service": "web", **parameters}) == reason


ANSWER = """-
  type: MESSAGE
  message:
    response_message_data:
      opcode: QUERY
      status: {status}
      ANSWER_SECTION:
        - web.default.svc.cluster.local. 5 IN A 10.96.0.7
"""


DIG_ERROR = """\
;; communications error to 10.96.0.10#53: connection refused

; <<>> DiG 9.18.49-1~deb12u3-Debian <<>> web A +search +yaml +time=2 +tries=1
;; global options: +cmd
- type: DIG_ERROR
  message: |
    no servers could be reached
"""


@pytest.mark.parametrize(
    ("printed", "parameters", "reason"),
    [
        (ANSWER.format(status="NOERROR"), {}, "pass"),
        (ANSWER.format(status="NOERROR"), {"answers": ["10.96.0.7"]}, "pass"),
        (ANSWER.format(status="NOERROR"), {"answers": ["10.96.0.8"]}, "answers"),
        (ANSWER.format(status="NXDOMAIN"), {}, "status"),
        (ANSWER.format(status="NXDOMAIN"), {"status": "NXDOMAIN"}, "pass"),
        (DIG_ERROR, {}, "no-answer"),
        (";; communications error to 10.96.0.10#53: timed out\n" + ANSWER.format(status="NOERROR"), {}, "pass"),
        ("", {}, "no-answer"),
    ],
)
def test_dns(printed: str, parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld(commands={"default/client: dig web A +search +yaml": prints(printed)})
    assert result(world, "dns", name="web", **parameters) == reason


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ([{"addresses": ["10.96.0.7"], "conditions": {"ready": True}}, UNREADY], "pass"),
        ([{"addresses": ["10.96.0.7"], "conditions": {"ready": True}}, *READY], "answers"),
        ([UNREADY], "answers"),
    ],
)
def test_dns_of_endpoints(endpoints: list[dict[str, Any]], reason: str) -> None:
    answer = prints(ANSWER.format(status="NOERROR"))
    world = FakeWorld({"endpointslices default": slices(*endpoints)}, {"default/client: dig": answer})
    assert result(world, "dns", name="web", endpoints_of="default/web") == reason


KUBE_DNS = {"subsets": [{"addresses": [{"ip": "10.244.0.4"}, {"ip": "10.244.1.4"}]}]}
METRICS = """\
# TYPE coredns_dns_requests_total counter
coredns_dns_requests_total{{proto="udp",type="A",zone="cluster.local."}} {inside}
coredns_dns_requests_total{{proto="udp",type="A",zone="dropped"}} {outside}
coredns_dns_request_size_bytes_count{{proto="udp"}} 900
"""


def counts(*steps: tuple[float, int | None]) -> Ran:
    """What a shell prints that counts, looks a name up, and counts: numbers of queries, and exit codes of look-ups."""
    parts = []
    for number, code in steps:
        parts += [] if code is None else [f"\n---- {code}\n"]
        parts.append(METRICS.format(inside=number - 1, outside="1.0"))
    return Ran(0, "".join(parts), "")


@pytest.mark.parametrize(
    ("ran", "costs", "reason"),
    [
        (counts((8, None), (12, 0)), {"web.shop": 4}, "pass"),
        (counts((8, None), (12, 0)), {"web.shop": 3}, "too-many"),
        (counts((8, None), (12, 0), (13, 0)), {"web.shop": 4, "db": 1}, "pass"),
        (counts((8, None), (12, 0), (14, 0)), {"web.shop": 4, "db": 1}, "too-many"),
        (counts((8, None), (12, 2), (13, 0)), {"web.shop": 9, "db": 1}, "no-answer"),
        (counts((8, None), (12, 0), (13, 2)), {"web.shop": 4, "db": 9}, "no-answer"),
        (Ran(1, "", "no such pod"), {"web.shop": 3}, "no-answer"),
    ],
)
def test_queries(ran: Ran, costs: dict[str, int], reason: str) -> None:
    world = FakeWorld({"endpoints kube-system/kube-dns": KUBE_DNS}, {"default/client: sh -c curl": ran})
    assert result(world, "queries", costs=costs) == reason
    assert "http://10.244.0.4:9153/metrics http://10.244.1.4:9153/metrics" in world.asked[-1]
    assert "getent ahostsv4 web.shop" in world.asked[-1]


def pod_of_web(name: str, second: int, *, ready: bool = True, ends: bool = False) -> dict[str, Any]:
    metadata = {"name": name, "creationTimestamp": f"2026-11-29T10:00:0{second}Z"}
    if ends:
        metadata["deletionTimestamp"] = "2026-11-29T10:00:09Z"
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": metadata, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([pod_of_web("old", 1), pod_of_web("new", 2)], "pass"),
        ([pod_of_web("new", 1), pod_of_web("starts", 2, ready=False), pod_of_web("ends", 3, ends=True)], "pass"),
        ([pod_of_web("starts", 2, ready=False)], "no-pod"),
        (None, "no-pod"),
    ],
)
def test_queries_of_a_deployment(pods: list[dict[str, Any]] | None, reason: str) -> None:
    deployment = {"spec": {"selector": {"matchLabels": {"app": "web"}}}}
    objects: dict[str, Any] = {"endpoints kube-system/kube-dns": KUBE_DNS}
    if pods is not None:
        objects.update({"deployment shop/web": deployment, "pods shop": pods})
    world = FakeWorld(objects, {"shop/new: sh -c curl": counts((1, None), (2, 0))})
    assert result(world, "queries", deployment="shop/web", costs={"web": 1}) == reason


def test_queries_that_nobody_is_there_to_answer() -> None:
    for objects in ({}, {"endpoints kube-system/kube-dns": {"metadata": {}}}):
        assert result(FakeWorld(objects), "queries", costs={"web.shop": 1}) == "no-answer"


def test_queries_that_nobody_counts() -> None:
    world = FakeWorld({"endpoints kube-system/kube-dns": KUBE_DNS}, {"default/client: sh": Ran(9, "", "curl: (7) no")})
    outcome = check(context(world), Named("queries", {"costs": {"web.shop": 1}}))
    assert (outcome.result, outcome.seen) == (Result.ERROR, "queries: the numbers of the CoreDNS pods: curl: (7) no")


@pytest.mark.parametrize(
    ("ran", "parameters", "reason"),
    [
        (Ran(0, '{"pod": "web-1"}\n200', ""), {}, "pass"),
        (Ran(0, '{"pod": "web-1"}\n200', ""), {"json_has": {"pod": "web-1"}}, "pass"),
        (Ran(0, '{"pod": "web-1"}\n200', ""), {"json_has": {"pod": "web-2"}}, "body"),
        (Ran(0, "hello\n200", ""), {"json_has": {"pod": "web-2"}}, "body"),
        (Ran(0, "\n404", ""), {}, "status"),
        (Ran(7, "\n000", "curl: (7) refused"), {}, "no-answer"),
        (Ran(7, "\n000", "curl: (7) refused"), {"works": False}, "pass"),
        (Ran(0, "\n200", ""), {"works": False}, "answer"),
    ],
)
def test_http(ran: Ran, parameters: dict[str, Any], reason: str) -> None:
    assert result(FakeWorld(commands={"default/client: curl": ran}), "http", url="http://web/", **parameters) == reason


def test_http_by_a_pods_address() -> None:
    world = FakeWorld({"pod default/far": FAR}, {"default/client: curl": Ran(0, "\n200", "")})
    assert result(world, "http", url="http://{default/far}:8080/") == "pass"
    assert world.asked[-1].endswith(" http://10.244.1.5:8080/")
    assert result(world, "http", url="http://{default/other}:8080/") == "no-pod"


def test_http_asks_as_often_as_it_should() -> None:
    world = FakeWorld(commands={"default/client: bash": Ran(0, "\n200\x1e\n200\x1e\n200\x1e", "")})
    assert result(world, "http", url="http://web/", times=3) == "pass"
    (asked,) = world.asked
    assert " bash 3 curl -gsS " in asked


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        (Ran(0, "a\n200\x1eb\n200\x1e", ""), "pass"),
        (Ran(28, "a\n200\x1e\n000", "curl: (28) timed out"), "no-answer"),
        (Ran(0, "a\n200\x1eb\n503\x1e", ""), "status"),
    ],
)
def test_http_wants_all_answers(ran: Ran, reason: str) -> None:
    assert result(FakeWorld(commands={"default/client: bash": ran}), "http", url="http://web/", times=2) == reason


def test_http_asks_in_one_shell(tmp_path: Path) -> None:
    """The shell's own words, with a curl that counts."""
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\necho >>$0.asked\nprintf 'hello\\n200'\n[ $(wc -l <$0.asked) -lt 3 ]\n")
    curl.chmod(0o755)

    class Shell(FakeWorld):
        def run(self, target: str, *command: str, feed: str | None = None, seconds: float = 20.0) -> Ran:
            env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
            return Ran(done.returncode, done.stdout, done.stderr)

    assert traffic.fetch(context(Shell()), "default/client", "http://web/", 2) == [
        *((200, "hello", "curl's exit code 0"), (200, "hello", "curl's exit code 0")),
    ]
    assert len(traffic.fetch(context(Shell()), "default/client", "http://web/", 9)) == 1, "the third one fails"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"reached": [{"observed": 30}, {"observed": 30}], "p_value": 1.0}, "pass"),
        ({"reached": [{"observed": 60}, {"observed": 0}], "p_value": None}, "backends"),
        ({"reached": [{"observed": 59}, {"observed": 1}], "p_value": 1e-9}, "spread"),
    ],
)
def test_probe(document: dict[str, Any], reason: str) -> None:
    world = FakeWorld(commands={"default/client: k8snet-trace probe default/web:80 --count 60": prints(document)})
    assert result(world, "probe", source="default/client", to="default/web:80", backends=2) == reason


def dnat(packets: int, endpoint: str, service: str = "default/web:http", more: str = "") -> str:
    ip = endpoint.partition(":")[0]
    comment = f'-m comment --comment "{service}"' if ":" in service else f"-m comment --comment {service}"
    return (
        f"[9:540] -A KUBE-SEP-X -s {ip}/32 {comment} -j KUBE-MARK-MASQ\n"
        f"[{packets}:{60 * packets}] -A KUBE-SEP-X -p tcp {comment} {more}-m tcp -j DNAT --to-destination {endpoint}\n"
    )


COUNTERS = (
    "*nat\n[7:420] -A KUBE-SERVICES -d 10.96.0.7/32 -p tcp -j KUBE-SVC-X\n"
    + dnat(20, "10.244.0.5:8080")
    + dnat(22, "10.244.1.5:8080", more="-m recent --set --name KUBE-SEP-X --mask 255.255.255.255 --rsource ")
    + dnat(0, "10.244.1.6:8080")
    + dnat(99, "10.244.1.7:53", "default/web-2:dns")
)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"at_least": 42}, "pass"),
        ({"at_least": 42, "endpoints": 2}, "pass"),
        ({"at_least": 43}, "few"),
        ({"at_least": 42, "endpoints": 3}, "endpoints"),
        ({"at_least": 1, "service": "other"}, "few"),
        ({"at_least": 1, "namespace": "shop"}, "few"),
    ],
)
def test_flows(parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld(commands={"node1: iptables-save -c -t nat": prints(COUNTERS)})
    assert result(world, "flows", **{"node": "node1", "service": "web", **parameters}) == reason


def test_flows_of_a_port_without_a_name() -> None:
    world = FakeWorld(commands={"node1: iptables-save": prints(dnat(3, "10.244.0.5:80", "default/web"))})
    assert result(world, "flows", node="node1", service="web", at_least=3) == "pass"


@dataclass
class CountingWorld(FakeWorld):
    """Each script that is run makes these new flows: endpoint -> number."""

    makes: dict[str, int] = field(default_factory=dict)
    code: int = 0
    seen: dict[str, int] = field(default_factory=lambda: {"10.244.0.5:80": 5, "10.244.1.5:80": 0})

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World."""
        if command[0] == "iptables-save":
            return prints("".join(dnat(count, endpoint) for endpoint, count in self.seen.items()))
        assert (target, command, feed) == ("default/client", (sys.executable, "-"), "send()\n")
        for endpoint, count in self.makes.items():
            self.seen[endpoint] += count
        return Ran(self.code, "", "Traceback:\nNameError: send" if self.code else "")


@pytest.mark.parametrize(
    ("makes", "code", "reason"),
    [
        ({"10.244.0.5:80": 7, "10.244.1.5:80": 3}, 0, "pass"),
        ({"10.244.0.5:80": 7, "10.244.1.5:80": 2}, 0, "flows"),
        ({}, 0, "flows"),
        ({"10.244.0.5:80": 10}, 0, "endpoints"),
        ({"10.244.0.5:80": 7, "10.244.1.5:80": 3}, 1, "crash"),
    ],
)
def test_script(makes: dict[str, int], code: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "syn.py").write_text("send()\n")
    world = CountingWorld(makes=makes, code=code)
    parameters = {"name": "syn.py", "target": "default/client", "node": "node1", "service": "web"}
    assert result(world, "script", tmp_path, **parameters, flows=10, endpoints=2) == reason


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    parameters = {"name": "syn.py", "target": "default/client", "node": "node1", "service": "web"}
    assert result(CountingWorld(), "script", tmp_path, **parameters, flows=1, endpoints=1) == "missing"


def record(time: str, **more: Any) -> str:
    return json.dumps(
        {
            "type": "connection",
            "time": time,
            "node": "node1",
            "protocol": "TCP",
            "family": 4,
            "process": {"pid": 1, "comm": "curl", "cgroup_id": 1, "netns": 1},
            "source": {"ip": "10.244.0.2", "port": 1, "namespace": "default", "pod": "client"},
            "destination": {
                "ip": "10.96.0.7",
                "port": 80,
                "namespace": "default",
                "service": "web",
                "kind": "ClusterIP",
            },
            "backend": {"ip": "10.244.1.5", "port": 8080, "namespace": "default", "pod": "web-1"},
            "translation": {"by": "netfilter", "dnat": True, "snat": False, "via": ["KUBE-SEP-A"], "probability": 0.5},
            "outcome": "established",
            "errno": None,
            "latency_us": 400,
            **more,
        }
    )


def test_record(tmp_path: Path) -> None:
    lines = [
        record("2026-11-29T10:00:00.000000001Z"),
        record("2026-11-29T10:00:01.5Z", outcome="refused", backend=None),
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + '\n{"type": "connec')
    world = FakeWorld({"pod default/far": FAR})

    def look(match: dict[str, Any], **more: Any) -> str:
        return result(world, "record", tmp_path, match=match, words="a connection", **more)

    assert look({"destination.service": "web"}) == "pass"
    assert look({"destination.service": "web"}, at_least=2) == "pass"
    assert look({"destination.service": "web"}, at_least=3) == "not-seen"
    assert look({"backend.pod": "*"}, at_least=2) == "not-seen"
    assert look({"outcome": ["refused", "reset"]}) == "pass"
    assert look({"destination.port": "80"}) == "not-seen"
    assert look({"backend.pod": "web-*", "outcome": ["ref*", "est*"]}, at_least=2) == "not-seen"
    assert look({"backend.pod": "web-*", "outcome": ["ref*", "est*"]}) == "pass"
    assert look({"backend.pod": "*web"}) == "not-seen"
    assert look({"backend.ip": "{default/far}"}) == "pass"
    assert look({"destination.ip": "{default/far}"}) == "not-seen"
    assert look({"backend.ip": "{default/other}"}) == "no-pod"
    assert look({"source.nothing.at.all": "x"}) == "not-seen"
    outcome = check(context(world, tmp_path), Named("record", {"match": {"backend.pod": "*"}, "words": "x"}))
    assert outcome.seen.startswith("10:00:00.000 curl[1] default/client → default/web:80 (10.96.0.7) ⇒ web-1")


def test_records_of_before_the_step(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(record("2026-11-29T10:00:00.5Z") + "\n")
    parameters = {"match": {"outcome": "established"}, "words": "a connection", "anew": True}
    for since, result_ in ((1795946400.4, Result.PASS), (1795946400.6, Result.FAIL)):
        assert check(context(FakeWorld(), tmp_path, since), Named("record", parameters)).result is result_


@pytest.mark.parametrize(
    ("text", "parameters", "reason"),
    [
        ("kind: Service\n", {"form": "yaml"}, "pass"),
        ("kind: [\n", {"form": "yaml"}, "form"),
        ("port: 80\n", {"changed_from": "port: 80"}, "unchanged"),
        ("port: 81\n", {"changed_from": "port: 80"}, "pass"),
        (None, {}, "missing"),
    ],
)
def test_file(tmp_path: Path, text: str | None, parameters: dict[str, Any], reason: str) -> None:
    if text is not None:
        (tmp_path / "web.yaml").write_text(text)
    assert result(FakeWorld(), "file", tmp_path, name="web.yaml", **parameters) == reason


PORTS = [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "metrics", "port": 90, "protocol": "TCP"}]
TWO_PORTS = {**WEB, "spec": {**WEB["spec"], "ports": PORTS}}


def two_ports(*endpoints: dict[str, Any]) -> list[dict[str, Any]]:
    (one,) = slices(*endpoints)
    return [
        {**one, "kind": "EndpointSlice", "ports": [{"name": "metrics", "port": 9090}, {"name": "http", "port": 8080}]}
    ]


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (Ran(0, "10.244.0.5:8080 0.500\n10.244.1.5:8080 0.5\n", ""), "pass"),
        (Ran(0, "looking at 10.96.0.7:80\n10.244.0.5:8080 0.500\n10.244.1.5:8080 0.5\n", ""), "pass"),
        (Ran(0, "10.244.0.5:8080 0.500\n10.244.1.5:8080 1.000\n", ""), "shares"),
        (Ran(0, "10.244.0.5:8080 0.500\n", ""), "endpoints"),
        (Ran(0, "10.244.0.5:8080 0.5\n10.244.1.5:8080 0.5\n10.244.1.5:9090 0.5\n", ""), "endpoints"),
        (Ran(0, "10.244.0.5:8080 0.3\n10.244.1.5:8080 0.3\n10.244.1.6:8080 0.3\n", ""), "endpoints"),
        (Ran(0, "", ""), "endpoints"),
        (Ran(1, "", "Traceback\nKeyError: 'x'\n"), "fails"),
        (None, "missing"),
    ],
)
def test_shares(tmp_path: Path, printed: Ran | None, reason: str) -> None:
    if printed is not None:
        (tmp_path / "chains.py").write_text("print()")
    objects = [{**TWO_PORTS, "kind": "Service"}, *two_ports(*READY, UNREADY)]
    world = FakeWorld(
        {"services *": objects[:1], "endpointslices *": objects[1:]},
        {f"node1: {sys.executable} - 10.96.0.7:80": printed or Ran(0, "", "")},
    )
    parameters: dict[str, Any] = {"file": "chains.py", "node": "node1", "services": ["default/web:http"]}
    assert result(world, "shares", tmp_path, **parameters) == reason


def test_shares_of_a_service_that_is_not_there_are_no_mistake_of_the_learners(tmp_path: Path) -> None:
    (tmp_path / "chains.py").write_text("print()")
    parameters = {"file": "chains.py", "node": "node1", "services": ["default/web:http"]}
    assert check(context(FakeWorld(), tmp_path), Named("shares", parameters)).result is Result.ERROR


def test_invariants() -> None:
    ready = {"metadata": {"name": "node1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    lost = {"metadata": {"name": "node2"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    assert result(FakeWorld({"nodes *": [ready]}), "invariant", name="nodes-ready") == "pass"
    assert result(FakeWorld({"nodes *": [ready, lost]}), "invariant", name="nodes-ready") == "nodes-ready"
    proxy = {"status": {"numberReady": 2}}
    for nodes, objects, found in (
        ([ready, lost], {"daemonset kube-system/kube-proxy": proxy}, "pass"),
        ([ready, ready, lost], {"daemonset kube-system/kube-proxy": proxy}, "kube-proxy-everywhere"),
        ([ready], {}, "kube-proxy-everywhere"),
    ):
        world = FakeWorld({"nodes *": nodes, **objects})
        assert result(world, "invariant", name="kube-proxy-everywhere") == found
    works = {"default/client: getent": Ran(0, "10.96.0.1 kubernetes\n", "")}
    assert result(FakeWorld(commands=works), "invariant", name="dns-works") == "pass"
    assert result(FakeWorld(), "invariant", name="dns-works") == "dns-works"
    objects = {"services *": [WEB], "endpointslices *": slices(*READY, UNREADY)}
    for ips, found in (
        (("10.244.0.5", "10.244.1.5"), "pass"),
        (("10.244.0.5",), "rules-follow"),
        (("10.244.0.5", "10.244.9.9"), "rules-follow"),
    ):
        address = {"ip": "10.96.0.7", "port": 80}
        kept = {"protocol": "TCP", "addresses": [address], "endpoints": [{"ip": ip} for ip in ips]}
        commands = {"node1: k8snet-trace services": prints([kept]), "node2: k8snet-trace services": prints([kept])}
        assert result(FakeWorld(objects, commands), "invariant", name="rules-follow") == found


NAT = """*nat
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
"""
FILTER = """*filter
-A FORWARD -p tcp -m tcp --dport 80 -m comment --comment SEC-1 -j DROP
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
"""


def saved(node: str, **tables: str) -> dict[str, Ran]:
    return {f"{node}: iptables-save -t {table}": Ran(0, text, "") for table, text in tables.items()}


def test_kube_proxys_rules_are_in_place() -> None:
    flushed = FILTER.replace("-j KUBE-FORWARD", "-j ACCEPT")
    for text, found in ((FILTER, "pass"), (flushed, "rules-in-place"), ("", "rules-in-place")):
        head = "# Generated by iptables-save v1.8.9 (nf_tables)\n"
        whole = {"node1": head + NAT + FILTER, "node2": head + NAT + text}
        commands = {f"{node}: iptables-save": Ran(0, rules, "") for node, rules in whole.items()}
        assert result(FakeWorld(commands=commands), "invariant", name="rules-in-place") == found


def test_a_rule_that_should_not_be_there() -> None:
    world = FakeWorld(commands=saved("node2", filter=FILTER))
    assert result(world, "no_rule", node="node2", chain="FORWARD", target="DROP") == "rule"
    assert result(world, "no_rule", node="node2", chain="FORWARD", target="REJECT") == "pass"
    assert result(world, "no_rule", node="node2", chain="OUTPUT", target="DROP") == "pass"


def test_words_of_the_lesson_replace_the_checks_own() -> None:
    spec = Named("service", {"name": "web", "look": "the door", "reason": "closed", "expected": "it open"})
    outcome = check(context(FakeWorld()), spec)
    assert (outcome.look, outcome.reason, outcome.expected) == ("the door", "closed", "it open")


def test_what_goes_wrong_in_a_check_is_not_the_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Ran:
        raise ValueError("oops")

    def blocked(*_: object, **__: object) -> Ran:
        raise Blocked("no cluster", hint="start it")

    world, spec = FakeWorld(), Named("service", {"name": "web"})
    monkeypatch.setattr(FakeWorld, "kubectl", broken)
    outcome = check(context(world), spec)
    assert outcome.result is Result.ERROR and "ValueError: oops" in outcome.seen
    monkeypatch.setattr(FakeWorld, "kubectl", lambda *_, **__: Ran(1, "", "connection refused"))
    assert check(context(world), spec).result is Result.ERROR
    monkeypatch.setattr(FakeWorld, "kubectl", blocked)
    outcome = check(context(world), spec)
    assert (outcome.result, outcome.seen, outcome.look) == (Result.BLOCKED, "no cluster", "start it")


def test_names_and_parameters_are_looked_at_beforehand() -> None:
    assert problem_with(Named("service", {"name": "web", "look": "x"}), CHECKS) is None
    assert "known: bpf_map" in (problem_with(Named("servce", {}), CHECKS) or "")
    assert "name" in (problem_with(Named("service", {}), CHECKS) or "")
    assert "typ" in (problem_with(Named("service", {"name": "web", "typ": "x"}), CHECKS) or "")
