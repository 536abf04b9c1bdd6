"""From Pod objects to what the runtime starts: environment, files, cgroups, images."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.admission import prepare
from labs.cluster.images import UnknownImage, find
from labs.cluster.kinds import Kinds
from labs.cluster.options import AddressPlan, ClusterOptions
from labs.cluster.podenv import MissingConfig, Sources
from labs.cluster.podspec import NodeFacts, container_spec, hosts_file, pod_cgroup, resolv_conf
from labs.cluster.runtime.container import ContainerSpec

NODE = NodeFacts("node2", ("172.18.0.3",), "/cg/node2", ClusterOptions())


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "http-echo", **(container or {})}]
    metadata = {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers, **spec}}
    _, prepared = prepare(Kinds(), AddressPlan((4,)), item)
    prepared["metadata"]["uid"] = "u-1"
    return prepared


def spec_of(item: dict[str, Any], sources: Sources | None = None) -> ContainerSpec:
    return container_spec(item, item["spec"]["containers"][0], NODE, ("10.244.1.7",), sources or Sources())


class TestFiles:
    def test_resolv_conf_of_an_ordinary_pod(self) -> None:
        assert resolv_conf(pod(), NODE) == (
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        )

    def test_resolv_conf_on_the_nodes_network(self) -> None:
        assert resolv_conf(pod(hostNetwork=True), NODE) == ""
        assert "10.96.0.10" in resolv_conf(pod(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"), NODE)

    def test_resolv_conf_with_wishes(self) -> None:
        """What is there already is not there twice, and an option of the pod's replaces the usual one."""
        options = [{"name": "ndots", "value": "1"}, {"name": "edns0"}]
        config = {
            "nameservers": ["10.96.0.10", "192.0.2.1"],
            "searches": ["cluster.local", "x.org"],
            "options": options,
        }
        assert resolv_conf(pod(dnsConfig=config), NODE) == (
            "search shop.svc.cluster.local svc.cluster.local cluster.local x.org\n"
            "nameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:1 edns0\n"
        )

    def test_resolv_conf_of_its_own(self) -> None:
        config = {
            "nameservers": ["192.0.2.1"],
            "searches": ["x.org"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}],
        }
        assert resolv_conf(pod(dnsPolicy="None", dnsConfig=config), NODE) == (
            "search x.org\nnameserver 192.0.2.1\noptions ndots:2 rotate\n"
        )

    def test_hosts(self) -> None:
        text = hosts_file(pod(hostAliases=[{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]), "web-1", ("10.244.1.7",))
        assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
        assert "\n10.244.1.7\tweb-1\n" in text
        assert text.endswith("192.0.2.9\ta\tb\n")


class TestContainer:
    def test_the_cgroup_is_kubelets(self) -> None:
        assert pod_cgroup(NODE.cgroup, pod()) == "/cg/node2/kubepods/besteffort/podu-1"
        burstable = pod({"resources": {"requests": {"cpu": "1"}}})
        assert pod_cgroup(NODE.cgroup, burstable) == "/cg/node2/kubepods/burstable/podu-1"
        guaranteed = pod({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}})
        assert pod_cgroup(NODE.cgroup, guaranteed) == "/cg/node2/kubepods/podu-1"
        assert pod_cgroup(None, pod()) is None

    def test_names_and_places(self) -> None:
        spec = spec_of(pod())
        assert (spec.hostname, spec.name) == ("web-1", "main")
        assert spec.cgroup == f"/cg/node2/kubepods/besteffort/podu-1/{spec.id}"
        assert (spec.directory, spec_of(pod({"workingDir": "/srv"})).directory) == ("/", "/srv")
        assert spec_of(pod(hostNetwork=True)).hostname == "node2"

    def test_environment(self) -> None:
        entries = [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(UNKNOWN)"},
            *(
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for name, path in {
                    "NAME": "metadata.name",
                    "IP": "status.podIP",
                    "NODE": "spec.nodeName",
                    "NODE_IP": "status.hostIP",
                    "LABEL": "metadata.labels['app']",
                    "ACCOUNT": "spec.serviceAccountName",
                }.items()
            ),
        ]
        env = spec_of(pod({"env": entries}), TestEnvironment.SOURCES).env
        expected = {
            "A": "1",
            "B": "1-$(UNKNOWN)",
            "NAME": "web-1",
            "IP": "10.244.1.7",
            "NODE": "node2",
            "NODE_IP": "172.18.0.3",
            "LABEL": "web",
            "ACCOUNT": "default",
            "HOSTNAME": "web-1",
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        }
        assert {name: env.get(name) for name in expected} == expected

    def test_programs_that_can_not_tell_are_watched(self) -> None:
        ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]
        assert spec_of(pod({"ports": ports})).wait_for_ports == []
        assert spec_of(pod({"ports": ports, "image": "nginx"})).wait_for_ports == [80]
        assert spec_of(pod({"ports": ports, "image": "nginx", "command": ["python3"]})).wait_for_ports == []


