"""What in a lesson's words is called otherwise on a kind cluster: nodes by name, address and pods' network, the network
that they are on, the host outside.

What belongs here: the names. What does not: putting them into a text (`labs.engine.wording`).
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

from labs.cluster.options import AddressPlan
from labs.engine.kind import outside
from labs.engine.kind.world import KindCluster, docker, natural

PLACE = "{{range .NetworkSettings.Networks}}{{.Gateway}} {{.IPAddress}}/{{.IPPrefixLen}} {{end}}"
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"


def words(world: KindCluster) -> dict[str, str]:
    """What stands in lessons -> what it is there: node1 -> k8snet-control-plane, 172.18.0.2 -> its address; and of
    nodes after the first 10.244.1 -> the beginning of its pods' addresses: any of several workers may have come first.

    Only IPv4 addresses are written in lessons. Raises Blocked or K8snetError.
    """
    plan = AddressPlan((4,))
    found: dict[str, str] = {}
    for number, node in enumerate(_in_order(world.get("nodes")), 1):
        found[f"node{number}"] = node["metadata"]["name"]
        (own,) = plan.node_addresses(number)
        found[own.partition("/")[0]] = _address(node)
        if number > 1:  # that of the first is 10.244.0, with which the network of all pods begins, too
            (pods,) = plan.pod_cidrs(number)
            found[_beginning(pods)] = _beginning(node["spec"].get("podCIDR", ""))
    found |= _network(world, plan)
    if (address := outside.address(world)) is not None:
        (own,) = plan.outside_addresses(outside.NUMBER)
        found[own.partition("/")[0]] = address
    return {word: there for word, there in found.items() if there and word != there}


def node(world: KindCluster, number: int) -> str:
    """The name of a node, counted from 1. Raises K8snetError."""
    found = _in_order(world.get("nodes"))
    return str(found[number - 1]["metadata"]["name"])


def _in_order(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The control plane first, and worker2 before worker10: as the containers of `KindCluster`."""

    def key(node: dict[str, Any]) -> tuple[bool, list[str | int]]:
        metadata = node["metadata"]
        return CONTROL_PLANE_LABEL not in metadata.get("labels", {}), natural(metadata["name"])

    return sorted(nodes, key=key)


def _beginning(network: str) -> str:
    """10.244.1 of 10.244.1.0/24; "" of a network of another size, which no three numbers tell."""
    return network.rpartition(".")[0] if network.endswith(".0/24") else ""


def _network(world: KindCluster, plan: AddressPlan) -> dict[str, str]:
    """The nodes' network, which is one of Docker's, and the gateway there."""
    ours = ip_interface(plan.gateways[0])
    found = docker("inspect", "--format", PLACE, world.container("node1")).out.split()
    if len(found) < 2:
        return {}
    return {str(ours.ip): found[0], str(ours.network): str(ip_interface(found[1]).network)}


def _address(node: dict[str, Any]) -> str:
    addresses = node.get("status", {}).get("addresses", [])
    return next((one["address"] for one in addresses if one["type"] == "InternalIP" and ":" not in one["address"]), "")
