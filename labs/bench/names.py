"""The datapaths, and the targets of new flows, by name: for those who must not pay for what the measurement needs.

What belongs here: names. What does not: anything that imports a proxy (`datapaths`).
"""

from __future__ import annotations

IPTABLES_LEGACY, IPTABLES_NFT, NFTABLES, EBPF = "iptables-legacy", "iptables-nft", "nftables", "ebpf"
DATAPATHS = (IPTABLES_LEGACY, IPTABLES_NFT, NFTABLES, EBPF)


def variant_of(datapath: str) -> str:
    """Which iptables a node with this datapath uses: for kube-proxy's rules, and for those of the CNI plugin."""
    return "legacy" if datapath == IPTABLES_LEGACY else "nft"


FIRST, MIDDLE, LAST = "first", "middle", "last"  # Services, in the order of the rules
DIRECT = "direct"  # a pod, without a Service
ALL = "all"  # all three Services together
