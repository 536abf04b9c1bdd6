"""Ends UDP sockets that are connected to an endpoint which is gone, so that their programs notice and connect anew.

Stands for Cilium's socket termination (pkg/datapath/sockets, `--bpf-lb-sock-terminate-pod-connections`). A socket that
connect() was translated for has the endpoint's own address, and nothing that happens to Services ever changes that:
with TCP the connection breaks, but with UDP a program would send into the void for ever. Whoever waits for an answer
gets ECONNABORTED, and whoever sends EDESTADDRREQ (net/ipv4/udp.c, udp_abort). The kernel needs
CONFIG_INET_DIAG_DESTROY; without, nothing is ended.

What belongs here: sock_diag(7) in each network namespace of a node. What does not: which endpoints are gone
(`labs.cluster.ebpfproxy`).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from labs.cluster import linux
from tracer.service_lb import IPAddress, unpack_ip, unpack_port

# include/uapi/linux/netlink.h, sock_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 4, 20, 21
_REQUEST, _ACK, _DUMP = 0x001, 0x004, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ESTABLISHED = 1 << 1  # of a UDP socket: connected
# include/uapi/linux/inet_diag.h: struct inet_diag_req_v2 up to its id; struct inet_diag_sockid; the beginning of
# struct inet_diag_msg, whose id follows.
_QUERY = struct.Struct("=BBBxI")
_ID = struct.Struct("=2s2s16s16sIQ")
_MESSAGE = struct.Struct("=BBBB")


class Peer(NamedTuple):
    """What a socket is connected to."""

    ip: IPAddress
    port: int


def network_namespaces(processes: Path) -> Iterator[Path]:
    """A path for each network namespace that a process is in; `processes`: a /proc."""
    seen = set()
    for directory in processes.iterdir():
        if directory.name.isdigit():
            path = directory / "ns/net"
            with contextlib.suppress(OSError):  # it has ended
                if (inode := path.stat().st_ino) not in seen:
                    seen.add(inode)
                    yield path


def end_udp_sockets(netns: Path, peers: Collection[Peer], is_ours: Callable[[int, Peer], bool]) -> int:
    """End the UDP sockets of a network namespace that are connected to one of `peers`; gives their number.

    `is_ours` is asked with a socket's cookie and its peer. The calling thread moves, so it must not be the event
    loop's. Raises OSError, but not for what the kernel can't do or a namespace that is gone.
    """
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        with linux.network_namespace(descriptor):
            diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    finally:
        os.close(descriptor)
    ended = 0
    with diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for identity in list(_connected(diag, family)):
                peer, cookie = _read_identity(family, identity)
                if peer in peers and is_ours(cookie, peer):
                    ended += _destroy(diag, family, identity)
    return ended


def _connected(diag: socket.socket, family: int) -> Iterator[bytes]:
    """The identities of the connected UDP sockets of a family."""
    query = _QUERY.pack(family, socket.IPPROTO_UDP, 0, _ESTABLISHED) + bytes(_ID.size)
    diag.send(_HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0) + query)
    while True:
        data = diag.recv(1 << 16)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind in (_DONE, _ERROR):
                return
            start = _HEADER.size + _MESSAGE.size
            yield data[start : start + _ID.size]
            data = data[(length + 3) & ~3 :]


def _read_identity(family: int, identity: bytes) -> tuple[Peer, int]:
    _, port, _, address, _, cookie = _ID.unpack(identity)
    if family == socket.AF_INET:
        return Peer(ipaddress.IPv4Address(address[:4]), unpack_port(port)), cookie
    return Peer(unpack_ip(address), unpack_port(port)), cookie


def _destroy(diag: socket.socket, family: int, identity: bytes) -> int:
    query = _QUERY.pack(family, socket.IPPROTO_UDP, 0, _ESTABLISHED) + identity
    diag.send(_HEADER.pack(_HEADER.size + len(query), _SOCK_DESTROY, _REQUEST | _ACK, 2, 0) + query)
    data = diag.recv(1 << 16)
    (code,) = struct.unpack_from("=i", data, _HEADER.size)
    if code not in (0, -errno.ENOENT, -errno.EOPNOTSUPP, -errno.ENOTCONN):
        raise OSError(-code, os.strerror(-code))
    return int(code == 0)
