"""Reading the kernel's connection-tracking table, of any network namespace.

What belongs here: what an entry of the table is, and asking for those that are there now. What does not: the bytes on
the socket (`tracer.ctnetlink`), following connections as they come (`tracer.source.conntrack`).

Nothing is changed: no entry, no rule, no sysctl. Two things are good to know all the same. Asking may make the kernel
load nf_conntrack_netlink and with it nf_conntrack, where they are modules and not loaded yet; that alone tracks no
packet, because a namespace's packets are tracked from the first rule on that needs it (nf_ct_netns_get). And such a
rule is all it takes: one `-m conntrack` or `-t nat` rule turns tracking on for the whole namespace.

A dump of 100,000 entries takes about 0.4 s; see `tracer.ctnetlink` for what it takes otherwise, and why.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tracer import ctnetlink, netns
from tracer.ctnetlink import (
    IPPROTO_UDP,
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_NAT_MASK,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
)
from tracer.errors import MissingError

_FILTER_PROTO_NUM = 1 << 3  # CTA_FILTER_F_CTA_PROTO_NUM, net/netfilter/nf_conntrack_netlink.c
_SMALL_TABLE = 10_000
_FAMILIES = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}


class FlowTuple(NamedTuple):
    """One direction of a flow, as on the wire: addresses packed (4 or 16 bytes), ports in host order."""

    src: bytes
    sport: int
    dst: bytes
    dport: int

    @property
    def src_text(self) -> str:
        """The source address as text."""
        return _text(self.src)

    @property
    def dst_text(self) -> str:
        """The destination address as text."""
        return _text(self.dst)

    def reversed(self) -> FlowTuple:
        """The tuple of packets that go the other way."""
        return FlowTuple(self.dst, self.dport, self.src, self.sport)


class Entry(NamedTuple):
    """One entry of the table: a flow of TCP, UDP or SCTP.

    `orig`: as who began it addressed it. `reply`: as answers are addressed. Where that is not `orig` reversed, NAT
    translated: answers come from `reply.src`, so that is where packets went.
    """

    family: int  # 4 or 6
    protocol: int  # IPPROTO_*
    orig: FlowTuple
    reply: FlowTuple
    status: int  # IPS_*, enum ip_conntrack_status
    state: int | None  # enum tcp_conntrack or sctp_conntrack; None for UDP
    timeout: int | None  # seconds until it is forgotten, if nothing more comes
    mark: int | None
    zone: int

    @property
    def dnat(self) -> bool:
        """Whether the destination is translated."""
        return bool(self.status & IPS_DST_NAT)

    @property
    def snat(self) -> bool:
        """Whether the source is translated."""
        return bool(self.status & IPS_SRC_NAT)

    @property
    def answered(self) -> bool:
        """Whether a packet has been seen in the reply direction."""
        return bool(self.status & IPS_SEEN_REPLY)


def dump(
    netns_path: str | None = None,
    *,
    family: int | None = None,
    protocol: int | None = None,
    status: int = 0,
    status_mask: int = 0,
) -> Iterator[Entry]:
    """The TCP, UDP and SCTP entries of a network namespace (None: the caller's own), in no order.

    Only those of `family` (4 or 6) and `protocol` (a number), and whose status bits under `status_mask` equal `status`.
    The kernel leaves the others out, if it knows CTA_FILTER (v5.8) and CTA_STATUS_MASK (v5.15); the result is the same
    with any. Entries of other protocols are skipped. One may come twice, or not at all, when it comes or goes while
    the table is read. The request is made when the first entry is asked for. Raises MissingError when the kernel has
    no connection tracking or the namespace is gone, NotRoot without the privilege.
    """
    attributes = _filter(protocol, status, status_mask)
    decode = ctnetlink.Decoder().decode
    # the kernel refuses to filter by protocol without a family (ctnetlink_parse_tuple_filter)
    families = (4, 6) if family is None and protocol is not None else (family,)
    with netns.run_in(netns_path, ctnetlink.open_socket) as sock:
        for one in families:
            get = ctnetlink.IPCTNL_MSG_CT_GET
            for data in ctnetlink.request(sock, get, family=_FAMILIES[one], attributes=attributes):
                message = decode(data)
                if (
                    message is not None
                    and (protocol is None or message.protocol == protocol)
                    and ((message.status or 0) ^ status) & status_mask == 0
                ):
                    yield _entry(message)


def existing(netns_path: str | None = None) -> Iterator[Entry]:
    """The translated flows of a network namespace that may go on without the kernel translating them anew.

    That is what a tracer that starts now has not seen and must know: a UDP flow is translated once, when its entry is
    made, and a socket may use it for hours; of TCP and SCTP, those whose handshake is going on. Raises as `dump` does.

    Each dump walks the whole hash table, which all namespaces share (35 ms for 262,144 buckets). So an empty table is
    not dumped, a small one is dumped once, and of a large one the kernel is asked for those entries only.
    """
    entries = count(netns_path)
    if entries == 0:
        return
    if entries <= _SMALL_TABLE:
        yield from (entry for entry in dump(netns_path) if _goes_on(entry))
        return
    for status, mask in ((IPS_DST_NAT, IPS_DST_NAT), (IPS_SRC_NAT, IPS_NAT_MASK)):  # with DNAT; with SNAT only
        yield from dump(netns_path, protocol=IPPROTO_UDP, status=status, status_mask=mask)
        for entry in dump(netns_path, status=status, status_mask=mask | IPS_ASSURED):
            if entry.protocol != IPPROTO_UDP:
                yield entry


def find(netns_path: str | None, protocol: int, flow: FlowTuple) -> Entry | None:
    """The entry of one flow, by its original tuple, in a network namespace; None when there is none. Raises as `dump`.

    One look-up in the kernel's hash table. Entries of other zones than 0 are not found.
    """
    family = 4 if len(flow.src) == 4 else 6
    decode = ctnetlink.Decoder().decode
    with netns.run_in(netns_path, ctnetlink.open_socket) as sock:
        get, attributes = ctnetlink.IPCTNL_MSG_CT_GET, _original(protocol, flow)
        try:
            for data in ctnetlink.request(sock, get, family=_FAMILIES[family], attributes=attributes, dump=False):
                message = decode(data)
                return None if message is None else _entry(message)
        except MissingError:  # ENOENT: no such entry
            return None
    return None


def count(netns_path: str | None = None) -> int:
    """How many entries a network namespace has, of any protocol, those included that are being set up.

    Raises as `dump` does.
    """
    with netns.run_in(netns_path, ctnetlink.open_socket) as sock:
        return ctnetlink.entries(sock)


def _goes_on(entry: Entry) -> bool:
    """Whether `existing` tells of an entry: translated, and UDP or in the handshake (not yet ASSURED)."""
    return bool(entry.status & IPS_NAT_MASK) and (entry.protocol == IPPROTO_UDP or not entry.status & IPS_ASSURED)


def _filter(protocol: int | None, status: int, status_mask: int) -> bytes:
    """The attributes that ask the kernel for some entries only."""
    attribute = ctnetlink.attribute
    attributes = b""
    if protocol is not None:
        number = attribute(ctnetlink.CTA_PROTO_NUM, bytes([protocol]))
        proto = attribute(ctnetlink.CTA_TUPLE_PROTO, number, nested=True)
        flags = attribute(ctnetlink.CTA_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_PROTO_NUM))
        attributes += attribute(ctnetlink.CTA_TUPLE_ORIG, proto, nested=True)
        attributes += attribute(ctnetlink.CTA_FILTER, flags, nested=True)
    if status_mask:
        attributes += attribute(ctnetlink.CTA_STATUS, struct.pack(">I", status))
        attributes += attribute(ctnetlink.CTA_STATUS_MASK, struct.pack(">I", status_mask))
    return attributes


def _original(protocol: int, flow: FlowTuple) -> bytes:
    """The attribute that names an entry by its original tuple."""
    attribute = ctnetlink.attribute
    v4 = len(flow.src) == 4
    addresses = attribute(ctnetlink.CTA_IP_V4_SRC if v4 else ctnetlink.CTA_IP_V6_SRC, flow.src)
    addresses += attribute(ctnetlink.CTA_IP_V4_DST if v4 else ctnetlink.CTA_IP_V6_DST, flow.dst)
    ports = attribute(ctnetlink.CTA_PROTO_NUM, bytes([protocol]))
    ports += attribute(ctnetlink.CTA_PROTO_SRC_PORT, struct.pack(">H", flow.sport))
    ports += attribute(ctnetlink.CTA_PROTO_DST_PORT, struct.pack(">H", flow.dport))
    both = attribute(ctnetlink.CTA_TUPLE_IP, addresses, nested=True)
    both += attribute(ctnetlink.CTA_TUPLE_PROTO, ports, nested=True)
    return attribute(ctnetlink.CTA_TUPLE_ORIG, both, nested=True)


def _entry(message: ctnetlink.Message) -> Entry:
    """The entry that a message of a dump tells of."""
    return Entry(
        message.family,
        message.protocol,
        FlowTuple(*message[3:7]),
        FlowTuple(*message[7:11]),
        message.status or 0,
        message.state,
        message.timeout,
        message.mark,
        message.zone,
    )


def _text(address: bytes) -> str:
    """A packed address as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
