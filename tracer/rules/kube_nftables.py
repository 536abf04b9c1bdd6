"""kube-proxy's nftables mode: the addresses of Services in the maps of its table.

What belongs here: names of maps and chains. What does not: the way from an address's chain to the endpoints (`routes`).
Source: kubernetes pkg/proxy/nftables/proxier.go, syncProxyRules, of v1.30.

    maps    service-ips, service-nodeports, no-endpoint-services, no-endpoint-nodeports, firewall-ips
    sets    cluster-ips, nodeport-ips, affinity-…
    chains  external-, firewall-, service-, local-, endpoint-, each followed by HASH-namespace/name/protocol/port
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracer.rules.building import FAMILIES, Building, Name, source_ranges
from tracer.rules.model import Element, Interval, Match, Table, Value, Verdict, address_text
from tracer.rules.routes import Routes
from tracer.rules.services import Address, NodePortScope

_COMMENT = re.compile(r"([^\s/:]+)/([^\s/:]+)(?::(\S+))?")
_CHAIN_NAME = re.compile(r"[a-z]+-[A-Z0-9]{8}-([^/]+)/([^/]+)/([^/]+)/([^/]*)")


def read_nftables(table: Table, routes: Routes, building: Building) -> None:
    """Add what a table called kube-proxy holds. routes: those of its chains."""
    names = _read_service_ips(table, routes, building) | _read_node_ports(table, routes, building)
    _read_refusals(table, names, building)
    if "nodeport-ips" in table.sets:
        intervals = (element.value for element in _elements(table, "nodeport-ips"))
        ips = frozenset(address_text(item.low, table.family) for item in intervals if isinstance(item, Interval))
        building.scopes.setdefault(FAMILIES[table.family], NodePortScope(ips))


def _read_service_ips(table: Table, routes: Routes, building: Building) -> dict[Value, Name]:
    """ClusterIPs, and addresses from outside: only with source ranges do rules say that they are a load balancer's."""
    firewalls = {element.value: element.data for element in _elements(table, "firewall-ips")}
    names = {}
    for element, chain, name in _served(table, "service-ips"):
        firewall = firewalls.get(element.value)
        kind = None if chain.startswith("external-") else "ClusterIP"
        ip, port = _ip_and_port(element.value, table.family)
        route = routes.of(chain)
        branches = route.branches
        ranges: tuple[str, ...] = ()
        if isinstance(firewall, Verdict) and firewall.chain is not None and firewall.chain in table.chains:
            kind = "LoadBalancer"
            allowed = _allowed_sources(table, firewall.chain)
            branches = tuple(branch._replace(conditions=allowed + branch.conditions) for branch in branches)
            ranges = source_ranges(allowed, table.family, ip)
        building.serve(name, Address(kind, ip, port, None, branches), route.affinity, ranges)
        names[element.value] = name
    return names


def _read_node_ports(table: Table, routes: Routes, building: Building) -> dict[Value, Name]:
    names = {}
    for element, chain, name in _served(table, "service-nodeports"):
        _, port = _ip_and_port(element.value, table.family)
        route = routes.of(chain)
        building.serve(name, Address("NodePort", None, port, None, route.branches), route.affinity)
        names[element.value] = name
    return names


def _served(table: Table, which: str) -> Iterator[tuple[Element, str, Name]]:
    """The elements of a map that lead to a Service's chain."""
    for element in _elements(table, which):
        chain = element.data.chain if isinstance(element.data, Verdict) else None
        match = _CHAIN_NAME.match(chain or "")
        if chain is not None and match is not None and _is_key(element.value):
            namespace, service, protocol, port_name = match.groups()
            yield element, chain, Name(FAMILIES[table.family], namespace, service, port_name, protocol.upper())


def _read_refusals(table: Table, names: dict[Value, Name], building: Building) -> None:
    cluster_ips = {element.value for element in _elements(table, "cluster-ips")}
    for which in ("no-endpoint-services", "no-endpoint-nodeports"):
        for element in _elements(table, which):
            name = _refused_name(element, table.family) or names.get(element.value)
            if name is not None and isinstance(element.data, Verdict) and _is_key(element.value):
                ip, port = _ip_and_port(element.value, table.family)
                is_cluster_ip = isinstance(element.value, tuple) and element.value[0] in cluster_ips
                kind = "NodePort" if ip is None else "ClusterIP" if is_cluster_ip else None
                building.refuse(name, kind, ip, port, "drop" if element.data.kind == "drop" else "reject")


def _elements(table: Table, name: str) -> tuple[Element, ...]:
    found = table.sets.get(name)
    return () if found is None else found.elements


def _is_key(value: Value) -> bool:
    """Whether it is `address . protocol . port` or `protocol . port`, as kube-proxy's maps have it."""
    return isinstance(value, tuple) and not isinstance(value, Interval) and isinstance(value[-1], Interval)


def _ip_and_port(value: Value, family: str) -> tuple[str | None, int]:
    assert isinstance(value, tuple) and isinstance(value[-1], Interval), value
    first = value[0]
    return (address_text(first.low, family) if isinstance(first, Interval) else None), value[-1].low


def _refused_name(element: Element, family: str) -> Name | None:
    """The Service port in an element's comment, with the protocol in its key."""
    words = _COMMENT.fullmatch(element.comment or "")
    fields = element.value if isinstance(element.value, tuple) else ()
    protocol = next((part for part in fields if isinstance(part, str)), None)
    if words is None or protocol is None:
        return None
    return Name(FAMILIES[family], words[1], words[2], words[3] or "", protocol.upper())


def _allowed_sources(table: Table, chain: str) -> tuple[Match, ...]:
    """What `ip saddr != { … } drop` lets through."""
    return tuple(
        part._replace(negated=False)
        for rule in table.chains[chain].rules
        if rule.verdict is not None and rule.verdict.kind == "drop"
        for part in rule.parts
        if isinstance(part, Match) and part.negated and part.keys == (f"{table.family} saddr",)
    )
