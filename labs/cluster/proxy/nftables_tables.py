"""nftables mode, what does not depend on any Service: the table with its shared chains, sets and maps, and how a script
writes them.

Stands for the frame of pkg/proxy/nftables/proxier.go (v1.30.5):

What is here                        there
    BASE_CHAINS, JUMPS, `setup`         nftablesBaseChains, nftablesJumpChains, setupNFTables

What one Service adds belongs to nftables.py, what has to be written after a change to nftables_sync.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from labs.cluster.proxy.node import LOOPBACK
from labs.cluster.proxy.settings import Settings

TABLE = "kube-proxy"

SERVICES = "services"
MASQUERADING = "masquerading"
MARK_MASQ = "mark-for-masquerade"
REJECT = "reject-chain"
CLUSTER_IPS_CHECK = "cluster-ips-check"
SERVICE_ENDPOINTS_CHECK = "service-endpoints-check"
NODEPORT_ENDPOINTS_CHECK = "nodeport-endpoints-check"
FIREWALL_CHECK = "firewall-check"

CLUSTER_IPS = "cluster-ips"
NODEPORT_IPS = "nodeport-ips"
SERVICE_IPS = "service-ips"
SERVICE_NODEPORTS = "service-nodeports"
NO_ENDPOINT_SERVICES = "no-endpoint-services"
NO_ENDPOINT_NODEPORTS = "no-endpoint-nodeports"
FIREWALL_IPS = "firewall-ips"


class BaseChain(NamedTuple):
    """A chain that hangs on a netfilter hook. Filters stand before DNAT (-100): they must see the Service's address."""

    name: str
    type: str
    hook: str
    priority: int


BASE_CHAINS = (
    BaseChain("filter-prerouting", "filter", "prerouting", -110),
    BaseChain("filter-input", "filter", "input", -110),
    BaseChain("filter-forward", "filter", "forward", -110),
    BaseChain("filter-output", "filter", "output", -110),
    BaseChain("filter-output-post-dnat", "filter", "output", -90),
    BaseChain("nat-prerouting", "nat", "prerouting", -100),
    BaseChain("nat-output", "nat", "output", -100),
    BaseChain("nat-postrouting", "nat", "postrouting", 100),
)


class Jump(NamedTuple):
    """A rule in a base chain that leads into one of the others."""

    target: str
    source: str
    match: str = "ct state new "


JUMPS = (
    # Not from filter-prerouting, where kernels before 5.9 can't reject.
    Jump(NODEPORT_ENDPOINTS_CHECK, "filter-input"),
    Jump(SERVICE_ENDPOINTS_CHECK, "filter-input"),
    Jump(SERVICE_ENDPOINTS_CHECK, "filter-forward"),
    Jump(SERVICE_ENDPOINTS_CHECK, "filter-output"),
    Jump(FIREWALL_CHECK, "filter-prerouting"),
    Jump(FIREWALL_CHECK, "filter-output"),
    Jump(SERVICES, "nat-output", ""),
    Jump(SERVICES, "nat-prerouting", ""),
    Jump(MASQUERADING, "nat-postrouting", ""),
    Jump(CLUSTER_IPS_CHECK, "filter-forward"),
    Jump(CLUSTER_IPS_CHECK, "filter-output-post-dnat"),
)

