"""What the rules say before a packet is sent: where DST is, and the shares that its backends should get.

What belongs here: whose rules count, and asking them. What does not: reading rules (`tracer.rules`), comparing with
what was observed (`report`).

Rules count in the namespace that translates. Before anything was sent that is not known, so that the nearest one with
Services is asked: that from which packets leave, those behind its links (a pod's node), those behind theirs, and at
last all others, which must agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tracer import destination as destinations
from tracer import netns, procfs
from tracer.destination import Asked, AskedAddress, Destination
from tracer.errors import K8snetError, MissingError, UsageError
from tracer.probe.neighbours import neighbours
from tracer.probe.origin import Origin
from tracer.rules import changes
from tracer.rules.explain import Question, explain
from tracer.rules.kubeproxy import service_map
from tracer.rules.live import read_rules
from tracer.rules.model import RuleSet
from tracer.rules.rtnetlink import LiveRouting
from tracer.rules.services import ServiceMap
from tracer.rules.sockets import Names

_DISTANCE = 2  # links away that a namespace is still near

Backend = tuple[str, int]


class Rules(NamedTuple):
    """The rules of one network namespace as read, the namespace's own addresses, and what to compare later."""

    inode: int
    path: str | None
    rules: RuleSet
    services: ServiceMap
    addresses: frozenset[str]
    state: changes.State


@dataclass(frozen=True, slots=True)
class Prediction:
    """The share of new flows, 0 to 1, that each backend should get; they sum to 1, or there are none.

    affinity_seconds: for how long a client is kept at one backend, if it is. reason: why there are no shares.
    otherwise: where flows may go as well, as it can't be told whether some rules apply. depends: on what these do.
    """

    shares: Mapping[Backend, float] = field(default_factory=dict)
    affinity_seconds: int | None = None
    reason: str | None = None
    otherwise: frozenset[Backend] = frozenset()
    depends: tuple[str, ...] = ()


class Rulebook:
    """The rules of the namespaces of this machine, each read when it is first needed. Reading raises K8snetError.

    names: what gives the names of Services in maps of eBPF.
    """

    def __init__(self, origin: Origin, paths: Mapping[int, str], names: Callable[[], Names] = dict) -> None:
        self._origin = origin
        self._names = names
        self._paths = {**paths, origin.inode: origin.path}
        self._read: dict[int, Rules] = {}

    def of(self, inode: int) -> Rules:
        """The rules of one namespace, as first read. Raises MissingError when it is gone, and what reading raises."""
        if inode not in self._read:
            if inode not in self._paths:
                raise MissingError("the network namespace that translated is gone")
            path = self._paths[inode]
            state = changes.state(path)
            rules = RuleSet() if state.untouched else read_rules(path)
            if rules.sockets is not None:
                rules.sockets = replace(rules.sockets, names=self._names())
            self._read[inode] = Rules(
                inode, path, rules, service_map(rules), netns.run_in(path, procfs.addresses), state
            )
        return self._read[inode]

    def renewed(self, inode: int) -> Rules | None:
        """The rules of a namespace as they are now, if they were written anew since they were read; else None.

        kube-proxy writes its rules now and then without a change. Raises as `of` does.
        """
        if changes.state(self._paths.get(inode)) == self.of(inode).state:
            return None
        del self._read[inode]
        return self.of(inode)

    def near(self) -> Iterator[Rules]:
        """The namespaces with Services in their rules that packets pass first, the nearest one first."""
        seen, ring = {self._origin.inode}, [self._origin.inode]
        for distance in range(_DISTANCE + 1):
            for inode in ring:
                rules = self._try(inode)
                if rules is not None:
                    yield rules
            if distance < _DISTANCE:
                ring = [inode for near in ring for inode in self._beside(near) if inode not in seen]
                seen.update(ring)

    def all(self) -> Iterator[Rules]:
        """All namespaces with Services in their rules."""
        for inode in self._paths:
            rules = self._try(inode)
            if rules is not None:
                yield rules

    def _beside(self, inode: int) -> list[int]:
        known = {other: path for other, path in self._paths.items() if path is not None}
        try:
            return neighbours(self._paths[inode], known)
        except (K8snetError, OSError):
            return []

    def _try(self, inode: int) -> Rules | None:
        """The rules of a namespace, if they hold Services; a namespace that ends meanwhile holds none."""
        try:
            rules = self.of(inode)
        except (MissingError, OSError):
            if inode == self._origin.inode:
                raise
            return None
        return rules if rules.services.services else None


def locate(asked: Asked, book: Rulebook, family: int | None = None) -> Destination:
    """The destination that is meant. family: 4 or 6, where a Service has both. Raises UsageError, K8snetError."""
    if isinstance(asked, AskedAddress):
        rules = next(book.near(), None)
        services, addresses = (rules.services, rules.addresses) if rules is not None else (ServiceMap(()), frozenset())
        return destinations.resolve(asked, services, node_ips=addresses)
    error = None
    for rules in book.near():
        try:
            return destinations.resolve(asked, rules.services, node_ips=rules.addresses, family=family)
        except UsageError as refused:
            error = error or refused
    if error is not None:
        raise error
    return _agreed(asked, book, family)


def predict(rules: Rules, destination: Destination, source: str) -> Prediction:
    """What the rules of one namespace do with packets from `source` to a destination. Raises K8snetError."""
    family = "ip6" if destination.family == 6 else "ip"
    with contextlib.closing(LiveRouting(rules.path, family)) as routing:
        question = Question(destination.ip, destination.port, destination.protocol, source)
        told = explain(rules.rules, question, routing)
    translated, here = told.shares.get("dnat", 0.0), (destination.ip, destination.port)
    weights = {
        (each.ip, each.port): each.probability * translated for each in told.backends if each.verdict == "accept"
    }
    untranslated = told.shares.get("accept", 0.0) + told.shares.get("untouched", 0.0)
    if untranslated:
        weights[here] = weights.get(here, 0.0) + untranslated
    total = sum(weights.values())
    if not total:
        refused = {"drop": "drop"}.get(told.verdict, "reject")
        return Prediction(reason=f"the rules {refused} every packet to {destination.endpoint}")
    shares = {key: weight / total for key, weight in weights.items()}
    possible = {(each.ip, each.port) for each in told.otherwise if each.ip is not None and each.port is not None}
    depends = tuple(text for step in told.depends for text in step.on)
    return Prediction(shares, told.affinity_seconds, None, frozenset(possible), depends)


def _agreed(asked: Asked, book: Rulebook, family: int | None) -> Destination:
    """What all namespaces of the machine that know the Service say of it."""
    answers: dict[tuple[str, int, str], Destination] = {}
    error = None
    for rules in book.all():
        try:
            found = destinations.resolve(asked, rules.services, node_ips=rules.addresses, family=family)
            answers[found.ip, found.port, found.protocol] = found
        except UsageError as refused:
            error = error or refused
    if len(answers) > 1:
        raise UsageError(f"several clusters of this machine have {asked.text}", hint="use --from POD, or IP:PORT")
    if answers:
        return next(iter(answers.values()))
    if error is None:
        raise UsageError(f"no rules on this machine hold a Service, so not {asked.text} either", hint="use IP:PORT")
    raise error
