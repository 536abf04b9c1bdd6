"""What runs on kind in place of the miniature cluster's own images: manifests rewritten, and the script for pods."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.cluster import manifests
from labs.cluster.images import IMAGES
from labs.engine.kind import images

SCRIPT = Path(images.__file__).with_name("echo.py")
WORKLOAD = Path(manifests.__file__).with_name("workload.yaml").read_text()


def rewritten(container: dict[str, Any], kind: str = "Pod") -> dict[str, Any]:
    """A container, as it is in a manifest of one pod, or of one Deployment, after rewriting."""
    spec: dict[str, Any] = {"containers": [container]}
    pod = {"kind": kind, "spec": {"template": {"spec": spec}} if kind != "Pod" else spec}
    found = yaml.safe_load(images.translate(yaml.safe_dump(pod)))["spec"]
    (one,) = (found["template"]["spec"] if kind != "Pod" else found)["containers"]
    return dict(one)


def test_every_image_of_the_workload_is_known() -> None:
    names = {"client", "http-echo", "tcp-echo", "udp-echo"}
    assert set(images.table()) == names
    assert names <= IMAGES.keys()


def test_the_workload() -> None:
    before, after = list(yaml.safe_load_all(WORKLOAD)), list(yaml.safe_load_all(images.translate(WORKLOAD)))
    assert [(one["kind"], one["metadata"]) for one in before] == [(one["kind"], one["metadata"]) for one in after]
    assert before[1] == after[1]  # the Service, ClusterIP and all
    (server,), (client,) = after[2]["spec"]["template"]["spec"]["containers"], after[3]["spec"]["containers"]
    assert server["image"] == client["image"] == "nicolaka/netshoot:v0.13"
    assert server["command"] == ["python3", "-c", SCRIPT.read_text(), "http", "8000"]
    assert server["ports"] == [{"name": "http", "containerPort": 8000}]
    assert server["startupProbe"]["exec"] == {"command": ["test", "-e", "/tmp/serving"]}
    assert "readinessProbe" not in server, "packets of probes would be among those that lessons capture"
    assert client["command"][0] == "sh"


def test_other_images_stay() -> None:
    container = {"name": "web", "image": "nginx", "args": ["-v"]}
    assert rewritten(container, "Deployment") == container


def test_a_command_of_the_manifest_stays() -> None:
    found = rewritten({"name": "a", "image": "client", "command": ["sleep", "9"]})
    assert found == {"name": "a", "image": "nicolaka/netshoot:v0.13", "command": ["sleep", "9"]}


def test_ports_and_probes() -> None:
    ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 81}]
    probe = {"httpGet": {"path": "/", "port": 80}}
    found = rewritten({"name": "a", "image": "http-echo", "ports": ports, "readinessProbe": probe}, "DaemonSet")
    assert (found["command"][3:], found["readinessProbe"]) == (["http", "80", "81"], probe)
    found = rewritten({"name": "a", "image": "udp-echo", "ports": ports})
    assert (found["command"][3:], "startupProbe" in found) == (["udp", "53"], True)
    found = rewritten({"name": "a", "image": "tcp-echo", "args": ["--port", "9000"]})
    assert (found["command"][3:], "args" in found) == (["tcp", "9000"], False)
    assert rewritten({"name": "a", "image": "tcp-echo"})["command"][3:] == ["tcp", "7"]


def test_who_the_pod_is() -> None:
    env = rewritten({"name": "a", "image": "http-echo", "env": [{"name": "A", "value": "b"}]})["env"]
    assert [(one["name"], one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")) for one in env] == [
        ("A", None),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("NODE_NAME", "spec.nodeName"),
        ("SERVING", None),
    ]


@contextmanager
def served(kind: str) -> Iterator[int]:
    """The script, as a pod runs it, on a port of this machine."""
    sort = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, sort) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    env = {**os.environ, "POD_NAME": "web-1", "POD_NAMESPACE": "shop", "NODE_NAME": "worker"}
    command = [sys.executable, "-I", "-c", SCRIPT.read_text(), kind, str(port)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"{kind}-echo: listening on port {port}\n"
        yield port
        started = time.monotonic()
        server.terminate()
        assert server.wait(timeout=5) == 0
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_http(host: str, patience: float) -> None:
    with served("http") as port:
        for path, data in (("/a?b=c", None), ("/", b"some data")):
            with urllib.request.urlopen(f"http://{host}:{port}{path}", data, timeout=5 * patience) as answer:
                assert (answer.status, answer.headers.get_content_type()) == (200, "application/json")
                text = answer.read().decode()
            found = json.loads(text)
            assert found["client"].pop("port") > 0
            client = {"ip": host.strip("[]")}
            wanted = {"pod": "web-1", "namespace": "shop", "node": "worker", "client": client, "path": path}
            assert found == wanted
            assert list(found) == list(wanted)
            assert text.endswith("}\n")


def test_tcp(patience: float) -> None:
    with served("tcp") as port, socket.create_connection(("127.0.0.1", port), timeout=5 * patience) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(100), b"")) == b"web-1\nhello"


def test_it_tells_when_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """By the file that the startup probe asks for."""
    serving = tmp_path / "serving"
    monkeypatch.setenv("SERVING", str(serving))
    deadline = time.monotonic() + 5 * patience
    with served("tcp"):
        while not serving.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert serving.exists()


def test_udp(patience: float) -> None:
    with served("udp") as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5 * patience)
        client.sendto(b"hello", ("127.0.0.1", port))
        assert client.recv(100) == b"web-1 hello"
