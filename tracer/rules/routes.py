"""Where a chain of kube-proxy leads: the endpoints at its end, with true probabilities, and what decides between ways.

What belongs here: following jumps and gotos down to DNAT. What does not: what a rule says (`steps`), which chain serves
which address (`kube_iptables`, `kube_nftables`), and one packet's way through all rules, whoever wrote them.

A chain that chooses between n endpoints asks rule by rule: 1/n, then 1/(n-1) of the rest, and so on. The true share
of a rule is its chance times what the rules before it left over. Matches on the source split the way in branches.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from tracer.rules.model import Chain, Condition, Table
from tracer.rules.services import Branch, Endpoint
from tracer.rules.steps import steps

_DEEPEST = 32  # jumps; the kernel allows 16 (Linux include/linux/netfilter/x_tables.h, NFT_JUMP_STACK_SIZE)


class Route(NamedTuple):
    """Where a chain leads: its branches in order, and how long it keeps a client at one endpoint, in seconds."""

    branches: tuple[Branch, ...] = ()
    affinity: int | None = None


_NOWHERE = Route()


class Routes:
    """The routes of one table's chains, each worked out once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._routes: dict[str, Route] = {}
        self._looked_at: dict[str, list[str]] = {}  # by the chain whose route it decides
        self._depth = 0

    def after(self, table: Table, changed: Container[str]) -> Routes:
        """The routes of the table as it is now, of which only these chains changed, appeared or went.

        What none of them decides is not worked out again.
        """
        stale = {name for name in self._looked_at if name in changed}
        grown = True
        while grown:  # twice, but for loops of chains: what is looked at comes before what looks
            before = len(stale)
            stale.update(
                name
                for name, others in self._looked_at.items()
                if any(other in stale or other in changed for other in others)
            )
            grown = len(stale) > before
        routes = Routes(table)
        routes._routes = {name: route for name, route in self._routes.items() if name not in stale}
        routes._looked_at = {name: others for name, others in self._looked_at.items() if name not in stale}
        return routes

    def of(self, name: str) -> Route:
        """Where the chain `name` leads; nowhere when it does not exist, or only back to itself."""
        route = self._routes.get(name)
        if route is not None:
            return route
        chain = self._table.chains.get(name)
        if chain is None or self._depth >= _DEEPEST:
            return _NOWHERE
        self._routes[name] = _NOWHERE  # what a loop back to it sees
        self._depth += 1
        route = self._routes[name] = self._walk(chain)
        self._depth -= 1
        return route

    def _walk(self, chain: Chain) -> Route:
        branches: list[Branch] = []
        choice: dict[tuple[str, int], Endpoint] = {}
        left = 1.0
        affinity: int | None = None
        looked_at: list[str] = []
        for step in steps(self._table, chain):
            if isinstance(step, int):
                affinity = step
                continue
            share = left * step.chance / step.modulus
            taken = not step.chains
            if step.endpoint is not None:
                _add(choice, Endpoint(*step.endpoint, share, (chain.name,)))
            looked_at += step.chains
            for name in step.chains:
                end = None if step.conditions else self._end(name, looked_at)
                if end is not None:
                    _add(choice, Endpoint(*end, share, (chain.name, name)))
                    taken = True
                    continue
                route = self.of(name)
                affinity = route.affinity if route.affinity is not None else affinity
                branches += (_through(chain.name, step.conditions, branch, share) for branch in route.branches)
                taken = taken or bool(route.branches)  # else it marks the packet, and comes back
            if taken and not step.conditions:
                left *= 1.0 - step.chance
                if left <= 0.0:
                    break
        if choice:
            branches.append(Branch((), (), choice))
        self._looked_at[chain.name] = looked_at
        return Route(tuple(branches), affinity)

    def _end(self, name: str, looked_at: list[str]) -> tuple[str, int] | None:
        """The endpoint whose own chain this is: one DNAT, whatever comes. Three of four chains are of that kind.

        looked_at: to which the chains are added that decide it.
        """
        chain = self._table.chains.get(name)
        if chain is None:
            return None
        for step in steps(self._table, chain):
            if isinstance(step, int):
                return None
            if step.endpoint is not None:
                return step.endpoint if not step.conditions and step.chance == 1.0 else None
            looked_at += step.chains
            if not step.chains or any(self.of(other).branches for other in step.chains):
                return None
        return None


def _add(choice: dict[tuple[str, int], Endpoint], endpoint: Endpoint) -> None:
    """Two rules may lead to one endpoint: then it has both their shares, and the chains of the first."""
    key = endpoint.ip, endpoint.port
    earlier = choice.get(key)
    if earlier is not None:
        endpoint = Endpoint(*key, (earlier.probability or 0.0) + (endpoint.probability or 0.0), earlier.chains)
    choice[key] = endpoint


def _through(name: str, conditions: tuple[Condition, ...], branch: Branch, share: float) -> Branch:
    """The branch of a chain that the chain `name` goes on to, for `share` of its packets."""
    backends = branch.backends
    if share != 1.0 and not conditions:
        backends = {
            key: Endpoint(end.ip, end.port, (end.probability or 0.0) * share, end.chains)
            for key, end in backends.items()
        }
    return Branch(conditions + branch.conditions, (name, *branch.via), backends)
