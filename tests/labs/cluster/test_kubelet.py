"""The kubelet in a running cluster: probes, init containers, environments; what they change, in kubelet's words."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.labs.kubectl import Kubectl, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

QUICK = {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab() as up:
        yield up


@pytest.fixture(scope="module")
def kubectl(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(programs()[0], cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")


def pod(name: str, image: str = "client", **container: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": image, **container}]},
    }
    return yaml.safe_dump(document)


def until(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + 15 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def status(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """The container's status."""
    document = json.loads(kubectl("get", "pod", name, "-o", "json"))
    entry: dict[str, Any] = (document["status"].get("containerStatuses") or [{"ready": False, "restartCount": 0}])[0]
    return entry


def events(kubectl: Kubectl, name: str, reason: str) -> set[str]:
    found = kubectl("get", "events", "--field-selector", f"involvedObject.name={name},reason={reason}", "-o", "json")
    return {item["message"] for item in json.loads(found)["items"]}


def test_readiness_decides_who_is_behind_a_service(cluster: Lab, kubectl: Kubectl, patience: float) -> None:
    probe = {"exec": {"command": ["test", "-e", "/run/well"]}, **QUICK}
    kubectl("apply", "-f", "-", feed=pod("fickle", "http-echo", ports=[{"containerPort": 8080}], readinessProbe=probe))
    kubectl("expose", "pod", "fickle", "--port=80", "--target-port=8080")
    path = "jsonpath={.subsets[*].addresses[*].ip}"
    address = "jsonpath={.status.podIP}"

    def endpoints() -> str:
        return kubectl("get", "endpoints", "fickle", "-o", path)

    until(lambda: bool(events(kubectl, "fickle", "Unhealthy")), patience)
    assert endpoints() == ""
    assert kubectl.rows("get", "pod", "fickle")[1][1:3] == ["0/1", "Running"]
    cluster.exec("default/fickle", "touch", "/run/well")
    kubectl("wait", "pod/fickle", "--for=condition=Ready", "--timeout=15s")
    until(lambda: endpoints() == kubectl("get", "pod", "fickle", "-o", address), patience)
    assert cluster.get("default/client", "http://fickle/")["pod"] == "fickle"
    cluster.exec("default/fickle", "rm", "/run/well")
    until(lambda: endpoints() == "", patience)
    refused = cluster.exec("default/client", "curl", "-sS", "--max-time", "5", "http://fickle/", check=False)
    assert refused.returncode == 7
    assert status(kubectl, "fickle")["restartCount"] == 0


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (
            {"httpGet": {"path": "/x?y=%20", "port": 81}},
            'Get "http://{ip}:81/x?y=%20": dial tcp {ip}:81: connect: connection refused',
        ),
        ({"tcpSocket": {"port": 82}}, "dial tcp {ip}:82: connect: connection refused"),
        ({"tcpSocket": {"port": "none"}}, "couldn't find port: none"),
        ({"exec": {"command": ["sh", "-c", "echo not today; exit 3"]}}, "not today"),
        ({"exec": {"command": ["sleep", "9"]}}, 'command timed out: "sleep 9" timed out after 1s'),
        (
            {"httpGet": {"port": 6443, "host": "172.18.0.2", "scheme": "HTTPS"}},
            "HTTP probe failed with statuscode: 401",
        ),
    ],
)
def test_what_is_wrong_is_told(kubectl: Kubectl, patience: float, action: dict[str, Any], words: str) -> None:
    name = f"sick-{secrets.token_hex(4)}"
    kubectl("apply", "-f", "-", feed=pod(name, readinessProbe={**action, **QUICK}))
    until(lambda: bool(events(kubectl, name, "Unhealthy")), patience)
    ip = kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")
    kubectl("delete", "pod", name, "--wait=false")
    assert events(kubectl, name, "Unhealthy") == {"Readiness probe failed: " + words.replace("{ip}", ip)}


def test_a_probe_that_cannot_be_made_says_nothing_of_the_container(kubectl: Kubectl, patience: float) -> None:
    probe = {"exec": {"command": ["no-such"]}, **QUICK}
    kubectl("apply", "-f", "-", feed=pod("odd", readinessProbe=probe, livenessProbe=probe))
    until(lambda: len(events(kubectl, "odd", "Unhealthy")) >= 4, patience)
    told = "".join(sorted(events(kubectl, "odd", "Unhealthy")))
    why = (
        'failed to start exec "[0-9a-f]{64}": OCI runtime exec failed: exec failed: unable to start container process: '
    )
    why += r'exec: "no-such": executable file not found in \$PATH: unknown'
    one = f"probe errored: rpc error: code = Unknown desc = failed to exec in container: {why}"
    assert re.fullmatch(f"(Liveness {one})+(Readiness {one})+", told)
    assert kubectl.rows("get", "pod", "odd")[1][1:4] == ["0/1", "Running", "0"]
    kubectl("delete", "pod", "odd", "--wait=false")


def test_a_probe_comes_from_the_node_with_the_headers_asked_for(kubectl: Kubectl, patience: float) -> None:
    """The server that it asks is the probe's judge: it answers 200 to that one request only."""
    server = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        " def do_GET(self):\n"
        "  ok = self.headers['X-Who'] == 'me' and self.headers['User-Agent'].startswith('kube-probe/1.30') "
        "and self.client_address[0] in ('10.244.0.1', '10.244.1.1') and self.path == '/healthz'\n"
        "  self.send_response(200 if ok else 500); self.end_headers()\n"
        "h.HTTPServer(('', 80), H).serve_forever()"
    )
    probe = {"httpGet": {"path": "/healthz", "port": "web", "httpHeaders": [{"name": "X-Who", "value": "me"}]}, **QUICK}
    ports = [{"name": "web", "containerPort": 80}]
    feed = pod("judge", command=["python3", "-c", server], ports=ports, readinessProbe=probe)
    kubectl("apply", "-f", "-", feed=feed)
    kubectl("wait", "pod/judge", "--for=condition=Ready", f"--timeout={int(15 * patience)}s")


