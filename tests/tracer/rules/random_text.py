"""Random rule sets as text: what iptables-restore takes, and what nft takes.

What belongs here: the words of either tool, and the choice between several ways to say the same thing. What does not:
what is said (`random_rules`).
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.tracer.rules.flows import CLIENT_SIDE, SERVER_SIDE
from tests.tracer.rules.random_rules import Action, Condition, RandomRules, Rule, Table

_PLAIN = {
    "count": "counter",
    "log": "log group 9",
    "notrack": "notrack",
    "save": "ct mark set meta mark",
    "restore": "meta mark set ct mark",
}
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0}


def iptables_text(rules: RandomRules) -> str:
    """Input of iptables-restore or ip6tables-restore."""
    lines = []
    for table in rules.tables.values():
        lines.append(f"*{table.name}")
        lines += (f":{hook.upper()} {policy.upper()} [0:0]" for hook, (policy, _) in table.bases.items())
        lines += (f":{name} - [0:0]" for name in table.chains)
        for name, chain in (
            *((hook.upper(), rules_) for hook, (_, rules_) in table.bases.items()),
            *table.chains.items(),
        ):
            lines += (f"-A {name} {words}" for rule in chain for words in _iptables_rules(rule))
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)


def _iptables_rules(rule: Rule) -> list[str]:
    """A rule in iptables' words; some actions need several."""
    words = [_iptables_condition(condition, rule) for condition in rule.conditions]
    kind, value = rule.action
    if kind == "split":
        targets: list[Action] = [Action("jump", name) for name in value]
    elif kind == "spread":
        targets = [Action("dnat", endpoint) for endpoint in value]
    elif kind == "dispatch":
        return [
            " ".join([*words, *_iptables_key(*key), f"-{'g' if int(key[2]) % 2 else 'j'} {name}"])
            for key, name in value.items()
        ]
    else:
        return [" ".join([*words, *_iptables_action(rule.action)])]
    lines = []
    for number, target in enumerate(targets):
        share = 1 / (len(targets) - number)
        chance = [f"-m statistic --mode random --probability {share:.11f}"] if share < 1 else []
        lines.append(" ".join([*words, *chance, *_iptables_action(target)]))
    return lines


def _iptables_key(protocol: str, ip: str | None, port: int) -> list[str]:
    word = protocol.lower()
    address = f"-d {ip}" if ip is not None else "-m addrtype --dst-type LOCAL"
    return [address, f"-p {word} -m {word} --dport {port}"]


def _iptables_condition(condition: Condition, rule: Rule) -> str:
    kind, value, negated = condition
    sign = "! " if negated else ""
    if kind == "ports":
        protocol = next(other.value for other in rule.conditions if other.kind == "protocol")
        texts = [str(low) if low == high else f"{low}:{high}" for low, high in value]
        if len(texts) == 1:
            return f"-m {protocol} {sign}--dport {texts[0]}"
        return f"-m multiport {sign}--dports {','.join(texts)}"
    if kind == "state":
        return f"-m conntrack {sign}--ctstate {','.join(value).upper()}"
    if kind == "mark":
        return f"-m mark {sign}--mark {value[0]:#x}/{value[1]:#x}"
    if kind == "chance":
        return f"-m statistic --mode random {sign}--probability {value:.11f}"
    if kind == "every":
        return f"-m statistic --mode nth {sign}--every {value[0]} --packet {value[1]}"
    if kind.endswith("range"):
        return f"-m iprange {sign}--{'src' if kind.startswith('source') else 'dst'}-range {value[0]}-{value[1]}"
    if kind.endswith("type"):
        return f"-m addrtype {sign}--{'src' if kind.startswith('source') else 'dst'}-type {value.upper()}"
    if kind == "original":
        return f"-m conntrack {sign}--ctorigdst {value}"
    if kind == "connection mark":
        return f"-m connmark {sign}--mark {value[0]:#x}/{value[1]:#x}"
    if kind == "reset":
        return "-m tcp --tcp-flags RST RST"
    if kind == "syn":
        return f"-m tcp {sign}--tcp-flags FIN,SYN,RST,ACK SYN"
    if kind == "source ports":
        protocol = next(other.value for other in rule.conditions if other.kind == "protocol")
        return f"-m {protocol} --sport {value[0]}:{value[1]}"
    if kind == "length":
        return f"-m length {sign}--length {value[0]}:{value[1]}"
    option = {"source": "-s", "destination": "-d", "protocol": "-p", "in": "-i", "out": "-o"}[kind]
    return f"{sign}{option} {value}"


