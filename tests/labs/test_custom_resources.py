"""CustomResourceDefinitions as a learner meets them: plain kubectl commands and what they print.

What kubectl can't show, and what needs no network, is in tests/labs/cluster/test_extensions.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs.kubectl import Kubectl, in_namespace, name_of, programs, wait_until
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

WIDGETS = str(Path(__file__).with_name("widgets.yaml"))
DEFINITION = "customresourcedefinition.apiextensions.k8s.io/widgets.test.k8snet.example"


@pytest.fixture(scope="module")
def with_widgets(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cluster that knows Widgets."""
    program = next(iter(programs()), None)
    if program is None:
        pytest.skip("needs kubectl; to run it: scripts/setup")
    kubectl = Kubectl(program, cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")
    assert kubectl("apply", "-f", WIDGETS) == f"{DEFINITION} created\n"
    assert (
        kubectl("wait", "--for=condition=established", DEFINITION, "--timeout=10s") == f"{DEFINITION} condition met\n"
    )
    yield cluster
    kubectl("delete", DEFINITION, "--timeout=10s")


@pytest.fixture(params=programs() or [None], ids=lambda program: name_of(program) if program else "none")
def any_kubectl(request: pytest.FixtureRequest, with_widgets: Lab, tmp_path: Path) -> Iterator[Kubectl]:
    """Each kubectl of this machine."""
    words = f"widgets-{name_of(str(request.param))}"
    with in_namespace(request.param, with_widgets.kubeconfig(), words, tmp_path) as one:
        yield one


@pytest.fixture
def kubectl(request: pytest.FixtureRequest, with_widgets: Lab, tmp_path: Path) -> Iterator[Kubectl]:
    """The kubectl on PATH."""
    program = next(iter(programs()), None)
    with in_namespace(program, with_widgets.kubeconfig(), request.node.name.removeprefix("test_"), tmp_path) as one:
        yield one


def widget(spec: str = "{size: small}", version: str = "v1") -> str:
    return f"apiVersion: test.k8snet.example/{version}\nkind: Widget\nmetadata: {{name: w}}\nspec: {spec}\n"


def test_a_tour_of_a_custom_kind_with_every_kubectl(any_kubectl: Kubectl) -> None:
    kubectl = any_kubectl
    listed = [row.split() for row in kubectl("api-resources", "--api-group=test.k8snet.example").splitlines()[1:]]
    assert [["widgets", "wd", row[2], "true", "Widget"] for row in listed] == listed
    assert kubectl("apply", "-f", "-", feed=widget()) == "widget.test.k8snet.example/w created\n"
    assert kubectl("apply", "-f", "-", feed=widget()) == "widget.test.k8snet.example/w unchanged\n"
    assert kubectl.rows("get", "wd") == [["NAME", "SIZE", "READY"], ["w", "small"]]
    assert re.search(r"size\s+<string> -required-|size\s+<string>", kubectl("explain", "widget.spec"))
    assert "How large it is." in kubectl("explain", "widget.spec.size")
    assert kubectl("scale", "wd/w", "--replicas=3") == "widget.test.k8snet.example/w scaled\n"
    assert kubectl("get", "wd", "w", "-o", "jsonpath={.spec.replicas}") == "3"
    assert kubectl("annotate", "wd", "w", "a=b").startswith("widget.test.k8snet.example/w ")
    words = kubectl.fails("apply", "-f", "-", feed=widget("{size: small, sise: large}"))
    assert 'unknown field "spec.sise"' in words or 'unknown field "sise" in example.k8snet.test.v1.Widget.spec' in words
    assert kubectl("get", "all", "-o", "name") == "widget.test.k8snet.example/w\n"
    assert kubectl("delete", "wd", "w").startswith('widget.test.k8snet.example "w" deleted')


def test_what_is_shown_of_them(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=widget("{size: large, parts: [{name: a}]}"))
    item = json.loads(kubectl("get", "wd", "w", "-o", "json"))
    assert item["spec"] == {"size": "large", "replicas": 1, "parts": [{"name": "a", "count": 1}]}
    assert item["metadata"]["generation"] == 1
    patch = '{"spec": {"replicas": 9}, "status": {"replicas": 2, "conditions": [{"type": "Ready", "status": "True"}]}}'
    kubectl("patch", "wd", "w", "--subresource=status", "--type=merge", "-p", patch)
    assert kubectl.rows("get", "wd", "-o", "wide") == [
        ["NAME", "SIZE", "READY", "REPLICAS"],
        ["w", "large", "True", "1"],
    ]
    kubectl("patch", "wd", "w", "--type=merge", "-p", patch.replace("2", "5"))
    item = json.loads(kubectl("get", "wd", "w", "-o", "json"))
    assert (item["spec"]["replicas"], item["status"]["replicas"], item["metadata"]["generation"]) == (9, 2, 2)
    older = kubectl("get", "widgets.v1beta1.test.k8snet.example", "w", "-o", "yaml")
    assert older.startswith("apiVersion: test.k8snet.example/v1beta1\n")
    kubectl("wait", "--for=condition=Ready", "wd/w", "--timeout=5s")


def test_their_mistakes_are_told(kubectl: Kubectl) -> None:
    wrong = "{size: huge, replicas: x, color: red, port: true, parts: [{}, {name: a}, {name: a}, {name: b}]}"
    told = kubectl.fails("apply", "-f", "-", feed=widget(wrong)).splitlines()
    assert sorted(told[1:]) == [
        "* spec.color: Invalid value: \"red\": spec.color in body should match '^#[0-9a-f]{6}$'",
        "* spec.parts: Too many: 4: must have at most 3 items",
        "* spec.parts[0].name: Required value",
        '* spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean"',
        '* spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string"',
        '* spec.size: Unsupported value: "huge": supported values: "small", "large"',
    ]
    for spec, words in (
        ("{}", "spec.size: Required value"),
        (
            "{size: small, replicas: 10}",
            "spec.replicas: Invalid value: 10: spec.replicas in body should be less than or equal to 9",
        ),
        (
            "{size: small, parts: [{name: a}, {name: a}]}",
            'spec.parts[1]: Duplicate value: map[string]interface {}{"name":"a"}',
        ),
        ("{size: small, lowest: 2}", 'spec: Invalid value: "object": lowest may not be above replicas'),
    ):
        assert kubectl.fails("apply", "-f", "-", feed=widget(spec)) == f'The Widget "w" is invalid: {words}\n'
    kubectl("apply", "-f", "-", feed=widget())
    words = 'The Widget "w" is invalid: spec: Forbidden: size is immutable\n'
    assert kubectl.fails("apply", "-f", "-", feed=widget("{size: large}")) == words


def test_patches_of_them(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=widget())
    words = kubectl.fails("patch", "wd", "w", "-p", '{"spec":{"color":"#000000"}}')
    assert "application/strategic-merge-patch+json is not supported by test.k8snet.example/v1, Kind=Widget" in words
    kubectl("patch", "wd", "w", "--type=json", "-p", '[{"op":"add","path":"/spec/color","value":"#ffffff"}]')
    assert kubectl("get", "wd", "w", "-o", "jsonpath={.spec.color}") == "#ffffff"
    applied = "{size: small, parts: [{name: a}]}"
    assert kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", feed=widget(applied)).endswith(
        "applied\n"
    )
    # Another manager's entry of a keyed list is one more, and what a manager takes back goes.
    applied = "{size: small, parts: [{name: b, count: 2}]}"
    kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", feed=widget(applied))
    names = "jsonpath={.spec.parts[*].name}"
    assert kubectl("get", "wd", "w", "-o", names) == "a b"
    kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", feed=widget())
    assert kubectl("get", "wd", "w", "-o", names) == "b"


