"""Which network namespaces are at the other ends of a namespace's links: from a pod, that is its node.

What belongs here: asking the kernel where a veth's peer, or the device below a macvlan or ipvlan, lives. What does not:
what is in those namespaces.

A link says in which namespace its other end is by an id that only means something in its own namespace
(IFLA_LINK_NETNSID); for another namespace the kernel tells the id that it has there (RTM_GETNSID), and gives out none
that it had not given before. Sources: Linux include/uapi/linux/{rtnetlink,if_link,net_namespace}.h,
net/core/net_namespace.c, rtnl_net_getid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from tracer import netns
from tracer.ctnetlink import attribute, split
from tracer.errors import K8snetError

_RTM_GETLINK, _RTM_NEWLINK, _RTM_NEWNSID, _RTM_GETNSID = 18, 16, 88, 90
_IFLA_LINK_NETNSID, _NETNSA_NSID, _NETNSA_FD = 37, 1, 3
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x1, 0x300, 2, 3
_NLMSGHDR = struct.Struct("=IHHII")
_NLATTR = struct.Struct("=HH")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTGENMSG = struct.Struct("=Bxxx")


def neighbours(path: str | None, known: Mapping[int, str]) -> list[int]:
    """The inodes of those of the `known` namespaces that the namespace at `path` (None: our own) has links to.

    Raises what `tracer.netns.run_in` raises.
    """
    return netns.run_in(path, lambda: _neighbours_here(known))


def _neighbours_here(known: Mapping[int, str]) -> list[int]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        wanted = _ids_of_links(netlink)
        if not wanted:
            return []
        return [inode for inode, path in known.items() if _id_of(netlink, path) in wanted]


def _ids_of_links(netlink: socket.socket) -> set[int]:
    """The ids of the namespaces in which the other ends of our links are."""
    ids = set()
    for body in _ask(netlink, _RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0), _RTM_NEWLINK, dump=True):
        value = dict(_attributes(body, _IFINFOMSG.size)).get(_IFLA_LINK_NETNSID)
        if value is not None:
            ids.add(struct.unpack("=i", value)[0])
    return ids


def _id_of(netlink: socket.socket, path: str) -> int | None:
    """The id that the namespace at `path` has in ours; None: none, or it is gone."""
    with contextlib.suppress(OSError, K8snetError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            body = _RTGENMSG.pack(0) + attribute(_NETNSA_FD, struct.pack("=I", fd))
            for answer in _ask(netlink, _RTM_GETNSID, body, _RTM_NEWNSID):
                value = dict(_attributes(answer, _RTGENMSG.size)).get(_NETNSA_NSID)
                if value is not None:
                    number: int = struct.unpack("=i", value)[0]
                    return number if number >= 0 else None
        finally:
            os.close(fd)
    return None


def _ask(netlink: socket.socket, kind: int, body: bytes, wanted: int, *, dump: bool = False) -> Iterator[bytes]:
    """The bodies of the messages of type `wanted` in the answer. Raises OSError when the kernel refuses."""
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    netlink.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, 1, 0) + body)
    while True:
        for answer, message in split(netlink.recv(1 << 17)):
            if answer == _NLMSG_DONE:
                return
            if answer == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", message, _NLMSGHDR.size)[0]
                raise OSError(number, os.strerror(number))
            if answer == wanted:
                yield message[_NLMSGHDR.size :]
        if not dump:
            return


def _attributes(body: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    while start + _NLATTR.size <= len(body):
        length, kind = _NLATTR.unpack_from(body, start)
        if length < _NLATTR.size:
            return
        yield kind & 0x3FFF, body[start + _NLATTR.size : start + length]
        start += (length + 3) & ~3
