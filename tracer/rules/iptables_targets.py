"""The targets of iptables: what `-j` and `-g` do with a packet.

What belongs here: verdicts, address translation, marks. What does not: matches (`iptables_matches`).
Sources: iptables-extensions(8); extensions/libxt_*.c and libipt_*.c of iptables for the forms that are written.
"""

from __future__ import annotations

from collections.abc import Container

from tracer.rules.iptables_matches import ALL_BITS, number, port_interval
from tracer.rules.iptables_words import Group
from tracer.rules.model import Interval, Nat, Other, SetMark, Statement, Verdict, address_number, prefix

# Extension targets after which the next rule sees the packet, for anything but a mark or an address
_CONTINUING = frozenset(
    (
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER"),
        *("LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS"),
        *("TRACE", "TTL", "ULOG"),
    )
)
_ENDING = frozenset(("MIRROR", "NFQUEUE", "QUEUE", "SYNPROXY", "TPROXY"))
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}


def statement(flag: str, group: Group, chains: Container[str]) -> Statement:
    """What `-j` or `-g` (flag) does; chains: names of the table's chains, which `-j` may name too. Never raises."""
    name = group.module
    if name in chains:
        return Verdict("jump" if flag == "-j" else "goto", name)
    if name in _VERDICTS:
        return Verdict(_VERDICTS[name])
    said = {option.name: option.arguments[0] if option.arguments else "" for option in group.options}
    try:
        if name == "REJECT":
            return Verdict("reject", None, said.get("--reject-with"))
        if name in _NAT:
            return _nat(_NAT[name], said)
        if name == "MARK":
            return _set_mark("meta mark", said)
        if name == "CONNMARK" and ("--set-xmark" in said or "--set-mark" in said):
            return _set_mark("ct mark", said)
    except (ValueError, IndexError, KeyError):
        pass
    ends = False if name in _CONTINUING else True if name in _ENDING else None
    return Other(name, f"{flag} {group.text()}", ends)


_NAT = {"DNAT": "dnat", "SNAT": "snat", "MASQUERADE": "masquerade", "REDIRECT": "redirect", "NETMAP": "netmap"}
_NAT_FLAGS = ("--random", "--random-fully", "--persistent")


def _nat(kind: str, said: dict[str, str]) -> Nat:
    flags = tuple(flag[2:] for flag in _NAT_FLAGS if flag in said)
    if kind == "netmap":
        return Nat(kind, prefix(said["--to"]), None, flags)
    to = said.get("--to-destination") or said.get("--to-source") or ""
    ports = said.get("--to-ports")
    if kind in ("masquerade", "redirect"):
        return Nat(kind, None, port_interval(ports) if ports else None, flags)
    to, slash, base = to.partition("/")
    flags += (f"base {number(base, 0xFFFF)}",) if slash else ()
    address, port = split_endpoint(to)
    if not address and not port:
        raise ValueError(f"{kind} to nowhere")
    return Nat(kind, _address_interval(address) if address else None, port_interval(port) if port else None, flags)


def split_endpoint(text: str) -> tuple[str, str]:
    """`1.2.3.4:80`, `[fd00::1]:80`, `:80`, `1.2.3.4-1.2.3.9:80-90`, an address alone: address and port ("": none)."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address, port.removeprefix(":").partition("/")[0]
    if text.count(":") > 1:
        return text, ""
    address, _, port = text.partition(":")
    return address, port.partition("/")[0]


def _address_interval(text: str) -> Interval:
    low, _, high = text.partition("-")
    return Interval(address_number(low), address_number(high or low))


def _set_mark(key: str, said: dict[str, str]) -> SetMark:
    """Each way to say it, as clear and toggle (iptables extensions/libxt_MARK.c, mark_tg_parse)."""
    (name, text), *_ = said.items()
    value_text, _, mask_text = text.partition("/")
    value, mask = number(value_text), number(mask_text) if mask_text else ALL_BITS
    forms = {
        "--set-xmark": (mask, value),
        "--set-mark": (mask | value, value),
        "--or-mark": (value, value),
        "--and-mark": (~value & ALL_BITS, 0),
        "--xor-mark": (0, value),
    }
    return SetMark(key, *forms[name])
