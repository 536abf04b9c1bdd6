"""How a kube-proxy is configured, for one IP family.

Stands for the part of KubeProxyConfiguration (pkg/proxy/apis/config/types.go) that decides about rules. Left out:
`nodePortAddresses` and every `detectLocalMode` but ClusterCIDR.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labs.cluster.proxy.addresses import networks_of_family
from labs.cluster.proxy.node import LocalNode, local_node


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one kube-proxy for one IP family (4 or 6).

    `cluster_cidr` tells pod traffic from other traffic; None: it can't be told. These count in iptables mode only:
    `localhost_nodeports`: NodePorts answer on 127.0.0.1 too (IPv4); `conntrack_tcp_liberal`: the node's sysctl
    net.netfilter.nf_conntrack_tcp_be_liberal is set; `random_fully`: this iptables knows the option of that name.
    """

    node: LocalNode
    family: int
    cluster_cidr: str | None = None
    masquerade_bit: int = 14
    masquerade_all: bool = False
    localhost_nodeports: bool = True
    conntrack_tcp_liberal: bool = False
    random_fully: bool = True

    @property
    def mark(self) -> str:
        """The bit of the packet mark that asks for masquerading, in hexadecimal."""
        return f"{1 << self.masquerade_bit:#010x}"


def settings_for(
    nodes: Iterable[Mapping[str, Any]],
    *,
    node_name: str,
    family: int,
    cluster_cidrs: Iterable[str],
    **options: Any,
) -> Settings:
    """Give the settings on the node called `node_name`, one of `nodes`; `cluster_cidrs` may be of both families."""
    cidrs: Sequence[str] = networks_of_family(cluster_cidrs, family)
    return Settings(local_node(nodes, node_name, family), family, cidrs[0] if cidrs else None, **options)
