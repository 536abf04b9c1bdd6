"""kindnet: routes to the other nodes' pods, and masquerading of what leaves the cluster.

Stands for kindnetd, kind's CNI daemon (images/kindnetd/cmd/kindnetd): for each other node a route to its pod networks
by way of its address, and in the nat table the chain KIND-MASQ-AGENT, rule for rule as masq.go writes it. With
`--cni vxlan` the routes lead through the overlay of `labs.cluster.vxlan`. It runs in a pod of each node, on the node's
network (DaemonSet kindnet). Writing the CNI configuration is left out: the plugin that it configures is
`labs.cluster.network`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from labs.cluster import uplink, vxlan
from labs.cluster.alternatives import select_iptables
from labs.cluster.apiclient import Mirror
from labs.cluster.netfilter import Iptables
from labs.cluster.resources import NODES, Object
from labs.cluster.runtime.container import Container

CHAIN = "KIND-MASQ-AGENT"
RETRY_SECONDS = 0.5
RESYNC_SECONDS = 10.0  # main.go: routes that somebody took away come back

log = logging.getLogger(__name__)


def main(container: Container) -> None:
    """Be kindnetd on the node of `container`."""
    select_iptables(container.facts["iptables"])
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    changed = asyncio.Event()
    mirror = Mirror((NODES,), changed.set, server=container.facts["api_server"])
    for family in container.facts["families"]:
        networks = [network for network in container.facts["pod_networks"] if _family(network) == family]
        await ensure_masquerading(Iptables(family, container.facts["iptables"]), networks)
    uplink.LinkEvents(changed.set)
    async with asyncio.TaskGroup() as group:
        group.create_task(mirror.run())
        group.create_task(_route_loop(container, mirror, changed))


async def _route_loop(container: Container, mirror: Mirror, changed: asyncio.Event) -> None:
    routes: dict[str, str] = {}
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), RESYNC_SECONDS)
        changed.clear()
        version = mirror.version
        nodes = list(mirror.items[NODES].values())
        wanted = routes_to(nodes, container.facts["node"])
        replace = replace_routes
        if container.facts["cni"] == "vxlan":
            own = next((node for node in nodes if node["metadata"]["name"] == container.facts["node"]), None)
            replace = vxlan.Overlay({} if own is None else networks_of(own)).replace_routes
        try:
            # In a thread: pyroute2 has an event loop of its own.
            await asyncio.to_thread(replace, routes, wanted)
        except NetlinkError as error:  # such as a link that is down: the next round may do better
            log.warning("routes: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            changed.set()
            continue
        routes = wanted
        container.notify(f"synced {version}")
        container.ready()


def replace_routes(old: dict[str, str], new: dict[str, str]) -> None:
    """Bring the kernel's routes from `old` to `new` (both network -> gateway), and back if they were taken away."""
    with IPRoute() as ip:
        for network in old.keys() - new.keys():
            try:
                ip.route("del", dst=network, family=_address_family(network))
            except NetlinkError as error:
                if error.code != errno.ESRCH:  # somebody else has removed it
                    raise
        for network, gateway in new.items():
            ip.route("replace", dst=network, gateway=gateway, family=_address_family(network))


def _address_family(network: str) -> int:
    """AF_INET or AF_INET6."""
    return 10 if ":" in network else 2


def routes_to(nodes: list[Object], own: str) -> dict[str, str]:
    """Pod network -> address of the node that it is on, for all nodes but our own."""
    others = (node for node in nodes if node["metadata"]["name"] != own)
    return {network: address for node in others for network, address in networks_of(node).items()}


def networks_of(node: Object) -> dict[str, str]:
    """The pod networks of a node, and for each the node's address of that family."""
    addresses = [entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP"]
    networks = {}
    for cidr in node["spec"].get("podCIDRs") or ():
        address = next((address for address in addresses if (":" in address) is (":" in cidr)), None)
        if address is not None:
            networks[cidr] = address
    return networks


async def ensure_masquerading(iptables: Iptables, pod_networks: list[str]) -> None:
    """Give what leaves the cluster its node's address; whether or not the rules are there already."""
    saved = await iptables.save("nat")
    there = any(line.startswith("-A POSTROUTING ") and line.endswith(f"-j {CHAIN}") for line in saved)
    await iptables.restore(masquerade_rules(pod_networks, jump=not there))


def masquerade_rules(pod_networks: list[str], *, jump: bool) -> str:
    """The rules of the chain, with the jump into it or without, as input for iptables-restore --noflush."""
    why = (
        f"kind-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom {CHAIN} chain"
    )
    jumps = [f'-A POSTROUTING -m comment --comment "{why}" -m addrtype ! --dst-type LOCAL -j {CHAIN}'] if jump else []
    local = "kind-masq-agent: local traffic is not subject to MASQUERADE"
    rest = "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"
    return "\n".join(
        [
            "*nat",
            f":{CHAIN} - [0:0]",
            *jumps,
            *(f'-A {CHAIN} -m comment --comment "{local}" -d {network} -j RETURN' for network in pod_networks),
            f'-A {CHAIN} -m comment --comment "{rest}" -j MASQUERADE',
            "COMMIT",
            "",
        ]
    )


def _family(network: str) -> int:
    return 6 if ":" in network else 4
