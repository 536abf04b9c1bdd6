"""The Service map against the objects that it came from: all three ways in which a real kube-proxy wrote its rules."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.tracer.rules.expected import SOURCES, EndpointKey, ExpectedAddress, ExpectedPort, PortKey, expected_ports
from tracer.rules import steps
from tracer.rules.iptables_save import read_save
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import RuleSet, Verdict
from tracer.rules.nft_json import read_nft_json
from tracer.rules.nft_text import read_nft_text
from tracer.rules.services import Address, ServiceMap, ServicePort

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kube-proxy-v1.30.5"
NODE_IPS = ("172.18.0.2", "fc00:f853:ccd:e793::2")
SOURCE_IPS = {
    4: {"pod": "10.244.7.7", "node": "172.18.0.2", "outside": "192.0.2.9"},
    6: {"pod": "fd00:10:244::7:7", "node": "fc00:f853:ccd:e793::2", "outside": "2001:db8::9"},
}
FORMS = ("iptables-legacy", "iptables-nft", "nftables-json", "nftables-text")


@functools.cache
def rules(form: str) -> RuleSet:
    """The rules as kube-proxy left them, in one of FORMS."""
    if form == "nftables-json":
        return read_nft_json((FIXTURES / "nftables.json").read_text(), "nftables.json")
    if form == "nftables-text":
        return read_nft_text((FIXTURES / "nftables.nft").read_text(), "nftables.nft")
    variant = form.removeprefix("iptables-")
    found = RuleSet()
    for program in ("iptables", "ip6tables"):
        name = f"{program}-{variant}.save"
        found.add(read_save((FIXTURES / name).read_text(), name))
    return found


@functools.cache
def services(form: str) -> ServiceMap:
    return service_map(rules(form))


@functools.cache
def expected(family: int) -> dict[PortKey, ExpectedPort]:
    objects = json.loads((FIXTURES / "objects.json").read_text())
    return expected_ports(objects, family, "node1", SOURCE_IPS[family])


def of_family(form: str, family: int) -> dict[PortKey, ServicePort]:
    ports = [port for port in services(form).services if port.family == family]
    found = {(port.namespace, port.name, port.port_name, port.protocol): port for port in ports}
    assert len(found) == len(ports)
    return found


def pairs(form: str, family: int) -> list[tuple[ServicePort, Address, ExpectedAddress]]:
    """Each address that there is, with what is expected of it."""
    return [
        (port, address, wanted)
        for key, port in of_family(form, family).items()
        for address in port.addresses
        for wanted in expected(family)[key].addresses
        if (wanted.ip, wanted.port) == (address.ip, address.port)
    ]


def keys(endpoints: tuple[object, ...]) -> set[EndpointKey]:
    return {(endpoint.ip, endpoint.port) for endpoint in endpoints}  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("form", FORMS)
class TestAgainstObjects:
    def test_every_service_port_is_there(self, form: str, family: int) -> None:
        assert len(expected(family)) > 10
        assert of_family(form, family).keys() == expected(family).keys()

    def test_every_address_is_there(self, form: str, family: int) -> None:
        for key, port in of_family(form, family).items():
            found = {(address.ip, address.port, address.refused) for address in port.addresses}
            assert found == {(a.ip, a.port, a.refused) for a in expected(family)[key].addresses}, key

    def test_kind_of_each_address(self, form: str, family: int) -> None:
        for port, address, wanted in pairs(form, family):
            if address.kind is not None:
                assert address.kind == wanted.kind, (port.name, address)
            else:
                assert wanted.kind in ("ExternalIP", "LoadBalancer")
                assert form.startswith("nftables") or wanted.refused == "reject"

    def test_iptables_comments_tell_external_from_balancer(self, form: str, family: int) -> None:
        if form.startswith("iptables"):
            unknown = [address for _, address, wanted in pairs(form, family) if address.kind is None]
            assert unknown == []

    def test_endpoints(self, form: str, family: int) -> None:
        for key, port in of_family(form, family).items():
            assert keys(port.endpoints) == expected(family)[key].endpoints, key
            assert keys(port.local_endpoints) == expected(family)[key].local_endpoints, key

    def test_shares_are_equal_and_sum_to_one(self, form: str, family: int) -> None:
        checked = 0
        for port in of_family(form, family).values():
            for endpoints in filter(None, (port.endpoints, port.local_endpoints)):
                shares = [endpoint.probability for endpoint in endpoints]
                assert shares == pytest.approx([1 / len(endpoints)] * len(endpoints), abs=1e-8), port.name
                assert sum(shares) == pytest.approx(1.0, abs=1e-12)  # type: ignore[arg-type]
                checked += len(endpoints) > 2
        assert checked

    def test_affinity_ranges_and_no_endpoints(self, form: str, family: int) -> None:
        for key, port in of_family(form, family).items():
            wanted = expected(family)[key]
            assert port.session_affinity_seconds == wanted.affinity, key
            assert port.source_ranges == wanted.source_ranges, key
            assert port.no_endpoints == wanted.no_endpoints, key

    @pytest.mark.parametrize("source", SOURCES)
    def test_where_each_source_can_go(self, form: str, family: int, source: str) -> None:
        """For every address and every endpoint: reachable or not, and with which share, as the policies say."""
        book = services(form)
        for port, address, wanted in pairs(form, family):
            chosen = wanted.endpoints[source]
            for ip, number in keys(port.endpoints + port.local_endpoints):
                found = book.backend(port, address, ip, number, SOURCE_IPS[family][source], NODE_IPS)
                assert (found is not None) == ((ip, number) in chosen), (port.name, address, ip)
                if found is not None:
                    assert found.probability == pytest.approx(1 / len(chosen), abs=1e-8)

    def test_look_up_finds_each_address(self, form: str, family: int) -> None:
        for port, address, _ in pairs(form, family):
            ip = address.ip or NODE_IPS[0 if family == 4 else 1]
            assert services(form).find(port.protocol, ip, address.port, NODE_IPS) == (port, address)

    def test_chains_told_are_chains_that_lead_there(self, form: str, family: int) -> None:
        """Each chain must be entered from the one before it, by a rule of the kernel's."""
        told = "ip" if family == 4 else "ip6"
        table = next(
            table for table in rules(form).tables if table.family == told and table.name in ("nat", "kube-proxy")
        )
        walked = 0
        for port, address, _ in pairs(form, family):
            for endpoint in port.endpoints + port.local_endpoints:
                found = services(form).backend(port, address, endpoint.ip, endpoint.port)
                if found is None:
                    continue
                for chain, following in zip(found.chains, found.chains[1:], strict=False):
                    texts = [rule.text for rule in table.chains[chain].rules]
                    assert any(f" {following}" in text for text in texts), (chain, following)
                last = table.chains[found.chains[-1]].rules[-1].text
                shown = f"[{found.ip}]" if family == 6 else found.ip
                assert last.endswith(f" {shown}:{found.port}")
                walked += 1
        assert walked > 10


