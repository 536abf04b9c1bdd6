"""kube-proxy in iptables mode: Services and their endpoints, written as input for iptables-restore.

Stands for pkg/proxy/iptables/proxier.go of kube-proxy v1.30.5, rule for rule: the same chains, hashes, comments and
order. A packet for a Service walks these chains of the nat table:

    PREROUTING, OUTPUT -> KUBE-SERVICES         which Service port is this address and port?
      -> KUBE-SVC-<hash>                        ClusterIP: pick one of all endpoints, at random
      -> KUBE-SVL-<hash>                        ClusterIP with traffic policy Local: one of this node's endpoints
      -> KUBE-EXT-<hash>                        external IP, load balancer: mark for masquerading, then KUBE-SVC;
                                                with traffic policy Local: don't mark, then KUBE-SVL
      -> KUBE-FW-<hash> -> KUBE-EXT-<hash>      load balancer with source ranges: let only these through
      -> KUBE-NODEPORTS -> KUBE-EXT-<hash>      an address of this node: is it a NodePort?
    KUBE-SVC, KUBE-SVL -> KUBE-SEP-<hash>       one endpoint: DNAT to its address
    POSTROUTING -> KUBE-POSTROUTING             masquerade what was marked on the way

and these of the filter table: KUBE-SERVICES and KUBE-EXTERNAL-SERVICES turn away traffic for Services without
endpoints, KUBE-PROXY-FIREWALL drops what a KUBE-FW chain did not let through, KUBE-NODEPORTS lets health checks in,
KUBE-FORWARD lets translated traffic pass.

What is here                        there
    `full_sync`                         syncProxyRules with needFullSync
    `service_rules`                     the body of its loop over svcPortMap
    `_spread`                           writeServiceToEndpointRules
    `chain_hash`                        portProtoHash, servicePortEndpointChainName

The chains that all Services share, and the jumps into them, are in iptables_tables.py; what one sync leaves of the last
one is decided in iptables_sync.py. Left out: `--nodeport-addresses` (NodePorts answer on every local address, as by
default), local traffic detection by anything but the cluster CIDR, and metrics.
kube-proxy's order of Services is that of a Go map, so it differs from run to run; here it is the order of the objects.
The order within each Service is kube-proxy's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from labs.cluster.proxy.addresses import contains
from labs.cluster.proxy.endpoints import Endpoint, Usable, categorize, endpoints_by_port
from labs.cluster.proxy.iptables_tables import (
    EXTERNAL_SERVICES,
    MARK_MASQ,
    NODEPORTS,
    PROXY_FIREWALL,
    SERVICES,
    ServiceRules,
    Sync,
    compose,
    whole_tables,
)
from labs.cluster.proxy.services import ServicePort, service_ports
from labs.cluster.proxy.settings import Settings, settings_for

LARGE_CLUSTER_ENDPOINTS = 1000  # largeClusterEndpointsThreshold


def render(
    objects: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    node_name: str,
    family: int,
    cluster_cidrs: Iterable[str] = (),
    masquerade_bit: int = 14,
    masquerade_all: bool = False,
    localhost_nodeports: bool = True,
    conntrack_tcp_liberal: bool = False,
) -> str:
    """Give all tables as kube-proxy writes them on `node_name` for `family` (4 or 6), as input for iptables-restore.

    It is `full_sync` together with what kube-proxy adds by single iptables commands (jumps, canary chains); loading it
    into an empty network namespace gives the tables of a node. `objects` holds the API's JSON objects under "services",
    "endpointslices" and "nodes" (see objects.py).
    """
    settings = settings_for(
        objects.get("nodes") or (),
        node_name=node_name,
        family=family,
        cluster_cidrs=cluster_cidrs,
        masquerade_bit=masquerade_bit,
        masquerade_all=masquerade_all,
        localhost_nodeports=localhost_nodeports,
        conntrack_tcp_liberal=conntrack_tcp_liberal,
    )
    sync = full_sync(
        service_ports(objects.get("services") or (), family),
        endpoints_by_port(objects.get("endpointslices") or (), node_name=node_name, family=family),
        settings,
    )
    return whole_tables(sync)


def full_sync(
    ports: Mapping[Any, ServicePort], endpoints: Mapping[Any, Sequence[Endpoint]], settings: Settings
) -> Sync:
    """Give the lines of a full sync for all Service ports, whose endpoints are found under the same keys."""
    comments = has_comments(ports, endpoints)
    return compose(
        (service_rules(port, endpoints.get(key, ()), settings, comments=comments) for key, port in ports.items()),
        settings,
    )


def has_comments(ports: Iterable[Any], endpoints: Mapping[Any, Sequence[Endpoint]]) -> bool:
    """Tell whether rules about endpoints have comments: not in large clusters."""
    return sum(len(endpoints.get(key, ())) for key in ports) <= LARGE_CLUSTER_ENDPOINTS


def service_rules(
    port: ServicePort, endpoints: Sequence[Endpoint], settings: Settings, *, comments: bool = True
) -> ServiceRules:
    """Give the rules of one Service port.

    `comments=False` leaves out those about endpoints, as kube-proxy does with more than LARGE_CLUSTER_ENDPOINTS.
    """
    plan = _Plan(port, categorize(endpoints, port, settings.node.zone))
    out = ServiceRules()
    _cluster_ip(plan, out)
    _external_ips(plan, out)
    _load_balancer(plan, out)
    _node_port(plan, out)
    if plan.usable.internal:
        out.rules += _internal_masquerade(plan, settings)
    if plan.usable.anywhere and port.externally_accessible:
        _external_chain(plan, settings, out)
    if plan.has_firewall:
        _firewall_chain(plan, settings, out)
    if plan.usable.cluster:
        _spread(plan, plan.svc, plan.usable.cluster, out, comments)
    if plan.usable.local:
        _spread(plan, plan.svl, plan.usable.local, out, comments)
    for endpoint in plan.usable.reachable:
        _endpoint_chain(plan, endpoint, out, comments)
    return out


class _Plan:
    """One Service port, and what is decided about it before any rule is written: its chains, where traffic may go.

    `match` selects the protocol; `name` is "namespace/service:port".
    """

    def __init__(self, port: ServicePort, usable: Usable) -> None:
        self.port, self.usable = port, usable
        self.name = str(port.key)
        self._sep: dict[str, str] = {}
        hashed = chain_hash(self.name + port.protocol)
        self.svc, self.svl = f"KUBE-SVC-{hashed}", f"KUBE-SVL-{hashed}"
        self.ext, self.fw = f"KUBE-EXT-{hashed}", f"KUBE-FW-{hashed}"
        self.match = f"-m {port.protocol} -p {port.protocol}"
        self.internal_chain = self.svl if port.internal_policy_local else self.svc
        self.external_policy_chain = self.svl if port.external_policy_local else self.svc
        self.has_firewall = usable.anywhere and bool(port.load_balancer_vips and port.source_ranges)

    def endpoint_chain(self, endpoint: Endpoint) -> str:
        address = endpoint.address
        if address not in self._sep:  # asked for more than once, and hashing is half of all the work
            self._sep[address] = "KUBE-SEP-" + chain_hash(self.name + self.port.protocol + address)
        return self._sep[address]

    def to(self, ip: str) -> str:
        """Give the match for the Service's port at one of its addresses."""
        return f"{self.match} -d {ip} --dport {self.port.port}"

    def refusal(self) -> tuple[str, str]:
        """Give the comment and the target for traffic that has nowhere to go.

        Nobody anywhere: say so (REJECT). Only nobody on *this* node: stay silent (DROP), another node may answer.
        """
        if self.usable.anywhere:
            return f'"{self.name} has no local endpoints"', "DROP"
        return f'"{self.name} has no endpoints"', "REJECT"


