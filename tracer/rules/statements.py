"""What statements change of a packet, besides its addresses: marks, and whether connection tracking sees it.

What belongs here: pure changes. What does not: verdicts (`walk`) and translation (`translation`).
Sources: Linux net/netfilter/xt_mark.c, xt_connmark.c, xt_CT.c, nft_meta.c, nft_ct.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tracer.rules.model import Other, SetMark, Verdict
from tracer.rules.packet import Flow, Packet, Tracking

Change = Callable[[Packet, int], Packet]

_MOST_ELEMENTS = 8  # of a map within a rule that are told again for each way out of it
_ALL_BITS = 0xFFFFFFFF
_MASKS = re.compile(r"--(nfmask|ctmask|mask) (0x[0-9a-fA-F]+|\d+)")


def shortened_map(text: str) -> Callable[[Verdict], str] | None:
    """What gives the text of a rule with one element of its map only; None where it has few.

    The rule of a Service with 1,000 endpoints is a hundred thousand characters long, and leads to 1,000 steps.
    """
    before, opening, rest = text.partition(" vmap { ")
    inside, closing, after = rest.partition(" }")
    elements = inside.split(", ")
    if not closing or len(elements) <= _MOST_ELEMENTS:
        return None
    by_verdict = {element.partition(" : ")[2]: element for element in elements}

    def shorten(verdict: Verdict) -> str:
        words = verdict.kind if verdict.chain is None else f"{verdict.kind} {verdict.chain}"
        element = by_verdict.get(words)
        return text if element is None else f"{before}{opening}…, {element}, …{closing}{after}"

    return shorten


def set_mark(mark: SetMark, packet: Packet, step: int) -> Packet:
    """The packet with its own or its connection's mark changed by the rule of a step."""
    if mark.key == "ct mark":
        return packet._replace(ct_mark=packet.ct_mark & ~mark.clear & _ALL_BITS ^ mark.toggle)
    return _marked(packet, packet.mark & ~mark.clear & _ALL_BITS ^ mark.toggle, step)


def rejects(verdict: Verdict, flow: Flow) -> bool:
    """Whether the packet is of the kind that can be rejected so: nft leaves out of its text what this implies."""
    reason = verdict.reason or ""
    if reason == "tcp-reset":
        return flow.protocol == "tcp"
    if reason.startswith("icmp-"):
        return flow.family == "ip"
    return flow.family == "ip6" or not reason.startswith("icmp6-")


def change_other(other: Other, name: str) -> Change | None:
    """What a target of no part of its own in the model changes; None where it changes nothing that matters.

    name: of the target, in small letters.
    """
    if name == "notrack" or (name == "ct" and "--notrack" in other.text):
        return lambda packet, step: (
            packet._replace(tracking=Tracking.UNTRACKED) if packet.tracking is Tracking.NONE else packet
        )
    if name == "connmark":
        return _connmark(other.text)
    if name == "mangle":
        return _mangled(other.text)
    return None


def _connmark(text: str) -> Change | None:
    masks = {kind: int(value, 0) for kind, value in _MASKS.findall(text)}
    packet_mask = masks.get("nfmask", masks.get("mask", _ALL_BITS))
    connection_mask = masks.get("ctmask", masks.get("mask", _ALL_BITS))
    if "--save-mark" in text:
        return lambda packet, step: packet._replace(
            ct_mark=packet.ct_mark & ~connection_mask ^ packet.mark & packet_mask
        )
    if "--restore-mark" in text:
        return lambda packet, step: _marked(packet, packet.mark & ~packet_mask ^ packet.ct_mark & connection_mask, step)
    return None


def _mangled(text: str) -> Change | None:
    """nft's copies from one mark to the other."""
    words = text.replace("meta mark", "mark")
    if words == "ct mark set mark":
        return lambda packet, step: packet._replace(ct_mark=packet.mark)
    if words == "mark set ct mark":
        return lambda packet, step: _marked(packet, packet.ct_mark, step)
    return None


def _marked(packet: Packet, mark: int, step: int) -> Packet:
    """Who took bits away, as kube-proxy does before it masquerades, did not mark the packet."""
    return packet._replace(mark=mark, marked=step if mark & ~packet.mark else packet.marked)
