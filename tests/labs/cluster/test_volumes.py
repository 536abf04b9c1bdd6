"""Volumes in a running cluster, through kubectl: what containers see, share, may write, and what is told of trouble."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.labs.kubectl import Kubectl, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab() as up:
        yield up


@pytest.fixture(scope="module")
def kubectl(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    found = Kubectl(programs()[0], cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")
    found("create", "configmap", "cfg", "--from-literal=colour=blue", "--from-literal=size=7")
    found("create", "secret", "generic", "sec", "--from-literal=word=sesame")
    return found


def pod(name: str, volumes: list[dict[str, Any]], *containers: dict[str, Any], **spec: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": f"c{number}", "image": "client", **one} for number, one in enumerate(containers)],
            "volumes": volumes,
            **spec,
        },
    }
    return yaml.safe_dump(document)


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run(kubectl: Kubectl, feed: str, name: str, patience: float) -> None:
    kubectl("apply", "-f", "-", feed=feed)
    kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")


def test_containers_share_an_empty_directory_and_nothing_else(cluster: Lab, kubectl: Kubectl, patience: float) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    first = {"name": "first", "image": "client", "command": ["sh", "-c", "echo init >/shared/a; touch /var/own"]}
    feed = pod(
        "sharing",
        [{"name": "shared", "emptyDir": {}}],
        {"volumeMounts": mounts},
        {"volumeMounts": [{"name": "shared", "mountPath": "/in/here", "readOnly": True}]},
        initContainers=[{**first, "volumeMounts": mounts}],
    )
    run(kubectl, feed, "sharing", patience)
    assert (
        kubectl("exec", "sharing", "-c", "c0", "--", "sh", "-c", "cat /shared/a; stat -c %a /shared") == "init\n777\n"
    )
    kubectl("exec", "sharing", "-c", "c0", "--", "sh", "-c", "echo c0 >/shared/b; touch /var/own")
    assert kubectl("exec", "sharing", "-c", "c1", "--", "cat", "/in/here/b") == "c0\n"
    assert kubectl("exec", "sharing", "-c", "c1", "--", "sh", "-c", "ls /var/own 2>/dev/null; true") == ""
    assert "Read-only file system" in kubectl.fails("exec", "sharing", "-c", "c1", "--", "touch", "/in/here/c")
    # It outlives a container, whose own files go.
    cluster.exec("default/sharing", "sh", "-c", "kill 1", check=False)
    restarts = "jsonpath={.status.containerStatuses[0].restartCount}"
    until(lambda: kubectl("get", "pod", "sharing", "-o", restarts) == "1", 15 * patience)
    kubectl("wait", "pod/sharing", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")
    assert kubectl("exec", "sharing", "-c", "c0", "--", "sh", "-c", "cat /shared/b; ls /var/own || true") == "c0\n"
    uid = kubectl("get", "pod", "sharing", "-o", "jsonpath={.metadata.uid}")
    assert not Path("/run/pods", uid).exists()


def test_an_empty_directory_in_memory_has_its_limit(kubectl: Kubectl, patience: float) -> None:
    volume = {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    run(kubectl, pod("memory", [volume], {"volumeMounts": [{"name": "mem", "mountPath": "/mem"}]}), "memory", patience)
    fill = "dd if=/dev/zero of=/mem/big bs=64k count=17 2>&1 | head -n 1; stat -c %s /mem/big"
    assert kubectl("exec", "memory", "--", "sh", "-c", fill).splitlines() == [
        "dd: error writing '/mem/big': No space left on device",
        "1048576",
    ]


def test_objects_become_files_and_follow_them(kubectl: Kubectl, patience: float) -> None:
    volumes = [
        {"name": "cfg", "configMap": {"name": "cfg"}},
        {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}},
        {"name": "own", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("cfg", "sec", "own")]
    mounts.append({"name": "cfg", "mountPath": "/etc/app/size", "subPath": "size"})
    run(kubectl, pod("reader", volumes, {"volumeMounts": mounts}), "reader", patience)
    show = "cat /cfg/colour; echo; cat /etc/app/size; echo; cat /own/labels; echo; stat -Lc '%a %s' /sec/word"
    assert kubectl("exec", "reader", "--", "sh", "-c", show) == 'blue\n7\napp="reader"\n400 6\n'
    assert "Read-only file system" in kubectl.fails("exec", "reader", "--", "touch", "/cfg/x")
    kubectl("patch", "configmap", "cfg", "-p", '{"data": {"colour": "red", "size": "8", "new": "1"}}')
    kubectl("label", "pod", "reader", "tier=front")
    changed = 'red\n7\napp="reader"\ntier="front"\n400 6\n'  # a subPath stays what it was
    until(lambda: kubectl("exec", "reader", "--", "sh", "-c", show) == changed, 25 * patience)
    assert kubectl("exec", "reader", "--", "ls", "/cfg") == "colour\nnew\nsize\n"


def test_a_pod_waits_for_the_objects_of_its_volumes(kubectl: Kubectl, patience: float) -> None:
    name = f"late-{secrets.token_hex(4)}"
    volume = {"name": "late", "configMap": {"name": name}}
    kubectl("apply", "-f", "-", feed=pod(name, [volume], {"volumeMounts": [{"name": "late", "mountPath": "/late"}]}))
    selector = ("--field-selector", f"involvedObject.name={name},reason=FailedMount", "-o", "json")

    def told() -> set[str]:
        return {item["message"] for item in json.loads(kubectl("get", "events", *selector))["items"]}

    until(lambda: bool(told()), 15 * patience)
    assert told() == {f'MountVolume.SetUp failed for volume "late" : configmap "{name}" not found'}
    assert kubectl.rows("get", "pod", name)[1][1:3] == ["0/1", "ContainerCreating"]
    kubectl("create", "configmap", name, "--from-literal=a=1")
    kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")
    assert kubectl("exec", name, "--", "cat", "/late/a") == "1"


def test_a_host_path_is_the_nodes(cluster: Lab, kubectl: Kubectl, patience: float) -> None:
    path = f"/srv/{secrets.token_hex(4)}"
    volume = {"name": "host", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    mounts = [{"name": "host", "mountPath": "/host"}, {"name": "host", "mountPath": "/part", "subPathExpr": "d-$(ME)"}]
    env = [{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    feed = pod("hostly", [volume], {"volumeMounts": mounts, "env": env}, nodeName="node2")
    run(kubectl, feed, "hostly", patience)
    kubectl("exec", "hostly", "--", "sh", "-c", "echo out >/host/f; touch /part/g")
    assert cluster.exec("node2", "sh", "-c", f"cat {path}/f; ls {path}/d-hostly").stdout == "out\ng\n"
    assert cluster.exec("node1", "ls", path, check=False).returncode == 2
    assert not Path(path).exists()
    wrong = {"name": "host", "hostPath": {"path": "/etc/hostname", "type": "Directory"}}
    kubectl("apply", "-f", "-", feed=pod("wrongly", [wrong], {}))
    selector = (
        "--field-selector",
        "involvedObject.name=wrongly,reason=FailedMount",
        "-o",
        "jsonpath={.items[*].message}",
    )
    until(lambda: bool(kubectl("get", "events", *selector)), 15 * patience)
    words = 'MountVolume.SetUp failed for volume "host" : hostPath type check failed: /etc/hostname is not a directory'
    assert kubectl("get", "events", *selector) == words


def test_the_service_accounts_volume_is_added_unless_unwanted(kubectl: Kubectl, patience: float) -> None:
    run(kubectl, pod("speaker", [], {}), "speaker", patience)
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    ask = (
        f'curl -sS --max-time 5 --cacert {place}/ca.crt -H "Authorization: Bearer $(cat {place}/token)" '
        f"https://kubernetes.default.svc.cluster.local/api/v1/namespaces/$(cat {place}/namespace)/pods/speaker"
    )
    answer = json.loads(kubectl("exec", "speaker", "--", "sh", "-c", ask))
    assert answer["message"].startswith('pods "speaker" is forbidden: User "system:serviceaccount:default:default"')
    described = kubectl("describe", "pod", "speaker")
    assert f"{place} from kube-api-access-" in described
    assert "TokenExpirationSeconds:  3607" in described
    run(kubectl, pod("mute", [], {}, automountServiceAccountToken=False), "mute", patience)
    assert kubectl("get", "pod", "mute", "-o", "jsonpath={.spec.volumes}") == ""
    assert kubectl("exec", "mute", "--", "sh", "-c", f"ls {place} 2>/dev/null; true") == ""


def test_a_token_for_somebody_else_is_not_one_for_the_api(kubectl: Kubectl, patience: float) -> None:
    """An ordinary account is known, and may nothing; that token says nothing to the API."""
    sources = [{"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}}]
    volume = {"name": "t", "projected": {"sources": sources}}
    run(kubectl, pod("holder", [volume], {"volumeMounts": [{"name": "t", "mountPath": "/t"}]}), "holder", patience)
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    ask = "curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 5 --cacert " + f"{place}/ca.crt"
    url = "https://kubernetes.default.svc.cluster.local/api/v1/nodes"
    both = "; ".join(
        f'{ask} -H "Authorization: Bearer $(cat {token})" {url}' for token in (f"{place}/token", "/t/vault")
    )
    assert kubectl("exec", "holder", "--", "sh", "-c", both) == "403\n401\n"
