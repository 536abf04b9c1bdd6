"""Tables of Docker, ufw and firewalld in a kernel: what they are known to do, what happens, and what `explain` says."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.cli import command
from tests.tracer.rules.flows import End, Flow, World, world
from tests.tracer.rules.other_tables import DEVICES, DOCKER, FIREWALLD, UFW
from tracer.destination import endpoint_text

KINDS = {"drop": "dropped", "reject": "rejected"}
DROPPED, REJECTED = "dropped", "rejected"
# protocol, via, source, destination, port, and what becomes of it: DROPPED, REJECTED, or where it is delivered and the
# source that it has there
Case = tuple[str, str, str, str, int, str | tuple[str, int, str]]
DOCKER_CASES: list[Case] = [
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 8080, ("10.0.2.5", 80, "10.0.1.7")),  # published
    ("TCP", "outside", "10.0.1.66", "10.0.1.1", 8080, DROPPED),  # but not for this one: DOCKER-USER
    ("TCP", "router", "10.0.1.1", "10.0.1.1", 8080, ("10.0.2.5", 80, "10.0.1.1")),
    ("UDP", "outside", "10.0.1.66", "10.0.1.1", 5353, ("10.0.3.5", 53, "10.0.1.66")),
    ("UDP", "outside", "10.0.1.7", "10.0.1.1", 8080, ("10.0.1.1", 8080, "10.0.1.7")),  # published for TCP only
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 5432, ("10.0.1.1", 5432, "10.0.1.7")),  # published on 127.0.0.1 only
    (
        "TCP",
        "outside",
        "10.0.1.7",
        "10.0.2.5",
        80,
        ("10.0.2.5", 80, "10.0.1.7"),
    ),  # reachable by a route, as long as published
    ("TCP", "outside", "10.0.1.7", "10.0.2.5", 81, DROPPED),  # FORWARD's policy
    ("TCP", "web", "10.0.2.5", "10.0.3.5", 5432, DROPPED),  # isolation between bridges
    ("UDP", "db", "10.0.3.5", "10.0.2.5", 80, DROPPED),
    ("TCP", "web", "10.0.2.5", "198.51.100.1", 443, ("198.51.100.1", 443, "10.0.1.1")),  # masqueraded
    ("UDP", "db", "10.0.3.9", "198.51.100.1", 53, ("198.51.100.1", 53, "10.0.1.1")),
    ("TCP", "web", "10.0.2.5", "10.0.1.1", 8080, ("10.0.1.1", 8080, "10.0.2.5")),  # its own bridge: no DNAT
]
UFW_CASES: list[Case] = [
    ("TCP", "outside", "10.0.1.200", "10.0.1.1", 22, ("10.0.1.1", 22, "10.0.1.200")),
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 443, ("10.0.1.1", 443, "10.0.1.7")),
    ("TCP", "outside", "10.0.1.200", "10.0.1.1", 443, DROPPED),  # not of 10.0.1.0/25
    ("UDP", "outside", "10.0.1.7", "10.0.1.1", 443, DROPPED),
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 2222, ("10.0.1.1", 2222, "10.0.1.7")),  # limited: the first six pass
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 23, REJECTED),
    ("UDP", "outside", "10.0.1.7", "10.0.1.1", 2049, DROPPED),
    ("UDP", "outside", "10.0.1.7", "10.0.1.1", 137, DROPPED),
    ("TCP", "outside", "10.0.1.7", "10.0.2.5", 80, ("10.0.2.5", 80, "10.0.1.7")),  # ufw route allow
    ("TCP", "outside", "10.0.1.7", "10.0.2.5", 443, DROPPED),
    ("TCP", "web", "10.0.2.5", "10.0.2.5", 80, DROPPED),
    ("TCP", "router", "10.0.1.1", "10.0.1.9", 25, DROPPED),
    ("TCP", "router", "10.0.1.1", "10.0.1.9", 26, ("10.0.1.9", 26, "10.0.1.1")),
    ("TCP", "router", "10.0.1.1", "10.0.1.1", 9999, ("10.0.1.1", 9999, "10.0.1.1")),  # lo
]
FIREWALLD_CASES: list[Case] = [
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 22, ("10.0.1.1", 22, "10.0.1.7")),
    ("TCP", "outside", "fd00:1::7", "fd00:1::1", 22, ("fd00:1::1", 22, "fd00:1::7")),
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 23, REJECTED),
    ("UDP", "outside", "fd00:1::7", "fd00:1::1", 9011, REJECTED),
    ("UDP", "outside", "fd00:1::7", "fd00:1::1", 9010, ("fd00:1::1", 9010, "fd00:1::7")),
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 8081, ("10.0.2.5", 80, "10.0.1.7")),  # forward port, and ct status dnat
    ("TCP", "outside", "fd00:1::7", "fd00:1::1", 8081, REJECTED),  # which is for IPv4
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 8443, ("10.0.1.1", 443, "10.0.1.7")),  # redirected, and accepted for it
    ("TCP", "outside", "10.0.1.7", "10.0.1.1", 443, REJECTED),
    ("TCP", "outside", "10.0.1.7", "10.0.2.5", 80, REJECTED),
    ("TCP", "web", "10.0.2.5", "198.51.100.1", 25, ("198.51.100.1", 25, "10.0.1.1")),
    ("TCP", "web", "fd00:2::5", "2001:db8::1", 25, ("2001:db8::1", 25, "fd00:2::5")),  # masquerade is for IPv4
    ("TCP", "web", "10.0.2.5", "10.0.2.1", 9999, ("10.0.2.1", 9999, "10.0.2.5")),
    ("TCP", "db", "10.0.3.5", "10.0.3.1", 5432, ("10.0.3.1", 5432, "10.0.3.5")),
    ("TCP", "db", "10.0.3.200", "10.0.3.1", 5432, REJECTED),
    ("UDP", "db", "10.0.3.5", "198.51.100.1", 53, ("198.51.100.1", 53, "10.0.1.1")),
    ("UDP", "db", "10.0.3.5", "198.51.100.1", 54, REJECTED),
    ("TCP", "db", "10.0.3.5", "10.0.2.5", 80, REJECTED),
    ("UDP", "router", "10.0.1.1", "10.0.1.9", 54, ("10.0.1.9", 54, "10.0.1.1")),
    ("UDP", "router", "fd00:1::1", "2002:c0a8::9", 54, REJECTED),
]
TABLES = {
    "docker-legacy": ("iptables-legacy-restore", DOCKER, DOCKER_CASES),
    "docker-nft": ("iptables-nft-restore", DOCKER, DOCKER_CASES),
    "ufw-legacy": ("iptables-legacy-restore", UFW, UFW_CASES),
    "ufw-nft": ("iptables-nft-restore", UFW, UFW_CASES),
    "firewalld": ("nft -f", FIREWALLD, FIREWALLD_CASES),
}


def load(net: World, name: str, folder: Path) -> list[Case]:
    """Load the tables; returns what must become of which packets."""
    command, text, cases = TABLES[name]
    file = folder / "rules"
    file.write_text(text)
    net.router.sh(f"{command} {file}")
    return cases


def plain(end: End) -> str | tuple[str | None, int | None, str | None]:
    return end.kind if end.kind != "delivered" else (end.ip, end.port, end.source)


@pytest.mark.root
@pytest.mark.parametrize("name", TABLES)
def test_what_they_do(name: str, tmp_path: Path) -> None:
    with world(sides=DEVICES, default="outside") as net:
        cases = load(net, name, tmp_path)
        ends = net.send([Flow(protocol, source, ip, port, via) for protocol, via, source, ip, port, _ in cases])
    assert [plain(end) for end in ends] == [case[-1] for case in cases]


@pytest.mark.root
@pytest.mark.parametrize("name", TABLES)
def test_what_explain_says_they_do(name: str, tmp_path: Path) -> None:
    """By the command, of the live namespace; once for each source and family."""
    with world(sides=DEVICES, default="outside") as net:
        by_source: dict[str, list[Case]] = defaultdict(list)
        for case in load(net, name, tmp_path):
            by_source[case[2]].append(case)
        for source, cases in by_source.items():
            asked = [f"{endpoint_text(ip, port)}/{protocol.lower()}" for protocol, _, _, ip, port, _ in cases]
            done = command.run("explain", *asked, "--source", source, "--netns", net.router.path, "-o", "json")
            assert (done.returncode, done.stderr) == (0, "")
            for case, line in zip(cases, done.stdout.splitlines(), strict=True):
                compare(case, json.loads(line))


def compare(case: Case, told: dict[str, Any]) -> None:
    _, via, source, ip, port, expected = case
    (outcome,) = told["outcomes"]
    story = (case, outcome, told["depends"])
    if isinstance(expected, str):
        assert KINDS[outcome["verdict"]] == expected, story
        return
    assert (outcome["ip"], outcome["port"]) == expected[:2], story
    assert (outcome["verdict"] == "dnat") is ((ip, port) != expected[:2]), story
    if via != "router":  # whose address it is that others are masqueraded with
        assert outcome["masquerade"] is (source != expected[2]), story
    assert outcome["probability"] == 1.0, story
