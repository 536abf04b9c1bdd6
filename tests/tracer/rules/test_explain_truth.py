"""What `explain` says of kube-proxy's rules, against what the objects alone say, for every address and many sources.

The same question is put to the rules of all variants and forms. That the expectation is the kernel's own, too, is held
by test_expected_flows.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.cli import command
from tests.tracer.rules.expected_flows import ExpectedFlow
from tests.tracer.rules.test_expected_flows import FIXTURES, NODE_IP, SOURCE_IPS, flows
from tracer.rules.explain import Question, explain
from tracer.rules.files import read_files
from tracer.rules.model import RuleSet
from tracer.rules.routing import ToldRouting

FILES = {
    "iptables-legacy": ("iptables-legacy.save", "ip6tables-legacy.save"),
    "iptables-nft": ("iptables-nft.save", "ip6tables-nft.save"),
    "nftables": ("nftables.nft",),
    "nftables-json": ("nftables.json",),
}
FAMILIES = {4: "ip", 6: "ip6"}
GRAIN = 2**-31  # the kernel compares 31 random bits with the probability of a rule, which iptables writes in decimals


def paths(form: str) -> list[Path]:
    return [FIXTURES / name for name in FILES[form]]


@functools.cache
def rules(form: str) -> RuleSet:
    return read_files(paths(form))


@functools.cache
def cases(form: str, family: int) -> list[ExpectedFlow]:
    return flows(family, form.removesuffix("-json"))


def ask(form: str, ip: str, port: int, protocol: str, source: str | None) -> dict[str, Any]:
    """The document of `explain -o json` for a node whose addresses are known."""
    routing = ToldRouting(FAMILIES[6 if ":" in ip else 4], NODE_IP.values(), complete=True)
    return explain(rules(form), Question(ip, port, protocol, source), routing).to_json()


def answered(document: dict[str, Any]) -> tuple[Any, ...]:
    """The part of an answer that must be exactly what is expected."""
    service = document["service"]
    return (
        document["verdict"],
        {(backend["ip"], backend["port"]) for backend in document["backends"]},
        {(backend["ip"], backend["port"]) for backend in document["backends"] if backend["masquerade"]},
        document["masquerade"],
        document["affinity_seconds"],
        None if service is None else (service["namespace"], service["name"], service["port_name"]),
    )


def wanted(case: ExpectedFlow) -> tuple[Any, ...]:
    all_masqueraded = bool(case.backends) and case.masqueraded == case.backends
    return case.verdict, case.backends, case.masqueraded, all_masqueraded, case.affinity, case.key[:3]


def assert_certain_and_even(document: dict[str, Any]) -> None:
    """One verdict, nothing that depends, and the same share for each backend."""
    assert document["shares"] == {document["verdict"]: 1.0}
    assert (document["depends"], document["otherwise"], document["notes"]) == ([], [], [])
    shares = [backend["probability"] for backend in document["backends"]]
    assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=len(shares) * GRAIN) if shares else True
    assert sum(shares) == pytest.approx(1.0 if shares else 0.0, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FILES)
def test_every_address_from_every_source(form: str, family: int) -> None:
    assert len(cases(form, family)) == {4: 736, 6: 148}[family]
    for case in cases(form, family):
        document = ask(form, case.ip, case.port, case.protocol, case.source)
        assert answered(document) == wanted(case), case
        assert_certain_and_even(document)
        assert document["from"] == ("node" if case.source_kind == "node" else "outside")


@pytest.mark.parametrize("family", FAMILIES)
def test_all_variants_and_forms_give_the_same_answer(family: int) -> None:
    """But for what the modes do differently: the node's own packets to addresses without endpoints here."""
    different = set()
    for case in cases("iptables-legacy", family):
        found = [answered(ask(form, case.ip, case.port, case.protocol, case.source)) for form in FILES]
        legacy, nft, text, document = found
        assert legacy == nft, case
        assert text == document, case
        if legacy != text:
            different.add((case.kind, case.source_kind, legacy[0], text[0], case.ip, case.port))
    expected = {
        (old.kind, old.source_kind, old.verdict, new.verdict, old.ip, old.port)
        for old, new in zip(cases("iptables-legacy", family), cases("nftables", family), strict=True)
        if old != new
    }
    assert different == expected
    assert len(expected) == {4: 7, 6: 0}[family]


@pytest.mark.parametrize("form", FILES)
def test_the_command_says_the_same(form: str) -> None:
    """All addresses in one command, from a process of this node and from a pod."""
    options = [f"--rules={path}" for path in paths(form)] + [f"--node-ip={ip}" for ip in NODE_IP.values()]
    for source_kind, source in (("node", None), ("pod", SOURCE_IPS[4]["pod"])):
        asked = [case for case in cases(form, 4) if case.source_kind == source_kind]
        destinations = [f"{case.ip}:{case.port}/{case.protocol.lower()}" for case in asked]
        from_where = [] if source is None else ["--source", source]
        done = command.run("explain", *destinations, *options, *from_where, "-o", "json")
        assert (done.returncode, done.stderr) == (0, "")
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(documents) == len(asked) > 100
        for case, document in zip(asked, documents, strict=True):
            assert answered(document) == wanted(case), case
            assert document["destination"] == f"{case.ip}:{case.port}"


@pytest.mark.parametrize("form", FILES)
def test_ports_that_no_service_has(form: str) -> None:
    """nftables mode rejects them, iptables mode lets packets to them pass (proxier.go, cluster-ips-check)."""
    cluster_ips = {case.ip for case in cases(form, 4) if case.kind == "ClusterIP"}
    expected = ("reject" if form.startswith("nftables") else "untouched", [], None)
    for ip in sorted(cluster_ips):
        for source in SOURCE_IPS[4].values():
            document = ask(form, ip, 1, "TCP", source)
            assert (document["verdict"], document["backends"], document["service"]) == expected
            assert document["masquerade"] is False


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("ip", ["198.51.100.250", "10.244.0.66", "172.18.0.3", "2001:db8::1"])
def test_destinations_that_are_no_services(form: str, ip: str) -> None:
    """A host outside, a pod, another node: NodePorts answer at this node's addresses only."""
    node_ports = defaultdict(set)
    for case in cases(form, 4):
        if case.kind == "NodePort":
            node_ports[case.protocol].add(case.port)
    assert len(node_ports["TCP"]) > 10
    for source in SOURCE_IPS[6 if ":" in ip else 4].values():
        for port in sorted(node_ports["TCP"]):
            document = ask(form, ip, port, "TCP", source)
            assert (document["verdict"], document["backends"], document["service"]) == ("untouched", [], None)
            assert (document["masquerade"], document["affinity_seconds"]) == (False, None)
