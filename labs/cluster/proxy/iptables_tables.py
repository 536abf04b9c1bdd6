"""iptables mode, what does not depend on any Service: the chains that all share, the jumps into them, and a whole load.

Stands for the frame of pkg/proxy/iptables/proxier.go (v1.30.5):

What is here                        there
    JUMPS, `_jumps`                     iptablesJumpChains, iptablesKubeletJumpChains
    `compose`, `_preamble`              syncProxyRules before and after its loop over svcPortMap
    `Sync.text`                         the four buffers that it feeds to iptables-restore

What one Service adds belongs to iptables.py, what has to be written after a change to iptables_sync.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from labs.cluster.proxy.settings import Settings

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODEPORTS = "KUBE-NODEPORTS"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
KUBELET_FIREWALL = "KUBE-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"

NEW = "-m conntrack --ctstate NEW "


class Jump(NamedTuple):
    """A rule in a built-in chain that leads into one of kube-proxy's."""

    table: str
    target: str
    source: str
    comment: str
    match: str = ""


# kube-proxy puts each of these *in front of* what is there, one after the other: the last one of a chain comes first.
JUMPS = (
    Jump("filter", EXTERNAL_SERVICES, "INPUT", "kubernetes externally-visible service portals", NEW),
    Jump("filter", EXTERNAL_SERVICES, "FORWARD", "kubernetes externally-visible service portals", NEW),
    Jump("filter", NODEPORTS, "INPUT", "kubernetes health check service ports"),
    Jump("filter", SERVICES, "FORWARD", "kubernetes service portals", NEW),
    Jump("filter", SERVICES, "OUTPUT", "kubernetes service portals", NEW),
    Jump("filter", FORWARD, "FORWARD", "kubernetes forwarding rules"),
    Jump("filter", PROXY_FIREWALL, "INPUT", "kubernetes load balancer firewall", NEW),
    Jump("filter", PROXY_FIREWALL, "OUTPUT", "kubernetes load balancer firewall", NEW),
    Jump("filter", PROXY_FIREWALL, "FORWARD", "kubernetes load balancer firewall", NEW),
    Jump("nat", SERVICES, "OUTPUT", "kubernetes service portals"),
    Jump("nat", SERVICES, "PREROUTING", "kubernetes service portals"),
    Jump("nat", POSTROUTING, "POSTROUTING", "kubernetes postrouting rules"),
    # kubelet makes these two as well.
    Jump("filter", KUBELET_FIREWALL, "INPUT", ""),
    Jump("filter", KUBELET_FIREWALL, "OUTPUT", ""),
)


@dataclass(slots=True)
class ServiceRules:
    """What one Service port adds: rules in the chains that all Services share, and chains of its own.

    A partial sync (iptables_sync.py) writes `chains` and `rules` only of Services that changed.
    """

    filter: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sync:
    """What one sync feeds to iptables-restore --noflush: chains to make or flush, and rules, of both tables."""

    filter_chains: list[str]
    filter_rules: list[str]
    nat_chains: list[str]
    nat_rules: list[str]

    def text(self) -> str:
        """Give the input for `iptables-restore --noflush`, as kube-proxy writes it, of tables that have lines."""
        lines: list[str] = []
        for table, chains, rules in (
            ("*filter", self.filter_chains, self.filter_rules),
            ("*nat", self.nat_chains, self.nat_rules),
        ):
            if chains or rules:
                lines += (table, *map(_declaration, chains), *rules, "COMMIT")
        return "\n".join([*lines, ""])


def whole_tables(sync: Sync) -> str:
    """Give `sync` with the jumps from the built-in chains and the canary chains, as input for iptables-restore."""
    filter_chains = dict.fromkeys([*sync.filter_chains, KUBELET_FIREWALL, CANARY])
    return "\n".join(
        [
            *("*mangle", _declaration(CANARY), "COMMIT"),
            *("*filter", *map(_declaration, filter_chains), *_jumps("filter"), *sync.filter_rules, "COMMIT"),
            *("*nat", *map(_declaration, sync.nat_chains), _declaration(CANARY)),
            *(*_jumps("nat"), *sync.nat_rules, "COMMIT", ""),
        ]
    )


def compose(services: Iterable[ServiceRules], settings: Settings) -> Sync:
    """Give the lines of a sync that writes the rules of these Service ports, and what does not depend on any."""
    sync = _preamble(settings)
    for rules in services:
        sync.filter_rules.extend(rules.filter)
        sync.nat_chains.extend(rules.chains)
        sync.nat_rules.extend(rules.entry)
        sync.nat_rules.extend(rules.rules)
    sync.nat_rules.append(_nodeports_rule(settings))
    sync.filter_rules.extend(_forward_rules(settings))
    return sync


def _preamble(settings: Settings) -> Sync:
    """The chains that all Services share, and the rules that mark and masquerade."""
    mark = settings.mark
    sync = Sync(
        filter_chains=[SERVICES, EXTERNAL_SERVICES, FORWARD, NODEPORTS, PROXY_FIREWALL],
        filter_rules=[],
        nat_chains=[SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ],
        nat_rules=[
            f"-A {POSTROUTING} -m mark ! --mark {mark}/{mark} -j RETURN",
            # Unmark, so that the packet is not masqueraded again if it passes the stack once more.
            f"-A {POSTROUTING} -j MARK --xor-mark {mark}",
            f'-A {POSTROUTING} -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE'
            + (" --random-fully" if settings.random_fully else ""),
            f"-A {MARK_MASQ} -j MARK --or-mark {mark}",
        ],
    )
    if settings.family == 4 and settings.localhost_nodeports:
        # NodePorts on 127.0.0.1 need route_localnet, which would let neighbours reach this node's loopback.
        sync.filter_chains.append(KUBELET_FIREWALL)
        sync.filter_rules.append(
            f'-A {KUBELET_FIREWALL} -m comment --comment "block incoming localnet connections"'
            " -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
        )
    return sync


def _nodeports_rule(settings: Settings) -> str:
    comment = '"kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
    rule = f"-A {SERVICES} -m comment --comment {comment} -m addrtype --dst-type LOCAL"
    if settings.family == 6:
        rule += " ! -d ::1/128"
    elif not settings.localhost_nodeports:
        rule += " ! -d 127.0.0.0/8"
    return f"{rule} -j {NODEPORTS}"


def _forward_rules(settings: Settings) -> Iterator[str]:
    if not settings.conntrack_tcp_liberal:
        # A packet that conntrack can't place would leave untranslated, and the client would answer it with a reset.
        yield f"-A {FORWARD} -m conntrack --ctstate INVALID -j DROP"
    accept = '-m comment --comment "kubernetes forwarding rules"'
    yield f"-A {FORWARD} {accept} -m mark --mark {settings.mark}/{settings.mark} -j ACCEPT"
    rest = '-m comment --comment "kubernetes forwarding conntrack rule"'
    yield f"-A {FORWARD} {rest} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


def _jumps(table: str) -> Iterator[str]:
    """Give the jumps of one table in the order in which they end up."""
    for jump in reversed(JUMPS):
        if jump.table == table:
            comment = f'-m comment --comment "{jump.comment}" ' if jump.comment else ""
            yield f"-A {jump.source} {jump.match}{comment}-j {jump.target}"


def _declaration(chain: str) -> str:
    return f":{chain} - [0:0]"