def chain_hash(text: str) -> str:
    """Give the 16 characters that name a Service's or an endpoint's chain: the first 80 bits of SHA-256, in base32.

    Cut because iptables refuses chain names of more than 28 characters.
    """
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode()


# --- Entry: which address and port lead to which chain --------------------------------------------


def _cluster_ip(plan: _Plan, out: ServiceRules) -> None:
    target = plan.to(plan.port.cluster_ip)
    if plan.usable.internal:
        out.entry.append(
            f'-A {SERVICES} -m comment --comment "{plan.name} cluster IP" {target} -j {plan.internal_chain}'
        )
    else:
        comment, verdict = plan.refusal()
        out.filter.append(f"-A {SERVICES} -m comment --comment {comment} {target} -j {verdict}")


def _external_ips(plan: _Plan, out: ServiceRules) -> None:
    for ip in plan.port.external_ips:
        if plan.usable.anywhere:
            comment = f'"{plan.name} external IP"'
            out.entry.append(f"-A {SERVICES} -m comment --comment {comment} {plan.to(ip)} -j {plan.ext}")
        if not plan.usable.external:
            out.filter.append(_refuse_external(plan, plan.to(ip)))


def _load_balancer(plan: _Plan, out: ServiceRules) -> None:
    for ip in plan.port.load_balancer_vips:
        if plan.usable.anywhere:
            comment, chain = f'"{plan.name} loadbalancer IP"', plan.fw if plan.has_firewall else plan.ext
            out.entry.append(f"-A {SERVICES} -m comment --comment {comment} {plan.to(ip)} -j {chain}")
        if plan.has_firewall:
            comment = f'"{plan.name} traffic not accepted by {plan.fw}"'
            out.filter.append(f"-A {PROXY_FIREWALL} -m comment --comment {comment} {plan.to(ip)} -j DROP")
    if not plan.usable.external:
        out.filter += [_refuse_external(plan, plan.to(ip)) for ip in plan.port.load_balancer_vips]


def _node_port(plan: _Plan, out: ServiceRules) -> None:
    port = plan.port
    if port.node_port:
        target = f"{plan.match} --dport {port.node_port}"
        if plan.usable.anywhere:
            out.entry.append(f"-A {NODEPORTS} -m comment --comment {plan.name} {target} -j {plan.ext}")
        if not plan.usable.external:
            out.filter.append(_refuse_external(plan, f"-m addrtype --dst-type LOCAL {target}"))
    if port.health_check_node_port:
        # The load balancer must get in whether or not this node has endpoints: that is what it asks.
        comment = f'"{plan.name} health check node port"'
        match = f"-m tcp -p tcp --dport {port.health_check_node_port}"
        out.filter.append(f"-A {NODEPORTS} -m comment --comment {comment} {match} -j ACCEPT")


