"""The ipsets of the kernel by netlink, for where the program ipset is not installed, in the words of `ipset save`.

What belongs here: one question, which the kernel answers without changing anything, and its answer as text. What does
not: understanding that text (`ipset_save`), and whether to ask at all (`live`): where ip_set is not loaded, asking
would load it. Source: Linux include/uapi/linux/netfilter/ipset/ip_set.h; net/netfilter/ipset/ip_set_core.c,
ip_set_dump_do. pyroute2 asks this too, and takes six times as long.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from tracer.rules import nfnetlink

_LIST = 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
_REQUEST, _DUMP = 0x1, 0x300
_NEWEST_PROTOCOL, _OLDEST_PROTOCOL = 7, 6  # a kernel takes 6, and 7 from Linux 5.0 on
# IPSET_ATTR_… of a set
_PROTOCOL, _SETNAME, _TYPENAME, _FAMILY, _DATA, _ADT = 1, 2, 3, 5, 7, 8
# … of how it was created, and of elements
_IP, _CIDR, _PORT, _TIMEOUT, _PROTO, _FLAGS = 1, 3, 4, 6, 7, 8
_NETMASK = 20
_NAME, _IP2, _CIDR2, _IFACE = 18, 20, 21, 23
_PHYSDEV, _NOMATCH, _WILDCARD = 1 << 1, 1 << 2, 1 << 7  # IPSET_FLAG_…, of elements
# What a set is created with and does not matter to whoever looks for elements: where a bitmap begins and ends, how
# large it may get, which of the counters and comments it has
_OF_NO_CONCERN = frozenset((_IP, 2, _PORT, 5, _FLAGS, 17, 18, 19, 21, 22, 23, 24, 25, 26))
_FAMILIES = {int(socket.AF_INET): "inet", int(socket.AF_INET6): "inet6"}
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_LENGTHS = {4: socket.AF_INET, 16: socket.AF_INET6}

Attributes = dict[int, bytes]


def save() -> str:
    """The sets of the calling thread's network namespace, as `ipset save` prints them, without what matters to nobody.

    Raises OSError when the kernel refuses.
    """
    try:
        return _save(_NEWEST_PROTOCOL)
    except PermissionError:
        raise
    except OSError:
        # Linux kernel commit 23c42a403a9c ("netfilter: ipset: Introduction of new commands and protocol version 7")
        # (in v5.0): until then only 6 is known
        return _save(_OLDEST_PROTOCOL)


def _save(protocol: int) -> str:
    asked = _ATTRIBUTE.pack(5, _PROTOCOL) + bytes((protocol, 0, 0, 0))
    answers = nfnetlink.ask(_LIST, _REQUEST | _DUMP, socket.AF_INET, asked)
    return "".join(line + "\n" for _, message in answers for line in _lines(message))


def _lines(message: Attributes) -> Iterator[str]:
    """A set with many elements comes in several messages, the first of which describes it."""
    name = nfnetlink.text(message[_SETNAME])
    if _TYPENAME in message:
        family = _FAMILIES.get(message[_FAMILY][0])
        words = ["create", name, nfnetlink.text(message[_TYPENAME]), *(("family", family) if family else ())]
        yield " ".join([*words, *_options(dict(_nested(message.get(_DATA, b""))))])
    for _, element in _nested(message.get(_ADT, b"")):
        yield f"add {name} {_element(dict(_nested(element)))}"


def _nested(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes within one."""
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _options(data: Attributes) -> Iterator[str]:
    for kind, value in data.items():
        if kind == _NETMASK:
            yield f"netmask {value[0]}"
        elif kind == _TIMEOUT:
            yield f"timeout {int.from_bytes(value, 'big')}"
        elif kind not in _OF_NO_CONCERN:
            yield f"attribute-{kind}"  # a word that makes the set strange


def _element(found: Attributes) -> str:
    """The parts of an element, in the order that all types have: address, port, second address, device."""
    flags = int.from_bytes(found.get(_FLAGS, b""), "big")
    parts = [_address(found.get(_IP), found.get(_CIDR))]
    if _PORT in found:
        port = int.from_bytes(found[_PORT], "big")
        parts.append(f"{found[_PROTO][0]}:{port}" if _PROTO in found else f"{port}")
    parts.append(_address(found.get(_IP2), found.get(_CIDR2)))
    if _IFACE in found:
        parts.append("physdev:" * bool(flags & _PHYSDEV) + nfnetlink.text(found[_IFACE]))
    if _NAME in found:
        parts.append(nfnetlink.text(found[_NAME]))
    words = [",".join(filter(None, parts))]
    words += [word for flag, word in ((_NOMATCH, "nomatch"), (_WILDCARD, "wildcard")) if flags & flag]
    return " ".join(words)


def _address(nested: bytes | None, length: bytes | None) -> str:
    if nested is None:
        return ""
    ((_, address),) = _nested(nested)
    text = socket.inet_ntop(_LENGTHS[len(address)], address)
    return text if length is None else f"{text}/{length[0]}"
