"""What takes a fault back: made from what was there, and run whatever is there by then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labs.cluster.mergepatch import merge
from labs.engine import faults, undo
from labs.engine.world import Blocked, Ran
from tests.labs.engine.fake import FakeWorld, prints
from tests.labs.engine.test_checks import FAR

WAS = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [1, 2]}


@pytest.mark.parametrize(
    ("patch", "back"),
    [
        ({"a": 2}, {"a": 1}),
        ({"g": {"h": 1}}, {"g": None}),
        ({"b": {"d": {"x": 1}}}, {"b": {"d": {"x": None}}}),
        ({"b": {"d": {"e": 4, "x": None}}, "a": None}, {"b": {"d": {"e": 3, "x": None}}, "a": 1}),
        ({"b": 7}, {"b": {"c": 2, "d": {"e": 3}}}),
        ({"b": None, "f": [3]}, {"b": {"c": 2, "d": {"e": 3}}, "f": [1, 2]}),
        ({"a": {"y": 1}}, {"a": 1}),
    ],
)
def test_a_merge_patch_is_taken_back_by_another(patch: dict[str, Any], back: dict[str, Any]) -> None:
    assert undo.inverse(WAS, patch) == back
    assert merge(merge(WAS, patch), back) == WAS
    assert merge(WAS, back) == WAS


def service(selector: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "default", "uid": "u", "generation": 2, "labels": {"x": "y"}}
    return {"kind": "Service", "metadata": metadata, "spec": {"selector": selector}, "status": {"z": 1}}


UNMADE = {
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default", "labels": {"x": "y"}},
    "spec": {"selector": {"app": "web"}},
}
PATCH = {"spec": {"selector": {"track": "stable"}}}
BACK = {"spec": {"selector": {"track": None}}}
ALTERED = service({"app": "web", "track": "stable"})


def kept(world: FakeWorld, fault: str, /, **parameters: Any) -> list[undo.Undo]:
    found: list[undo.Undo] = []
    faults.inject(world, fault, parameters, found.append)
    assert json.loads(json.dumps(found)) == found, "it is kept as JSON"
    return found


@pytest.mark.parametrize(("fault", "anew"), [("patch", False), ("recreate", True)])
def test_an_object_as_it_was(fault: str, anew: bool) -> None:
    world = FakeWorld({"service default/web": service({"app": "web"})})
    found = kept(world, fault, kind="service", name="web", patch=PATCH)
    assert found == [{"object": UNMADE, "patch": BACK, "anew": anew}]
    altered = FakeWorld({"service default/web": ALTERED})
    assert kept(altered, fault, kind="service", name="web", patch=PATCH) == [], "it was so before"


def test_objects_are_restored_where_they_differ() -> None:
    patched = {"object": UNMADE, "patch": BACK, "anew": False}
    anew = {"object": UNMADE, "patch": BACK, "anew": True}
    patch = f"-n default patch Service web --type=merge -p {json.dumps(BACK)}"
    for one, there, last in (
        (patched, ALTERED, patch),
        (patched, service({"app": "web"}), None),
        (patched, service({"app": "other"}), None),  # not what the fault did
        (patched, None, "create -f -"),
        (anew, ALTERED, "replace --force -f -"),
        (anew, service({"app": "web"}), None),
    ):
        world = FakeWorld({} if there is None else {"Service default/web": there})
        undo.run(world, [one])
        assert world.asked[1:] == ([] if last is None else [last])


def test_the_newest_goes_first_and_nothing_stops_the_rest() -> None:
    class Torn(FakeWorld):
        def run(self, target: str, *command: str, **options: Any) -> Ran:
            if target == "node2":
                raise Blocked("node2: Error response from daemon")
            return super().run(target, *command, **options)

        def kubectl(self, *arguments: str, **options: Any) -> Ran:
            super().kubectl(*arguments, **options)
            return Ran(1, "", "connection refused")

    world = Torn()
    anew = {"object": UNMADE, "patch": BACK, "anew": True}
    undo.run(world, [undo.command("node1", "a"), anew, undo.command("node2", "b"), undo.command("node1", "c")])
    assert world.asked == ["node1: c", "get Service web -o json -n default", "node1: a"]


def test_a_cable_and_its_route() -> None:
    commands = {
        "default/far: ip -j link show dev eth0": prints([{"ifindex": 2, "ifname": "eth0", "link_index": 7}]),
        "node2: ip -j link show dev veth1234": prints([{}, {"ifname": "veth1234", "flags": ["UP"], "mtu": 1500}]),
        "node2: ip -j link show": prints([{"ifindex": 7, "ifname": "veth1234"}]),
        "node2: ip -4 route show dev veth1234": prints("10.244.1.5 scope host\n"),
        "node2: ip": Ran(0, "", ""),
    }
    world = FakeWorld({"pod default/far": FAR}, commands)
    undos = kept(world, "cable", pod="default/far")
    undo.run(world, undos)
    assert world.asked[-4:] == [
        "node2: ip link set dev veth1234 down",
        "node2: ip route flush dev veth1234",
        "node2: ip link set dev veth1234 mtu 1500 up",
        "node2: ip route replace 10.244.1.5 scope host dev veth1234",
    ]


def test_routes_as_they_were() -> None:
    lines = "10.244.1.0/24 via 172.18.0.3 dev eth0 \n"
    world = FakeWorld({}, {"node1: ip -4 route show exact": prints(lines), "node1: ip": Ran(0, "", "")})
    undos = kept(world, "route", node="node1", route="replace blackhole 10.244.1.0/24")
    undo.run(world, undos)
    assert world.asked == [
        "node1: ip -4 route show exact 10.244.1.0/24",
        "node1: ip route replace blackhole 10.244.1.0/24",
        "node1: ip route del 10.244.1.0/24",
        "node1: ip route replace 10.244.1.0/24 via 172.18.0.3 dev eth0",
    ]


def test_rules_and_flows() -> None:
    world = FakeWorld(
        {"pod default/far": FAR}, {"node2: iptables -w -t filter -C": Ran(1, "", ""), "node": Ran(0, "", "")}
    )
    (rule,) = kept(world, "rule", node="default/far", rule="FORWARD -p udp -j DROP")
    assert rule["target"] == "node2"
    assert " ".join(rule["command"]) == "iptables -w -t filter -D FORWARD -p udp -j DROP"
    flow = {"source": "{default/far}", "sport": 5300, "service": "10.96.0.10", "port": 53, "backend": "10.244.1.250"}
    (entry,) = kept(world, "udp_flow", node="node1", **flow)
    deleted = "conntrack -D -p udp --orig-src 10.244.1.5 --sport 5300 --orig-dst 10.96.0.10 --dport 53"
    assert " ".join(entry["command"]) == deleted
    world.commands = {"node": Ran(0, "", "")}
    assert kept(world, "rule", node="node2", rule="FORWARD -p udp -j DROP") == [], "it was there before"
