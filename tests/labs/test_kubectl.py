"""What a learner types: plain kubectl commands and what they print.

Each test has a namespace of its own in one cluster. The kubectl on PATH does all of it, others on this machine the
tour; the versions differ in a word here and there, so what is compared is what all of them say.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.labs.kubectl import Kubectl, in_namespace, name_of, programs, wait_until
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: http-echo
          ports: [{name: http, containerPort: 8000}]
          env: [{name: GREETING, value: hello}]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"""


@pytest.fixture(scope="module")
def lab_for_kubectl() -> Iterator[Lab]:
    with Lab(("--nodes", "2")) as running:
        yield running


@pytest.fixture
def kubectl(request: pytest.FixtureRequest, lab_for_kubectl: Lab, tmp_path: Path) -> Iterator[Kubectl]:
    """The kubectl on PATH."""
    program = next(iter(programs()), None)
    with in_namespace(program, lab_for_kubectl.kubeconfig(), request.node.name.removeprefix("test_"), tmp_path) as one:
        yield one


@pytest.fixture(params=programs() or [None], ids=lambda program: name_of(program) if program else "none")
def any_kubectl(request: pytest.FixtureRequest, lab_for_kubectl: Lab, tmp_path: Path) -> Iterator[Kubectl]:
    """Each kubectl of this machine."""
    name = name_of(request.param) if request.param else ""
    with in_namespace(request.param, lab_for_kubectl.kubeconfig(), f"tour-{name}", tmp_path) as one:
        yield one


def apply(kubectl: Kubectl, *texts: str) -> list[str]:
    return kubectl("apply", "-f", "-", feed="---".join(texts)).splitlines()


def test_a_tour_with_every_kubectl(any_kubectl: Kubectl) -> None:
    kubectl = any_kubectl
    assert kubectl("create", "deployment", "web", "--image=http-echo", "--port=8000") == "deployment.apps/web created\n"
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    assert kubectl("expose", "deployment", "web", "--port=80", "--target-port=8000") == "service/web exposed\n"
    assert [row[1] for row in kubectl.rows("get", "pods")] == ["READY", "1/1"]
    assert kubectl("logs", "deploy/web") == "http-echo: listening on port 8000\n"
    assert kubectl("scale", "deploy/web", "--replicas=2") == "deployment.apps/web scaled\n"
    assert kubectl("set", "image", "deploy/web", "*=http-echo:v2") == "deployment.apps/web image updated\n"
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    assert kubectl("rollout", "undo", "deploy/web") == "deployment.apps/web rolled back\n"
    manifest = SERVICE.replace("name: web}", "name: other}", 1)
    for word in ("created", "unchanged"):
        assert kubectl("apply", "-f", "-", feed=manifest) == f"service/other {word}\n"
    assert kubectl("apply", "--server-side", "-f", "-", feed=manifest) == "service/other serverside-applied\n"
    assert kubectl("patch", "svc", "other", "-p", '{"metadata":{"labels":{"a":"b"}}}') == "service/other patched\n"
    assert kubectl("create", "configmap", "c", "--from-literal=a=b") == "configmap/c created\n"
    assert kubectl("create", "secret", "generic", "s", "--from-literal=a=b") == "secret/s created\n"
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
    assert kubectl("run", "probe", "--image=client") == "pod/probe created\n"
    assert kubectl("wait", "--for=condition=Ready", "pod/probe", "--timeout=30s") == "pod/probe condition met\n"
    assert "Started" in kubectl("describe", "pod", "probe")
    assert kubectl("exec", "probe", "--", "hostname") == "probe\n"
    assert re.search(r"containerPort\s+<integer>", kubectl("explain", "pod.spec.containers.ports"))
    words = kubectl.fails("apply", "-f", "-", feed=DEPLOYMENT.replace("replicas: 2", "replicaz: 2"))
    assert 'unknown field "spec.replicaz"' in words or 'unknown field "replicaz" in io.k8s' in words
    assert kubectl("delete", "pod", "probe", "--timeout=30s").startswith('pod "probe" deleted')
    assert kubectl("delete", "deploy,svc", "--all", "--timeout=30s").count(" deleted") == 3


