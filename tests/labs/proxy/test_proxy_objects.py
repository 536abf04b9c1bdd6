"""labs.cluster.proxy.objects and .node: what may be handed to the proxy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labs.cluster.proxy.node import LocalNode, local_node
from labs.cluster.proxy.objects import load, parse
from tests.labs.proxy.kube_objects import endpoint, endpoint_slice, fixture_objects, node, service
from tracer.errors import FormatError

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.1, "fd00::1"]
  ports: [{port: 80}]
---
# nothing
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.1]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
"""


def test_manifests_get_the_api_servers_defaults() -> None:
    objects = parse(MANIFESTS)
    (item,), (slice_,) = objects["services"], objects["endpointslices"]
    assert item["metadata"]["namespace"] == slice_["metadata"]["namespace"] == "default"
    assert item["spec"]["clusterIP"] == "10.96.0.1"
    assert item["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert slice_["ports"][0]["name"] == ""


def test_what_an_api_server_returned_is_taken_as_it_is() -> None:
    objects = fixture_objects()
    assert parse(json.dumps(objects)) == objects


def test_lists() -> None:
    web, one = {"kind": "Service", **service()}, {"kind": "Node", **node()}
    assert len(parse(json.dumps({"kind": "List", "items": [web, one]}))["nodes"]) == 1
    typed = parse(json.dumps({"kind": "ServiceList", "apiVersion": "v1", "items": [service()]}))
    assert [item["metadata"]["name"] for item in typed["services"]] == ["web"]


def test_nothing_at_all() -> None:
    assert parse("") == {"services": [], "endpointslices": [], "nodes": []}


def test_yaml_that_begins_like_json() -> None:
    assert parse("{kind: Node, metadata: {name: node1}}")["nodes"][0]["metadata"]["name"] == "node1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected a Kubernetes object, found list"),
        ("hello", "expected a Kubernetes object, found str"),
        ("{a: 1}", "expected an object with a kind"),
        ("kind: Service\nspec: ]", "x.yaml:2: "),
        ('{"services": {}}', "services must be a list, found dict"),
        ('{"services": [1]}', "services[0] must be an object, found int"),
        ("{kind: List, items: [1]}", "List.items[0] must be an object, found int"),
        ("{kind: Service, metadata: {name: web}, spec: 1}", "Service web: spec must be an object, found int"),
        ("{kind: Service, spec: {ports: [{port: '80'}]}}", "Service: spec.ports[0].port must be an integer, found str"),
        (
            "{kind: Service, spec: {ports: [{port: true}]}}",
            "Service: spec.ports[0].port must be an integer, found bool",
        ),
        ("{kind: Service, metadata: {labels: {a: 1}}}", "Service: metadata.labels.a must be a string, found int"),
        ("{kind: EndpointSlice, endpoints: [{addresses: [1]}]}", "endpoints[0].addresses[0] must be a string"),
    ],
)
def test_rubbish_is_refused_by_name_and_place(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(text, name="x.yaml")
    assert message in caught.value.message
    assert caught.value.message.startswith("x.yaml")


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        load(str(tmp_path / "none"))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="binary"):
        load(str(binary))


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"endpointslices": [endpoint_slice(endpoint("10.244.0.1"))]}))
    assert len(load(str(path))["endpointslices"]) == 1


# --- Node -----------------------------------------------------------------------------------------


def test_local_node() -> None:
    nodes = [node("node2", ips=["172.18.0.3"]), node(ips=["172.18.0.2", "fc00::2"], zone="b")]
    assert local_node(nodes, "node1", 4) == LocalNode("node1", "172.18.0.2", "b")
    assert local_node(nodes, "node1", 6).ip == "fc00::2"


def test_node_without_an_address_or_without_an_object() -> None:
    assert local_node([node()], "node1", 6) == LocalNode("node1", "::1")
    assert local_node([], "node1", 4) == LocalNode("node1", "127.0.0.1")
    assert local_node([{"metadata": {"name": "node1"}}], "node1", 4).ip == "127.0.0.1"


def test_an_external_address_counts_when_there_is_no_internal_one() -> None:
    item = node(ips=[])
    item["status"]["addresses"] = [
        {"type": "Hostname", "address": "node1"},
        {"type": "ExternalIP", "address": "192.0.2.1"},
    ]
    assert local_node([item], "node1", 4).ip == "192.0.2.1"
    item["status"]["addresses"].append({"type": "InternalIP", "address": "172.18.0.2"})
    assert local_node([item], "node1", 4).ip == "172.18.0.2"
