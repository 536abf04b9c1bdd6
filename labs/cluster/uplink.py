"""A node's link to the wire: its addresses and default route, also after the link was down.

Stands for systemd-networkd on a node (systemd.network(5)): the kernel forgets a link's IPv6 addresses and every route
through it when the link goes down, and gives back neither when it comes up. Left out: DHCP, and everything that a link
could be configured with but for addresses and a default route.

What belongs here: eth0 of a node. What does not: the wire's end of the cable (`labs.cluster.network`), routes to pods
(`labs.cluster.kindnet`, which listens to `LinkEvents` for its own).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOWER_UP, IFF_UP
from pyroute2.netlink.rtnl.iprsocket import MarshalRtnl

from labs.cluster import linux

NAME = "eth0"
RETRY_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Uplink:
    """What eth0 in the network namespace `netns` has: `addresses` with prefix length, and `gateways` without."""

    netns: int
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]

    def configure(self) -> None:
        """Give eth0, which is up, what it lacks. Call it in the netlink thread. Raises NetlinkError."""
        with linux.network_namespace(self.netns):
            inside = IPRoute()
        with inside:
            index = int(inside.link_lookup(ifname=NAME)[0])
            for address in self.addresses:
                host, _, length = address.partition("/")
                flags = {"flags": IFA_F_NODAD} if ":" in address else {}
                inside.addr("replace", index=index, address=host, prefixlen=int(length), **flags)
            for gateway in self.gateways:
                family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
                inside.route("replace", dst="default", gateway=gateway, oif=index, family=family)


class LinkEvents:
    """Calls `on_up` each time that eth0 of the network namespace that it is made in is up; until `close`.

    Make it in a running event loop. It may call once too often, never too seldom: events that the kernel had no room
    for count as one.
    """

    def __init__(self, on_up: Callable[[], None]) -> None:
        self._on_up = on_up
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK))
        self._marshal: Any = MarshalRtnl()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._on_up()
            return
        if any(_says_up(message) for message in self._marshal.parse(data)):
            self._on_up()


def _says_up(message: Any) -> bool:
    if message["event"] != "RTM_NEWLINK" or message.get_attr("IFLA_IFNAME") != NAME:
        return False
    flags = int(message["flags"])
    return bool(flags & IFF_UP and flags & IFF_LOWER_UP)


async def keep(uplink: Uplink, run: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
    """Configure the link again each time that it comes up. `run`: calls a function in the netlink thread."""
    up = asyncio.Event()
    with linux.network_namespace(uplink.netns):
        events = LinkEvents(up.set)
    try:
        while True:
            await up.wait()
            up.clear()
            try:
                await run(uplink.configure)
            except NetlinkError as error:  # down again, most likely
                log.warning("eth0 of a node: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
    finally:
        events.close()
