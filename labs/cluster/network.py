"""The cluster's network: the wire between the nodes, and what a pod's network namespace gets.

Stands for three things of a kind cluster: the Docker network "kind" that the nodes hang on, the CNI plugin `ptp` with
`host-local` address management that kindnet configures (images/kindnetd/cmd/kindnetd/cni.go;
containernetworking/plugins, plugins/main/ptp), and the `loopback` plugin. Routes between nodes and masquerading are
kindnet's own work: `labs.cluster.kindnet`.

    bridge `wire` 172.18.0.1 ──┬── eth0 172.18.0.2  node1 ──┬── vethXXXX 10.244.0.1/32 ── eth0 10.244.0.2/24  pod
                               └── eth0 172.18.0.3  node2   └── vethXXXX 10.244.0.1/32 ── eth0 10.244.0.3/24  pod

There is no bridge inside a node: each pod hangs on a cable of its own, the node routes to it by a /32 route, and the
pod sends everything, even to its neighbours, to its gateway: the address that the node has on every one of those
cables. Left out: the plugin binary interface, portmap, bandwidth, and network policy. The wire leads nowhere: the
cluster has no way out to the machine or the Internet.

What belongs here: links, addresses, routes that follow from where a pod is. What does not: who runs where, rules,
namespaces.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD

from labs.cluster import linux
from labs.cluster.options import AddressPlan
from labs.cluster.uplink import Uplink
from tracer.errors import K8snetError

WIRE = "wire"
SCOPE_LINK = 253  # RT_SCOPE_LINK, include/uapi/linux/rtnetlink.h


T = TypeVar("T")


class NetlinkThread:
    """The one thread that talks netlink: pyroute2's calls block, in an event loop of their own, not in ours."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "netlink")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function` there, after whatever was asked for before, and wait for its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


class NoAddressLeft(K8snetError):
    """A node's pod network is full."""


class Wire:
    """The network that the nodes hang on, in the network namespace that it is made in (the supervisor's).

    Make it, and call it, in the netlink thread.
    """

    def __init__(self, plan: AddressPlan) -> None:
        # Frames between nodes are no business of this namespace's netfilter.
        for name in ("iptables", "ip6tables", "arptables"):
            _sysctl(f"net/bridge/bridge-nf-call-{name}", "0", optional=True)
        self._ip = IPRoute()
        self._ip.link("set", index=1, state="up")
        # No learning of who hangs where can fail, and no port waits: STP is off.
        self._ip.link("add", ifname=WIRE, kind="bridge", br_stp_state=0)
        self._bridge = _index(self._ip, WIRE)
        for address in plan.gateways:
            _add_address(self._ip, self._bridge, address)
        self._ip.link("set", index=self._bridge, state="up")

    def connect(self, name: str, uplink: Uplink) -> None:
        """Give a node's network namespace its cable to the wire: eth0 with addresses and a default route."""
        netns = uplink.netns
        with linux.network_namespace(netns):
            inside = IPRoute()
        with inside:
            peer = {"ifname": "eth0", "net_ns_fd": netns}
            self._ip.link("add", ifname=name, kind="veth", peer=peer)
            port = _index(self._ip, name)
            self._ip.link("set", index=port, master=self._bridge, state="up")
            inside.link("set", index=1, state="up")
            inside.link("set", index=_index(inside, "eth0"), state="up")
        uplink.configure()


