"""kube-proxy's place taken by hash maps: follows Services and EndpointSlices, and keeps the eBPF datapath's maps.

Stands for Cilium's agent with kube-proxy replacement (`--set kubeProxyReplacement=true`), as far as it concerns
Services. It runs in a pod of each node, on the node's network, in the DaemonSet kube-proxy, since nothing else of the
cluster need know the difference. Each object that changes is looked at by itself, and at once: with 10,000 Services one
endpoint's change costs what it costs with ten.

What belongs here: following the API, the node's own addresses and devices. What does not: what the maps must hold
(`labs.cluster.proxy.ebpf`), how they are written (`ebpf_maps`), loading programs (`ebpfloader`). Left out: Cilium's
own policy, identities, tunnels and health checks of backends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import itertools
import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from labs.cluster import ebpfloader, sockdestroy, uplink, vxlan
from labs.cluster.apiclient import Mirror
from labs.cluster.proxy.ebpf import Node, Wanted, wanted
from labs.cluster.proxy.ebpf_maps import MapFull, Tables
from labs.cluster.proxy.endpoints import SERVICE_NAME_LABEL, endpoints_by_port
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import PortKey, ports_of
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES, Object, Resource
from labs.cluster.runtime.container import Container
from labs.cluster.sockdestroy import Peer
from tracer.bpfmaps import Map
from tracer.errors import K8snetError
from tracer.service_lb import IPAddress, NodeFacts, pack_peer

PINS = Path("/sys/fs/bpf/k8snet")
NODE_PROCESSES = Path("/host/proc")  # the node's /proc, in which all of its pods' processes are
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
RETRY_SECONDS = 1.0
# Where tc has programs of packets that come in and go out (include/uapi/linux/pkt_sched.h)
TC_INGRESS, TC_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3

log = logging.getLogger(__name__)

Name = tuple[str, str]  # namespace, name
Key = tuple[PortKey, int]  # a Service port in one IP family
Addresses = Mapping[str, tuple[IPAddress, ...]]  # of a node, by device


def main(container: Container) -> None:
    """Be the proxy on the node of `container`."""
    cgroup = container.facts["node_cgroup"]
    if cgroup is None:
        raise K8snetError("--proxy ebpf needs cgroup v2: its programs are attached to the cgroup of a node")
    ebpfloader.load(PINS, Path(cgroup))
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    facts = container.facts
    families = [int(family) for family in facts["families"]]
    maps = ebpfloader.open_maps(PINS)
    changed = asyncio.Event()
    state = State(facts["node"], families)
    watcher = Watcher(PINS, families, facts["cni"])
    events = LinkEvents()
    mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), changed.set, server=facts["api_server"], on_object=state.note)

    async def watch() -> None:
        while True:
            addresses = await asyncio.to_thread(watcher.look)
            if watcher.is_complete and state.set_addresses(addresses):
                maps["node"].set(bytes(4), node_facts(addresses).pack())
                changed.set()
            await events.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        group.create_task(mirror.run())
        group.create_task(_sync_loop(container, mirror, changed, state, Tables(maps), maps["asked"]))


async def _sync_loop(
    container: Container,
    mirror: Mirror,
    changed: asyncio.Event,
    state: State,
    tables: Tables[Key],
    asked: Map,
) -> None:
    first = True
    while True:
        await changed.wait()
        changed.clear()
        if not (mirror.complete and state.knows_addresses):
            continue
        version = mirror.version
        left, error = _apply(tables, state.take(mirror))
        if error is not None:
            log.error("%s", error)
            container.notify(f"error {error}")
            state.put_back(left)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, changed.set)
            continue
        if gone := state.take_gone():
            await asyncio.to_thread(_end_sockets, gone, asked)
        container.notify(f"synced {version}")
        container.ready()
        if first:
            gc.freeze()  # as kube-proxy's other modes do: it would walk all Services, for hardly any garbage
            first = False


def _apply(
    tables: Tables[Key], pending: Mapping[Key, Wanted | None]
) -> tuple[dict[Key, Wanted | None], K8snetError | None]:
    """Write all of it, or where there is no room for all, what there is room for; gives what is left, and why."""
    try:
        tables.apply(pending)
    except MapFull:
        return _apply_each(tables, pending)
    except K8snetError as error:
        return dict(pending), error
    return {}, None


def _end_sockets(peers: set[Peer], asked: Map) -> None:
    """End the UDP sockets of this node that were sent to endpoints which are gone, by way of a Service."""

    def is_ours(cookie: int, peer: Peer) -> bool:
        return asked.get(pack_peer(cookie, peer.ip, peer.port)) is not None

    for netns in sockdestroy.network_namespaces(NODE_PROCESSES):
        try:
            ended = sockdestroy.end_udp_sockets(netns, peers, is_ours)
        except OSError as error:
            log.warning("UDP sockets in %s can't be ended: %s", netns, error)
            continue
        if ended:
            log.info("ended %s UDP sockets in %s", ended, netns)


def _apply_each(
    tables: Tables[Key], pending: Mapping[Key, Wanted | None]
) -> tuple[dict[Key, Wanted | None], K8snetError | None]:
    left: dict[Key, Wanted | None] = {}
    why: K8snetError | None = None
    # What goes makes room for what comes.
    for key in sorted(pending, key=lambda key: pending[key] is not None):
        try:
            tables.apply({key: pending[key]})
        except K8snetError as error:
            left[key], why = pending[key], error
    return left, why


@dataclass(slots=True)
class State:
    """What has changed since it was last written, and what is needed to work out what to write."""

    node_name: str
    families: list[int]
    _addresses: Addresses = field(default_factory=dict)
    _dirty: set[Name] = field(default_factory=set)  # Services
    _slices_of: dict[Name, set[Name]] = field(default_factory=dict)
    _service_of: dict[Name, Name] = field(default_factory=dict)
    _wanted_of: dict[Name, dict[Key, Wanted]] = field(default_factory=dict)
    _gone: set[Peer] = field(default_factory=set)
    _nodes: dict[int, Node] = field(default_factory=dict)
    _failed: dict[Key, Wanted | None] = field(default_factory=dict)

    def note(self, resource: Resource, name: Name, item: Object | None) -> None:
        """An object is new, has changed, or is gone (None)."""
        if resource is SERVICES:
            self._dirty.add(name)
        elif resource is ENDPOINTSLICES:
            before, now = self._service_of.pop(name, None), _owner(item)
            if before is not None:
                self._slices_of[before].discard(name)
                self._dirty.add(before)
            if now is not None:
                self._service_of[name] = now
                self._slices_of.setdefault(now, set()).add(name)
                self._dirty.add(now)
        elif name[1] == self.node_name:
            self._nodes = {}
            self._dirty |= self._wanted_of.keys()

    @property
    def knows_addresses(self) -> bool:
        """Whether the node's own addresses are known."""
        return bool(self._addresses)

    def set_addresses(self, addresses: Addresses) -> bool:
        """Learn the node's own addresses, by device; false when they are the same as before."""
        if addresses == self._addresses:
            return False
        self._addresses, self._nodes = addresses, {}
        self._dirty |= self._wanted_of.keys()
        return True

    def take(self, mirror: Mirror) -> dict[Key, Wanted | None]:
        """What the maps must hold of every Service port that may have changed."""
        dirty, self._dirty = self._dirty, set()
        found, self._failed = self._failed, {}
        if not self._nodes:
            items = list(mirror.items[NODES].values())
            self._nodes = {family: self._node(items, family) for family in self.families}
        for name in dirty:
            before, now = self._wanted_of.pop(name, {}), dict(self._ports(mirror, name))
            if now:
                self._wanted_of[name] = now
            self._gone |= _datagram_peers(before) - _datagram_peers(now)
            self._gone -= _datagram_peers(now)
            found |= now | dict.fromkeys(before.keys() - now.keys())
        return found

    def take_gone(self) -> set[Peer]:
        """The endpoints that sockets of UDP must no longer be connected to."""
        gone, self._gone = self._gone, set()
        return gone

    def put_back(self, pending: Mapping[Key, Wanted | None]) -> None:
        """Have `take` give these once more, unless they change again."""
        self._failed = {**pending, **self._failed}

    def _ports(self, mirror: Mirror, name: Name) -> Iterator[tuple[Key, Wanted]]:
        service = mirror.items[SERVICES].get(name)
        if service is None:
            return
        known = mirror.items[ENDPOINTSLICES]
        slices = [known[key] for key in sorted(self._slices_of.get(name, ())) if key in known]
        for family in self.families:
            endpoints = endpoints_by_port(slices, node_name=self.node_name, family=family)
            for port in ports_of(service, family):
                one = wanted(port, endpoints.get(port.key, ()), self._nodes[family])
                if one is not None:
                    yield (port.key, family), one

    def _node(self, items: list[Object], family: int) -> Node:
        node = local_node(items, self.node_name, family)
        addresses = dict.fromkeys(_where_node_ports_answer(self._addresses, family))
        return Node(node.ip, node.zone, tuple(map(str, addresses)))


