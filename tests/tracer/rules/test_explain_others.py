"""Saved tables of Docker, ufw and firewalld, without a kernel: what test_other_tables_live holds against one."""

from __future__ import annotations

import ipaddress

import pytest

from tests.tracer.rules.other_tables import DEVICES, DOCKER, FIREWALLD, UFW
from tests.tracer.rules.test_other_tables_live import DOCKER_CASES, FIREWALLD_CASES, KINDS, UFW_CASES, Case
from tracer.rules.explain import Question, explain
from tracer.rules.files import read_text
from tracer.rules.model import address_number, address_text

NETWORKS = {
    "outside": ("10.0.1.0/24", "fd00:1::/64"),
    "web": ("10.0.2.0/24", "fd00:2::/64"),
    "db": ("10.0.3.0/24", "fd00:3::/64"),
}


class Router:
    """The routing of the router in `flows.world`: the first address of each network is its own."""

    def __init__(self, family: str) -> None:
        self._family = family

    def _ip(self, address: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(address_text(address, self._family))

    def kind(self, address: int) -> str | None:
        own = any(self._ip(address) == ipaddress.ip_network(text)[1] for pair in NETWORKS.values() for text in pair)
        return "local" if own or self._ip(address).is_loopback else "unicast"

    def device(self, address: int) -> str | None:
        if self.kind(address) == "local":
            return "lo"
        sides = [
            side for side, pair in NETWORKS.items() for text in pair if self._ip(address) in ipaddress.ip_network(text)
        ]
        return DEVICES[sides[0] if sides else "outside"]

    def arrival(self, address: int) -> str | None:
        return self.device(address)

    def source(self, address: int) -> int | None:
        side = next(side for side, device in DEVICES.items() if self.device(address) in (device, "lo"))
        return address_number(str(ipaddress.ip_network(NETWORKS[side][self._family == "ip6"])[1]))


@pytest.mark.parametrize(("text", "cases"), [(DOCKER, DOCKER_CASES), (UFW, UFW_CASES), (FIREWALLD, FIREWALLD_CASES)])
def test_what_explain_says_of_saved_tables(text: str, cases: list[Case]) -> None:
    rules = read_text(text, "saved")
    for protocol, via, source, ip, port, expected in cases:
        told = explain(rules, Question(ip, port, protocol, source), Router("ip6" if ":" in ip else "ip"))
        (outcome,) = told.outcomes
        if isinstance(expected, str):
            assert KINDS[outcome.verdict] == expected, told
            continue
        assert (outcome.ip, outcome.port) == expected[:2], told
        assert via == "router" or outcome.masquerade is (source != expected[2]), told
        assert told.service is None