class TestImages:
    @pytest.mark.parametrize(
        "reference",
        ["kube-proxy", "kube-proxy:v1", "registry.k8s.io/kube-proxy:v1.30.5", "localhost:5000/a/kube-proxy@sha256:00"],
    )
    def test_names(self, reference: str) -> None:
        assert find(reference).name == "kube-proxy"

    def test_an_unknown_one_lists_the_known(self) -> None:
        with pytest.raises(UnknownImage, match='no image "redis:7" here; known are client, coredns, http-echo'):
            find("redis:7")


def service(name: str, ip: str, *ports: dict[str, Any], namespace: str = "shop") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": list(ports)}}


class TestEnvironment:
    """Names and values as kubelet makes them (pkg/kubelet/envvars/envvars_test.go)."""

    SOURCES = Sources(
        services=[
            service("kubernetes", "10.96.0.1", {"name": "https", "port": 443}, namespace="default"),
            service("foo-bar", "1.2.3.4", {"port": 8080, "protocol": "TCP"}),
            service("dual", "9.8.7.6", {"name": "u-d-p", "port": 8084, "protocol": "UDP"}, {"name": "t", "port": 8083}),
            service("v6", "2001:db8::4", {"port": 80}),
            service("headless", "None", {"port": 81}),
            service("other", "4.4.4.4", {"port": 83}, namespace="elsewhere"),
        ],
        configs={"settings": {"data": {"colour": "blue", "size": "7"}}},
        secrets={"keys": {"data": {"word": "c2VzYW1l"}}},
    )

    def test_services_of_the_namespace_and_the_api(self) -> None:
        env = spec_of(pod(), self.SOURCES).env
        assert {name: value for name, value in env.items() if name.startswith("FOO_BAR")} == {
            "FOO_BAR_SERVICE_HOST": "1.2.3.4",
            "FOO_BAR_SERVICE_PORT": "8080",
            "FOO_BAR_PORT": "tcp://1.2.3.4:8080",
            "FOO_BAR_PORT_8080_TCP": "tcp://1.2.3.4:8080",
            "FOO_BAR_PORT_8080_TCP_PROTO": "tcp",
            "FOO_BAR_PORT_8080_TCP_PORT": "8080",
            "FOO_BAR_PORT_8080_TCP_ADDR": "1.2.3.4",
        }
        assert (env["DUAL_SERVICE_PORT"], env["DUAL_SERVICE_PORT_U_D_P"], env["DUAL_SERVICE_PORT_T"]) == (
            "8084",
            "8084",
            "8083",
        )
        assert env["DUAL_PORT"] == "udp://9.8.7.6:8084"
        assert env["V6_PORT_80_TCP"] == "tcp://[2001:db8::4]:80"
        assert env["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
        assert not {name for name in env if name.startswith(("HEADLESS", "OTHER"))}

    def test_a_pod_may_want_no_links(self) -> None:
        env = spec_of(pod(enableServiceLinks=False), self.SOURCES).env
        assert "KUBERNETES_SERVICE_HOST" in env
        assert "FOO_BAR_SERVICE_HOST" not in env

    def test_config_maps_and_secrets(self) -> None:
        container = {
            "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}],
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "word"}}},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "x", "optional": True}}},
                {"name": "word", "value": "$(A) $(S_size) $$(A) $(unknown)"},
            ],
            "command": ["say", "$(word)", "$$(A)"],
        }
        spec = spec_of(pod(container), self.SOURCES)
        chosen = {name: spec.env.get(name) for name in ("S_colour", "S_size", "A", "B", "C", "word")}
        assert chosen == {
            "S_colour": "blue",
            "S_size": "7",
            "A": "blue",
            "B": "sesame",
            "C": None,
            "word": "blue 7 $(A) $(unknown)",
        }
        assert spec.command == ["say", "blue 7 $(A) $(unknown)", "$(A)"]

    @pytest.mark.parametrize(
        ("origin", "words"),
        [
            ({"configMapKeyRef": {"name": "none", "key": "x"}}, 'configmap "none" not found'),
            ({"secretKeyRef": {"name": "none", "key": "x"}}, 'secret "none" not found'),
            ({"configMapKeyRef": {"name": "settings", "key": "x"}}, "couldn't find key x in ConfigMap shop/settings"),
        ],
    )
    def test_what_is_missing_is_told(self, origin: dict[str, Any], words: str) -> None:
        with pytest.raises(MissingConfig, match=words):
            spec_of(pod({"env": [{"name": "A", "valueFrom": origin}]}), self.SOURCES)