def _iptables_action(action: Action) -> list[str]:
    kind, value = action
    if kind in ("accept", "drop", "return", "masquerade"):
        return [f"-j {kind.upper()}"]
    if kind == "count":
        return []
    if kind in ("notrack", "save", "restore"):
        return [{"notrack": "-j CT --notrack"}.get(kind, f"-j CONNMARK --{kind}-mark")]
    if kind == "redirect":
        return [f"-j REDIRECT --to-ports {value}"]
    if kind == "log":
        return ["-j NFLOG --nflog-group 9"]
    if kind == "reject":
        return [f"-j REJECT --reject-with {value}"]
    if kind in ("jump", "goto"):
        return [f"-{kind[0]} {value}"]
    if kind == "mark":
        return (
            [f"-j MARK --set-xmark {value[1]:#x}/{value[0]:#x}"] if value[0] else [f"-j MARK --xor-mark {value[1]:#x}"]
        )
    if kind == "dnat":
        return [f"-j DNAT --to-destination {_endpoint(*value)}"]
    return [f"-j SNAT --to-source {value}"]


def _endpoint(ip: str, port: int | None) -> str:
    bracketed = f"[{ip}]" if ":" in ip else ip
    return ip if port is None else f"{bracketed}:{port}"


def nft_text(rules: RandomRules, random: Random, shift: int = 0) -> str:
    """Input of nft.

    random: chooses between the ways to say things, and the family of each table. shift: added to all priorities.
    """
    return "".join(_NftTable(rules, table, random, shift).text() for table in rules.tables.values())


