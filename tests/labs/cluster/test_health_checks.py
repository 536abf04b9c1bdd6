"""What a load balancer outside of the cluster asks nodes: is kube-proxy well, and are there pods of this Service?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.labs.lab import Lab

pytestmark = pytest.mark.root

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: local, namespace: fastapi}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: lets-ship-it}
  ports: [{name: http, port: 80, targetPort: 8000}, {name: again, port: 81, targetPort: 8000}]
"""
BODY = """{
\t"service": {
\t\t"namespace": "fastapi",
\t\t"name": "local"
\t},
\t"localEndpoints": %d,
\t"serviceProxyHealthy": true
}"""


@pytest.fixture(scope="module", params=["iptables", "ebpf"])
def balanced(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A dual-stack cluster with a Service that has health checks, which are the same in all modes of kube-proxy."""
    with Lab(("--ip-family", "dual", "--proxy", request.param)) as cluster:
        cluster.exec("node1", "kubectl", "apply", "-f", "-", feed=SERVICE)
        yield cluster


def kubectl(cluster: Lab, *arguments: str) -> str:
    return cluster.exec("node1", "kubectl", "-n", "fastapi", *arguments).stdout


def ask(cluster: Lab, host: str, port: int, path: str = "/", *options: str) -> tuple[int, dict[str, str], str]:
    """The status, the headers in lower case and the body that the host outside gets from a node."""
    command = ("curl", "-gsSi", "--max-time", "5", *options, f"http://{host}:{port}{path}")
    head, _, body = cluster.exec("client-host", *command).stdout.replace("\r\n", "\n").partition("\n\n")
    first, *lines = head.splitlines()
    return int(first.split()[1]), {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines}, body


def wait(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + 5 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def health_port(cluster: Lab) -> int:
    return int(kubectl(cluster, "get", "service", "local", "-o", "jsonpath={.spec.healthCheckNodePort}"))


def pods_on(cluster: Lab, node: str) -> int:
    return sum(pod["node"] == node for pod in cluster.pods("fastapi"))


def test_each_node_tells_how_many_pods_it_has(balanced: Lab, patience: float) -> None:
    port = health_port(balanced)
    assert f"healthCheckNodePort: {port}" in kubectl(balanced, "get", "service", "local", "-o", "yaml")
    for node in balanced.status()["nodes"]:
        expected = BODY % pods_on(balanced, node["name"])
        for address in node["addresses"]:
            host = f"[{address}]" if ":" in address else address
            wait(lambda: ask(balanced, host, port)[2] == expected, patience)  # noqa: B023
            code, headers, _ = ask(balanced, host, port, "/any/path?at=all")
            assert code == 200
            assert headers["content-type"] == "application/json"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-load-balancing-endpoint-weight"] == str(pods_on(balanced, node["name"]))


def test_a_node_without_ready_pods_turns_load_balancers_away_and_comes_back(balanced: Lab, patience: float) -> None:
    port = health_port(balanced)
    hosts = {node["name"]: node["addresses"][0] for node in balanced.status()["nodes"]}
    kubectl(balanced, "scale", "deployment/lets-ship-it", "--replicas=1")
    wait(lambda: len(balanced.pods("fastapi")) == 1, patience)
    empty = next(node for node in hosts if not pods_on(balanced, node))
    having = next(node for node in hosts if pods_on(balanced, node))
    wait(lambda: ask(balanced, hosts[empty], port)[::2] == (503, BODY % 0), patience)
    assert ask(balanced, hosts[having], port)[::2] == (200, BODY % 1)
    kubectl(balanced, "scale", "deployment/lets-ship-it", "--replicas=3")
    kubectl(balanced, "rollout", "status", "deployment/lets-ship-it", "--timeout=20s")
    wait(lambda: ask(balanced, hosts[empty], port)[::2] == (200, BODY % pods_on(balanced, empty)), patience)


def test_the_port_goes_with_the_policy(balanced: Lab, patience: float) -> None:
    port = health_port(balanced)
    host = balanced.status()["nodes"][0]["addresses"][0]

    def is_open() -> bool:
        return balanced.exec("client-host", "curl", "-sS", f"http://{host}:{port}", check=False).returncode == 0

    kubectl(balanced, "patch", "service", "local", "-p", '{"spec": {"externalTrafficPolicy": "Cluster"}}')
    wait(lambda: not is_open(), patience)
    patch = {"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": port}}
    kubectl(balanced, "patch", "service", "local", "-p", json.dumps(patch))
    wait(is_open, patience)


def test_kube_proxy_tells_of_itself_on_every_node(balanced: Lab, patience: float) -> None:
    for node in balanced.status()["nodes"]:
        code, headers, body = ask(balanced, node["addresses"][0], 10256, "/healthz")
        document = json.loads(body)
        assert (code, headers["content-type"], headers["x-content-type-options"]) == (
            200,
            "application/json",
            "nosniff",
        )
        assert list(document) == ["lastUpdated", "currentTime", "nodeEligible"]
        assert (document["lastUpdated"], document["nodeEligible"]) == (document["currentTime"], True)
        code, _, body = ask(balanced, node["addresses"][0], 10256, "/livez")
        assert (code, list(json.loads(body))) == (200, ["lastUpdated", "currentTime"])
        assert ask(balanced, node["addresses"][0], 10256)[::2] == (404, "404 page not found\n")


def test_a_node_that_is_to_go_fails_healthz_and_not_livez(balanced: Lab, patience: float) -> None:
    host = balanced.status()["nodes"][1]["addresses"][0]
    taint = "ToBeDeletedByClusterAutoscaler"
    kubectl(balanced, "taint", "node", "node2", f"{taint}=1:PreferNoSchedule")
    wait(lambda: ask(balanced, host, 10256, "/healthz")[0] == 503, patience)
    assert json.loads(ask(balanced, host, 10256, "/healthz")[2])["nodeEligible"] is False
    assert ask(balanced, host, 10256, "/livez")[0] == 200
    kubectl(balanced, "taint", "node", "node2", f"{taint}-")
    wait(lambda: ask(balanced, host, 10256, "/healthz")[0] == 200, patience)
