"""What in a lesson's words is called otherwise on a kind cluster: nodes by name and address, the host outside.

What belongs here: the names. What does not: putting them into a text (`labs.engine.wording`).
"""

from __future__ import annotations

from typing import Any

from labs.cluster.options import AddressPlan
from labs.engine.kind import outside
from labs.engine.kind.world import KindCluster, natural
from labs.engine.world import get

CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"


def words(world: KindCluster) -> dict[str, str]:
    """What stands in lessons -> what it is there: node1 -> k8snet-control-plane, 172.18.0.2 -> its address.

    Only IPv4 addresses are written in lessons. Raises Blocked or K8snetError.
    """
    plan = AddressPlan((4,))
    found: dict[str, str] = {}
    for number, node in enumerate(_in_order(get(world, "nodes")), 1):
        found[f"node{number}"] = node["metadata"]["name"]
        (own,) = plan.node_addresses(number)
        found[own.partition("/")[0]] = _address(node)
    if (address := outside.address(world)) is not None:
        (own,) = plan.outside_addresses(outside.NUMBER)
        found[own.partition("/")[0]] = address
    return {word: there for word, there in found.items() if there and word != there}


def node(world: KindCluster, number: int) -> str:
    """The name of a node, counted from 1. Raises K8snetError."""
    found = _in_order(get(world, "nodes"))
    return str(found[number - 1]["metadata"]["name"])


def _in_order(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The control plane first, and worker2 before worker10: as the containers of `KindCluster`."""

    def key(node: dict[str, Any]) -> tuple[bool, list[str | int]]:
        metadata = node["metadata"]
        return CONTROL_PLANE_LABEL not in metadata.get("labels", {}), natural(metadata["name"])

    return sorted(nodes, key=key)


def _address(node: dict[str, Any]) -> str:
    addresses = node.get("status", {}).get("addresses", [])
    return next((one["address"] for one in addresses if one["type"] == "InternalIP" and ":" not in one["address"]), "")