def test_apply_changes_what_differs_and_nothing_else(kubectl: Kubectl) -> None:
    assert apply(kubectl, DEPLOYMENT, SERVICE) == ["deployment.apps/web created", "service/web created"]
    assert apply(kubectl, DEPLOYMENT, SERVICE) == ["deployment.apps/web unchanged", "service/web unchanged"]
    changed = SERVICE.replace("port: 80", "port: 81")
    assert apply(kubectl, DEPLOYMENT, changed) == ["deployment.apps/web unchanged", "service/web configured"]
    service = json.loads(kubectl("get", "svc", "web", "-o", "json"))
    assert service["spec"]["ports"] == [{"name": "http", "port": 81, "protocol": "TCP", "targetPort": "http"}]
    # What is taken out of the manifest goes from the object, and what others wrote stays.
    kubectl("annotate", "deploy", "web", "note=mine")
    assert apply(kubectl, DEPLOYMENT.replace("          env: [{name: GREETING, value: hello}]\n", "")) == [
        "deployment.apps/web configured"
    ]
    deployment = json.loads(kubectl("get", "deploy", "web", "-o", "json"))
    assert "env" not in deployment["spec"]["template"]["spec"]["containers"][0]
    assert deployment["metadata"]["annotations"]["note"] == "mine"


def test_server_side_apply_is_idempotent_and_takes_away_what_is_not_wanted(kubectl: Kubectl) -> None:
    def server_side(text: str, *options: str) -> str:
        return kubectl("apply", "--server-side", *options, "-f", "-", feed=text)

    def found() -> dict[str, Any]:
        item: dict[str, Any] = json.loads(kubectl("get", "deploy", "web", "-o", "json"))
        return item

    assert server_side(DEPLOYMENT) == "deployment.apps/web serverside-applied\n"
    version = found()["metadata"]["generation"]
    assert server_side(DEPLOYMENT) == "deployment.apps/web serverside-applied\n"
    assert found()["metadata"]["generation"] == version
    server_side(DEPLOYMENT.replace("          env: [{name: GREETING, value: hello}]\n", ""))
    assert "env" not in found()["spec"]["template"]["spec"]["containers"][0]
    other = DEPLOYMENT.replace("replicas: 2", "replicas: 3")
    words = kubectl.fails("apply", "--server-side", "--field-manager", "other", "-f", "-", feed=other)
    assert 'Apply failed with 1 conflict: conflict with "kubectl": .spec.replicas' in words
    server_side(other, "--field-manager", "other", "--force-conflicts")
    assert found()["spec"]["replicas"] == 3


def test_create_expose_scale_and_the_tables(kubectl: Kubectl) -> None:
    assert (
        kubectl("create", "deployment", "web", "--image=http-echo", "--replicas=2") == "deployment.apps/web created\n"
    )
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    assert kubectl("expose", "deployment", "web", "--port=80", "--target-port=8000") == "service/web exposed\n"
    assert kubectl("scale", "deploy/web", "--replicas=3") == "deployment.apps/web scaled\n"
    assert "condition met" in kubectl("wait", "--for=condition=Available", "deploy/web", "--timeout=30s")
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    head, row = kubectl.rows("get", "deploy", "-o", "wide")
    assert head == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert [*row[:4], *row[5:]] == ["web", "3/3", "3", "3", "http-echo", "http-echo", "app=web"]
    head, *rows = kubectl.rows("get", "pods", "-o", "wide")
    assert head[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert {tuple(row[1:4]) for row in rows} == {("1/1", "Running", "0")}
    assert len(rows) == 3
    addresses = sorted(row[5] for row in rows)
    assert sorted(kubectl("get", "ep", "web", "-o", "jsonpath={.subsets[*].addresses[*].ip}").split()) == addresses
    head, row = kubectl.rows("get", "deploy", "web", "--subresource=scale")
    assert (head, row[:3]) == (["NAME", "DESIRED", "AVAILABLE", "AGE"], ["web", "3", "3"])
    head, row = kubectl.rows("get", "rs")
    assert [*head, *row[1:4]] == ["NAME", "DESIRED", "CURRENT", "READY", "AGE", "3", "3", "3"]
    assert kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[0].targetPort}") == "8000"
    assert kubectl("delete", "deploy", "web", "--timeout=30s").startswith('deployment.apps "web" deleted')
    assert wait_until(lambda: kubectl("get", "pods,rs", "-o", "name") == "")


