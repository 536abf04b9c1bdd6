"""What nf_tables tells about itself by netlink: the generation of its rules, and the names of its tables.

What belongs here: two questions, each answered in microseconds. What does not: rules, which nft and iptables-nft print.
(`nft list tables` looks at every rule on the way: with 10,000 Services by iptables-nft it took 9 to 32 s, this 0.1 ms.)
Source: Linux include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c, nf_tables_getgen and
nf_tables_dump_tables. All is about the network namespace of the calling thread.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE = _SUBSYSTEM | 1
_NEW_TABLE = _SUBSYSTEM | 0
_NEW_GENERATION = _SUBSYSTEM | 15
_GET_GENERATION = _SUBSYSTEM | 16
_NEW_RULE = _SUBSYSTEM | 6
_GET_RULE = _SUBSYSTEM | 7
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE = 1, 2, 3  # NFTA_RULE_TABLE and so on
_TABLE_NAME = 1  # NFTA_TABLE_NAME
_GENERATION_ID = 1  # NFTA_GEN_ID
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_SECONDS = 5.0

UNTOUCHED = 1  # the generation of a namespace in which nobody ever changed a rule


def generation() -> int | None:
    """A number that grows with each change of nf_tables' rules, those of iptables-nft included.

    None when nf_tables is not in this kernel, or a module not loaded: then it holds no rules, and asking would load it.
    Raises OSError when the kernel refuses (PermissionError without CAP_NET_ADMIN).
    """
    if not is_there():
        return None
    for kind, attributes in ask(_GET_GENERATION, _REQUEST):
        if kind == _NEW_GENERATION and _GENERATION_ID in attributes:
            return int.from_bytes(attributes[_GENERATION_ID], "big")
    return None


def tables() -> list[tuple[str, str]]:
    """The family (ip, ip6, inet, arp, bridge, netdev) and name of every table, in the kernel's order.

    Empty when nf_tables is not there. Raises OSError when the kernel refuses.
    """
    if not is_there():
        return []
    found = []
    for kind, attributes in ask(_GET_TABLE, _REQUEST | _DUMP):
        if kind == _NEW_TABLE and _TABLE_NAME in attributes:
            found.append((family(attributes), text(attributes[_TABLE_NAME])))
    return found


def messages(data: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Notifications: of each, its type among nf_tables' own, and its attributes, with the family as number 0."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind & 0xFF00 == _SUBSYSTEM:
            yield kind & 0xFF, _attributes(data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def family(attributes: dict[int, bytes]) -> str:
    """The family of a message: ip, ip6, inet, arp, bridge or netdev."""
    return _FAMILIES.get(attributes[0][0] if attributes[0] else 0, "?")


def text(value: bytes) -> str:
    """A name."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def rule_handles(of: str, table: str, chain: str) -> list[int]:
    """The handles of a chain's rules, in order. of: the family. Raises OSError when there is no such chain."""
    number = next(number for number, word in _FAMILIES.items() if word == of)
    names = _string(_RULE_TABLE, table) + _string(_RULE_CHAIN, chain)
    return [
        int.from_bytes(attributes[_RULE_HANDLE], "big")
        for kind, attributes in ask(_GET_RULE, _REQUEST | _DUMP, number, names)
        if kind == _NEW_RULE and _RULE_HANDLE in attributes
    ]


def _string(kind: int, value: str) -> bytes:
    data = value.encode(errors="replace") + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + b"\0" * (-len(data) % 4)


def ask(
    kind: int, flags: int, of: int = socket.AF_UNSPEC, attributes: bytes = b""
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Each message of netfilter's answer to a question: its type, and its attributes, with the family as number 0.

    kind: subsystem and message. of: the address family. Raises OSError when the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_SECONDS)
        body = _FAMILY.pack(of, 0, 0) + attributes
        netlink.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body, (0, 0))
        while True:
            data = netlink.recv(1 << 17)
            at = 0
            while at + _HEADER.size <= len(data):
                length, answer, _, _, _ = _HEADER.unpack_from(data, at)
                if answer == _ERROR:
                    number = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                    raise OSError(number, os.strerror(number), "netfilter")
                if answer == _DONE or length < _HEADER.size:
                    return
                yield answer, _attributes(data[at + _HEADER.size : at + length])
                if not flags & _DUMP:
                    return
                at += (length + 3) & ~3


def _attributes(body: bytes) -> dict[int, bytes]:
    found = {0: body[:1]}
    at = _FAMILY.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def is_there() -> bool:
    """Whether nf_tables can be asked without the kernel loading it: the tracer changes nothing on the machine."""
    try:
        modules = Path("/proc/modules").read_text()
    except FileNotFoundError:
        return True  # a kernel without modules: asking can't load any
    return "\nnf_tables " in "\n" + modules or _is_built_in()


@functools.cache
def _is_built_in() -> bool:
    try:
        return "/nf_tables.ko" in Path("/lib/modules", os.uname().release, "modules.builtin").read_text()
    except OSError:
        return False
