"""kube-proxy in nftables mode: Services and their endpoints, written as a script for `nft -f`.

Stands for pkg/proxy/nftables/proxier.go of kube-proxy v1.30.5, rule for rule. All of it lives in one table of each
family, "kube-proxy". Where iptables mode asks one rule after the other, this mode looks up one map, so its work for a
packet doesn't grow with the number of Services:

    nat-prerouting, nat-output -> services      look up address and port in @service-ips, or port in @service-nodeports
      -> service-<hash>-…                       ClusterIP: pick one of all endpoints, at random
      -> local-<hash>-…                         ClusterIP with traffic policy Local: one of this node's endpoints
      -> external-<hash>-…                      all other addresses: mark for masquerading, then service-…;
                                                with traffic policy Local: don't mark, then local-…
    service-…, local-… -> endpoint-<hash>-…     one endpoint: DNAT to its address
    nat-postrouting -> masquerading             masquerade what was marked on the way
    filter-prerouting -> firewall-check         load balancers with source ranges: @firewall-ips -> firewall-<hash>-…
    filter-input, … -> …-endpoints-check        turn away traffic for Services without endpoints
    filter-forward, … -> cluster-ips-check      turn away traffic for ports that a ClusterIP hasn't got

What is here                        there
    `full_sync`                         syncProxyRules
    `service_rules`                     the body of its loop over svcPortMap
    `_spread`                           writeServiceToEndpointRules
    `_name`                             servicePortChainNameBase, servicePortEndpointChainNameBase

The chains, sets and maps that all Services share are in nftables_tables.py; what one sync leaves of the last one
is decided in nftables_sync.py. Left out: `--nodeport-addresses` (NodePorts answer on the node's own address, the
default in this mode), and metrics. When two Services claim one address and port,
kube-proxy's transaction fails as a whole; here the first one keeps it. The order of Services is that of the objects.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from labs.cluster.proxy.addresses import contains
from labs.cluster.proxy.endpoints import Endpoint, Usable, categorize, endpoints_by_port
from labs.cluster.proxy.nftables_tables import (
    CLUSTER_IPS,
    FIREWALL_IPS,
    MARK_MASQ,
    NO_ENDPOINT_NODEPORTS,
    NO_ENDPOINT_SERVICES,
    REJECT,
    SERVICE_IPS,
    SERVICE_NODEPORTS,
    Element,
    ServiceRules,
    add_element,
    declarations,
    setup,
    table_name,
)
from labs.cluster.proxy.services import PortKey, ServicePort, service_ports
from labs.cluster.proxy.settings import Settings, settings_for

NAME_LENGTH_MAX = 256 - 16  # knftables.NameLengthMax, less room for "endpoint-" and the like


def render(
    objects: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    node_name: str,
    family: int,
    cluster_cidrs: Iterable[str] = (),
    masquerade_bit: int = 14,
    masquerade_all: bool = False,
) -> str:
    """Give the whole table as kube-proxy writes it on `node_name` for `family` (4 or 6), as a script for `nft -f`.

    `objects` holds the API's JSON objects under "services", "endpointslices" and "nodes" (see objects.py).
    """
    settings = settings_for(
        objects.get("nodes") or (),
        node_name=node_name,
        family=family,
        cluster_cidrs=cluster_cidrs,
        masquerade_bit=masquerade_bit,
        masquerade_all=masquerade_all,
    )
    return full_sync(
        service_ports(objects.get("services") or (), family),
        endpoints_by_port(objects.get("endpointslices") or (), node_name=node_name, family=family),
        settings,
    )


def full_sync(ports: Mapping[Any, ServicePort], endpoints: Mapping[Any, Sequence[Endpoint]], settings: Settings) -> str:
    """Give the script of a full sync for all Service ports, whose endpoints are found under the same keys.

    It is one transaction: the kernel takes all of it, or nothing. It flushes what was in the shared chains, sets and
    maps before; affinity sets keep who is in them.
    """
    lines = list(setup(settings))
    claimed: set[tuple[str, str]] = set()
    for key, port in ports.items():
        rules = service_rules(port, endpoints.get(key, ()), settings)
        lines += _script(rules, settings, claimed)
    return "\n".join([*lines, ""])


def service_rules(port: ServicePort, endpoints: Sequence[Endpoint], settings: Settings) -> ServiceRules:
    """Give the chains, rules and elements of one Service port."""
    plan = _Plan(port, categorize(endpoints, port, settings.node.zone), settings)
    out = ServiceRules()
    _declare_chains(plan, out)
    _cluster_ip(plan, out)
    _external_ips(plan, out)
    _load_balancer(plan, out)
    _node_port(plan, out)
    if plan.usable.internal:
        _internal_masquerade(plan, out)
    if plan.has_external_chain:
        _external_chain(plan, out)
    if plan.has_firewall:
        _firewall_chain(plan, out)
    if plan.usable.cluster:
        _spread(plan, plan.cluster_chain, plan.usable.cluster, out)
    if plan.usable.local:
        _spread(plan, plan.local_chain, plan.usable.local, out)
    for endpoint in plan.usable.reachable:
        _endpoint_chain(plan, endpoint, out)
    return out


class _Plan:
    """One Service port, and what is decided about it before any rule is written."""

    def __init__(self, port: ServicePort, usable: Usable, settings: Settings) -> None:
        self.port, self.usable, self.settings = port, usable, settings
        self.ip = "ip" if settings.family == 4 else "ip6"
        self.name = str(port.key)
        base = _name(_base(port.key))
        self.cluster_chain, self.local_chain = f"service-{base}", f"local-{base}"
        self.external_chain, self.firewall_chain = f"external-{base}", f"firewall-{base}"
        self.internal_chain = self.local_chain if port.internal_policy_local else self.cluster_chain
        self.external_policy_chain = self.local_chain if port.external_policy_local else self.cluster_chain
        self.has_external_chain = usable.anywhere and port.externally_accessible
        self.has_firewall = bool(port.load_balancer_vips and port.source_ranges)
        self.endpoint_bases = {e.address: _name(f"{_base(port.key)}__{_slashed(e)}") for e in usable.reachable}
        # Nobody anywhere: say so. Only nobody on *this* node: stay silent, another node may answer.
        self.refusal = "drop" if usable.anywhere else f"goto {REJECT}"

    def endpoint_chain(self, endpoint: Endpoint) -> str:
        return f"endpoint-{self.endpoint_bases[endpoint.address]}"

    def affinity_set(self, endpoint: Endpoint) -> str:
        return f"affinity-{self.endpoint_bases[endpoint.address]}"

    def at(self, ip: str) -> str:
        """Give the key in a map for the Service's port at one of its addresses."""
        return f"{ip} . {self.port.protocol} . {self.port.port}"