def prepare_node(netns: int, plan: AddressPlan) -> None:
    """Make a network namespace forward packets, as a node must."""
    with linux.network_namespace(netns):
        _sysctl("net/ipv4/ip_forward", "1")
        if 6 in plan.families:
            _sysctl("net/ipv6/conf/all/forwarding", "1")


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a pod hangs on its node: the name of the cable's end there, and the pod's addresses without prefix length."""

    link: str
    addresses: tuple[str, ...]


@dataclass
class NodeNetwork:
    """One node's end of the pod network: hands out addresses of `cidrs` and plugs pods in. `netns`: the node's.

    `mtu`: the largest packet of a pod; None for the wire's.

    Make it, and call it, in the netlink thread.
    """

    netns: int
    cidrs: list[str]
    mtu: int | None = None
    _used: set[str] = field(default_factory=set)
    _last: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with linux.network_namespace(self.netns):
            self._ip = IPRoute()

    def attach(self, netns: int) -> Attachment:
        """Plug the pod whose network namespace is `netns` in. Raises NoAddressLeft, OSError, or NetlinkError."""
        with linux.network_namespace(netns):
            inside = IPRoute()
        addresses = self._allocate()
        link = f"veth{os.urandom(4).hex()}"
        try:
            with inside:
                self._plug(inside, netns, link, addresses)
        except BaseException:
            self._free(addresses)
            raise
        return Attachment(link, tuple(addresses))

    def detach(self, attachment: Attachment) -> None:
        """Take the cable out, and the addresses back."""
        for index in self._ip.link_lookup(ifname=attachment.link):
            self._ip.link("del", index=index)
        self._free(attachment.addresses)

    def _plug(self, inside: Any, netns: int, link: str, addresses: list[str]) -> None:
        size = {} if self.mtu is None else {"mtu": self.mtu}
        self._ip.link("add", ifname=link, kind="veth", peer={"ifname": "eth0", "net_ns_fd": netns, **size}, **size)
        host = _index(self._ip, link)
        eth0 = _index(inside, "eth0")
        inside.link("set", index=1, state="up")
        self._ip.link("set", index=host, state="up")
        inside.link("set", index=eth0, state="up")
        for cidr, address in zip(self.cidrs, addresses, strict=True):
            network = ipaddress.ip_network(cidr)
            gateway, family = str(network.network_address + 1), _family(address)
            alone = network.max_prefixlen
            _add_address(inside, eth0, f"{address}/{network.prefixlen}", prefix_route=False)
            inside.route("add", dst=f"{gateway}/{alone}", oif=eth0, scope=SCOPE_LINK, prefsrc=address, family=family)
            inside.route("add", dst=cidr, gateway=gateway, oif=eth0, prefsrc=address, family=family)
            inside.route("add", dst="default", gateway=gateway, oif=eth0, family=family)
            _add_address(self._ip, host, f"{gateway}/{alone}")
            self._ip.route("add", dst=f"{address}/{alone}", oif=host, scope=SCOPE_LINK, family=family)

    def _allocate(self) -> list[str]:
        """One free address of each network, counting up from the last one given, as host-local does."""
        addresses: list[str] = []
        for cidr in self.cidrs:
            network = ipaddress.ip_network(cidr)
            size = min(network.num_addresses - 3, 1 << 16)  # without the network's, the gateway's and the last
            start = self._last.get(cidr, 0)
            for step in range(size):
                offset = 2 + (start + step) % size
                address = str(network.network_address + offset)
                if address not in self._used:
                    break
            else:
                self._free(addresses)
                raise NoAddressLeft(f"no address is left in {cidr}")
            self._last[cidr] = offset - 1
            self._used.add(address)
            addresses.append(address)
        return addresses

    def _free(self, addresses: Iterable[str]) -> None:
        self._used.difference_update(addresses)


def _index(ip: Any, name: str) -> int:
    """The number of the link called `name`."""
    return int(ip.link_lookup(ifname=name)[0])


def _add_address(ip: Any, index: int, address: str, *, prefix_route: bool = True) -> None:
    """Add `address` (with prefix length). IPv6: without waiting for duplicates to speak up, there are none."""
    flags = 0 if prefix_route else IFA_F_NOPREFIXROUTE
    if ":" in address:
        flags |= IFA_F_NODAD
    host, _, length = address.partition("/")
    ip.addr("add", index=index, address=host, prefixlen=int(length), **({"flags": flags} if flags else {}))


IFA_F_NOPREFIXROUTE = 0x200  # include/uapi/linux/if_addr.h


def _family(address: str) -> int:
    """AF_INET or AF_INET6."""
    return 10 if ":" in address else 2


def _sysctl(name: str, value: str, *, optional: bool = False) -> None:
    """Set a sysctl of the network namespace that the caller is in. `optional`: not every kernel has it."""
    path = Path("/proc/sys", name)
    if not optional or path.exists():
        path.write_text(value)
