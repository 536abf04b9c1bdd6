"""LoadBalancer IPs: gives them out, and tells the router outside of the cluster which nodes to send them to.

Stands for MetalLB: its controller (controller/service.go, internal/allocator), which assigns addresses of a pool, and
its speakers in BGP mode (speaker/bgp_controller.go), which announce each address from every node that may take its
packets: all of them, or with externalTrafficPolicy Local those with a ready endpoint; none when there is no endpoint.
External IPs, which nobody assigns, are announced from all nodes, as whoever sets them has to see to. As MetalLB does,
it leaves Services with a loadBalancerClass alone. Left out: pools to choose from, sharing of an address, layer 2 mode,
BGP itself. Source ranges are kube-proxy's work.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator

from labs.cluster.endpointslices import SERVICE_NAME
from labs.cluster.options import LOAD_BALANCER_NETWORKS, AddressPlan
from labs.cluster.outside import Routes
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES, Object, key_of
from labs.cluster.store import Store

WATCHED = (SERVICES, ENDPOINTSLICES, NODES)


def reconciler(store: Store, plan: AddressPlan, announce: Callable[[Routes], None]) -> Callable[[], None]:
    """The function that brings LoadBalancer IPs up to date; `announce` gets the routes whenever they change."""
    last: list[Routes] = [{}]

    def reconcile() -> None:
        services = store.list(SERVICES)
        assigned = assign(services)
        for service in services:
            key = key_of(service)
            before = (service.get("status") or {}).get("loadBalancer") or {}
            ingress = [{"ip": ip, "ipMode": "VIP"} for ip in assigned.get(key, ())]
            after = {"ingress": ingress} if ingress else {}
            if _is_ours(service) and before != after:
                store.update_status(SERVICES, *key, {**(service.get("status") or {}), "loadBalancer": after})
        routes = announcements(services, assigned, store.list(ENDPOINTSLICES), store.list(NODES), plan)
        if routes != last[0]:
            announce(routes)
            last[0] = routes

    return reconcile


def _is_ours(service: Object) -> bool:
    """Whether nobody else looks after this Service's addresses; those of other types must have none."""
    return not service["spec"].get("loadBalancerClass")


def assign(services: Iterable[Object]) -> dict[tuple[str, str], list[str]]:
    """The LoadBalancer IPs of all Services that get some: what they have, what they ask for, or the first that is free.

    A Service that asks for an address that is taken, or outside of the pool, gets none (it stays pending).
    """
    wanting = [item for item in services if item["spec"]["type"] == "LoadBalancer" and _is_ours(item)]
    assigned: dict[tuple[str, str], list[str]] = {}
    used: set[str] = set()
    for service in sorted(wanting, key=lambda item: not _present(item)):
        given: list[str] = []
        present, asked = _present(service), service["spec"].get("loadBalancerIP")
        for family in service["spec"]["ipFamilies"]:
            version = 6 if family == "IPv6" else 4
            wished = (ip for ip in ([asked] if asked else present) if (":" in ip) is (version == 6))
            ip = next(wished, None) or next((ip for ip in _pool(version) if ip not in used), None)
            if ip is not None and ip not in used and _in_pool(ip, version):
                given.append(ip)
        used.update(given)
        assigned[key_of(service)] = given
    return assigned


def _present(service: Object) -> list[str]:
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [entry["ip"] for entry in entries if entry.get("ip")]


def _network(version: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(LOAD_BALANCER_NETWORKS[version])


def _in_pool(text: str, version: int) -> bool:
    """Whether a text is an address of the pool; the API takes any text for loadBalancerIP."""
    try:
        return ipaddress.ip_address(text) in _network(version)
    except ValueError:
        return False


def _pool(version: int) -> Iterator[str]:
    return (str(ip) for ip in itertools.islice(_network(version).hosts(), 1 << 16))


def announcements(
    services: Iterable[Object],
    assigned: dict[tuple[str, str], list[str]],
    slices: Iterable[Object],
    nodes: list[Object],
    plan: AddressPlan,
) -> Routes:
    """Which nodes the router may send to, for each LoadBalancer IP and external IP."""
    ready = _nodes_with_ready_endpoints(slices)
    names = {node["metadata"]["name"] for node in nodes}
    routes: Routes = {}
    for service in services:
        for ip in service["spec"].get("externalIPs") or ():
            if not plan.is_inside(ip):
                routes[ip] = _gateways(nodes, names, ip)
    for service in services:
        key = key_of(service)
        local = service["spec"].get("externalTrafficPolicy") == "Local"
        having = ready.get(key, set())
        for ip in assigned.get(key, ()):
            routes[ip] = _gateways(nodes, having if local else names if having else set(), ip)
    return {ip: gateways for ip, gateways in routes.items() if gateways}


def _nodes_with_ready_endpoints(slices: Iterable[Object]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for item in slices:
        name = (item["metadata"].get("labels") or {}).get(SERVICE_NAME)
        for endpoint in item.get("endpoints") or ():
            if name and (endpoint.get("conditions") or {}).get("ready", True):
                found.setdefault((item["metadata"]["namespace"], name), set()).add(endpoint.get("nodeName") or "")
    return found


def _gateways(nodes: list[Object], names: set[str], ip: str) -> tuple[str, ...]:
    """The addresses of these nodes that are of the family of `ip`."""
    return tuple(
        entry["address"]
        for node in nodes
        if node["metadata"]["name"] in names
        for entry in node["status"].get("addresses") or ()
        if entry["type"] == "InternalIP" and (":" in entry["address"]) is (":" in ip)
    )