def test_a_deprecated_version_warns(kubectl: Kubectl) -> None:
    done = kubectl.run("apply", "-f", "-", feed=widget(version="v1beta1"))
    assert done.stdout == "widget.test.k8snet.example/w created\n"
    assert "Warning: test.k8snet.example/v1beta1 Widget is deprecated" in done.stderr


def test_a_definition_that_changes(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=widget())
    kubectl(
        "patch", DEFINITION, "--type=json", "-p", '[{"op":"replace","path":"/spec/versions/1/served","value":false}]'
    )
    assert wait_until(lambda: "test.k8snet.example/v1beta1" not in kubectl("api-versions"), 5)
    assert "v1beta1" not in kubectl("get", "--raw", "/apis/test.k8snet.example")
    kubectl("delete", DEFINITION, "--timeout=10s")
    assert "doesn't have a resource type" in (words := kubectl.fails("get", "widgets")) or "could not find" in words
    kubectl("apply", "-f", WIDGETS)
    kubectl("wait", "--for=condition=established", DEFINITION, "--timeout=10s")
    assert kubectl("get", "widgets", "-o", "name") == ""


def test_the_kinds_of_the_gateway_api_are_there(kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--api-group=gateway.networking.k8s.io", "-o", "name").split()
    plurals = ("gatewayclasses", "gateways", "grpcroutes", "httproutes", "referencegrants")
    assert listed == [f"{plural}.gateway.networking.k8s.io" for plural in plurals]
    kubectl("apply", "-f", str(Path(__file__).with_name("gateway.yaml")))
    assert [row[:3] for row in kubectl.rows("get", "gatewayclass")] == [
        ["NAME", "CONTROLLER", "ACCEPTED"],
        ["example", "example.org/gateway", "Unknown"],
    ]
    assert [row[:-1] for row in kubectl.rows("get", "gtw")] == [
        ["NAME", "CLASS", "ADDRESS", "PROGRAMMED"],
        ["door", "example", "Unknown"],
    ]
    assert kubectl.rows("get", "httproute")[1][:2] == ["shop", '["shop.example"]']
    rules = json.loads(kubectl("get", "httproute", "shop", "-o", "json"))["spec"]["rules"]
    web = {"group": "", "kind": "Service", "name": "web", "port": 80, "weight": 1}
    assert rules[1] == {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": [web]}
    assert rules[0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/cart"}}]
    assert kubectl("get", "grpcroute,referencegrant", "-o", "name").split() == [
        "grpcroute.gateway.networking.k8s.io/calls",
        "referencegrant.gateway.networking.k8s.io/from-shop",
    ]
    assert "Where matching requests go, shared by weight." in kubectl("explain", "httproute.spec.rules.backendRefs")
    kubectl("delete", "gatewayclass", "example")