def _base(key: PortKey) -> str:
    return f"{key.namespace}/{key.service}/{key.protocol.lower()}/{key.port}"


def _slashed(endpoint: Endpoint) -> str:
    """Give "ip/port" without colons, which nft has other uses for."""
    return f"{endpoint.ip.replace(':', '.')}/{endpoint.port}"


def _name(text: str) -> str:
    """Give the part of a chain's name after its kind: a short hash, so that names differ early, and a full name."""
    hashed = base64.b32encode(hashlib.sha256(text.encode()).digest()[:5]).decode()
    name = f"{hashed}-{text}"
    return name if len(name) <= NAME_LENGTH_MAX else name[: NAME_LENGTH_MAX - 3] + "..."


# --- Entry: which address and port lead to which chain --------------------------------------------


def _cluster_ip(plan: _Plan, out: ServiceRules) -> None:
    ip = plan.port.cluster_ip
    out.elements.append(Element(CLUSTER_IPS, ip))
    if plan.usable.internal:
        out.elements.append(Element(SERVICE_IPS, plan.at(ip), f"goto {plan.internal_chain}"))
    else:
        out.elements.append(Element(NO_ENDPOINT_SERVICES, plan.at(ip), plan.refusal, plan.name))


def _external_ips(plan: _Plan, out: ServiceRules) -> None:
    for ip in plan.port.external_ips:
        _external_ip(plan, ip, out)


def _external_ip(plan: _Plan, ip: str, out: ServiceRules) -> None:
    if plan.usable.anywhere:
        out.elements.append(Element(SERVICE_IPS, plan.at(ip), f"goto {plan.external_chain}"))
    if not plan.usable.external:
        out.elements.append(Element(NO_ENDPOINT_SERVICES, plan.at(ip), plan.refusal, plan.name))


def _load_balancer(plan: _Plan, out: ServiceRules) -> None:
    for ip in plan.port.load_balancer_vips:
        _external_ip(plan, ip, out)
        if plan.has_firewall:
            out.elements.append(Element(FIREWALL_IPS, plan.at(ip), f"goto {plan.firewall_chain}", plan.name))


def _node_port(plan: _Plan, out: ServiceRules) -> None:
    if plan.port.node_port:
        key = f"{plan.port.protocol} . {plan.port.node_port}"
        if plan.usable.anywhere:
            out.elements.append(Element(SERVICE_NODEPORTS, key, f"goto {plan.external_chain}"))
        if not plan.usable.external:
            out.elements.append(Element(NO_ENDPOINT_NODEPORTS, key, plan.refusal, plan.name))