_VERDICT_BY_ADDRESS = "{address} . inet_proto . inet_service : verdict"
_VERDICT_BY_PORT = "inet_proto . inet_service : verdict"
SETS = {
    CLUSTER_IPS: ("{address}", "Active ClusterIPs"),
    NODEPORT_IPS: ("{address}", "IPs that accept NodePort traffic"),
}
MAPS = {
    NO_ENDPOINT_SERVICES: (_VERDICT_BY_ADDRESS, "vmap to drop or reject packets to services with no endpoints"),
    NO_ENDPOINT_NODEPORTS: (_VERDICT_BY_PORT, "vmap to drop or reject packets to service nodeports with no endpoints"),
    FIREWALL_IPS: (_VERDICT_BY_ADDRESS, "destinations that are subject to LoadBalancerSourceRanges"),
    SERVICE_IPS: (_VERDICT_BY_ADDRESS, "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
    SERVICE_NODEPORTS: (_VERDICT_BY_PORT, "NodePort traffic"),
}


class Element(NamedTuple):
    """An element of one of SETS (without a verdict) or MAPS. `comment` names the Service where kube-proxy does so."""

    container: str
    key: str
    verdict: str = ""
    comment: str = ""


@dataclass(slots=True)
class ServiceRules:
    """What one Service port adds: elements of the shared sets and maps, and chains and affinity sets of its own.

    `rules` are (chain, rule) pairs, in order; `affinity_sets` maps names to seconds.
    """

    elements: list[Element] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    affinity_sets: dict[str, int] = field(default_factory=dict)
    rules: list[tuple[str, str]] = field(default_factory=list)


def setup(settings: Settings) -> Iterator[str]:
    """The table, its base chains, shared chains, sets and maps, emptied, and the rules that depend on no Service."""
    ip, address = ("ip", "ipv4_addr") if settings.family == 4 else ("ip6", "ipv6_addr")
    table = table_name(settings)
    yield f'add table {table} {{ comment "rules for kube-proxy" ; }}'
    for base in BASE_CHAINS:
        yield f"add chain {table} {base.name} {{ type {base.type} hook {base.hook} priority {base.priority} ; }}"
        yield f"flush chain {table} {base.name}"
    for chain in dict.fromkeys([*(jump.target for jump in JUMPS), MARK_MASQ]):
        yield f"add chain {table} {chain}"
        yield f"flush chain {table} {chain}"
    yield f'add chain {table} {REJECT} {{ comment "helper for @{NO_ENDPOINT_SERVICES} / @{NO_ENDPOINT_NODEPORTS}" ; }}'
    yield f"flush chain {table} {REJECT}"
    for kind, containers in (("set", SETS), ("map", MAPS)):
        for name, (type_, comment) in containers.items():
            yield f'add {kind} {table} {name} {{ type {type_.format(address=address)} ; comment "{comment}" ; }}'
            yield f"flush {kind} {table} {name}"
    if settings.node.ip != LOOPBACK[settings.family]:
        yield f"add element {table} {NODEPORT_IPS} {{ {settings.node.ip} }}"
    for chain, rule in _shared_rules(settings, ip):
        yield f"add rule {table} {chain} {rule}"


def _shared_rules(settings: Settings, ip: str) -> Iterator[tuple[str, str]]:
    """Give the (chain, rule) pairs of the chains that all Services share."""
    by_address, by_port = f"{ip} daddr . meta l4proto . th dport", f"{ip} daddr @{NODEPORT_IPS} meta l4proto . th dport"
    yield from ((jump.source, f"{jump.match}jump {jump.target}") for jump in JUMPS)
    yield MARK_MASQ, f"mark set mark or {settings.mark}"
    yield MASQUERADING, f"mark and {settings.mark} == 0 return"
    # Unmark, so that the packet is not masqueraded again if it passes the stack once more.
    yield MASQUERADING, f"mark set mark xor {settings.mark}"
    yield MASQUERADING, "masquerade fully-random"
    refuse = 'reject comment "Reject traffic to invalid ports of ClusterIPs"'
    yield CLUSTER_IPS_CHECK, f"{ip} daddr @{CLUSTER_IPS} {refuse}"
    yield REJECT, "reject"
    yield SERVICE_ENDPOINTS_CHECK, f"{by_address} vmap @{NO_ENDPOINT_SERVICES}"
    yield NODEPORT_ENDPOINTS_CHECK, f"{by_port} vmap @{NO_ENDPOINT_NODEPORTS}"
    yield FIREWALL_CHECK, f"{by_address} vmap @{FIREWALL_IPS}"
    yield SERVICES, f"{by_address} vmap @{SERVICE_IPS}"
    yield SERVICES, f"{by_port} vmap @{SERVICE_NODEPORTS}"


def table_name(settings: Settings) -> str:
    """Give family and name of the table, as commands want them."""
    return f"{'ip' if settings.family == 4 else 'ip6'} {TABLE}"


def declarations(rules: ServiceRules, settings: Settings) -> Iterator[str]:
    """Give the commands that make one Service port's chains, empty, and its affinity sets unless they are there."""
    table, address = table_name(settings), "ipv4_addr" if settings.family == 4 else "ipv6_addr"
    for chain in rules.chains:
        yield f"add chain {table} {chain}"
        yield f"flush chain {table} {chain}"
    for name, seconds in rules.affinity_sets.items():
        # "dynamic", although nothing stateful is in it: some kernels add that, and then refuse a set without it.
        yield f"add set {table} {name} {{ type {address} ; flags dynamic,timeout ; timeout {seconds}s ; }}"


def add_element(table: str, element: Element) -> str:
    """Give the command that adds one element."""
    container, key, verdict, comment = element
    about, goes_to = f' comment "{comment}"' if comment else "", f" : {verdict}" if verdict else ""
    return f"add element {table} {container} {{ {key}{about}{goes_to} }}"
