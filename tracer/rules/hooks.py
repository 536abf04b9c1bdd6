"""The order in which a packet meets hooks and base chains, from its sender to where it is delivered.

What belongs here: the kernel's own order, routing decisions, connection tracking's part in it. What does not: what
happens in a chain (`walk`).

    from elsewhere     prerouting ─ routing ┬ input
                                            └ forward ─ postrouting
    from this node     output ─ postrouting, and to this node again: prerouting ─ input

Sources: Linux net/ipv4/ip_input.c, ip_forward.c, ip_output.c; include/uapi/linux/netfilter_ipv4.h (priorities);
net/netfilter/nf_nat_core.c (nf_nat_inet_fn).
"""

from __future__ import annotations

from tracer.rules.model import Chain, RuleSet, Table
from tracer.rules.packet import Flow, Place, Tracking
from tracer.rules.routing import Routing
from tracer.rules.walk import Walker
from tracer.rules.worlds import Worlds, merge, track

_CONNTRACK = -200
# All chains of type nat at a hook run at one place, whatever priorities of their own say: those only order them among
# themselves (Linux net/netfilter/nf_nat_core.c, nf_nat_register_fn; net/netfilter/nf_nat_proto.c, nf_nat_ipv4_ops)
_NAT = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}


class Course:
    """One flow's way through all hooks."""

    def __init__(self, rules: RuleSet, flow: Flow, routing: Routing, walker: Walker) -> None:
        self._rules = rules
        self._flow = flow
        self._routing = routing
        self._walker = walker

    def run(self, worlds: Worlds) -> Worlds:
        """The packets that are delivered, here or by a device; those that are not are in the walker's `ended`.

        worlds: as they are sent.
        """
        flow, routing = self._flow, self._routing
        if not flow.local:
            arrival = None if flow.saddr is None else routing.arrival(flow.saddr)
            worlds = self._hook("prerouting", worlds, iif=arrival)
            here, away = self._routed(worlds)
            here = self._hook("input", here, iif=arrival)
            away = self._hook("forward", away, iif=arrival)
            away = self._hook("postrouting", away, iif=arrival)
        else:
            worlds = self._hook("output", worlds, oif=routing.device(flow.daddr))
            worlds = self._hook("postrouting", worlds)
            here, away = self._routed(worlds)
            # loopback keeps the connection with the packet, so that nothing is translated once more
            here = self._hook("prerouting", here, iif="lo", looped=True)
            here = self._hook("input", here, iif="lo", looped=True)
        merge(here, away)
        return here

    def _routed(self, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """Those for this node itself, and those that leave it."""
        here: Worlds = {}
        away: Worlds = {}
        for packet, weight in worlds.items():
            is_local = packet.here or self._routing.kind(packet.daddr) == "local"
            (here if is_local else away)[packet] = weight
        return here, away

    def _hook(
        self, name: str, worlds: Worlds, *, iif: str | None = "", oif: str | None = "", looped: bool = False
    ) -> Worlds:
        place = Place(name, self._flow, self._routing, iif, oif, looped)
        for priority, table, chain in base_chains(self._rules, self._flow.family, name):
            if not worlds:
                return worlds
            if priority >= _CONNTRACK:
                worlds = track(worlds)
            if chain.hook is not None and chain.hook.type == "nat":
                worlds = self._nat(place, table, chain, worlds)
            else:
                worlds = self._walker.base(place, table, chain, worlds)
        return track(worlds)

    def _nat(self, place: Place, table: Table, chain: Chain, worlds: Worlds) -> Worlds:
        """Only new flows see chains of type nat, and each of these only what none before has translated."""
        if place.looped:
            return worlds
        to_destination = place.hook in ("prerouting", "output")
        open_: Worlds = {}
        settled: Worlds = {}
        for packet, weight in worlds.items():
            done = packet.translated if to_destination else packet.masqueraded
            is_open = done is None and packet.tracking is Tracking.NEW
            (open_ if is_open else settled)[packet] = weight
        if open_:
            merge(settled, self._walker.base(place, table, chain, open_))
        return settled


def base_chains(rules: RuleSet, family: str, hook: str) -> list[tuple[int, Table, Chain]]:
    """The base chains at a hook in the order in which they run, each with the priority that counts.

    Of equal ones the kernel runs first what was registered last (Linux net/netfilter/core.c, nf_hook_entries_grow), and
    tables and chains are told in the order in which they were made. Between legacy tables and nf_tables, which are told
    apart, it can't be told; most often the legacy ones are older.
    """
    found = []
    for table, chain in reversed(rules.base_chains(family, hook)):
        assert chain.hook is not None
        own = chain.hook.priority
        found.append((_NAT.get(hook, own) if chain.hook.type == "nat" else own, own, table, chain))
    found.sort(key=lambda item: item[:2])
    return [(priority, table, chain) for priority, _, table, chain in found]