def _datagram_peers(ports: Mapping[Key, Wanted]) -> set[Peer]:
    """The endpoints of UDP among those of some Service ports."""
    return {
        Peer(backend.ip, backend.port)
        for (key, _), one in ports.items()
        if key.protocol == "UDP"
        for backend in (*one.cluster, *one.local)
    }


def _owner(item: Object | None) -> Name | None:
    """The Service that an EndpointSlice belongs to."""
    metadata = {} if item is None else item["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    return (metadata.get("namespace", ""), name) if name else None


def _where_node_ports_answer(addresses: Addresses, family: int) -> Iterator[IPAddress]:
    """All of the node's addresses, as with kube-proxy; 127.0.0.1 among them, but not ::1."""
    for ip in itertools.chain.from_iterable(addresses.values()):
        if ip.version == family and not ip.is_link_local and (family == 4 or not ip.is_loopback):
            yield ip


def node_facts(addresses: Addresses) -> NodeFacts:
    """What the programs must know of the node that they are on."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        cookie = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    own = [ip for ip in addresses.get(uplink.NAME, ()) if not ip.is_link_local]
    return NodeFacts(
        int.from_bytes(cookie, sys.byteorder),
        next((ip for ip in own if ip.version == 4), None),
        next((ip for ip in own if ip.version == 6), None),
        Path("/proc/self/ns/net").stat().st_ino,
    )


class LinkEvents:
    """Tells when links or addresses of this network namespace have changed. Make it in a running event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    async def wait(self) -> None:
        """Wait for the next change since the last `wait`."""
        await self._event.wait()
        self._event.clear()

    def _read(self) -> None:
        """What is said is looked up anyway; so it does not matter, either, when there was more than had room."""
        with contextlib.suppress(BlockingIOError):
            try:
                self._socket.recv(1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._event.set()


class Watcher:
    """Looks at this network namespace: has the programs for packets at its devices, those of pods and those that lead
    to other machines, and tells which addresses there are. Not for the event loop's thread: pyroute2 has its own."""

    def __init__(self, pins: Path, families: list[int], cni: str) -> None:
        self._outward = {uplink.NAME, *(vxlan.DEVICES[family] for family in families if cni == "vxlan")}
        functions = (ebpfloader.FROM_OUTSIDE, ebpfloader.FROM_POD, ebpfloader.TO_DEVICE)
        self._programs = {function: ebpfloader.open_program(pins, function) for function in functions}
        self._attached: set[int] = set()  # to devices by index, which the kernel uses once only

    @property
    def is_complete(self) -> bool:
        """Whether the devices that lead to other machines are there."""
        return self._missing == 0

    def look(self) -> Addresses:
        """Do what is to be done, and give the addresses by device. Raises NetlinkError."""
        with IPRoute() as route:
            links = {int(link["index"]): link for link in route.get_links()}
            names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
            for index in links.keys() - self._attached:
                if names[index] in self._outward or _is_pods(links[index]):
                    self._attach(route, index, names[index] in self._outward)
            self._attached &= links.keys()
            self._missing = len(self._outward.difference(names.values()))
            found: dict[str, tuple[IPAddress, ...]] = {}
            for message in route.get_addr():
                ip = ipaddress.ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
                name = names.get(int(message["index"]), "")
                found[name] = (*found.get(name, ()), ip)
        return found

    def _attach(self, route: IPRoute, index: int, outward: bool) -> None:
        """Attach in the place of what an earlier proxy attached, if it did; a device may go meanwhile."""
        came_in = ebpfloader.FROM_OUTSIDE if outward else ebpfloader.FROM_POD
        try:
            with _allowed(errno.EEXIST):
                route.tc("add", "clsact", index)
            for parent, function in ((TC_INGRESS, came_in), (TC_EGRESS, ebpfloader.TO_DEVICE)):
                program = {"fd": self._programs[function], "name": function, "direct_action": True, "classid": 1}
                route.tc("replace-filter", "bpf", index=index, handle=1, parent=parent, prio=1, **program)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.EINVAL):
                raise
        else:
            self._attached.add(index)


def _is_pods(link: Any) -> bool:
    """Whether a device is this node's end of a pod's cable."""
    info = link.get_attr("IFLA_LINKINFO")
    return info is not None and info.get_attr("IFLA_INFO_KIND") == "veth"


@contextlib.contextmanager
def _allowed(code: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise
