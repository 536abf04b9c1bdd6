"""The kernel's connection-tracking messages (nfnetlink subsystem CTNETLINK): sockets, requests, decoding.

What belongs here: bytes on an AF_NETLINK socket to one flat tuple per message, and the reverse for requests that read.
What does not: what an entry means (`tracer.conntrack`), what a connection is (`tracer.source.conntrack`), and any
request that changes the table.

Sources: include/uapi/linux/netfilter/{nfnetlink_conntrack,nf_conntrack_common,nf_conntrack_tcp,nf_conntrack_sctp}.h,
net/netfilter/nf_conntrack_netlink.c. Headers are in native byte order, values in network order.

Why not pyroute2's NFCTSocket: it takes 53 µs for a message (5.3 s for a dump of 100,000 entries), and does not count
lost events. At 12,000 connections a second, decoding their events alone would take more than one CPU. Here a message
takes 1.0 µs to decode (0.4 s for that dump). Messages repeat: the attribute headers of all messages of one kind are
equal. So the first one is walked attribute by attribute, and gives a mask of its header bytes and a struct.Struct for
its values; whatever equals it under that mask is decoded by that struct.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

from tracer.errors import K8snetError, MissingError, NotRoot

NETLINK_NETFILTER = 12
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_NEW = 0
IPCTNL_MSG_CT_GET = 1
IPCTNL_MSG_CT_DELETE = 2
IPCTNL_MSG_CT_GET_STATS = 5
NFNLGRP_CONNTRACK_NEW = 1
NFNLGRP_CONNTRACK_UPDATE = 2
NFNLGRP_CONNTRACK_DESTROY = 3
EVENT_GROUPS = (NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE, NFNLGRP_CONNTRACK_DESTROY)

IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP = 6, 17, 132
PORT_PROTOCOLS = frozenset({IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP})

# enum ip_conntrack_status
IPS_SEEN_REPLY = 1 << 1
IPS_ASSURED = 1 << 2
IPS_SRC_NAT = 1 << 4
IPS_DST_NAT = 1 << 5
IPS_NAT_MASK = IPS_SRC_NAT | IPS_DST_NAT

# enum tcp_conntrack
TCP_SYN_SENT, TCP_SYN_RECV, TCP_ESTABLISHED, TCP_FIN_WAIT, TCP_CLOSE, TCP_SYN_SENT2 = 1, 2, 3, 4, 8, 9
# enum sctp_conntrack
SCTP_CLOSED, SCTP_COOKIE_WAIT, SCTP_COOKIE_ECHOED, SCTP_ESTABLISHED = 1, 2, 3, 4

NEW, UPDATE, DESTROY = 1, 2, 3  # Message.kind; an entry of a dump is NEW

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO = 1, 2, 3, 4
CTA_TIMEOUT, CTA_MARK, CTA_ID, CTA_ZONE, CTA_TIMESTAMP = 7, 8, 12, 18, 20
CTA_FILTER, CTA_STATUS_MASK, CTA_TIMESTAMP_EVENT = 25, 26, 27
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_TUPLE_ZONE = 1, 2, 3
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTOINFO_TCP, CTA_PROTOINFO_SCTP, CTA_PROTOINFO_STATE = 1, 3, 1
CTA_TIMESTAMP_START, CTA_TIMESTAMP_STOP = 1, 2
CTA_FILTER_ORIG_FLAGS = 1
CTA_STATS_GLOBAL_ENTRIES = 1

_FAMILIES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_NLATTR = struct.Struct("=HH")  # length, type
_ERRNO = struct.Struct("=i")
_BODY = _NLMSGHDR.size + 4  # past struct nfgenmsg
_RECEIVE_BYTES = 1 << 18  # the kernel fills at most 32 KiB of it in one datagram
_MAX_LAYOUTS = 256

_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SO_MEMINFO, _SK_MEMINFO_DROPS = 55, 8  # include/uapi/linux/sock_diag.h


class Message(NamedTuple):
    """One entry of the table, or one event. Addresses packed (4 or 16 bytes), ports and numbers in host order."""

    kind: int  # NEW, UPDATE, DESTROY
    family: int  # 4 or 6
    protocol: int  # IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
    src: bytes
    sport: int
    dst: bytes
    dport: int
    reply_src: bytes
    reply_sport: int
    reply_dst: bytes
    reply_dport: int
    status: int | None  # IPS_*
    state: int | None  # enum tcp_conntrack or sctp_conntrack
    timeout: int | None  # seconds left; None for an event about an entry that has none left
    mark: int | None
    zone: int
    id: int | None
    # Since the epoch, and only where net.netfilter.nf_conntrack_timestamp is on:
    time_ns: int | None  # when the event happened: any event since v6.14, DESTROY before
    start_ns: int | None  # when the entry was made: DESTROY, dumps


# Where a message holds each field of Message after `family`: path of attribute types, struct format.
_PATHS: dict[tuple[int, ...], tuple[str, str]] = {
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_NUM): ("protocol", "B"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V4_SRC): ("src", "4s"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V6_SRC): ("src", "16s"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT): ("sport", "H"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V4_DST): ("dst", "4s"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V6_DST): ("dst", "16s"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT): ("dport", "H"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_IP_V4_SRC): ("reply_src", "4s"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_IP_V6_SRC): ("reply_src", "16s"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT): ("reply_sport", "H"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_IP_V4_DST): ("reply_dst", "4s"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_IP_V6_DST): ("reply_dst", "16s"),
    (CTA_TUPLE_REPLY, CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT): ("reply_dport", "H"),
    (CTA_STATUS,): ("status", "I"),
    (CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_STATE): ("state", "B"),
    (CTA_PROTOINFO, CTA_PROTOINFO_SCTP, CTA_PROTOINFO_STATE): ("state", "B"),
    (CTA_TIMEOUT,): ("timeout", "I"),
    (CTA_MARK,): ("mark", "I"),
    (CTA_TUPLE_ORIG, CTA_TUPLE_ZONE): ("zone", "H"),  # a zone for one direction only
    (CTA_ZONE,): ("zone", "H"),
    (CTA_ID,): ("id", "I"),
    (CTA_TIMESTAMP_EVENT,): ("time_ns", "Q"),  # since v6.14
    (CTA_TIMESTAMP, CTA_TIMESTAMP_STOP): ("time_ns", "Q"),
    (CTA_TIMESTAMP, CTA_TIMESTAMP_START): ("start_ns", "Q"),
}
_NESTED = {path[:depth] for path in _PATHS for depth in range(1, len(path))}
_REQUIRED = Message._fields[2:11]


_Values = tuple[object, ...]
_Unpack = Callable[[bytes], _Values]
_Pick = Callable[[_Values], _Values]


class _Layout(NamedTuple):
    """How messages that equal `template` under `mask` are decoded; `unpack` is None for those that hold no ports."""

    length: int
    mask: int
    template: int
    unpack: _Unpack | None
    constants: _Values  # appended to what unpack gives, for `pick` to choose from
    pick: _Pick


class Decoder:
    """Decodes messages, learning their layouts as they come (see the module's docstring). One for each thread."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, list[_Layout]] = {}

    def decode(self, message: bytes) -> Message | None:
        """Decode one whole netlink message.

        None for anything but an entry or event of a TCP, UDP or SCTP flow: other protocols (ICMP has no ports), other
        message types, truncated or malformed bytes.
        """
        key = message[:8]  # length, type, flags
        number = int.from_bytes(message, "little")
        for layout in self._layouts.get(key, ()):
            if number & layout.mask == layout.template and len(message) == layout.length:
                break
        else:
            learned = self._learn(key, message, number)
            if learned is None:
                return None
            layout = learned
        if layout.unpack is None:
            return None
        return Message._make(layout.pick(layout.unpack(message) + layout.constants))

    def _learn(self, key: bytes, message: bytes, number: int) -> _Layout | None:
        """Walk a message of a new layout and remember that; None when it is no well-formed CTNETLINK message."""
        layout = _layout(message, number)
        if layout is None:
            return None
        if sum(map(len, self._layouts.values())) >= _MAX_LAYOUTS:  # marks and labels come and go; never grow for ever
            self._layouts.clear()
        self._layouts.setdefault(key, []).append(layout)
        return layout


def _layout(message: bytes, number: int) -> _Layout | None:
    """The layout of a message, or None when it is malformed or no CTNETLINK message."""
    if len(message) < _BODY:
        return None
    length, kind, flags, _, _ = _NLMSGHDR.unpack_from(message)
    family = _FAMILIES.get(message[_NLMSGHDR.size], 0)
    if length != len(message) or kind >> 8 != NFNL_SUBSYS_CTNETLINK:
        return None
    mask = bytearray(len(message))
    mask[:8] = b"\xff" * 8
    mask[_NLMSGHDR.size] = 0xFF
    places: dict[str, tuple[int, str]] = {}
    try:
        for path, offset, size in _walk(message, _BODY, len(message), ()):
            mask[offset - _NLATTR.size : offset] = b"\xff" * _NLATTR.size
            name, form = _PATHS.get(path, ("", ""))
            if name and size == struct.calcsize(">" + form):
                places[name] = (offset, form)
    except ValueError:
        return None
    if "protocol" in places:  # so that other protocols get a layout of their own
        mask[places["protocol"][0]] = 0xFF
    bits = int.from_bytes(mask, "little")
    message_kind = {IPCTNL_MSG_CT_NEW: UPDATE if flags == 0 else NEW, IPCTNL_MSG_CT_DELETE: DESTROY}.get(kind & 0xFF, 0)
    if (
        not (family and message_kind)
        or not places.keys() >= set(_REQUIRED)
        or message[places["protocol"][0]] not in PORT_PROTOCOLS
    ):
        return _Layout(length, bits, number & bits, None, (), tuple)
    constants = {"kind": message_kind, "family": family, "zone": 0}
    return _Layout(length, bits, number & bits, *_decoding(places, constants))


def _decoding(places: dict[str, tuple[int, str]], constants: dict[str, int]) -> tuple[_Unpack, _Values, _Pick]:
    """The last three of a _Layout, for fields at `places` (offset, struct format) or of constant value."""
    names = sorted(places, key=lambda name: places[name][0])
    form, end = ">", 0
    for name in names:
        offset, kind_of_value = places[name]
        form += f"{offset - end}x{kind_of_value}"
        end = offset + struct.calcsize(">" + kind_of_value)
    absent = [name for name in Message._fields if name not in names]
    order = names + absent
    return (
        struct.Struct(form).unpack_from,
        tuple(constants.get(name) for name in absent),
        itemgetter(*(order.index(name) for name in Message._fields)),
    )


def _walk(message: bytes, start: int, end: int, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Each attribute between two offsets: path of types, offset and size of its value; nested ones that we want, too.

    Raises ValueError when one does not fit.
    """
    while start + _NLATTR.size <= end:
        length, kind = _NLATTR.unpack_from(message, start)
        if length < _NLATTR.size or start + length > end:
            raise ValueError(f"attribute of {length} bytes at {start}, {end - start} are left")
        here = (*path, kind & _NLA_TYPE_MASK)
        yield here, start + _NLATTR.size, length - _NLATTR.size
        if here in _NESTED:
            yield from _walk(message, start + _NLATTR.size, start + length, here)
        start += (length + 3) & ~3


def attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    """Encode one netlink attribute with its padding."""
    length = _NLATTR.size + len(value)
    return _NLATTR.pack(length, kind | (_NLA_F_NESTED if nested else 0)) + value + bytes(-length % 4)


def open_socket() -> socket.socket:
    """A netlink socket of the calling thread's network namespace. Raises MissingError where there is no nfnetlink."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise wrapped(error) from error


def request(
    sock: socket.socket,
    command: int,
    *,
    family: int = socket.AF_UNSPEC,
    attributes: bytes = b"",
    dump: bool = True,
    subsystem: int = NFNL_SUBSYS_CTNETLINK,
) -> Iterator[bytes]:
    """Send a request that reads and give the messages of its answer, whole: one, or with `dump` all up to the last.

    Raises MissingError when the kernel knows no such subsystem, NotRoot without CAP_NET_ADMIN.
    """
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    header = _NLMSGHDR.pack(_BODY + len(attributes), subsystem << 8 | command, flags, 1, 0)
    try:
        sock.send(header + struct.pack("=BBH", family, 0, 0) + attributes)
        while True:
            for kind, message in split(sock.recv(_RECEIVE_BYTES)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -_ERRNO.unpack_from(message, _NLMSGHDR.size)[0]
                    raise OSError(number, os.strerror(number))
                yield message
            if not dump:
                return
    except OSError as error:
        raise wrapped(error) from error


def entries(sock: socket.socket) -> int:
    """How many entries the socket's namespace has (IPCTNL_MSG_CT_GET_STATS). Raises as `request` does."""
    for message in request(sock, IPCTNL_MSG_CT_GET_STATS, dump=False):
        for path, offset, size in _walk(message, _BODY, len(message), ()):
            if path == (CTA_STATS_GLOBAL_ENTRIES,) and size == 4:
                return int.from_bytes(message[offset : offset + 4], "big")
    raise K8snetError("the kernel does not say how many connections it tracks")


def split(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one datagram, each with its type; ends early where one does not fit."""
    offset = 0
    while offset + _NLMSGHDR.size <= len(datagram):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(datagram, offset)
        if length < _NLMSGHDR.size or offset + length > len(datagram):
            return
        yield kind, datagram[offset : offset + length]
        offset += (length + 3) & ~3


def open_events(buffer_bytes: int) -> socket.socket:
    """A non-blocking socket for the conntrack events of the calling thread's network namespace, one in each datagram.

    Events that tell nothing about how a connection request ended are left out in the kernel (`_program`).
    `buffer_bytes`: how much may wait to be read before events are lost; memory is taken as they come. The socket keeps
    its namespace alive, as any does. Raises NotRoot without CAP_NET_ADMIN, MissingError where there is no nfnetlink.
    """
    sock = open_socket()
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:  # in a user namespace: net.core.rmem_max bounds it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        _attach_filter(sock)
        sock.bind((0, sum(1 << (group - 1) for group in EVENT_GROUPS)))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise wrapped(error) from error
    return sock


def drops(sock: socket.socket) -> int:
    """How many messages this socket has lost since it was opened because its buffer was full."""
    memory = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_SK_MEMINFO_DROPS + 1))
    counters: tuple[int, ...] = struct.unpack(f"={len(memory) // 4}I", memory)
    return counters[_SK_MEMINFO_DROPS]


def wrapped(error: OSError) -> K8snetError:
    """The error of our tree for what the kernel said."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return NotRoot("reading the connection-tracking table needs CAP_NET_ADMIN", hint="run it with sudo")
    # EINVAL: nfnetlink_rcv_msg found no subsystem and could load none
    if error.errno in (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT):
        return MissingError(
            "the kernel does not give its connection-tracking table (nf_conntrack_netlink is not loaded)",
            hint="modprobe nf_conntrack_netlink",
        )
    return K8snetError(f"reading the connection-tracking table failed: {error.strerror or error}")


# The socket filter: classic BPF, include/uapi/linux/filter.h

_SOCK_FILTER = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand
_LD_IMM, _LDX_IMM, _LD_W_ABS, _LD_H_ABS, _LD_W_IND, _LD_B_IND = 0x00, 0x01, 0x20, 0x28, 0x40, 0x50
_TAX, _JEQ, _JSET, _RET = 0x07, 0x15, 0x45, 0x06
_NLATTR_AT, _NLATTR_NEST_AT = 0xFFFFF000 + 12, 0xFFFFF000 + 16  # SKF_AD_OFF + SKF_AD_NLATTR, _NLATTR_NEST
_ACCEPT, _DROP = "accept", "drop"

_Instruction = tuple[int, int] | tuple[int, int, str | None, str | None] | str


def _find(kind: int, otherwise: str, *, nested: bool = False) -> list[_Instruction]:
    """A becomes the offset of the attribute `kind`, at the top or nested in the one at A; jumps if there is none."""
    start: list[_Instruction] = [] if nested else [(_LD_IMM, _BODY)]
    where = _NLATTR_NEST_AT if nested else _NLATTR_AT
    return [*start, (_LDX_IMM, kind), (_LD_W_ABS, where), (_JEQ, 0, otherwise, None)]


def _program() -> list[_Instruction]:
    """What the filter does: a string is a label; a jump has those for true and false (None: the next instruction).

    A short TCP connection makes seven events. Four pass: NEW, UPDATE to SYN_RECV and to ESTABLISHED, and the first
    UPDATE of its end (FIN_WAIT or CLOSE). SYN_RECV, because Linux 6.1 makes no new entry for a connection with the
    tuple of one that was reset in the last ten seconds, but uses its entry again: that is the first which is heard of
    it. The end, because an event tells the state at the time when it is written: where another CPU handles the FIN or
    RST meanwhile, nothing ever says ESTABLISHED (seen once in 12,007 connections of an emulated machine). Others that
    pass: UPDATE without a TCP state (UDP's first reply), or past the handshake of what was not established (ASSURED);
    DESTROY of what was never answered or, where there is a state, never established.
    """
    new = socket.htons(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW)  # header fields are native, loads big-endian
    destroy = socket.htons(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE)
    return [
        (_LD_H_ABS, 4),
        (_JEQ, new, "new", None),
        (_JEQ, destroy, "destroy", _ACCEPT),
        "new",
        (_LD_H_ABS, 6),
        (_JEQ, 0, None, _ACCEPT),  # NLM_F_CREATE is set for a new entry, no flag for an update
        *_find(CTA_PROTOINFO, _ACCEPT),
        *_find(CTA_PROTOINFO_TCP, _ACCEPT, nested=True),
        *_find(CTA_PROTOINFO_STATE, _ACCEPT, nested=True),
        (_TAX, 0),
        (_LD_B_IND, _NLATTR.size),
        (_JEQ, TCP_ESTABLISHED, _ACCEPT, None),
        (_JEQ, TCP_FIN_WAIT, _ACCEPT, None),
        (_JEQ, TCP_CLOSE, _ACCEPT, None),
        (_JEQ, TCP_SYN_RECV, _ACCEPT, None),
        *_find(CTA_STATUS, _ACCEPT),
        (_TAX, 0),
        (_LD_W_IND, _NLATTR.size),
        (_JSET, IPS_ASSURED, _DROP, _ACCEPT),
        "destroy",
        *_find(CTA_STATUS, _ACCEPT),
        (_TAX, 0),
        (_LD_W_IND, _NLATTR.size),
        (_JSET, IPS_ASSURED, _DROP, None),
        (_JSET, IPS_SEEN_REPLY, None, _ACCEPT),
        *_find(CTA_PROTOINFO, _DROP),
        _ACCEPT,
        (_RET, 0xFFFFFFFF),
        _DROP,
        (_RET, 0),
    ]


def _assemble(program: list[_Instruction]) -> bytes:
    """The array of struct sock_filter for a program with labels."""
    labels: dict[str, int] = {}
    instructions: list[tuple[int, int] | tuple[int, int, str | None, str | None]] = []
    for item in program:
        if isinstance(item, str):
            labels[item] = len(instructions)
        else:
            instructions.append(item)
    code = b""
    for position, (operation, operand, *targets) in enumerate(instructions, start=1):
        jumps = [labels[target] - position if target else 0 for target in targets] or [0, 0]
        code += _SOCK_FILTER.pack(operation, *jumps, operand)
    return code


def _attach_filter(sock: socket.socket) -> None:
    """Attach the filter (SO_ATTACH_FILTER, struct sock_fprog). Raises OSError."""
    code = array("B", _assemble(_program()))
    address, size = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", size // _SOCK_FILTER.size, address))
