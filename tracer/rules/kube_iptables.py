"""kube-proxy's iptables mode, of either variant: the addresses of Services in its nat and filter tables.

What belongs here: names of chains, and the comments, which tell the Service and the kind of address. What does not: the
way from an address's chain to the endpoints (`routes`).
Source: kubernetes pkg/proxy/iptables/proxier.go, syncProxyRules, as it was from v1.21 to v1.31.

    nat     KUBE-SERVICES         "ns/name:port cluster IP", "… external IP", "… loadbalancer IP"
            KUBE-NODEPORTS        "ns/name:port"
    filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES     "… has no endpoints", "… has no local endpoints"
    chains  KUBE-EXT- (before v1.24: KUBE-XLB-) from outside, KUBE-FW- source ranges, KUBE-SVC- all endpoints,
            KUBE-SVL- those of this node, KUBE-SEP- one endpoint
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tracer.rules.building import FAMILIES, Building, Name, source_ranges
from tracer.rules.model import Interval, Match, Rule, Rules, Table, Verdict, address_text, canonical
from tracer.rules.routes import Routes
from tracer.rules.services import Address, NodePortScope

_KINDS = {"cluster IP": "ClusterIP", "external IP": "ExternalIP", "loadbalancer IP": "LoadBalancer"}
_NODE_PORTS = "KUBE-NODEPORTS"
_TO_NODE_PORTS = f" -j {_NODE_PORTS}"


class _Entry(NamedTuple):
    """One rule of KUBE-SERVICES or KUBE-NODEPORTS: a Service's address and what becomes of packets to it."""

    name: Name
    suffix: str  # of the comment, after the name
    ip: str | None
    port: int
    verdict: Verdict


_ENTRY = re.compile(
    r"-A \S+ (?:-d (\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:]+)/(?:32|128) )?-p (tcp|udp|sctp)"
    r' -m comment --comment "([^"\\]*)"(?: -m addrtype --dst-type LOCAL)? -m \2 --dport (\d+) -j (\S+)'
)
_COMMENT = re.compile(r"([^\s/:]+)/([^\s/:]+)(?::(\S+))?(?: (.*))?")
_TARGETS = {"DROP": "drop", "REJECT": "reject", "ACCEPT": "accept", "RETURN": "return"}


def read_nat(table: Table, routes: Routes, building: Building) -> None:
    """Add the addresses that a nat table serves. routes: those of its chains."""
    family = FAMILIES[table.family]
    services = table.chains["KUBE-SERVICES"].rules
    for entry in _entries(services, table):
        kind = _KINDS.get(entry.suffix)
        chain = entry.verdict.chain
        if kind is not None and entry.ip is not None and chain is not None:
            _serve(building, routes, table, entry, kind, chain)
    scope = _node_port_scope(services, table.family)
    if scope is not None:
        building.scopes.setdefault(family, scope)
    if _NODE_PORTS in table.chains:
        for entry in _entries(table.chains[_NODE_PORTS].rules, table):
            if entry.verdict.chain is not None and not entry.suffix:
                _serve(building, routes, table, entry._replace(ip=None), "NodePort", entry.verdict.chain)


def _serve(building: Building, routes: Routes, table: Table, entry: _Entry, kind: str, chain: str) -> None:
    route = routes.of(chain)
    if not route.branches:
        return  # it only marks packets (KUBE-MARK-MASQ, in KUBE-SERVICES before v1.22)
    ranges: tuple[str, ...] = ()
    if chain.startswith("KUBE-FW-"):
        matches = (part for rule in table.chains[chain].rules for part in rule.parts if isinstance(part, Match))
        ranges = source_ranges((match for match in matches if not match.negated), table.family, entry.ip)
    building.serve(entry.name, Address(kind, entry.ip, entry.port, None, route.branches), route.affinity, ranges)


def _node_port_scope(services: Rules, family: str) -> NodePortScope | None:
    """Which destinations jump on to KUBE-NODEPORTS: `-d ADDRESS` for each, or `--dst-type LOCAL`, but for some."""
    addresses: set[str] = set()
    excluded: list[Interval] = []
    everywhere = False
    for index, line in enumerate(services.raw):
        if not line.endswith(_TO_NODE_PORTS):
            continue
        chosen = [
            part for part in services[index].parts if isinstance(part, Match) and part.keys == (f"{family} daddr",)
        ]
        intervals = [
            (match.negated, value) for match in chosen for value in match.values if isinstance(value, Interval)
        ]
        excluded += (interval for negated, interval in intervals if negated)
        addresses |= {address_text(interval.low, family) for negated, interval in intervals if not negated}
        everywhere = everywhere or all(negated for negated, _ in intervals)
    if not everywhere and not addresses:
        return None
    return NodePortScope(None if everywhere else frozenset(addresses), tuple(excluded))


def read_filter(table: Table, building: Building) -> None:
    """Add the addresses at which a filter table refuses packets, as no endpoint took them."""
    for chain, kind in (("KUBE-SERVICES", "ClusterIP"), ("KUBE-EXTERNAL-SERVICES", None)):
        if chain not in table.chains:
            continue
        for entry in _entries(table.chains[chain].rules, table):
            if entry.verdict.kind in ("drop", "reject") and entry.suffix.endswith("endpoints"):
                kind_here = kind if kind is not None or entry.ip is not None else "NodePort"
                building.refuse(entry.name, kind_here, entry.ip, entry.port, entry.verdict.kind)


def _entries(rules: Rules, table: Table) -> Iterator[_Entry]:
    """The rules that are about an address of a Service; others are passed over."""
    family = FAMILIES[table.family]
    for index, line in enumerate(rules.raw):
        match = _ENTRY.match(line)
        try:
            entry = _slow_entry(rules[index], table) if match is None else _quick_entry(match, family)
        except ValueError:  # what stands where the address should is none
            entry = _slow_entry(rules[index], table)
        if entry is not None:
            yield entry


def _quick_entry(match: re.Match[str], family: int) -> _Entry | None:
    """The entry of a line as kube-proxy writes it; None when its comment names no Service. Raises ValueError."""
    ip, protocol, comment, port, target = match.groups()
    words = _COMMENT.fullmatch(comment)
    if words is None:
        return None
    name = Name(family, words[1], words[2], words[3] or "", protocol.upper())
    kind = _TARGETS.get(target)
    verdict = Verdict(kind) if kind else Verdict("jump", target)
    return _Entry(name, words[4] or "", None if ip is None else canonical(ip), int(port), verdict)


def _slow_entry(rule: Rule, table: Table) -> _Entry | None:
    """The same from a rule whose words come in another order."""
    words = _COMMENT.fullmatch(rule.comment or "")
    if words is None or rule.verdict is None:
        return None
    values = {
        part.keys[0]: part.values[0]
        for part in rule.parts
        if isinstance(part, Match) and not part.negated and part.values
    }
    protocol, address = values.get("meta l4proto"), values.get(f"{table.family} daddr")
    port = values.get(f"{protocol} dport")
    if not isinstance(protocol, str) or not isinstance(port, Interval):
        return None
    ip = address_text(address.low, table.family) if isinstance(address, Interval) else None
    name = Name(FAMILIES[table.family], words[1], words[2], words[3] or "", protocol.upper())
    return _Entry(name, words[4] or "", ip, port.low, rule.verdict)
