"""The overlay between nodes: pods' packets travel inside UDP packets of their nodes (`--cni vxlan`).

Stands for flannel's backend "vxlan" (pkg/backend/vxlan: vxlan.go, device.go, vxlan_network.go; RFC 7348). For each IP
family a node has one device, `flannel.1` or `flannel-v6.1`: VNI 1, UDP port 8472, no learning, as many bytes smaller
than eth0 as the outer headers take. The device's address is the first of the node's pod network. For each other node
the device gets three things: a route (its pod network, by way of its device's address), a neighbour entry (which MAC
address that address has: nobody asks by ARP), and a forwarding entry (behind which node's address that MAC address
lives).

Left out: flannel's subnet leases and the annotation in which a node publishes its device's MAC address; here the MAC
address follows from the node's address. DirectRouting and the Windows backend.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD

VNI = 1
PORT = 8472  # the kernel's default, older than IANA's 4789; flannel has kept it
WIRE_MTU = 1500
OVERHEAD = {4: 50, 6: 70}  # outer Ethernet, IP, UDP and VXLAN headers
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
NUD_PERMANENT = 0x80  # include/uapi/linux/neighbour.h
NTF_SELF = 0x02  # the same file: the device itself keeps the entry, not a bridge above it
RTNH_F_ONLINK = 4  # include/uapi/linux/rtnetlink.h


def mtu(families: tuple[int, ...]) -> int:
    """The largest packet that a pod may send: it must fit into the overlay of each family."""
    return WIRE_MTU - max(OVERHEAD[family] for family in families)


def device_address(network: str) -> str:
    """The address of the device of the node that has the pod network `network`."""
    return network.partition("/")[0]


def device_mac(node_address: str) -> str:
    """The MAC address of the device of the node with that address; locally administered."""
    packed = ipaddress.ip_address(node_address).packed
    return bytes([0x02, 0x42 if len(packed) == 4 else 0x46, *packed[-4:]]).hex(":")


class Overlay:
    """One node's overlay. `own`: its pod networks, and for each the address of the node that belongs to it.

    Every call leaves in place what is right already, and repairs what somebody took away. All raise NetlinkError.
    """

    def __init__(self, own: dict[str, str]) -> None:
        self._own = own

    def replace_routes(self, old: dict[str, str], new: dict[str, str]) -> None:
        """Bring the overlay from `old` to `new`, both pod network -> address of the node that it is on."""
        with IPRoute() as ip:
            devices = {_family(network): _ensure_device(ip, network, address) for network, address in self._own.items()}
            for network in old.keys() - new.keys():
                _forget(ip, devices[_family(network)], network, old[network])
            for network, address in new.items():
                _teach(ip, devices[_family(network)], network, address)


def _ensure_device(ip: Any, network: str, address: str) -> int:
    """Make the device of one family, if it is not there; gives its index."""
    family = _family(network)
    name = DEVICES[family]
    if not ip.link_lookup(ifname=name):
        ip.link(
            "add",
            ifname=name,
            kind="vxlan",
            address=device_mac(address),
            mtu=WIRE_MTU - OVERHEAD[family],
            vxlan_id=VNI,
            vxlan_port=PORT,
            vxlan_learning=0,
            vxlan_link=int(ip.link_lookup(ifname="eth0")[0]),
            **{"vxlan_local" if family == 4 else "vxlan_local6": address},
        )
    index = int(ip.link_lookup(ifname=name)[0])
    alone = 32 if family == 4 else 128
    flags = {"flags": IFA_F_NODAD} if family == 6 else {}
    ip.addr("replace", index=index, address=device_address(network), prefixlen=alone, **flags)
    ip.link("set", index=index, state="up")
    return index


def _teach(ip: Any, device: int, network: str, address: str) -> None:
    """Tell a device how to reach the pods of `network`, on the node with that address."""
    gateway, mac = device_address(network), device_mac(address)
    ip.fdb("replace", ifindex=device, lladdr=mac, dst=address, state=NUD_PERMANENT, flags=NTF_SELF)
    ip.neigh("replace", ifindex=device, dst=gateway, lladdr=mac, state=NUD_PERMANENT, family=_socket_family(network))
    ip.route("replace", dst=network, gateway=gateway, oif=device, flags=RTNH_F_ONLINK, family=_socket_family(network))


def _forget(ip: Any, device: int, network: str, address: str) -> None:
    """The reverse of `_teach`."""
    gateway, mac, family = device_address(network), device_mac(address), _socket_family(network)
    with _forgotten_already():
        ip.route("del", dst=network, oif=device, family=family)
    with _forgotten_already():
        ip.neigh("del", ifindex=device, dst=gateway, lladdr=mac, family=family)
    with _forgotten_already():
        ip.fdb("del", ifindex=device, lladdr=mac, dst=address, flags=NTF_SELF)


@contextlib.contextmanager
def _forgotten_already() -> Iterator[None]:
    """No error when somebody else has removed it."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ESRCH, errno.ENOENT):
            raise


def _family(network: str) -> int:
    return 6 if ":" in network else 4


def _socket_family(network: str) -> int:
    return int(socket.AF_INET6 if ":" in network else socket.AF_INET)
