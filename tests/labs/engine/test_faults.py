"""Faults break what they name, and may be injected twice."""

from __future__ import annotations

from labs.engine import faults
from labs.engine.world import Ran
from tests.labs.engine.fake import FakeWorld, prints
from tests.labs.engine.test_checks import FAR


def test_a_cable_is_found_by_its_index_also_when_it_is_down_already() -> None:
    commands = {
        "default/far: ip -j link show dev eth0": prints([{"ifindex": 2, "ifname": "eth0", "link_index": 7}]),
        "node2: ip -j link show": prints([{"ifindex": 2, "ifname": "eth0"}, {"ifindex": 7, "ifname": "veth1234"}]),
        "node2: ip link set": Ran(0, "", ""),
    }
    world = FakeWorld({"pod default/far": FAR}, commands)
    for _ in range(2):
        faults.inject(world, "cable", {"pod": "default/far"})
        assert world.asked[-1] == "node2: ip link set dev veth1234 down"