def _refuse_external(plan: _Plan, target: str) -> str:
    comment, verdict = plan.refusal()
    return f"-A {EXTERNAL_SERVICES} -m comment --comment {comment} {target} -j {verdict}"


# --- The Service's own chains ---------------------------------------------------------------------


def _internal_masquerade(plan: _Plan, settings: Settings) -> Iterator[str]:
    """Mark what comes to the ClusterIP from outside the cluster: the answer must come back through this node."""
    rule = f'-A {plan.internal_chain} -m comment --comment "{plan.name} cluster IP" {plan.to(plan.port.cluster_ip)}'
    if settings.masquerade_all:
        yield f"{rule} -j {MARK_MASQ}"
    elif settings.cluster_cidr:
        yield f"{rule} ! -s {settings.cluster_cidr} -j {MARK_MASQ}"


def _external_chain(plan: _Plan, settings: Settings, out: ServiceRules) -> None:
    """KUBE-EXT: what has come in by any address but the ClusterIP."""
    out.chains.append(plan.ext)
    rule, place = f"-A {plan.ext}", f"{plan.name} external destinations"
    if not plan.port.external_policy_local:
        # The endpoint may be on another node: its answer must pass here again.
        out.rules.append(f'{rule} -m comment --comment "masquerade traffic for {place}" -j {MARK_MASQ}')
    else:
        # Pods and processes of this node are not "external": they may use every endpoint, as if they had gone out to
        # the load balancer and come back. Only what is really from outside must stay here, so that it keeps its source
        # address.
        local = "-m addrtype --src-type LOCAL"
        if settings.cluster_cidr:
            out.rules.append(
                f'{rule} -m comment --comment "pod traffic for {place}" -s {settings.cluster_cidr} -j {plan.svc}'
            )
        out.rules.append(f'{rule} -m comment --comment "masquerade LOCAL traffic for {place}" {local} -j {MARK_MASQ}')
        out.rules.append(f'{rule} -m comment --comment "route LOCAL traffic for {place}" {local} -j {plan.svc}')
    if plan.usable.external:
        out.rules.append(f"{rule} -j {plan.external_policy_chain}")


def _firewall_chain(plan: _Plan, settings: Settings, out: ServiceRules) -> None:
    """KUBE-FW: only allowed sources go on; KUBE-PROXY-FIREWALL drops the rest, because nobody has translated it."""
    port = plan.port
    out.chains.append(plan.fw)
    rule = f'-A {plan.fw} -m comment --comment "{plan.name} loadbalancer IP"'
    allowed = list(port.source_ranges)
    if any(contains(cidr, settings.node.ip) for cidr in port.source_ranges):
        # The load balancer's address is often a local one: then this node's own requests come from that very address.
        allowed += port.load_balancer_vips
    out.rules += [f"{rule} -s {source} -j {plan.ext}" for source in allowed]
    comment = f'"other traffic to {plan.name} will be dropped by {PROXY_FIREWALL}"'
    out.rules.append(f"-A {plan.fw} -m comment --comment {comment}")


def _spread(plan: _Plan, chain: str, endpoints: Sequence[Endpoint], out: ServiceRules, comments: bool) -> None:
    """KUBE-SVC or KUBE-SVL: old clients go where they went; for others 1/n, 1/(n-1), … gives all the same share."""
    out.chains.append(chain)
    rules = [
        f'-A {chain} -m comment --comment "{plan.name} -> {e.address}"' if comments else f"-A {chain}"
        for e in endpoints
    ]
    chains = [plan.endpoint_chain(e) for e in endpoints]
    if plan.port.affinity_seconds is not None:
        seen = f"--rcheck --seconds {plan.port.affinity_seconds} --reap"
        out.rules += [
            f"{rule} -m recent --name {target} {seen} -j {target}" for rule, target in zip(rules, chains, strict=True)
        ]
    left = len(endpoints)
    for rule, target in zip(rules, chains, strict=True):
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        out.rules.append(f"{rule}{chance} -j {target}")
        left -= 1


def _endpoint_chain(plan: _Plan, endpoint: Endpoint, out: ServiceRules, comments: bool) -> None:
    """KUBE-SEP: one endpoint."""
    chain = plan.endpoint_chain(endpoint)
    out.chains.append(chain)
    rule = f"-A {chain} -m comment --comment {plan.name}" if comments else f"-A {chain}"
    # A pod that reaches itself through its Service must not see its own address as the source.
    out.rules.append(f"{rule} -s {endpoint.ip} -j {MARK_MASQ}")
    remember = "" if plan.port.affinity_seconds is None else f" -m recent --name {chain} --set"
    out.rules.append(f"{rule}{remember} {plan.match} -j DNAT --to-destination {endpoint.address}")
