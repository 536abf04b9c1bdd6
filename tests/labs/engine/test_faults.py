"""Faults break what they name, and may be injected twice."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from labs.engine import faults, socketmaps
from labs.engine.world import RUN_SECONDS, Ran
from tests.labs.engine.fake import FakeWorld, prints
from tests.labs.engine.test_checks import FAR
from tests.tracer.networks import Namespace, link, namespaces
from tracer.errors import K8snetError


def test_a_cable_is_found_by_its_index_also_when_it_is_down_already() -> None:
    commands = {
        "default/far: ip -j link show dev eth0": prints([{"ifindex": 2, "ifname": "eth0", "link_index": 7}]),
        "node2: ip -j link show dev veth1234": prints([{"ifname": "veth1234", "flags": [], "mtu": 1500}]),
        "node2: ip -j link show": prints([{"ifindex": 2, "ifname": "eth0"}, {"ifindex": 7, "ifname": "veth1234"}]),
        "node2: ip": Ran(0, "", ""),
    }
    world = FakeWorld({"pod default/far": FAR}, commands)
    for _ in range(2):
        faults.inject(world, "cable", {"pod": "default/far"})
        assert world.asked[-2:] == ["node2: ip link set dev veth1234 down", "node2: ip route flush dev veth1234"]


@dataclass
class Wired(FakeWorld):
    """Its nodes and pods are network namespaces."""

    targets: dict[str, Namespace] = field(default_factory=dict)

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World."""
        return Ran(0, self.targets[target].execute(*command), "")


@pytest.mark.root
@pytest.mark.parametrize(
    ("scope", "stays"),
    [
        ("link", False),
        ("host", True),  # as the CNI plugin ptp makes it (plugins/main/ptp and pkg/ip of containernetworking/plugins)
    ],
)
def test_the_route_goes_with_the_cable_whatever_its_scope(scope: str, stays: bool) -> None:
    with namespaces(2) as (node, pod):
        link(node, "veth1", pod, "eth0")
        add = f"route add 10.244.1.2 dev veth1 scope {scope}"
        node.ip("address add 10.244.1.1/32 dev veth1", add, "link set veth1 down")
        assert ("10.244.1.2" in node.execute("ip", "route")) == stays, "what the kernel does by itself"
        node.ip("link set veth1 up", add.replace("add", "replace"))
        world = Wired({"pod default/far": FAR}, targets={"node2": node, "default/far": pod})
        for _ in range(2):
            faults.inject(world, "cable", {"pod": "default/far"})
            assert "10.244.1.2" not in node.execute("ip", "route")
        node.ip("link set veth1 up")
        assert "10.244.1.2" not in node.execute("ip", "route")


def test_a_rule_on_the_node_of_a_pod() -> None:
    world = FakeWorld(
        {"pod default/far": FAR}, {"node2: iptables -w -t filter -C": Ran(1, "", ""), "node2: ": Ran(0, "", "")}
    )
    faults.inject(world, "rule", {"node": "default/far", "rule": "FORWARD -p udp -j DROP"})
    assert world.asked[-1] == "node2: iptables -w -t filter -I FORWARD -p udp -j DROP"


def test_a_slot_of_a_service_is_given_another_address() -> None:
    service = {"spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "targetPort": 8080}]}}
    entries = [
        # 10.96.0.7:80 TCP and UDP, lists 5 and 6 of 2 and 3 endpoints
        {"key": key("10.96.0.7", 80, 17), "value": words("02000000 06000000 03000000 00000000 00000000")},
        {"key": key("10.96.0.7", 80, 6), "value": words("01000000 05000000 02000000 00000000 00000000")},
    ]
    dump = "node1: bpftool -j map dump pinned /sys/fs/bpf/k8snet/services"
    commands = {dump: prints(entries), "node1: bpftool map update": Ran(0, "", "")}
    world = FakeWorld({"service default/web": service, "pod default/client": client()}, commands)
    assert socketmaps.list_of(world, "node1", "web", "default") == (5, 2)
    faults.inject(world, "slot", {"node": "node1", "service": "web", "slot": 1, "to": "default/client"})
    assert world.asked[-1] == (
        "node1: bpftool map update pinned /sys/fs/bpf/k8snet/slots"
        f" key {' '.join(words('05000000 01000000'))}"
        f" value {' '.join(words('00000000 00000000 0000ffff 0af40002 1f90 01 00'))}"
    )


def test_a_service_that_is_not_in_the_maps_is_said() -> None:
    dump = "node1: bpftool -j map dump pinned /sys/fs/bpf/k8snet/services"
    service = {"spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "protocol": "UDP"}]}}
    world = FakeWorld({"service default/web": service}, {dump: prints([])})
    with pytest.raises(K8snetError, match=r"the map services of node1 has no 10.96.0.7:80"):
        socketmaps.list_of(world, "node1", "web", "default")
    with pytest.raises(K8snetError, match="there is no Service default/api"):
        socketmaps.list_of(world, "node1", "api", "default")


def key(ip: str, port: int, protocol: int) -> list[str]:
    return words(f"00000000 00000000 0000ffff {ipaddress.ip_address(ip).packed.hex()} {port:04x} {protocol:02x} 00")


def words(text: str) -> list[str]:
    return [f"0x{byte:02x}" for byte in bytes.fromhex(text)]


def client() -> dict[str, Any]:
    return {"status": {"podIP": "10.244.0.2"}}


def test_a_flow_is_put_in_again_when_its_source_was_quicker() -> None:
    """In one command with what deletes the old entry: a source that sends each second is quick."""
    commands: dict[str, Ran] = {}
    world = FakeWorld({"pod default/far": FAR}, commands)
    parameters = {"node": "node1", "source": "{default/far}", "sport": 5300, "service": "10.96.0.10", "port": 53}
    with pytest.raises(K8snetError, match="conntrack on node1: it exists"):
        commands["node1: sh -c conntrack -D"] = Ran(1, "", "it exists")
        faults.inject(world, "udp_flow", {**parameters, "backend": "10.244.1.250"})
    assert len([text for text in world.asked if "conntrack -I" in text]) == faults.FLOW_TRIES
    commands["node1: sh -c conntrack -D"] = Ran(0, "", "")
    faults.inject(world, "udp_flow", {**parameters, "backend": "10.244.1.250"})
    entry = "-p udp --orig-src 10.244.1.5 --sport 5300 --orig-dst 10.96.0.10 --dport 53"
    insert = f"conntrack -I {entry} --dst-nat 10.244.1.250 --timeout 600"
    assert world.asked[-1] == f"node1: sh -c conntrack -D {entry}; {insert}"


def test_an_object_is_made_anew_with_changes() -> None:
    fed: list[str] = []

    class Fed(FakeWorld):
        def kubectl(self, *arguments: str, feed: str | None = None) -> Ran:
            fed.extend([feed] if feed else [])
            return super().kubectl(*arguments, feed=feed)

    service = {"metadata": {"name": "web", "uid": "u", "resourceVersion": "7"}, "spec": {"clusterIP": "a", "x": 1}}
    world = Fed({"service default/web": {**service, "status": {}}})
    patch = {"spec": {"clusterIP": "b", "x": None, "y": {"z": 2}}}
    faults.inject(world, "recreate", {"kind": "service", "name": "web", "patch": patch})
    assert world.asked[-1] == "replace --force -f -"
    assert json.loads(fed[0]) == {"metadata": {"name": "web"}, "spec": {"clusterIP": "b", "y": {"z": 2}}}
    with pytest.raises(K8snetError, match="there is no service default/other"):
        faults.inject(world, "recreate", {"kind": "service", "name": "other", "patch": {}})


def test_a_pod_that_has_been_applied_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address is enough: it may never become ready."""
    world = FakeWorld()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        status = {"podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "False"}]}
        world.objects["pod default/meter"] = {"status": {} if len(waited) < 3 else status}

    monkeypatch.setattr(faults.time, "sleep", sleep)
    faults.inject(world, "started", {"pod": "default/meter"})
    assert len(waited) == 3
    monkeypatch.setattr(faults, "WAIT_SECONDS", 0)
    with pytest.raises(K8snetError, match="the pod default/nobody is not there, or has no address"):
        faults.inject(world, "started", {"pod": "default/nobody"})