# --- The Service's own chains ---------------------------------------------------------------------


def _declare_chains(plan: _Plan, out: ServiceRules) -> None:
    """Name every chain first: a rule or an element may only lead to a chain that is there."""
    out.chains += [plan.endpoint_chain(e) for e in plan.usable.reachable]
    wanted = {
        plan.cluster_chain: plan.usable.cluster,
        plan.local_chain: plan.usable.local,
        plan.external_chain: plan.has_external_chain,
        plan.firewall_chain: plan.has_firewall,
    }
    out.chains += [chain for chain, needed in wanted.items() if needed]


def _internal_masquerade(plan: _Plan, out: ServiceRules) -> None:
    """Mark what comes to the ClusterIP from outside the cluster: the answer must come back through this node."""
    port, settings = plan.port, plan.settings
    match = f"{plan.ip} daddr {port.cluster_ip} {port.protocol} dport {port.port}"
    if settings.masquerade_all:
        out.rules.append((plan.internal_chain, f"{match} jump {MARK_MASQ}"))
    elif settings.cluster_cidr:
        out.rules.append((plan.internal_chain, f"{match} {plan.ip} saddr != {settings.cluster_cidr} jump {MARK_MASQ}"))


def _external_chain(plan: _Plan, out: ServiceRules) -> None:
    """external-…: what has come in by any address but the ClusterIP."""
    chain, cidr = plan.external_chain, plan.settings.cluster_cidr
    if not plan.port.external_policy_local:
        # The endpoint may be on another node: its answer must pass here again.
        out.rules.append((chain, f"jump {MARK_MASQ}"))
    else:
        # Pods and processes of this node are not "external": they may use every endpoint. Only what is really from
        # outside must stay here, so that it keeps its source address.
        to_all = f"goto {plan.cluster_chain}"
        if cidr:
            out.rules.append((chain, f'{plan.ip} saddr {cidr} {to_all} comment "short-circuit pod traffic"'))
        out.rules.append((chain, f'fib saddr type local jump {MARK_MASQ} comment "masquerade local traffic"'))
        out.rules.append((chain, f'fib saddr type local {to_all} comment "short-circuit local traffic"'))
    if plan.usable.external:
        out.rules.append((chain, f"goto {plan.external_policy_chain}"))


def _firewall_chain(plan: _Plan, out: ServiceRules) -> None:
    """firewall-…: only allowed sources go on."""
    allowed = list(plan.port.source_ranges)
    if any(contains(cidr, plan.settings.node.ip) for cidr in allowed):
        # The load balancer's address is often a local one: then this node's own requests come from that very address.
        allowed += plan.port.load_balancer_vips
    out.rules.append((plan.firewall_chain, f"{plan.ip} saddr != {{ {' , '.join(allowed)} }} drop"))


def _spread(plan: _Plan, chain: str, endpoints: Sequence[Endpoint], out: ServiceRules) -> None:
    """service-… or local-…: old clients go where they went; the others' choice is one random number."""
    if plan.port.affinity_seconds is not None:
        out.rules += [
            (chain, f"{plan.ip} saddr @{plan.affinity_set(e)} goto {plan.endpoint_chain(e)}") for e in endpoints
        ]
    choices = " , ".join(f"{index} : goto {plan.endpoint_chain(e)}" for index, e in enumerate(endpoints))
    out.rules.append((chain, f"numgen random mod {len(endpoints)} vmap {{ {choices} }}"))


def _endpoint_chain(plan: _Plan, endpoint: Endpoint, out: ServiceRules) -> None:
    """endpoint-…: one endpoint."""
    chain = plan.endpoint_chain(endpoint)
    # A pod that reaches itself through its Service must not see its own address as the source.
    out.rules.append((chain, f"{plan.ip} saddr {endpoint.ip} jump {MARK_MASQ}"))
    if plan.port.affinity_seconds is not None:
        out.affinity_sets[plan.affinity_set(endpoint)] = plan.port.affinity_seconds
        out.rules.append((chain, f"update @{plan.affinity_set(endpoint)} {{ {plan.ip} saddr }}"))
    out.rules.append((chain, f"meta l4proto {plan.port.protocol} dnat to {endpoint.address}"))


def _script(rules: ServiceRules, settings: Settings, claimed: set[tuple[str, str]]) -> Iterator[str]:
    """Give the commands for one Service port, but no element whose key is `claimed` already."""
    table = table_name(settings)
    yield from declarations(rules, settings)
    for element in rules.elements:
        if element[:2] not in claimed:
            claimed.add(element[:2])
            yield add_element(table, element)
    for chain, rule in rules.rules:
        yield f"add rule {table} {chain} {rule}"