class _NftTable:
    """One table on the way to text: rules first, since they ask for sets and maps, which must come before them."""

    def __init__(self, rules: RandomRules, table: Table, random: Random, shift: int) -> None:
        self.shift = shift
        self.family = rules.family
        self.table = table
        self.random = random
        self.ip = "ip" if rules.family == 4 else "ip6"
        self.inet = random.random() < 0.3
        self.sets: list[str] = []

    def text(self) -> str:
        chains = [self.chain(hook.upper(), rules, hook, policy) for hook, (policy, rules) in self.table.bases.items()]
        chains += [self.chain(name, rules) for name, rules in self.table.chains.items()]
        family = "inet" if self.inet else self.ip
        return f"table {family} {self.table.name}-test {{\n" + "".join([*self.sets, *chains]) + "}\n"

    def chain(self, name: str, rules: list[Rule], hook: str | None = None, policy: str = "") -> str:
        lines = [line for rule in rules for line in self.rule(rule)]
        if hook is not None:
            lines.insert(0, self.hook(hook) + f" policy {policy};")
        return f"  chain {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"

    def hook(self, hook: str) -> str:
        name = self.table.name
        priority = _PRIORITIES[name]
        if name == "nat":
            priority = 100 if hook in ("input", "postrouting") else -100
        elif name == "filter":  # also where kube-proxy's nftables mode has it, before DNAT in the OUTPUT hook
            priority = self.random.choice((0, 0, -110, -90, 10))
        kind = "nat" if name == "nat" else "route" if (name, hook) == ("mangle", "output") else "filter"
        return f"type {kind} hook {hook} priority {priority + self.shift};"

    def named(self, kind: str, declaration: str, elements: list[str]) -> str:
        """Declare a set or a map; returns its name with the @."""
        name = f"{kind}-{len(self.sets)}"
        self.sets.append(f"  {kind} {name} {{\n    {declaration}\n    elements = {{ {', '.join(elements)} }}\n  }}\n")
        return f"@{name}"

    def rule(self, rule: Rule) -> list[str]:
        words = [self.condition(condition, rule) for condition in rule.conditions]
        kind, value = rule.action
        if kind == "dispatch":
            return [" ".join([*words, line]) for line in self.dispatch(value)]
        if kind == "split":
            verdict = self.random.choice(("goto", "jump"))
            elements = ", ".join(f"{number} : {verdict} {name}" for number, name in enumerate(value))
            return [" ".join([*words, f"numgen {self.mode()} mod {len(value)} vmap {{ {elements} }}"])]
        if kind == "spread":
            return [" ".join([*words, self.spread(value)])]
        return [" ".join([*words, self.action(rule.action)])]

    def mode(self) -> str:
        return self.random.choice(("random", "random", "inc"))

    def spread(self, endpoints: tuple[tuple[str, int], ...]) -> str:
        to = f"dnat {self.ip} to" if self.inet else "dnat to"
        if len(endpoints) == 1:
            return f"{to} {_endpoint(*endpoints[0])}"
        port = endpoints[0][1]
        elements = ", ".join(f"{number} : {ip}" for number, (ip, _) in enumerate(endpoints))
        return f"{to} numgen {self.mode()} mod {len(endpoints)} map {{ {elements} }}:{port}"

    def dispatch(self, served: dict[tuple[str, str | None, int], str]) -> list[str]:
        """One map for addresses and one for the router's own ports, as kube-proxy has them, or rules."""
        verdict = self.random.choice(("goto", "jump"))
        addresses = {key: name for key, name in served.items() if key[1] is not None}
        own = {key: name for key, name in served.items() if key[1] is None}
        if self.random.random() < 0.3:
            return [
                " ".join([self.destination(ip), f"{protocol.lower()} dport {port}", f"{verdict} {name}"])
                for (protocol, ip, port), name in served.items()
            ]
        lines = []
        if addresses:
            elements = [
                f"{ip} . {protocol.lower()} . {port} : {verdict} {name}"
                for (protocol, ip, port), name in addresses.items()
            ]
            kind = "ipv4_addr" if self.family == 4 else "ipv6_addr"
            where = self.map(f"type {kind} . inet_proto . inet_service : verdict;", elements)
            lines.append(f"{self.ip} daddr . meta l4proto . th dport vmap {where}")
        if own:
            elements = [f"{protocol.lower()} . {port} : {verdict} {name}" for (protocol, _, port), name in own.items()]
            where = self.map("type inet_proto . inet_service : verdict;", elements)
            lines.append(f"{self.destination(None)} meta l4proto . th dport vmap {where}")
        return lines

    def map(self, declaration: str, elements: list[str]) -> str:
        if self.random.random() < 0.3:
            return f"{{ {', '.join(elements)} }}"
        return self.named("map", declaration, elements)

    def destination(self, ip: str | None) -> str:
        if ip is not None:
            return f"{self.ip} daddr {ip}"
        if self.random.random() < 0.5:
            return "fib daddr type local"
        return f"{self.ip} daddr {{ {CLIENT_SIDE[self.family]}, {SERVER_SIDE[self.family]} }}"

    def condition(self, condition: Condition, rule: Rule) -> str:
        kind, value, negated = condition
        sign = "!= " if negated else ""
        if kind == "protocol":
            return f"meta l4proto {sign}{value}"
        if kind == "ports":
            protocol = next(other.value for other in rule.conditions if other.kind == "protocol")
            return f"{self.random.choice((protocol, 'th'))} dport {sign}{self.port_set(value)}"
        if kind in ("source", "destination"):
            return f"{self.ip} {kind[0]}addr {sign}{self.network(value)}"
        if kind.endswith("range"):
            return f"{self.ip} {kind[0]}addr {sign}{value[0]}-{value[1]}"
        if kind.endswith("type"):
            return f"fib {kind[0]}addr type {sign}{value}"
        if kind in ("in", "out"):
            return f'{kind[0]}ifname {sign}"{value.replace("+", "*")}"'
        if kind == "state":
            return self.state(value, negated)
        if kind == "mark":
            return f"meta mark & {value[1]:#x} {'!=' if negated else '=='} {value[0]:#x}"
        return self.rarer(condition)

    def rarer(self, condition: Condition) -> str:
        kind, value, negated = condition
        sign = "!= " if negated else ""
        if kind == "chance":
            below = round(value * 1000)
            return f"numgen random mod 1000 {'>=' if negated else '<'} {below}"
        if kind == "connection mark":
            return f"ct mark & {value[1]:#x} {'!=' if negated else '=='} {value[0]:#x}"
        if kind == "reset":
            return "tcp flags rst"
        if kind == "syn":
            return f"tcp flags & (fin | syn | rst | ack) {'!=' if negated else '=='} syn"
        if kind == "source ports":
            return f"th sport {value[0]}-{value[1]}"
        if kind == "every":
            return f"numgen inc mod {value[0]} {sign}{value[1]}"
        if kind == "original":
            return f"ct original {self.ip} daddr {sign}{value}"
        return f"meta length {sign}{value[0]}-{value[1]}"

    def network(self, value: str) -> str:
        if self.random.random() < 0.7:
            return value
        kind = "ipv4_addr" if self.family == 4 else "ipv6_addr"
        return self.named("set", f"type {kind}; flags interval;", [value])

    def port_set(self, ranges: Any) -> str:
        texts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
        if len(texts) == 1 and self.random.random() < 0.7:
            return texts[0]
        if self.random.random() < 0.7:
            return f"{{ {', '.join(texts)} }}"
        return self.named("set", "type inet_service; flags interval; auto-merge;", texts)

    def state(self, words: tuple[str, ...], negated: bool) -> str:
        if words == ("dnat",):
            return f"ct status & dnat {'==' if negated else '!='} 0"
        if negated:
            return f"ct state != {{ {', '.join(words)} }}"
        return f"ct state {','.join(words)}"

    def action(self, action: Action) -> str:
        kind, value = action
        if kind in ("accept", "drop", "return", "masquerade"):
            return kind
        if kind in ("jump", "goto"):
            return f"{kind} {value}"
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind == "redirect":
            return f"redirect to :{value}"
        if kind == "reject":
            return self.reject(value)
        if kind == "mark":
            clear, toggle = value
            kept = f"meta mark & {~clear & 0xFFFFFFFF:#x} ^ {toggle:#x}" if clear != 0xFFFFFFFF else f"{toggle:#x}"
            return f"meta mark set {kept if clear else f'meta mark ^ {toggle:#x}'}"
        to = f"{self.ip} to" if self.inet else "to"
        return f"dnat {to} {_endpoint(*value)}" if kind == "dnat" else f"snat {to} {value}"

    def reject(self, reason: str) -> str:
        if reason == "tcp-reset":
            return "reject with tcp reset"
        if self.random.random() < 0.3:
            return "reject"
        kind, _, words = reason.partition("-")
        kind = "icmp" if kind == "icmp" else "icmpv6"
        return f"reject with {kind} type {'admin-prohibited' if words == 'adm-prohibited' else words}"
