"""What kube-proxy knows of the node that it runs on: its name, its address of one family, its zone.

Stands for the node part of kube-proxy's start (cmd/kube-proxy/app/server.go: `detectNodeIPs`) and for `OnNodeAdd` in
pkg/proxy/iptables/proxier.go. `--bind-address` is left out: the address is the Node object's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from labs.cluster.proxy.addresses import canonical

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class LocalNode:
    """The proxy's own node: its name, its address of one family (loopback if it has none), its zone ("" if unknown)."""

    name: str
    ip: str
    zone: str = ""


def local_node(nodes: Iterable[Mapping[str, Any]], name: str, family: int) -> LocalNode:
    """Give what the proxy needs of the Node called `name`; one that does not exist has loopback and no zone."""
    for node in nodes:
        metadata = node.get("metadata") or {}
        if metadata.get("name") == name:
            labels = metadata.get("labels") or {}
            return LocalNode(name, _node_ip(node, family), labels.get(ZONE_LABEL) or "")
    return LocalNode(name, LOOPBACK[family])


def _node_ip(node: Mapping[str, Any], family: int) -> str:
    """Give the first InternalIP of `family`, else the first ExternalIP (utilnode.GetNodeHostIPs)."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    for kind in ("InternalIP", "ExternalIP"):
        for address in addresses:
            if address.get("type") == kind and (ip := canonical(address.get("address") or "", family)):
                return ip
    return LOOPBACK[family]
