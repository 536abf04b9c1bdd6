"""What the kernel's routing says of an address, in any network namespace: the questions of `routing`, by rtnetlink.

What belongs here: RTM_GETROUTE for one address at a time, which changes nothing and sends nothing. What does not: what
the answers mean for a packet (`hooks`, `conditions`).
Source: rtnetlink(7); Linux include/uapi/linux/rtnetlink.h; net/ipv4/route.c, inet_rtm_getroute.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import socket
import struct
import sys
from typing import NamedTuple

from tracer import netns
from tracer.errors import K8snetError

_GET_ROUTE, _NEW_ROUTE, _ERROR = 26, 24, 2
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_DESTINATION, _OUT_DEVICE, _PREFERRED_SOURCE = 1, 4, 7
_KINDS = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit")
_REFUSALS = {errno.EINVAL: "blackhole", errno.EACCES: "prohibit"}
_GET_NAME = 0x8910  # SIOCGIFNAME
_SECONDS = 5.0


class Route(NamedTuple):
    """The kernel's answer for one address."""

    kind: str
    device: str | None = None
    source: int | None = None


class LiveRouting:
    """The routing of one network namespace, for one family (ip or ip6); see `routing.Routing`.

    Raises what `tracer.netns.run_in` raises when it is made, K8snetError when the kernel does not answer.
    """

    def __init__(self, netns_path: str | None, family: str) -> None:
        self._family = socket.AF_INET6 if family == "ip6" else socket.AF_INET
        self._width = 16 if family == "ip6" else 4
        self._netlink = netns.run_in(netns_path, _open)
        self._routes: dict[int, Route] = {}
        self._device = functools.cache(self._device_name)

    def close(self) -> None:
        """Let go of the namespace."""
        self._netlink.close()

    def kind(self, address: int) -> str | None:
        """See Routing."""
        return self._route(address).kind

    def device(self, address: int) -> str | None:
        """See Routing."""
        return self._route(address).device

    def arrival(self, address: int) -> str | None:
        """See Routing."""
        return self._route(address).device

    def source(self, address: int) -> int | None:
        """See Routing."""
        return self._route(address).source

    def _route(self, address: int) -> Route:
        route = self._routes.get(address)
        if route is None:
            route = self._routes[address] = self._ask(address)
        return route

    def _ask(self, address: int) -> Route:
        wanted = _ATTRIBUTE.pack(_ATTRIBUTE.size + self._width, _DESTINATION) + address.to_bytes(self._width, "big")
        body = _ROUTE.pack(self._family, self._width * 8, 0, 0, 0, 0, 0, 0, 0) + wanted
        try:
            self._netlink.send(_HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, 0, 0) + body)
            answer = self._netlink.recv(1 << 16)
        except OSError as error:
            raise K8snetError(f"the kernel's routing can't be asked: {error.strerror or error}") from error
        length, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            (number,) = struct.unpack_from("=i", answer, _HEADER.size)
            return Route(_REFUSALS.get(-number, "unreachable"))
        return self._read(answer[_HEADER.size : length])

    def _read(self, body: bytes) -> Route:
        kind = _ROUTE.unpack_from(body)[7]
        attributes: dict[int, bytes] = {}
        at = _ROUTE.size
        while at + _ATTRIBUTE.size <= len(body):
            length, number = _ATTRIBUTE.unpack_from(body, at)
            if length < _ATTRIBUTE.size:
                break
            attributes[number] = body[at + _ATTRIBUTE.size : at + length]
            at += (length + 3) & ~3
        device = attributes.get(_OUT_DEVICE)
        source = attributes.get(_PREFERRED_SOURCE)
        return Route(
            _KINDS[kind] if kind < len(_KINDS) else "unspec",
            None if device is None else self._device(int.from_bytes(device, sys.byteorder)),
            None if source is None else int.from_bytes(source, "big"),
        )

    def _device_name(self, index: int) -> str | None:
        """The name that the device has in the namespace (netdevice(7))."""
        try:
            answer = fcntl.ioctl(self._netlink, _GET_NAME, struct.pack("=16si20x", b"", index))
        except OSError:
            return None  # it went away
        return answer[:16].split(b"\0", 1)[0].decode(errors="replace")


def _open() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    netlink.settimeout(_SECONDS)
    return netlink
