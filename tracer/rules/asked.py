"""From what a user asks to what is explained: which address and protocol are meant, and what is known around them.

What belongs here: Services by name, the protocol where none is given, addresses that are given or asked of the kernel.
What does not: reading words (`tracer.destination`), the answer itself (`explain`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from tracer.destination import PROTOCOLS, Asked, AskedAddress, resolve
from tracer.errors import UsageError
from tracer.rules.explain import Explanation, Question, explain, revealed_addresses
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import RuleSet
from tracer.rules.narrowing import about
from tracer.rules.routing import Routing, ToldRouting
from tracer.rules.rtnetlink import LiveRouting


class Surroundings:
    """What is known besides the rules: the node's own addresses and devices, by options or from the kernel."""

    def __init__(self) -> None:
        self._live: dict[str, LiveRouting] = {}
        self._is_live = False
        self._netns: str | None = None
        self._node_ips: tuple[str, ...] = ()
        self._devices: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(cls, netns_path: str | None) -> Surroundings:
        """Those of a network namespace; None: the caller's own."""
        found = cls()
        found._is_live, found._netns = True, netns_path
        return found

    @classmethod
    def told(
        cls, node_ips: Iterable[str] = (), in_device: str | None = None, out_device: str | None = None
    ) -> Surroundings:
        """Those that options tell. Raises UsageError for what is no address."""
        found = cls()
        found._node_ips = tuple(address(text, "--node-ip") for text in node_ips)
        found._devices = (in_device, out_device)
        return found

    def routing(self, rules: RuleSet, family: str) -> Routing | None:
        """What `explain` takes for packets of this family."""
        if self._is_live:
            if family not in self._live:
                self._live[family] = LiveRouting(self._netns, family)
            return self._live[family]
        ours = [ip for ip in self._node_ips if (":" in ip) == (family == "ip6")]
        if not ours and self._devices == (None, None):
            return None
        addresses = (*ours, *revealed_addresses(rules, family))
        return ToldRouting(
            family, addresses, complete=bool(ours), in_device=self._devices[0], out_device=self._devices[1]
        )

    def close(self) -> None:
        """Let go of the namespace."""
        for live in self._live.values():
            live.close()


def answers(rules: RuleSet, asked: Iterable[Asked], source: str | None, around: Surroundings) -> list[Explanation]:
    """The explanation for each destination, in order.

    source: an address, or None for a process on this node. Raises UsageError for a source that is none or of another
    family, and for a Service or port that there is not, with the nearest or those that there are.
    """
    if source is not None:
        source = address(source, "--source")
    return [_answer(rules, each, source, around) for each in asked]


def address(text: str, option: str) -> str:
    """An address as inet_ntop(3) writes it. Raises UsageError for anything else."""
    try:
        if "%" in text:
            raise ValueError
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no IP address") from None


def _answer(rules: RuleSet, asked: Asked, source: str | None, around: Surroundings) -> Explanation:
    if isinstance(asked, AskedAddress):
        if asked.protocol is not None:
            return _explained(rules, Question(asked.ip, asked.port, asked.protocol, source), around, asked.text)
        return _likeliest(rules, asked, source, around)
    family = None if source is None else 6 if ":" in source else 4
    named = service_map(about(rules, asked.namespace, asked.name))
    if not any((port.namespace, port.name) == (asked.namespace, asked.name) for port in named.services):
        named = service_map(rules)  # for the nearest names
    found = resolve(asked, named, family=family)
    return _explained(rules, Question(found.ip, found.port, found.protocol, source), around, asked.text)


def _likeliest(rules: RuleSet, asked: AskedAddress, source: str | None, around: Surroundings) -> Explanation:
    """TCP where no protocol is given, unless there is a Service for another one only."""
    first = None
    for protocol in PROTOCOLS:
        told = _explained(rules, Question(asked.ip, asked.port, protocol, source), around, asked.text)
        if told.service is not None:
            return told
        first = first or told
    assert first is not None
    return first


def _explained(rules: RuleSet, question: Question, around: Surroundings, text: str) -> Explanation:
    if question.source is not None and (":" in question.source) != (":" in question.ip):
        raise UsageError(f"a packet from {question.source} can't go to {text}: one is IPv4, the other IPv6")
    return explain(rules, question, around.routing(rules, question.family))
