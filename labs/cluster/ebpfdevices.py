"""A node's devices as the eBPF Service datapath needs them: its programs at each of them, and the node's addresses.

Stands for the part of Cilium's agent that watches devices (pkg/datapath/linux, device manager) and attaches programs to
them (pkg/datapath/loader). What belongs here: rtnetlink and tc in the network namespace of the caller. What does not:
loading programs (`labs.cluster.ebpfloader`), Services.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from labs.cluster import ebpfloader, uplink, vxlan
from labs.cluster.proxy.ebpf_changes import Addresses
from tracer import bpfmaps, netprograms
from tracer.errors import BackendUnavailable
from tracer.netprograms import DeviceHook
from tracer.service_lb import IPAddress, NodeFacts

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
# Where tc has programs of packets that come in and go out (include/uapi/linux/pkt_sched.h)
TC_INGRESS, TC_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
FUNCTIONS = (ebpfloader.FROM_OUTSIDE, ebpfloader.FROM_POD, ebpfloader.TO_DEVICE)


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
        self._programs = {function: ebpfloader.open_program(pins, function) for function in FUNCTIONS}
        self._attached: set[int] = set()  # to devices by index, which the kernel uses once only
        self._pins = pins

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
            self._forget(links.keys())
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
            self._link(DeviceHook.INGRESS, came_in, index)
            self._link(DeviceHook.EGRESS, ebpfloader.TO_DEVICE, index)
        except BackendUnavailable:
            self._add_filters(route, came_in, index)
        else:
            self._attached.add(index)

    def _link(self, hook: DeviceHook, function: str, index: int) -> None:
        """Attach by a link of its own, which a packet reaches sooner than a filter. Raises BackendUnavailable."""
        path = self._pins / f"link_{hook.name.lower()}_{index}"
        link = bpfmaps.pinned(path)
        if link is None:
            link = netprograms.link_to_device(hook, self._programs[function], index)
            bpfmaps.pin(link, path)
        else:
            netprograms.replace_program(link, self._programs[function])
        os.close(link)

    def _forget(self, present: Collection[int]) -> None:
        """Remove the pins of links to devices that are gone."""
        for hook in DeviceHook:
            for path in self._pins.glob(f"link_{hook.name.lower()}_*"):
                if int(path.name.rpartition("_")[2]) not in present:
                    path.unlink()

    def _add_filters(self, route: IPRoute, came_in: str, index: int) -> None:
        """Attach as filters of tc."""
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


def remove_filters() -> None:
    """Remove from all devices of this network namespace the filters that a Watcher added where links are not to be had,
    and the qdisc that holds them, unless it holds others. Raises NetlinkError.
    """
    with IPRoute() as route:
        for link in route.get_links():
            index = int(link["index"])
            with _allowed(errno.EINVAL, errno.ENODEV):  # there is no such qdisc; the device is gone
                if _remove_ours(route, index):
                    route.tc("del", "clsact", index)


def _remove_ours(route: IPRoute, index: int) -> bool:
    """Remove our filters of a device; true when there were some, and no others. Raises NetlinkError."""
    ours = others = 0
    for parent in (TC_INGRESS, TC_EGRESS):
        for filter_ in route.get_filters(index=index, parent=parent):
            options = filter_.get_attr("TCA_OPTIONS")
            if options is None:  # what all filters of one priority have in common, not one of them
                continue
            if options.get_attr("TCA_BPF_NAME") in FUNCTIONS:
                route.tc("del-filter", "bpf", index=index, handle=1, parent=parent, prio=1)
                ours += 1
            else:
                others += 1
    return ours > 0 and others == 0


def _is_pods(link: Any) -> bool:
    """Whether a device is this node's end of a pod's cable."""
    info = link.get_attr("IFLA_LINKINFO")
    return info is not None and info.get_attr("IFLA_INFO_KIND") == "veth"


@contextlib.contextmanager
def _allowed(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise
