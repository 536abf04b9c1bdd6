"""Random rule sets that are valid, described once for all engines: Services as kube-proxy might serve them, amid noise.

What belongs here: what a rule set is made of, and making one up. What does not: how iptables or nft say it
(`random_text`), packets (`flows`), predictions.

A rule set has four tables, as iptables has them. Chains jump only to later ones, so that nothing loops. Every base
chain lets ICMP and resets pass, so that the news of a rejection arrives; nothing else that can be said of a packet is
spared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, NamedTuple

from tests.tracer.rules.flows import CLIENT_SIDE, SERVER_SIDE, Flow

HOOKS = {
    "raw": ("prerouting", "output"),
    "mangle": ("prerouting", "input", "forward", "output", "postrouting"),
    "nat": ("prerouting", "input", "output", "postrouting"),
    "filter": ("input", "forward", "output"),
}
_CLUSTER = {4: "10.96.0.{}", 6: "fd00:96::{:x}"}
_SERVERS = {4: "10.0.2.{}", 6: "fd00:2::{:x}"}
_CLIENTS = {4: "10.0.1.{}", 6: "fd00:1::{:x}"}
_HALVES = {4: ("10.0.1.0/25", "10.0.1.128/25"), 6: ("fd00:1::/121", "fd00:1::80/121")}
_NETS = {
    4: ("10.0.1.0/24", "10.0.2.0/24", "10.96.0.0/16", "10.0.0.0/8", "10.0.2.16/29", "10.96.0.0/30"),
    6: ("fd00:1::/64", "fd00:2::/64", "fd00:96::/64", "fd00::/16", "fd00:2::10/125", "fd00:96::/126"),
}
MASQUERADE_MARK = 0x4000


class Condition(NamedTuple):
    """What a packet must be like. kind and value:

    source, destination: a network · source range, destination range: two addresses · protocol: tcp or udp ·
    ports: ranges of destination ports (a protocol must come before) · in, out: a device, or its beginning and "+" ·
    source type, destination type: an address type · state: words of conntrack; "dnat" is one · mark: value and mask ·
    chance: a probability · every: count and number · original: an address, as it was asked for · connection mark: value
    and mask · syn, reset: nothing · length, source ports: ranges, which `explain` can't know
    """

    kind: str
    value: Any
    negated: bool = False


class Action(NamedTuple):
    """What is done then. kind and value:

    accept, drop, return, masquerade, count, log, notrack, save, restore (the connection's mark) · reject: the reason ·
    jump, goto: a chain · mark: what is cleared, what is toggled · dnat: address, and port or None · snat: an address ·
    redirect: a port ·
    split: chains, to one of which it goes, all with the same chance · spread: addresses and ports, the same with DNAT ·
    dispatch: {(protocol, address or None for the router's own, port): chain}
    """

    kind: str
    value: Any = None


_DROP, _MARK = Action("drop"), Action("mark", (1, 1))


class Rule(NamedTuple):
    conditions: tuple[Condition, ...]
    action: Action


@dataclass
class Table:
    """chains: in an order in which each comes after those that jump to it. bases: hook to policy and rules."""

    name: str
    bases: dict[str, tuple[str, list[Rule]]]
    chains: dict[str, list[Rule]] = field(default_factory=dict)


class Service(NamedTuple):
    protocol: str
    ip: str | None  # None: a port of the router's own addresses
    port: int
    endpoints: tuple[tuple[str, int], ...]


@dataclass
class RandomRules:
    """A rule set, and flows worth sending through it. unknowable: it asks what no prediction can know."""

    family: int
    tables: dict[str, Table]
    services: list[Service]
    unknowable: bool = False

    def flows(self, random: Random, count: int) -> list[Flow]:
        """Some flows, none of them twice: to Services, past them by a port or a protocol, to servers and the router."""
        family = self.family
        found: dict[Flow, None] = {}
        while len(found) < count:
            service = random.choice(self.services)
            ip = service.ip or random.choice((CLIENT_SIDE[family], SERVER_SIDE[family]))
            port, protocol = service.port, service.protocol
            strange = random.random()
            if strange < 0.06:
                port = random.choice((port + 1, 53, 8080))
            elif strange < 0.12:
                protocol = "UDP" if protocol == "TCP" else "TCP"
            elif strange < 0.2 and service.endpoints:
                ip, port = random.choice(service.endpoints)
            elif strange < 0.26:
                ip = random.choice((CLIENT_SIDE[family], SERVER_SIDE[family], _SERVERS[family].format(77)))
            source, via = random.choice(_sources(family))
            found[Flow(protocol, source, ip, port, via)] = None
        return list(found)


def _sources(family: int) -> list[tuple[str | None, str]]:
    clients = [(_CLIENTS[family].format(number), "client") for number in (2, 130, 40)]
    return [*clients, (CLIENT_SIDE[family], "router"), (None, "router")]


def random_rules(random: Random, family: int) -> RandomRules:
    """A rule set made up by `random`, whose state decides all of it."""
    return _Maker(random, family).make()


class _Maker:
    def __init__(self, random: Random, family: int) -> None:
        self.random = random
        self.family = family
        self.unknowable = random.random() < 0.15
        self.tables = {name: Table(name, {hook: ("accept", []) for hook in hooks}) for name, hooks in HOOKS.items()}
        self.services: list[Service] = []

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def make(self) -> RandomRules:
        self.services = [self.service(number) for number in range(self.random.randint(4, 7))]
        self.noise_chains()
        for table in self.tables.values():
            for hook in table.bases:
                table.bases[hook] = self.base(table, hook)
        self.serve()
        self.refuse()
        self.postrouting()
        return RandomRules(self.family, self.tables, self.services, self.unknowable)

    def refuse(self) -> None:
        """Reject or drop what goes to the Services without endpoints, where kube-proxy does so."""
        reason = "icmp-port-unreachable" if self.family == 4 else "icmp6-port-unreachable"
        verdicts = (Action("drop"), Action("reject", reason))
        for service in self.services:
            if service.endpoints:
                continue
            ip = Condition("destination", service.ip) if service.ip else Condition("destination type", "local")
            conditions = (
                ip,
                Condition("protocol", service.protocol.lower()),
                Condition("ports", ((service.port,) * 2,)),
            )
            for hook in ("input", "forward", "output"):
                rules = self.tables["filter"].bases[hook][1]
                rules.insert(self.random.randint(2, len(rules)), Rule(conditions, self.random.choice(verdicts)))

    # --- Services ---
    def service(self, number: int) -> Service:
        random = self.random
        of_router = self.chance(0.3)
        ip = None if of_router else _CLUSTER[self.family].format(number + 1)
        port = 30000 + number if of_router else random.choice((80, 443, 8000))
        numbers = random.sample(range(10, 30), random.choice((0, 1, 1, 2, 3, 3, 4, 5)))
        target = random.choice((port, 8080, 9376))
        endpoints = tuple((_SERVERS[self.family].format(number), target) for number in numbers)
        if endpoints and self.chance(0.1):  # one that runs on the router itself
            endpoints = ((SERVER_SIDE[self.family], target), *endpoints[1:])
        return Service(random.choice(("UDP", "UDP", "TCP")), ip, port, endpoints)

    def serve(self) -> None:
        nat = self.tables["nat"]
        with_endpoints = [(n, service) for n, service in enumerate(self.services) if service.endpoints]
        served = {(service.protocol, service.ip, service.port): f"SVC-{n}" for n, service in with_endpoints}
        chains: dict[str, list[Rule]] = {"SERVICES": [Rule((), Action("dispatch", served))]}
        if self.chance(0.3):
            chains["SERVICES"].insert(0, self.noise_rule(nat, hooks=("prerouting", "output")))
        later: dict[str, list[Rule]] = {}
        for number, service in with_endpoints:
            chains[f"SVC-{number}"] = self.service_chain(number, service, later)
        mark = Action("mark", (MASQUERADE_MARK, MASQUERADE_MARK))
        nat.chains = {**chains, **later, **nat.chains, "MARK-MASQ": [Rule((), mark)]}
        for hook in ("prerouting", "output"):
            rules = nat.bases[hook][1]
            rules.insert(self.random.randint(2, len(rules)), Rule((), Action("jump", "SERVICES")))

    def service_chain(self, number: int, service: Service, later: dict[str, list[Rule]]) -> list[Rule]:
        """later: takes the chains that it goes on to."""
        rules = []
        if self.chance(0.6):
            conditions = () if self.chance(0.3) else (self.condition(("source", "source type")),)
            rules.append(Rule(conditions, Action("jump", "MARK-MASQ")))
        if self.chance(0.15):
            rules.append(Rule((self.condition(("source", "in", "chance")),), Action("return")))
        style = self.random.choice(("split", "split", "spread", "uneven", "every", "tree"))
        protocol = Condition("protocol", service.protocol.lower())
        if style == "spread":
            return [*rules, Rule((protocol,), Action("spread", service.endpoints))]
        names = [f"SEP-{number}-{n}" for n in range(len(service.endpoints))]
        for name, endpoint in zip(names, service.endpoints, strict=True):
            later[name] = self.endpoint_chain(endpoint, protocol)
        if style == "split" or len(names) == 1:
            return [*rules, Rule((), Action("split", tuple(names)))]
        if style == "tree":  # a chain of its own for some of them
            cut = self.random.randint(1, len(names) - 1)
            later[f"SUB-{number}"] = [Rule((), Action("split", tuple(names[cut:])))]
            return [*rules, Rule((), Action("split", (*names[:cut], f"SUB-{number}")))]
        for name in names[:-1] if self.chance(0.7) else names:
            every = self.random.randint(2, 4)
            condition = (
                Condition("every", (every, self.random.randrange(every)), self.chance(0.3))
                if style == "every"
                else Condition("chance", self.probability(), self.chance(0.2))
            )
            rules.append(Rule((condition,), Action(self.random.choice(("jump", "goto")), name)))
        if self.chance(0.8):
            rules.append(Rule((), Action("jump", names[-1])))
        return rules

    def endpoint_chain(self, endpoint: tuple[str, int], protocol: Condition) -> list[Rule]:
        rules = []
        if self.chance(0.5):
            rules.append(Rule((Condition("source", endpoint[0]),), Action("jump", "MARK-MASQ")))
        if self.chance(0.1):
            rules.append(Rule((self.condition(("source", "in")),), Action("jump", "MARK-MASQ")))
        if self.chance(0.05):  # whatever serves on the router at that port
            return [*rules, Rule((protocol,), Action("redirect", endpoint[1]))]
        port = endpoint[1] if self.chance(0.9) else None
        return [*rules, Rule((protocol,), Action("dnat", (endpoint[0], port)))]

    def postrouting(self) -> None:
        random = self.random
        rules = self.tables["nat"].bases["postrouting"][1]
        style = random.choice(("kube-proxy", "kube-proxy", "one", "snat", "none"))
        if style == "kube-proxy":
            self.tables["nat"].chains["POST"] = [
                Rule((Condition("mark", (MASQUERADE_MARK, MASQUERADE_MARK), True),), Action("return")),
                Rule((), Action("mark", (0, MASQUERADE_MARK))),
                Rule((), Action("masquerade")),
            ]
            rules.append(Rule((), Action("jump", "POST")))
        elif style != "none":
            conditions = (self.condition(("source", "mark", "destination")), self.condition(("out", "destination")))
            action = Action("masquerade") if style == "one" else Action("snat", SERVER_SIDE[self.family])
            rules.append(Rule(tuple({condition.kind: condition for condition in conditions}.values()), action))

    # --- noise ---
    def noise_chains(self) -> None:
        for table in self.tables.values():
            for number in reversed(range(self.random.randint(0, 3))):
                rules = [self.noise_rule(table, after=number) for _ in range(self.random.randint(1, 4))]
                table.chains = {f"NOISE-{number}": rules, **table.chains}

    def base(self, table: Table, hook: str) -> tuple[str, list[Rule]]:
        """Policy and rules of a base chain."""
        icmp = Rule((Condition("protocol", "icmp" if self.family == 4 else "ipv6-icmp"),), Action("accept"))
        count = self.random.choice((0, 1, 1, 2) if table.name == "filter" else (0, 0, 1))
        reset = Rule((Condition("protocol", "tcp"), Condition("reset", None)), Action("accept"))
        rules = [
            icmp,
            reset,
            *(self.noise_rule(table, hooks=(hook,)) for _ in range(count)),
            *self.telling(table, hook),
        ]
        if table.name != "filter" or self.chance(0.7):
            return "accept", rules
        marked = Rule(
            (self.condition(("mark", "destination", "state", "in" if hook == "forward" else "source")),),
            Action("accept"),
        )
        return "drop", [*rules, marked, Rule((self.condition(("source", "destination")),), Action("accept"))]

    def telling(self, table: Table, hook: str) -> list[Rule]:
        """Rules whose effect tells whether packets come by here, and before or after they are translated."""
        if table.name in ("raw", "mangle") and hook == "prerouting" and self.chance(0.3):
            again = Condition("in", "lo")  # what the router sends to itself, on its second way through
            return [Rule((again, self.condition(("chance", "source", "mark"))), self.random.choice((_DROP, _MARK)))]
        if table.name == "filter" and self.chance(0.4):
            served = [service for service in self.services if service.endpoints]
            service = self.random.choice(served) if served else None
            if service is not None:
                ip = self.random.choice([service.ip or CLIENT_SIDE[self.family], *(ip for ip, _ in service.endpoints)])
                which = self.random.choice(("destination", "original"))
                return [Rule((Condition(which, ip), self.condition(("chance", "source"))), _DROP)]
        return []

    def noise_rule(self, table: Table, after: int = -1, hooks: tuple[str, ...] = ()) -> Rule:
        """A rule of a chain that only jumps to chains behind NOISE-`after`. hooks: of a base chain that it is in."""
        kinds = ["source", "destination", "ports", "source type", "destination type", "mark", "chance", "every"]
        kinds += ["protocol", "source range", "destination range", "in", "out", "syn"]
        if table.name != "raw":
            kinds += ["state", "state", "original", "connection mark"]
        if self.unknowable:
            kinds += ["length", "length", "source ports"]
        if hooks:
            absent = {"prerouting": "out", "input": "out", "output": "in", "postrouting": "in"}
            kinds = [kind for kind in kinds if kind not in {absent.get(hook) for hook in hooks}]
        count = self.random.choice((1, 1, 2, 2, 3))
        conditions = {condition.kind: condition for condition in (self.condition(kinds) for _ in range(count))}
        action = self.action(table, after)
        if not conditions.keys().isdisjoint(("ports", "source ports")) or action == Action("reject", "tcp-reset"):
            protocol = "tcp" if action.kind == "reject" else self.random.choice(("tcp", "udp"))
            conditions["protocol"] = Condition("protocol", protocol)
        if "syn" in conditions:
            conditions["protocol"] = Condition("protocol", "tcp")
        first = [conditions.pop("protocol")] if "protocol" in conditions else []
        return Rule((*first, *conditions.values()), action)

    def action(self, table: Table, after: int) -> Action:
        targets = [name for name in table.chains if name.startswith("NOISE-") and int(name[6:]) > after]
        kinds = {
            "raw": ["mark", "count", "accept", "return", "drop", "notrack"],
            "mangle": ["mark", "mark", "mark", "save", "restore", "count", "log", "accept", "return", "drop"],
            "nat": ["mark", "count", "accept", "return", "return"],
            "filter": ["accept", "accept", "drop", "reject", "return", "count", "log"],
        }[table.name]
        kind = self.random.choice(kinds + ["jump", "jump", "goto"] * bool(targets))
        if kind in ("jump", "goto"):
            return Action(kind, self.random.choice(targets))
        if kind == "mark":
            bits = self.random.choice((0x1, 0x2, 0x3, MASQUERADE_MARK))
            return Action("mark", self.random.choice(((bits, bits), (bits, 0), (0, bits), (0xFFFFFFFF, bits))))
        if kind == "reject":
            reasons = ("tcp-reset", "icmp-port-unreachable", "icmp-admin-prohibited", "icmp-host-prohibited")
            reasons6 = ("tcp-reset", "icmp6-port-unreachable", "icmp6-adm-prohibited", "icmp6-no-route")
            return Action("reject", self.random.choice(reasons if self.family == 4 else reasons6))
        return Action(kind)

    def condition(self, kinds: list[str] | tuple[str, ...]) -> Condition:
        kind = self.random.choice(kinds)
        negated = self.chance(0.25) and kind not in ("protocol", "length", "source ports")
        return Condition(kind, self._values[kind](self), negated)

    def network(self) -> str:
        options = [*_NETS[self.family], *_HALVES[self.family]]
        options += [ip for service in self.services for ip, _ in service.endpoints]
        options += [service.ip for service in self.services if service.ip is not None]
        return self.random.choice(options)

    def address_range(self) -> tuple[str, str]:
        pattern = self.random.choice((_CLIENTS, _SERVERS, _CLUSTER))[self.family]
        low = self.random.randint(1, 20)
        return pattern.format(low), pattern.format(low + self.random.randint(0, 120))

    def ports(self) -> tuple[tuple[int, int], ...]:
        found = []
        for _ in range(self.random.choice((1, 1, 2, 3))):
            low = self.random.choice((80, 443, 8000, 8080, 9376, 30000, 30002))
            found.append((low, low + self.random.choice((0, 0, 1, 500))))
        return tuple(dict.fromkeys(found))

    def states(self) -> tuple[str, ...]:
        options = (("new",), ("established", "related"), ("invalid",), ("new", "established"), ("dnat",))
        return self.random.choice(options)

    def probability(self) -> float:
        return self.random.choice((0.25, 1 / 3, 0.5, 0.5, 0.75, 0.9))

    def every(self) -> tuple[int, int]:
        count = self.random.randint(2, 5)
        return count, self.random.randrange(count)

    def original(self) -> str:
        return self.random.choice([service.ip or CLIENT_SIDE[self.family] for service in self.services])

    def mark(self) -> tuple[int, int]:
        return self.random.choice(((1, 1), (0, 1), (2, 2), (3, 3), (MASQUERADE_MARK, MASQUERADE_MARK), (0, 0xFFFFFFFF)))

    _values: ClassVar[dict[str, Callable[[_Maker], Any]]] = {
        "source": network,
        "destination": network,
        "source range": address_range,
        "destination range": address_range,
        "protocol": lambda self: self.random.choice(("tcp", "udp")),
        "ports": ports,
        "syn": lambda self: None,
        "in": lambda self: self.random.choice(("client", "server", "lo", "cli+")),
        "out": lambda self: self.random.choice(("client", "server", "lo", "ser+")),
        "source type": lambda self: "local",
        "destination type": lambda self: "local",
        "state": states,
        "mark": mark,
        "chance": probability,
        "every": every,
        "original": original,
        "connection mark": mark,
        "source ports": lambda self: self.random.choice(((1, 1023), (1024, 20000), (20001, 65535))),
        "length": lambda self: self.random.choice(((0, 1000), (1000, 1500))),
    }
