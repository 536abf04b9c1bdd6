"""Which rules of a long chain can't concern a packet, told from their text without reading them.

What belongs here: refusing, for 10,000 lines in some milliseconds, what a full reading would refuse too. What does not:
anything that might hold; whatever has another shape is read in full.

iptables-save begins a rule with `-s`, `-d`, `-i`, `-o`, `-p` in this order, then come the modules in the order in which
they were given (iptables/iptables-save.c, print_rule). The pattern goes word by word from the start of the line, so
that what it finds stands neither in quotes nor behind a `!`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from typing import Any

from tracer.rules.model import Chain, Origin, Table, address_number, address_text
from tracer.rules.packet import Flow, Packet

_NONE: frozenset[int] = frozenset()
_SHORT = 8  # rules: fewer are as quickly read
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_BEGINNING = re.compile(
    r'-A [^"\s\\]+ (?:(?:! )?-s [^"\s\\]+ )?'
    rf"(?:-d (?:({_BYTE}(?:\.{_BYTE}){{3}})/32|([0-9a-f:]+)/128) )?"
    r"(?:-p (tcp|udp|sctp) )?"
    r'(?:-m comment --comment (?:"[^"\\]*"|[^"\s\\]+) )?'
    r"(?:-m addrtype --dst-type LOCAL )?"
    r"(?:-m (tcp|udp|sctp) --dport (\d{1,5}) )?"
)


def candidates(table: Table, chain: Chain, flow: Flow, packets: Iterable[Packet]) -> Sequence[int]:
    """The indices of the rules that may hold for any of these packets, in order."""
    raw = chain.rules.raw
    everything = range(len(raw))
    if len(raw) < _SHORT or table.origin is Origin.NFTABLES or not isinstance(raw[0], str):
        return everything
    packets = list(packets)
    return _left(raw, flow, {packet.daddr for packet in packets}, {packet.dport for packet in packets})


def _left(raw: list[Any], flow: Flow, addresses: set[int], ports: set[int]) -> list[int]:
    texts = {address_text(address, flow.family) for address in addresses}
    protocol = flow.protocol
    numbers = {protocol: ports}
    match = _BEGINNING.match
    left = []
    for index, line in enumerate(raw):
        beginning = match(line)
        if beginning is not None:
            ip, ip6, spoken, module, port = beginning.groups()
            if (
                (ip is not None and ip not in texts)
                or (spoken is not None and spoken != protocol)
                or (module is not None and _other_port(port, numbers.get(module, _NONE)))
                or (ip6 is not None and ip6 not in texts and _other_address(ip6, addresses))
            ):
                continue
        left.append(index)
    return left


def _other_port(text: str, ports: Set[int]) -> bool:
    """Whether it is a port, and none of these: beyond 65535 it is something that we do not understand."""
    number = int(text)
    return number <= 0xFFFF and number not in ports


def _other_address(text: str, addresses: set[int]) -> bool:
    """An IPv6 address may be written in several ways."""
    try:
        return address_number(text) not in addresses
    except ValueError:
        return False