def test_liveness_restarts(cluster: Lab, kubectl: Kubectl, patience: float) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/var/ill"]}, **QUICK}
    kubectl("apply", "-f", "-", feed=pod("lively", livenessProbe=probe))
    kubectl("wait", "pod/lively", "--for=condition=Ready", "--timeout=15s")
    cluster.exec("default/lively", "touch", "/var/ill")
    until(lambda: status(kubectl, "lively")["restartCount"] == 1, patience)
    assert "Container main failed liveness probe, will be restarted" in events(kubectl, "lively", "Killing")
    kubectl("wait", "pod/lively", "--for=condition=Ready", "--timeout=15s")  # a container starts with a new layer
    time.sleep(1.5)
    assert status(kubectl, "lively")["restartCount"] == 1


def test_a_startup_probe_comes_before_the_others(kubectl: Kubectl, patience: float) -> None:
    never = {"exec": {"command": ["false"]}, **QUICK, "failureThreshold": 100}
    feed = pod("slow", startupProbe=never, livenessProbe={"exec": {"command": ["false"]}, **QUICK})
    kubectl("apply", "-f", "-", feed=feed)
    until(lambda: bool(events(kubectl, "slow", "Unhealthy")), patience)
    time.sleep(2)
    assert {message.split()[0] for message in events(kubectl, "slow", "Unhealthy")} == {"Startup"}
    entry = status(kubectl, "slow")
    assert (entry["started"], entry["ready"], entry["restartCount"]) == (False, False, 0)


def test_a_container_waits_for_the_config_map_that_its_environment_refers_to(kubectl: Kubectl, patience: float) -> None:
    environment = [{"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "sizes", "key": "shoe"}}}]
    kubectl("apply", "-f", "-", feed=pod("barefoot", env=environment))
    reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}"
    until(lambda: kubectl("get", "pod", "barefoot", "-o", reason) == "CreateContainerConfigError", patience)
    assert events(kubectl, "barefoot", "Failed") == {'Error: configmap "sizes" not found'}
    kubectl("create", "configmap", "sizes", "--from-literal=shoe=43")
    kubectl("wait", "pod/barefoot", "--for=condition=Ready", f"--timeout={int(15 * patience)}s")


def initialized(name: str, *commands: str, policy: str = "Always") -> str:
    document = yaml.safe_load(pod(name))
    document["spec"]["restartPolicy"] = policy
    document["spec"]["initContainers"] = [
        {"name": f"init{number}", "image": "client", "command": ["sh", "-c", command]}
        for number, command in enumerate(commands)
    ]
    return yaml.safe_dump(document)


def test_init_containers_run_to_their_end_one_after_the_other(kubectl: Kubectl, patience: float) -> None:
    """The first waits for a Service's name, as many do in practice."""
    wait = "until getent hosts late.default.svc.cluster.local; do sleep 0.2; done"
    kubectl("apply", "-f", "-", feed=initialized("patient", wait, "echo second; sleep 1"))
    until(lambda: kubectl.rows("get", "pod", "patient")[1][1:3] == ["0/1", "Init:0/2"], patience)
    assert "PodInitializing" in kubectl("describe", "pod", "patient")
    assert "is waiting to start: PodInitializing" in kubectl.fails("logs", "patient", "-c", "main")
    kubectl("create", "service", "clusterip", "late", "--tcp=80")
    until(lambda: kubectl.rows("get", "pod", "patient")[1][2] == "Init:1/2", patience)
    kubectl("wait", "pod/patient", "--for=condition=Ready", f"--timeout={int(15 * patience)}s")
    assert kubectl("logs", "patient", "-c", "init1") == "second\n"
    states = json.loads(kubectl("get", "pod", "patient", "-o", "json"))["status"]["initContainerStatuses"]
    assert [(state["ready"], state["state"]["terminated"]["reason"]) for state in states] == [(True, "Completed")] * 2


def test_an_init_container_that_fails_is_tried_again_or_fails_its_pod(kubectl: Kubectl, patience: float) -> None:
    kubectl("apply", "-f", "-", feed=initialized("failing", "exit 3", policy="Never"))
    kubectl("apply", "-f", "-", feed=initialized("crashing", "exit 3"))
    until(lambda: kubectl.rows("get", "pod", "failing")[1][1:3] == ["0/1", "Init:Error"], patience)
    assert kubectl("get", "pod", "failing", "-o", "jsonpath={.status.phase}") == "Failed"
    until(lambda: kubectl.rows("get", "pod", "crashing")[1][2] == "Init:CrashLoopBackOff", patience)
    assert kubectl("get", "pod", "crashing", "-o", "jsonpath={.status.phase}") == "Pending"


def test_a_command_that_listens_on_no_port_runs_all_the_same(kubectl: Kubectl, patience: float) -> None:
    """And is probed: what a port is declared for is not the kubelet's business."""
    kubectl("apply", "-f", "-", feed=pod("deaf", command=["sleep", "3600"], ports=[{"containerPort": 80}]))
    kubectl("wait", "pod/deaf", "--for=condition=Ready", f"--timeout={int(9 * patience)}s")
    assert kubectl.rows("get", "pod", "deaf")[1][1:3] == ["1/1", "Running"]