def test_all_forms_agree_but_for_kinds_that_nftables_does_not_tell() -> None:
    first, *others = ([_comparable(port) for port in services(form).services] for form in FORMS)
    for other in others:
        assert other == first


def _comparable(port: ServicePort) -> dict[str, object]:
    document = port.to_json()
    document["addresses"] = sorted((a["ip"] or "", a["port"], a["refused"]) for a in document["addresses"])
    for name in ("endpoints", "local_endpoints"):
        document[name] = sorted((e["ip"], e["port"], round(e["probability"], 8)) for e in document[name])
    return document


@pytest.mark.parametrize("form", FORMS)
def test_short_cuts_say_what_the_rules_say(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the shapes that kube-proxy writes are read in a quicker way, which must not change anything."""
    taken = []
    for name in ("quick_iptables_step", "quick_nft_step", "quick_json_step"):
        quick = getattr(steps, name)
        monkeypatch.setattr(steps, name, lambda raw, quick=quick: taken.append(quick(raw)))
    slow, fast = service_map(rules(form)).services, services(form).services
    assert sum(step is not None for step in taken) > 300
    assert slow == fast
    ways = [[address.branches for port in ports for address in port.addresses] for ports in (slow, fast)]
    assert ways[0] == ways[1]


def test_fixtures_hold_what_matters() -> None:
    """Else the tests above would test less than they seem to."""
    wanted = [port for family in (4, 6) for port in expected(family).values()]
    assert {port.affinity for port in wanted} == {None, 60, 10800}
    assert any(port.source_ranges for port in wanted)
    assert any(port.no_endpoints for port in wanted)
    assert any(port.local_endpoints not in (frozenset(), port.endpoints) for port in wanted)
    refusals = {address.refused for port in wanted for address in port.addresses}
    assert refusals == {None, "drop", "reject"}
    assert {a.kind for port in wanted for a in port.addresses} == {
        "ClusterIP",
        "NodePort",
        "ExternalIP",
        "LoadBalancer",
    }


@pytest.mark.parametrize("form", FORMS)
def test_no_rule_of_kube_proxy_is_beyond_the_readers(form: str) -> None:
    parts = [
        part
        for table in rules(form).tables
        for chain in table.chains.values()
        for rule in chain.rules
        for part in rule.parts
    ]
    assert sum(isinstance(part, Verdict) for part in parts) > 100
    assert [part for part in parts if type(part).__name__ in ("Unknown", "Other")] == []