def test_a_rollout_that_does_not_get_on_ends_with_its_error(kubectl: Kubectl) -> None:
    apply(kubectl, DEPLOYMENT.replace("replicas: 2", "replicas: 2\n  progressDeadlineSeconds: 2"))
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    kubectl("set", "image", "deploy/web", "web=bogus:1")
    words = kubectl.fails("rollout", "status", "deploy/web", "--timeout=30s")
    assert words == 'error: deployment "web" exceeded its progress deadline\n'
    assert "ProgressDeadlineExceeded" in kubectl("describe", "deploy", "web")
    assert kubectl("rollout", "undo", "deploy/web") == "deployment.apps/web rolled back\n"
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/web", "--timeout=30s")


def test_daemonsets_have_a_history(kubectl: Kubectl) -> None:
    daemonset = DEPLOYMENT.replace("kind: Deployment", "kind: DaemonSet").replace("  replicas: 2\n", "")
    assert apply(kubectl, daemonset) == ["daemonset.apps/web created"]
    done = 'daemon set "web" successfully rolled out\n'
    assert kubectl("rollout", "status", "ds/web", "--timeout=30s").endswith(done)
    assert kubectl.rows("get", "ds", "web")[1][:7] == ["web", "2", "2", "2", "2", "2", "<none>"]
    assert kubectl("set", "image", "ds/web", "web=http-echo:v2") == "daemonset.apps/web image updated\n"
    kubectl("annotate", "ds/web", "kubernetes.io/change-cause=two")
    assert kubectl("rollout", "status", "ds/web", "--timeout=30s").endswith(done)
    history = [line.split() for line in kubectl("rollout", "history", "ds/web").splitlines() if line]
    assert [row[0] for row in history] == ["daemonset.apps/web", "REVISION", "1", "2"]
    assert "Image:\thttp-echo:v2" in kubectl("rollout", "history", "ds/web", "--revision=2")
    assert kubectl("rollout", "undo", "ds/web", "--to-revision=1") == "daemonset.apps/web rolled back\n"
    assert kubectl("rollout", "status", "ds/web", "--timeout=30s").endswith(done)
    images = "jsonpath={.items[*].spec.containers[0].image}"
    assert kubectl("get", "pods", "-l", "app=web", "-o", images) == "http-echo http-echo"
    assert "skipped rollback" in kubectl("rollout", "undo", "ds/web", "--to-revision=3")
    head, *rows = kubectl.rows("get", "controllerrevisions", "--sort-by=.revision")
    assert head == ["NAME", "CONTROLLER", "REVISION", "AGE"]
    assert [row[1:3] for row in rows] == [["daemonset.apps/web", "2"], ["daemonset.apps/web", "3"]]
    kubectl("delete", "ds", "web", "--timeout=30s")
    assert wait_until(lambda: kubectl("get", "controllerrevisions", "-o", "name") == "")


def test_who_may_do_what(any_kubectl: Kubectl) -> None:
    kubectl = any_kubectl
    assert kubectl("auth", "can-i", "create", "pods") == "yes\n"
    assert kubectl("auth", "can-i", "get", "/healthz", "--as=somebody") == "yes\n"
    assert kubectl.run("auth", "can-i", "create", "pods", "--as=somebody").stdout == "no\n"
    listed = [re.split(r" {2,}", line.strip()) for line in kubectl("auth", "can-i", "--list").splitlines()]
    assert listed[:3] == [
        ["Resources", "Non-Resource URLs", "Resource Names", "Verbs"],
        ["*.*", "[]", "[]", "[*]"],
        ["[*]", "[]", "[*]"],
    ]
    if (done := kubectl.run("auth", "whoami")).returncode == 0:  # those before 1.28 have it not, or ask for betas
        _, user, groups = done.stdout.splitlines()
        assert user.split() == ["Username", "kubernetes-admin"]
        assert groups.split(maxsplit=1)[1] == "[system:authenticated system:masters]"
    else:
        assert "unknown command" in done.stderr or "selfsubjectreviews API is not enabled" in done.stderr
    words = kubectl.fails("get", "pods", "--as=somebody")
    assert (
        f'pods is forbidden: User "somebody" cannot list resource "pods" in API group "" in the namespace '
        f'"{kubectl.namespace}"' in words
    )


def test_a_token_for_a_service_account(kubectl: Kubectl) -> None:
    kubectl("create", "serviceaccount", "robot")
    token = kubectl("create", "token", "robot").strip()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["sub"] == f"system:serviceaccount:{kubectl.namespace}:robot"
    assert (claims["exp"] - claims["iat"], "pod" in claims["kubernetes.io"]) == (3600, False)
    words = kubectl.fails("create", "token", "robot", "--duration=1m")
    assert "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes" in words
    assert 'serviceaccounts "nobody" not found' in kubectl.fails("create", "token", "nobody")
    config = json.loads(kubectl("config", "view", "--raw", "-o", "json"))
    server, authority = (config["clusters"][0]["cluster"][key] for key in ("server", "certificate-authority-data"))
    context = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
    for given, code in ((token, 200), (kubectl("create", "token", "robot", "--audience=else").strip(), 401)):
        request = urllib.request.Request(f"{server}/version", headers={"Authorization": f"Bearer {given}"})
        try:
            with urllib.request.urlopen(request, context=context) as response:
                assert response.status == code
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == code


def test_a_node_is_debugged_in_a_pod(any_kubectl: Kubectl) -> None:
    told = any_kubectl("debug", "node/node1", "--image=client", "--", "true")
    name = re.search(r"Creating debugging pod (node-debugger-node1-\w+) with container debugger", told)
    assert name is not None
    volumes = "jsonpath={.spec.volumes[?(@.hostPath)].hostPath.path} {.spec.hostNetwork}"
    assert any_kubectl("get", "pod", name[1], "-o", volumes) == "/ true"


def test_patches_of_every_type(kubectl: Kubectl) -> None:
    apply(kubectl, DEPLOYMENT)
    container = '{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"B","value":"2"}]}]}}}}'
    assert kubectl("patch", "deploy", "web", "-p", container) == "deployment.apps/web patched\n"
    names = "jsonpath={.spec.template.spec.containers[0].env[*].name}"
    assert kubectl("get", "deploy", "web", "-o", names).split() == ["B", "GREETING"]
    gone = '{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"$patch":"delete","name":"B"}]}]}}}}'
    kubectl("patch", "deploy", "web", "-p", gone)
    assert kubectl("get", "deploy", "web", "-o", names) == "GREETING"
    kubectl("patch", "deploy", "web", "--type=merge", "-p", '{"metadata":{"labels":{"x":"y"}}}')
    kubectl("patch", "deploy", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":1}]')
    found = json.loads(kubectl("get", "deploy", "web", "-o", "json"))
    assert (found["metadata"]["labels"], found["spec"]["replicas"]) == ({"app": "web", "x": "y"}, 1)
    assert kubectl("label", "deploy", "web", "x-").startswith("deployment.apps/web ")
    assert "x" not in json.loads(kubectl("get", "deploy", "web", "-o", "json"))["metadata"]["labels"]
    assert kubectl("set", "env", "deploy/web", "GREETING=bye") == "deployment.apps/web env updated\n"


def test_a_pod_from_run_to_delete(kubectl: Kubectl) -> None:
    assert kubectl("run", "probe", "--image=client") == "pod/probe created\n"
    assert kubectl("wait", "--for=condition=Ready", "pod/probe", "--timeout=30s") == "pod/probe condition met\n"
    described = kubectl("describe", "pod", "probe")
    told = re.findall(r"^  (?:Normal|Warning)\s+(\w+)", described, re.MULTILINE)
    assert told == ["Scheduled", "Pulled", "Created", "Started"]
    events = kubectl.rows("get", "events", "--field-selector", "involvedObject.name=probe")
    assert events[0] == ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert {row[2] for row in events[1:]} == {"Scheduled", "Pulled", "Created", "Started"}
    assert kubectl("delete", "pod", "probe", "--timeout=30s").startswith('pod "probe" deleted')
    assert 'pods "probe" not found' in kubectl.fails("get", "pod", "probe")


def test_a_pod_that_runs_a_command_to_its_end(kubectl: Kubectl) -> None:
    kubectl("run", "job", "--image=client", "--restart=Never", "--", "sh", "-c", "echo done; exit 3")
    assert wait_until(lambda: kubectl.rows("get", "pod", "job")[1][1:3] == ["0/1", "Error"])
    assert kubectl("logs", "job") == "done\n"


def test_cordon_drain_and_taint(kubectl: Kubectl) -> None:
    def nodes(app: str) -> set[str]:
        path = 'jsonpath={range .items[*]}{.spec.nodeName}{"\\n"}{end}'
        return set(kubectl("get", "pods", "-l", f"app={app}", "-o", path).split())

    apply(kubectl, DEPLOYMENT)
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    assert nodes("web") == {"node1", "node2"}
    assert kubectl("cordon", "node2") == "node/node2 cordoned\n"
    assert kubectl.rows("get", "node", "node2")[1][1] == "Ready,SchedulingDisabled"
    described = kubectl("describe", "node", "node2")
    assert re.search(r"^Taints: +node.kubernetes.io/unschedulable:NoSchedule$", described, re.MULTILINE)
    assert re.search(r"^Unschedulable: +true$", described, re.MULTILINE)
    told = kubectl("drain", "node2", "--ignore-daemonsets", "--timeout=60s")
    assert told.startswith("node/node2 already cordoned\n") and told.endswith("node/node2 drained\n")
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    assert nodes("web") == {"node1"}
    assert kubectl("uncordon", "node2") == "node/node2 uncordoned\n"
    assert kubectl("taint", "nodes", "node2", "team=blue:NoSchedule") == "node/node2 tainted\n"
    try:
        kubectl(
            "run", "there", "--image=client", '--overrides={"spec":{"nodeSelector":{"kubernetes.io/hostname":"node2"}}}'
        )
        assert wait_until(lambda: kubectl.rows("get", "pod", "there")[1][2] == "Pending")
        (event,) = kubectl.rows("get", "events", "--field-selector", "involvedObject.name=there")[1:]
        assert event[1:] == [
            "Warning",
            "FailedScheduling",
            "pod/there",
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated "
            "taint {team: blue}. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
        ]
    finally:
        assert kubectl("taint", "nodes", "node2", "team-") == "node/node2 untainted\n"
    kubectl("wait", "--for=condition=Ready", "pod/there", "--timeout=30s")


def test_a_pod_needs_its_service_account(kubectl: Kubectl) -> None:
    """Also one that is made at the same moment as its namespace: its account comes with that."""
    words = kubectl.fails("run", "probe", "--image=client", "--overrides", '{"spec": {"serviceAccountName": "robot"}}')
    where = f'{kubectl.namespace}/robot: serviceaccount "robot" not found'
    assert words.endswith(f'pods "probe" is forbidden: error looking up service account {where}\n')
    other = f"{kubectl.namespace}-2"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": other}}
    spec = {"containers": [{"name": "a", "image": "client"}]}
    both = json.dumps({"apiVersion": "v1", "kind": "List", "items": [namespace, {**pod, "spec": spec}]})
    assert kubectl("apply", f"--namespace={other}", "-f", "-", feed=both).splitlines() == [
        f"namespace/{other} created",
        "pod/a created",
    ]
    kubectl("delete", "namespace", other, "--wait=false")


def test_an_unknown_image_is_told_of(kubectl: Kubectl) -> None:
    kubectl("run", "lost", "--image=example.org/nothing:1")
    waiting = ("ErrImagePull", "ImagePullBackOff")  # it tries, and tries again later
    assert wait_until(lambda: kubectl.rows("get", "pod", "lost")[1][2] in waiting)
    assert "Failed to pull image" in kubectl("describe", "pod", "lost")
    words = kubectl.fails("logs", "lost")
    assert "trying and failing to pull image" in words or "image can't be pulled" in words


def test_logs(kubectl: Kubectl) -> None:
    apply(kubectl, DEPLOYMENT)
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    pod = kubectl("get", "pods", "-o", "name").split()[0]
    assert kubectl("logs", pod) == "http-echo: listening on port 8000\n"
    assert kubectl("logs", pod, "--tail=0") == ""
    assert "not found" in kubectl.fails("logs", pod, "--previous")
    assert "container nothing is not valid for pod" in kubectl.fails("logs", pod, "-c", "nothing")


def test_services_get_addresses_and_node_ports(kubectl: Kubectl) -> None:
    assert kubectl("create", "service", "nodeport", "door", "--tcp=80:8000") == "service/door created\n"
    number = kubectl("get", "svc", "door", "-o", "jsonpath={.spec.ports[0].nodePort}")
    words = kubectl.fails("create", "service", "nodeport", "other", "--tcp=80:8000", f"--node-port={number}")
    assert f"spec.ports[0].nodePort: Invalid value: {number}: provided port is already allocated" in words
    words = kubectl.fails("create", "service", "nodeport", "other", "--tcp=80:8000", "--node-port=80")
    assert "provided port is not in the valid range. The range of valid ports is 30000-32767" in words
    taken = kubectl("get", "svc", "door", "-o", "jsonpath={.spec.clusterIP}")
    words = kubectl.fails("create", "-f", "-", feed=SERVICE.replace("selector:", f"clusterIP: {taken}\n  selector:"))
    assert f"failed to allocate IP {taken}: provided IP is already allocated" in words
    kubectl("patch", "svc", "door", "-p", '{"spec":{"type":"ClusterIP"}}')
    assert kubectl("get", "svc", "door", "-o", "jsonpath={.spec.ports[0]}").find("nodePort") == -1
    words = kubectl.fails("patch", "svc", "door", "-p", '{"spec":{"clusterIP":"10.96.0.77"}}')
    assert 'spec.clusterIPs[0]: Invalid value: []string{"10.96.0.77"}: may not change once set' in words


MISTAKES = {
    "no ports": (
        SERVICE.replace("ports: [{name: http, port: 80, targetPort: http}]", "type: ClusterIP"),
        'The Service "web" is invalid: spec.ports: Required value',
    ),
    "labels": (
        DEPLOYMENT.replace("metadata: {labels: {app: web}}", "metadata: {labels: {app: wev}}"),
        'The Deployment "web" is invalid: spec.template.metadata.labels: Invalid value: '
        'map[string]string{"app":"wev"}: `selector` does not match template `labels`',
    ),
    "name": (
        DEPLOYMENT.replace("name: web, labels", "name: Web, labels"),
        'The Deployment "Web" is invalid: metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must '
        "consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric "
        "character (e.g. 'example.com', regex used for validation is "
        r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    ),
    "image": (
        DEPLOYMENT.replace("          image: http-echo\n", ""),
        'The Deployment "web" is invalid: spec.template.spec.containers[0].image: Required value',
    ),
    "type": (
        SERVICE.replace("ports:", "type: Nodeport\n  ports:"),
        'The Service "web" is invalid: spec.type: Unsupported value: "Nodeport": supported values: "ClusterIP", '
        '"ExternalName", "LoadBalancer", "NodePort"',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_the_words_of_the_real_api(kubectl: Kubectl, mistake: str) -> None:
    text, words = MISTAKES[mistake]
    assert words in kubectl.fails("apply", "-f", "-", feed=text).replace("\n", " ")


def test_unknown_fields_are_refused_and_types_are_checked(kubectl: Kubectl) -> None:
    words = kubectl.fails("apply", "-f", "-", feed=DEPLOYMENT.replace("replicas: 2", "replicaz: 2"))
    assert 'unknown field "spec.replicaz"' in words or 'unknown field "replicaz" in io.k8s' in words
    wrong = DEPLOYMENT.replace("replicas: 2", "replicas: two")
    words = kubectl.fails("apply", "--validate=false", "-f", "-", feed=wrong)
    assert "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32" in words


def test_what_can_not_change(kubectl: Kubectl) -> None:
    apply(kubectl, DEPLOYMENT)
    changed = DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {app: web, x: z}")
    changed = changed.replace("metadata: {labels: {app: web}}", "metadata: {labels: {app: web, x: z}}")
    words = kubectl.fails("apply", "-f", "-", feed=changed)
    assert (
        'The Deployment "web" is invalid: spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string'
        '{"app":"web", "x":"z"}, MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable' in words
    )
    assert "already exists" in kubectl.fails("create", "-f", "-", feed=DEPLOYMENT)


def test_config_and_the_other_kinds(kubectl: Kubectl) -> None:
    assert kubectl("create", "configmap", "c", "--from-literal=a=b") == "configmap/c created\n"
    assert kubectl("create", "secret", "generic", "s", "--from-literal=a=b") == "secret/s created\n"
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
    assert kubectl("create", "serviceaccount", "robot") == "serviceaccount/robot created\n"
    kubectl("create", "ingress", "in", "--rule=shop.example/*=web:80")
    assert kubectl.rows("get", "ing")[1][:3] == ["in", "<none>", "shop.example"]
    assert kubectl.rows("get", "cm", "c")[1][:2] == ["c", "1"]
    policy = """{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}}}"""
    assert kubectl("apply", "-f", "-", feed=policy) == "networkpolicy.networking.k8s.io/p created\n"
    assert kubectl.rows("get", "netpol")[1][:2] == ["p", "app=web"]
    assert "PolicyTypes" in kubectl("describe", "netpol", "p") or "Policy Types: Ingress" in kubectl(
        "describe", "netpol", "p"
    )


def test_dry_runs(kubectl: Kubectl) -> None:
    assert kubectl("apply", "--dry-run=server", "-f", "-", feed=SERVICE) == "service/web created (server dry run)\n"
    assert 'services "web" not found' in kubectl.fails("get", "svc", "web")
    assert "clusterIP" not in kubectl("create", "--dry-run=client", "-o", "yaml", "-f", "-", feed=SERVICE)
    assert re.search(
        r"containerPort\s+<integer> -required-|containerPort\s+<integer>",
        kubectl("explain", "pod.spec.containers.ports"),
    )


def test_namespaces_take_everything_with_them(kubectl: Kubectl) -> None:
    other = f"{kubectl.namespace}-2"
    kubectl("create", "namespace", other)
    inside = Kubectl(kubectl.program, kubectl.kubeconfig, kubectl.home, other)
    apply(inside, DEPLOYMENT, SERVICE)
    assert kubectl("delete", "namespace", other, "--timeout=30s").startswith(f'namespace "{other}" deleted')
    assert inside("get", "pods,svc,deploy", "-o", "name") == ""
    assert f'namespaces "{other}" not found' in inside.fails("create", "configmap", "c")
    words = kubectl.fails("delete", "namespace", "kube-system")
    assert 'namespaces "kube-system" is forbidden: this namespace may not be deleted' in words


def test_owners_can_go_without_what_they_own(kubectl: Kubectl) -> None:
    apply(kubectl, DEPLOYMENT)
    kubectl("rollout", "status", "deploy/web", "--timeout=30s")
    kubectl("delete", "deploy", "web", "--cascade=orphan", "--timeout=30s")
    assert len(kubectl("get", "rs", "-o", "name").split()) == 1
    assert len(kubectl("get", "pods", "-o", "name").split()) == 2
    assert kubectl("get", "rs", "-o", "jsonpath={.items[0].metadata.ownerReferences}") == ""
    kubectl("delete", "rs", "--all", "--timeout=30s")
    assert wait_until(lambda: kubectl("get", "pods", "-o", "name") == "")


def test_replace_and_conflicts(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "c", "--from-literal=a=1")
    old = kubectl("get", "cm", "c", "-o", "json")
    kubectl("annotate", "cm", "c", "x=y")
    words = kubectl.fails("replace", "-f", "-", feed=old)
    assert (
        'Operation cannot be fulfilled on configmaps "c": the object has been modified; please apply your changes to '
        "the latest version and try again" in words
    )
    assert kubectl("replace", "--force", "-f", "-", feed=old).endswith("configmap/c replaced\n")


MANIFESTS = Path(__file__).with_name("manifests")
# How many pods each makes, the Service that people come in by, and who talks to whom beside what *_ADDR says.
EVERYDAY = {
    "guestbook": (6, "frontend", {"frontend": ["redis-leader:6379", "redis-follower:6379"]}),
    "boutique": (12, "frontend", {}),
    "webshop": (8, "web", {"web": ["cart:8080"]}),
}
# Prints the name of the pod that answers at each address.
ASK = r"""
for address in "$@"; do
    case "$address" in
        *:6379 | *:5432) exec 3<>"/dev/tcp/${address%:*}/${address#*:}" && head -n 1 <&3 ;;  # it greets with its name
        *) curl -sS --max-time 5 "http://$address/" | sed -n 's/.*"pod": *"\([^"]*\)".*/\1/p' ;;
    esac
done
"""


def talks(path: Path) -> dict[str, list[str]]:
    """Whom the Deployments of a manifest talk to, by the variables that tell them."""
    found: dict[str, list[str]] = {}
    for item in yaml.safe_load_all(path.read_text()):
        if item["kind"] == "Deployment":
            for container in item["spec"]["template"]["spec"]["containers"]:
                told = [entry["value"] for entry in container.get("env", ()) if entry["name"].endswith("_ADDR")]
                found.setdefault(item["metadata"]["name"], []).extend(one for one in told if "$" not in one)
    return {name: addresses for name, addresses in found.items() if addresses}


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_manifests(kubectl: Kubectl, lab_for_kubectl: Lab, name: str) -> None:
    """Applied as they are, applied again without a change, all pods ready, their Services answer by name, and each
    part reaches those that it is told of."""
    path = MANIFESTS / f"{name}.yaml"
    pods, service, more = EVERYDAY[name]
    created = kubectl("apply", "-f", str(path)).splitlines()
    assert all(line.endswith(" created") for line in created)
    again = kubectl("apply", "-f", str(path)).splitlines()
    assert again == [line.replace(" created", " unchanged") for line in created]
    assert wait_until(lambda: len(kubectl.rows("get", "pods")) == pods + 1)
    kubectl("wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s")
    answer = lab_for_kubectl.get("default/client", f"http://{service}.{kubectl.namespace}/")
    assert (answer["namespace"], answer["pod"].startswith(f"{service}-")) == (kubectl.namespace, True)
    asking = talks(path)
    for asker, addresses in more.items():
        asking[asker] = [*asking.get(asker, ()), *addresses]
    names = kubectl("get", "pods", "-o", "name").split()
    for asker, addresses in asking.items():
        pod = next(one for one in names if one.startswith(f"pod/{asker}-")).removeprefix("pod/")
        told = lab_for_kubectl.exec(f"{kubectl.namespace}/{pod}", "bash", "-c", ASK, "ask", *addresses).stdout
        answered = [line.rpartition("-")[0].rpartition("-")[0] for line in told.splitlines()]
        assert answered == [address.partition(":")[0] for address in addresses], told
    kubectl("delete", "-f", str(path), "--timeout=60s")
    assert wait_until(lambda: kubectl("get", "all", "-o", "name") == "", 60)
