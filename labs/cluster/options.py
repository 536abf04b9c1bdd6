"""What a user may choose about a cluster, as one value that travels from the command line to the supervisor.

Stands for kind's cluster configuration and kubeadm's ClusterConfiguration. Left out: everything that is not about
networking.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass

from labs.cluster.ledger import state_directory
from tracer.errors import UsageError

MAX_NODES = 16
PROXY_MODES = ("iptables", "nftables", "ebpf")
CNIS = ("routed", "vxlan")
IP_FAMILIES = ("ipv4", "dual")
IPTABLES_VARIANTS = ("default", "legacy", "nft")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """One cluster. `manifests`: YAML or JSON texts that are applied after what every cluster starts with.

    `iptables`: which variant of iptables the nodes use; "default" is the one that the machine's `iptables` command is.
    """

    name: str = "k8snet"
    nodes: int = 2
    proxy: str = "iptables"
    cni: str = "routed"
    ip_family: str = "ipv4"
    iptables: str = "default"
    manifests: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise UsageError for what makes no sense."""
        state_directory(self.name)
        if not 1 <= self.nodes <= MAX_NODES:
            raise UsageError(f"a cluster has 1 to {MAX_NODES} nodes, not {self.nodes}")
        for option, value, known in (
            ("--proxy", self.proxy, PROXY_MODES),
            ("--cni", self.cni, CNIS),
            ("--ip-family", self.ip_family, IP_FAMILIES),
            ("--iptables", self.iptables, IPTABLES_VARIANTS),
        ):
            if value not in known:
                raise UsageError(f"{option} {value}: choose one of {', '.join(known)}")

    def to_json(self) -> str:
        """The options as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterOptions:
        """The reverse of `to_json`."""
        document = json.loads(text)
        return cls(**{**document, "manifests": tuple(document["manifests"])})

    @property
    def plan(self) -> AddressPlan:
        """The addresses that this cluster uses."""
        return AddressPlan((4, 6) if self.ip_family == "dual" else (4,))


# By IP family.
NODE_NETWORKS = {4: "172.18.0.0/16", 6: "fc00:f853:ccd:e793::/64"}
POD_NETWORKS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
POD_PREFIX_LENGTHS = {4: 24, 6: 64}
SERVICE_NETWORKS = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
# Outside of the cluster; networks for documentation (RFC 5737, RFC 3849), which exist nowhere else.
OUTSIDE_NETWORKS = {4: "198.51.100.0/24", 6: "2001:db8:51::/64"}
LOAD_BALANCER_NETWORKS = {4: "203.0.113.0/24", 6: "2001:db8:113::/120"}


class AddressPlan:
    """Who has which address. The networks are kind's defaults, so that what a learner sees here is what kind shows.

    `families`: IP families in order of preference, 4 and 6. Nodes are counted from 1.
    """

    def __init__(self, families: tuple[int, ...]) -> None:
        self.families = families

    @property
    def pod_networks(self) -> list[str]:
        """All pods of the cluster, one network for each family (--cluster-cidr)."""
        return [POD_NETWORKS[family] for family in self.families]

    @property
    def service_networks(self) -> list[str]:
        """All ClusterIPs, one network for each family (--service-cluster-ip-range)."""
        return [SERVICE_NETWORKS[family] for family in self.families]

    @property
    def gateways(self) -> list[str]:
        """The addresses of the network outside the nodes, with prefix length: their default route leads there."""
        return [self._node_address(family, 1) for family in self.families]

    def outside_addresses(self, host: int) -> list[str]:
        """The addresses of host number `host` outside of the cluster, with prefix length; 1 is the router."""
        networks = [ipaddress.ip_network(OUTSIDE_NETWORKS[family]) for family in self.families]
        return [f"{network.network_address + host}/{network.prefixlen}" for network in networks]

    def is_inside(self, address: str) -> bool:
        """Whether an address belongs to nodes, pods, ClusterIPs or hosts outside, or to a family not in use."""
        ip = ipaddress.ip_address(address)
        tables = (NODE_NETWORKS, POD_NETWORKS, SERVICE_NETWORKS, OUTSIDE_NETWORKS)
        taken = any(ip in ipaddress.ip_network(table[ip.version]) for table in tables)
        return taken or ip.version not in self.families

    def node_addresses(self, number: int) -> list[str]:
        """The addresses of node `number`, with prefix length: 172.18.0.2/16 for the first, as on kind."""
        return [self._node_address(family, number + 1) for family in self.families]

    def pod_cidrs(self, number: int) -> list[str]:
        """The pod networks of node `number`: 10.244.0.0/24 for the first."""
        cidrs = []
        for family in self.families:
            network = ipaddress.ip_network(POD_NETWORKS[family])
            step = 1 << (network.max_prefixlen - POD_PREFIX_LENGTHS[family])
            base = network.network_address + (number - 1) * step
            cidrs.append(f"{base}/{POD_PREFIX_LENGTHS[family]}")
        return cidrs

    @staticmethod
    def _node_address(family: int, host: int) -> str:
        network = ipaddress.ip_network(NODE_NETWORKS[family])
        return f"{network.network_address + host}/{network.prefixlen}"


def without_prefix(addresses: list[str]) -> list[str]:
    """Addresses without their prefix length."""
    return [address.partition("/")[0] for address in addresses]
