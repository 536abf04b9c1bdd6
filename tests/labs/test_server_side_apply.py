"""Who wants which field: `kubectl apply --server-side` beside kubectl's other ways to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.labs.kubectl import Kubectl, in_namespace, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {size: small}\n"
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: http-echo}]}
"""


@pytest.fixture
def kubectl(request: pytest.FixtureRequest, cluster: Lab, tmp_path: Path) -> Iterator[Kubectl]:
    program = next(iter(programs()), None)
    with in_namespace(program, cluster.kubeconfig(), request.node.name.removeprefix("test_"), tmp_path) as one:
        yield one


def managers(kubectl: Kubectl, kind: str, name: str) -> dict[tuple[str, ...], Any]:
    """The fields of each manager: by its name, operation and subresource."""
    item = json.loads(kubectl("get", kind, name, "-o", "json", "--show-managed-fields"))
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): entry["fieldsV1"]
        for entry in item["metadata"]["managedFields"]
    }


def test_an_edit_is_a_conflict(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", "-", feed=CONFIG)
    assert managers(kubectl, "cm", "c") == {("kubectl", "Apply", ""): {"f:data": {"f:size": {}}}}
    kubectl("patch", "cm", "c", "--field-manager=kubectl-edit", "-p", '{"data": {"size": "large", "color": "red"}}')
    assert managers(kubectl, "cm", "c") == {("kubectl-edit", "Update", ""): {"f:data": {"f:color": {}, "f:size": {}}}}
    words = kubectl.fails("apply", "--server-side", "-f", "-", feed=CONFIG)
    assert words.startswith('error: Apply failed with 1 conflict: conflict with "kubectl-edit" using v1: .data.size\n')
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", feed=CONFIG)
    assert managers(kubectl, "cm", "c") == {
        ("kubectl", "Apply", ""): {"f:data": {"f:size": {}}},
        ("kubectl-edit", "Update", ""): {"f:data": {"f:color": {}}},
    }
    assert json.loads(kubectl("get", "cm", "c", "-o", "json"))["data"] == {"size": "small", "color": "red"}


def test_scale_and_status_are_apart(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", "-", feed=DEPLOYMENT)
    kubectl("scale", "deploy/web", "--replicas=1")
    scaled = managers(kubectl, "deploy", "web")
    assert scaled["kubectl", "Update", "scale"] == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in scaled["kubectl", "Apply", ""]["f:spec"]
    words = kubectl.fails("apply", "--server-side", "-f", "-", feed=DEPLOYMENT)
    told = 'conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas'
    assert words.startswith(f"error: Apply failed with 1 conflict: {told}\n")
    status = '{"status": {"conditions": [{"type": "X", "status": "True"}]}}'
    kubectl("patch", "deploy", "web", "--subresource=status", "-p", status)
    entry = managers(kubectl, "deploy", "web")["kubectl-patch", "Update", "status"]
    assert set(entry["f:status"]["f:conditions"]['k:{"type":"X"}']) == {".", "f:status", "f:type"}


def test_create_has_the_defaults_and_not_what_the_server_adds(kubectl: Kubectl) -> None:
    kubectl("create", "service", "clusterip", "web", "--tcp=80:8000")
    assert managers(kubectl, "svc", "web") == {
        ("kubectl-create", "Update", ""): {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:internalTrafficPolicy": {},
                "f:ipFamilies": {},
                "f:ipFamilyPolicy": {},
                "f:ports": {
                    ".": {},
                    'k:{"port":80,"protocol":"TCP"}': {
                        ".": {},
                        "f:name": {},
                        "f:port": {},
                        "f:protocol": {},
                        "f:targetPort": {},
                    },
                },
                "f:selector": {},
                "f:sessionAffinity": {},
                "f:type": {},
            },
        }
    }
    assert "managedFields" not in kubectl("get", "svc", "web", "-o", "yaml")


def test_client_side_apply_may_become_server_side_apply(kubectl: Kubectl) -> None:
    """As the documentation has it: kubectl takes over what it applied before, and nothing of what others changed."""
    kubectl("apply", "-f", "-", feed=CONFIG)
    assert set(managers(kubectl, "cm", "c")) == {("kubectl-client-side-apply", "Update", "")}
    kubectl("apply", "--server-side", "-f", "-", feed=CONFIG.replace("small", "large"))
    assert kubectl("get", "cm", "c", "-o", "jsonpath={.data.size}") == "large"
    kubectl("label", "cm", "c", "a=b")
    kubectl("label", "cm", "c", "a-")
    assert ("kubectl-label", "Update", "") not in managers(kubectl, "cm", "c")


def test_what_nobody_is_known_to_have_made(kubectl: Kubectl) -> None:
    """The cluster's own objects: whoever applies to them for the first time is told that somebody was before."""
    applied = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-root-ca.crt}\ndata: {ca.crt: mine}\n"
    words = kubectl.fails("apply", "--server-side", "-f", "-", feed=applied)
    assert words.startswith(
        'error: Apply failed with 1 conflict: conflict with "before-first-apply" using v1: .data.ca.crt\n'
    )
