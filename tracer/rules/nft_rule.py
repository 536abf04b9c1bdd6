"""One rule of nftables, as the statements of libnftables-json(5), turned into a `Rule`.

What belongs here: statements and expressions. What does not: tables, chains and sets (`nft_json`), words (`nft_words`).
Every rule gives a `Rule`: what we do not know becomes `Unknown` (if it may be a condition) or `Other`, with
nft's own words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tracer.rules.model import (
    Chance,
    Element,
    Every,
    Interval,
    Lookup,
    Match,
    Nat,
    Other,
    Part,
    Rule,
    SetMark,
    Statement,
    Unknown,
    Update,
    Value,
    Verdict,
    address_number,
    prefix,
    protocol_word,
)
from tracer.rules.nft_words import rule_words, statement_words

Json = dict[str, Any]
_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
_ALL_BITS = 0xFFFFFFFF
_TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
_TOO_LARGE = (1 << 64) - 1


def parse_rule(statements: Sequence[Any], family: str, comment: str | None = None, words: str | None = None) -> Rule:
    """The rule made of these statements; family: of its table; words: its own, where it came as text. Never raises."""
    parts: list[Part] = []
    for statement in statements:
        parts += _parts(statement, family)
    return Rule(rule_words(statements, family, comment) if words is None else words, tuple(parts), comment)


def element(item: Any, types: tuple[str, ...], family: str) -> Element:
    """One element of a set (a value) or of a map ([value, data]). types: of the key's fields."""
    data: Verdict | Value | None = None
    if isinstance(item, list):
        item, right = item
        data = verdict(right) if isinstance(right, dict) and not right.keys().isdisjoint(_VERDICTS) else _datum(right)
    comment = None
    if isinstance(item, dict) and "elem" in item:
        comment = item["elem"].get("comment")
        item = item["elem"]["val"]
    return Element(_value(item, types), data, comment)


def verdict(statement: Json) -> Verdict:
    """{"goto": {"target": …}}, {"drop": null} and so on. Raises KeyError or ValueError for what is no verdict."""
    ((kind, body),) = statement.items()
    if kind not in _VERDICTS:
        raise ValueError(f"no verdict: {kind}")
    return Verdict(kind, body["target"] if kind in ("jump", "goto") else None)


def _parts(statement: Any, family: str) -> list[Part]:
    if not isinstance(statement, dict) or len(statement) != 1:
        return [Unknown("nft", statement_words(statement, family))]
    ((kind, body),) = statement.items()
    try:
        if kind == "unknown":  # from nft's text
            return [Unknown("nft", str(body))]
        if kind in _VERDICTS:
            return [verdict(statement)]
        read = _STATEMENTS.get(kind)
        if read is not None:
            return [read(body, family)]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        pass  # a form of it that we do not know
    words = statement_words(statement, family)
    if kind in _CONDITIONS:
        return [Unknown(kind, words)]
    return [Other(kind, words, False if kind in _HARMLESS else None)]


_CONDITIONS = frozenset({"match", "limit", "quota", "connlimit", "ct count", "xt"})
_HARMLESS = frozenset(
    {"counter", "log", "notrack", "mangle", "meter", "flow", "ct helper", "ct timeout", "dup", "last"}
)


def _match(body: Json, family: str) -> Part:
    left, right, op = body["left"], body["right"], body["op"]
    mask = None
    if isinstance(left, dict) and "numgen" in left:
        return _numbered(left["numgen"], op, right)
    if isinstance(left, dict) and "&" in left:
        left, mask_words = left["&"]
        mask = _bits(mask_words)
    keys = _keys(left)
    if isinstance(right, str) and right.startswith("@"):
        if op not in ("==", "!=", "in"):
            raise ValueError(op)
        return Match(keys, (), op == "!=", mask, right[1:])
    if keys == ("tcp flags",):
        return _tcp_flags(op, mask, right)
    values = _values(right, keys)
    if op in ("<", "<=", ">", ">="):
        return Match(keys, (_beyond(op, values),), False, mask)
    if op not in ("==", "!=", "in", "!") or (keys == ("ct status",) and op in ("==", "!=")):
        raise ValueError(op)  # or the whole status, of whose bits rules can name more than we follow
    return Match(keys, values, op in ("!=", "!"), mask)


def _numbered(numbers: Json, op: str, right: Any) -> Part:
    """`numgen random mod 4 < 3` is chance; `numgen inc mod 4 3` holds for each fourth packet."""
    modulus, first = int(numbers["mod"]), int(numbers.get("offset", 0))
    if modulus < 1:
        raise ValueError(modulus)
    values = _values(right, ("numgen",))
    if op in ("<", "<=", ">", ">="):
        values = (_beyond(op, values),)
    elif op not in ("==", "!=", "in"):
        raise ValueError(op)
    found = _within(values, Interval(first, first + modulus - 1))
    if numbers["mode"] == "random":
        share = sum(high - low + 1 for low, high in found) / modulus
        return Chance(1.0 - share if op == "!=" else share)
    ((low, high),) = found
    if low != high:
        raise ValueError("several packets in turn")
    return Every(modulus, low - first, op == "!=")


def _within(values: tuple[Value, ...], bounds: Interval) -> list[Interval]:
    """The parts of these numbers that lie within the bounds, each number once."""
    found: list[Interval] = []
    free = bounds.low
    for low, high in sorted(map(_ends, values)):
        part = Interval(max(low, free), min(high, bounds.high))
        if part.low <= part.high:
            found.append(part)
            free = part.high + 1
    return found


def _ends(value: Value) -> Interval:
    if isinstance(value, Interval):
        return value
    if not isinstance(value, int):
        raise ValueError("no number")
    return Interval(value, value)


def _tcp_flags(op: str, mask: int | None, right: Any) -> Part:
    """`tcp flags syn` (op in) asks for any of the flags, `!` for none; with a mask, for exactly these of it."""
    bits = _bits(right)
    if mask is not None:
        return Match(("tcp flags",), (bits,), op == "!=", mask)
    if op in ("in", "!"):
        return Match(("tcp flags",), (0,), op == "in", bits)
    return Match(("tcp flags",), (bits,), op == "!=", None)


def _beyond(op: str, values: tuple[Value, ...]) -> Interval:
    (value,) = values
    low, high = value if isinstance(value, Interval) else (value, value)
    if not isinstance(low, int) or not isinstance(high, int):
        raise ValueError(op)
    if op.startswith("<"):
        return Interval(0, high if op == "<=" else low - 1)
    return Interval(low if op == ">=" else high + 1, _TOO_LARGE)


def _keys(left: Any) -> tuple[str, ...]:
    """The fields on the left of a comparison or lookup, each as nft writes it (payload and meta in full)."""
    if not isinstance(left, dict):
        raise ValueError("no expression")
    if "concat" in left:
        return tuple(key for part in left["concat"] for key in _keys(part))
    ((kind, body),) = left.items()
    if kind == "payload":
        return (f"{body['protocol']} {body['field']}",)
    if kind == "meta":
        return (f"meta {body['key']}",)
    if kind == "ct":
        family = f"{body['family']} " if "family" in body else ""
        direction = f"{body['dir']} " if "dir" in body else ""
        return (f"ct {direction}{family}{body['key']}",)
    if kind == "fib":
        flags = body["flags"]
        return (f"fib {' . '.join(flags) if isinstance(flags, list) else flags} {body['result']}",)
    raise ValueError(kind)


def _values(right: Any, keys: tuple[str, ...]) -> tuple[Value, ...]:
    """Any of these: a set, a list of flags, or one value."""
    if isinstance(right, dict) and "set" in right:
        return tuple(_element_value(item, keys) for item in right["set"])
    if isinstance(right, dict) and "|" in right:
        return tuple(_value(item, keys) for item in right["|"])
    if isinstance(right, list):
        return tuple(_value(item, keys) for item in right)
    return (_value(right, keys),)


def _element_value(item: Any, keys: tuple[str, ...]) -> Value:
    if isinstance(item, dict) and "elem" in item:
        item = item["elem"]["val"]
    return _value(item, keys)


def _value(item: Any, names: tuple[str, ...] = ("",)) -> Value:
    """One value. names: the keys or types that it is compared with, which say how a bare word or number is meant."""
    if isinstance(item, dict):
        if "concat" in item:
            return tuple(_value(part, (name,)) for part, name in zip(item["concat"], names, strict=True))
        if "prefix" in item:
            return prefix(f"{item['prefix']['addr']}/{item['prefix']['len']}")
        if "range" in item:
            low, high = (_ordinal(end) for end in item["range"])
            return Interval(low, high)
        raise ValueError("no value")
    name = names[0]
    if isinstance(item, bool) or not isinstance(item, int | str):
        raise ValueError("no value")
    if name.endswith(("l4proto", "inet_proto", " protocol", "nexthdr")):
        return protocol_word(item)
    if name.endswith(("addr", "ipv4_addr", "ipv6_addr")) and isinstance(item, str):
        if "ether" in name:
            return item
        number = address_number(item)
        return Interval(number, number)
    if name.endswith(("port", "inet_service", "proto-src", "proto-dst")) and isinstance(item, int):
        return Interval(item, item)
    return item


def _datum(item: Any) -> Value:
    """What a map holds, whose type we are not told: what looks like an address is one."""
    if isinstance(item, dict) and "concat" in item:
        return tuple(_datum(part) for part in item["concat"])
    try:
        return _value(item, ("addr",))
    except ValueError:
        return _value(item)


def _ordinal(end: Any) -> int:
    return end if isinstance(end, int) else address_number(end)


def _bits(words: Any) -> int:
    """Flags as a number: 5, "syn", ["fin", "syn"] or {"|": ["fin", "syn"]}."""
    if isinstance(words, int):
        return words
    if isinstance(words, str):
        return _TCP_FLAGS[words] if words in _TCP_FLAGS else address_number(words)
    if isinstance(words, dict):
        (parts,) = words.values() if "|" in words else ((),)
        return _bits(list(parts))
    total = 0
    for word in words:
        total |= _bits(word)
    return total


def _lookup(body: Json, family: str) -> Statement:
    key, data = body["key"], body["data"]
    if isinstance(key, dict) and "numgen" in key:
        numbers = key["numgen"]
        where = Lookup(("numgen",), None, (), numbers["mode"], int(numbers["mod"]), int(numbers.get("offset", 0)))
    else:
        where = Lookup(_keys(key))
    if isinstance(data, str):
        return where._replace(map=data.removeprefix("@"))
    return where._replace(elements=tuple(element(item, where.keys, family) for item in data["set"]))


def _nat(kind: str) -> Callable[[Any, str], Part]:
    def read(body: Any, family: str) -> Part:
        body = body or {}
        flags = body.get("flags", ())
        flags = (flags,) if isinstance(flags, str) else tuple(flags)
        address, lookup = body.get("addr"), None
        if isinstance(address, dict) and "map" in address:
            found = _lookup(address["map"], family)
            address, lookup = None, found if isinstance(found, Lookup) else None
        return Nat(kind, _span(address), _span(body.get("port")), flags, lookup)

    return read


def _span(item: Any) -> Interval | None:
    if item is None:
        return None
    if isinstance(item, dict):
        value = _value(item, ("addr",))
        if isinstance(value, Interval):
            return value
        raise ValueError("no range")
    return Interval(_ordinal(item), _ordinal(item))


def _reject(body: Json | None, family: str) -> Statement:
    if not body:
        return Verdict("reject")
    kind, reason = body.get("type"), body.get("expr")
    if kind == "tcp reset":
        return Verdict("reject", None, "tcp-reset")
    return Verdict("reject", None, f"{'icmp6' if kind == 'icmpv6' else kind}-{reason}")


def _mangle(body: Json, family: str) -> Statement:
    (key,) = _keys(body["key"])
    if key not in ("meta mark", "ct mark"):
        raise ValueError(key)
    value = body["value"]
    if isinstance(value, int):
        return SetMark(key, _ALL_BITS, value)
    clear, toggle = _mark_bits(value, body["key"])
    return SetMark(key, clear, toggle)


def _mark_bits(value: Json, mark: Json) -> tuple[int, int]:
    """(clear, toggle) of `mark | 5`, `mark & 5`, `mark ^ 5`, and of `mark & 5 ^ 6`, as nft writes any set of bits."""
    ((operator, (left, right)),) = value.items()
    clear, toggle = (0, 0) if left == mark else _mark_bits(left, mark)
    if not isinstance(right, int):
        raise ValueError("no number")
    if operator == "|":
        return clear | right, toggle & ~right | right
    if operator == "&":
        return clear | ~right & _ALL_BITS, toggle & right
    if operator == "^":
        return clear, toggle ^ right
    raise ValueError(operator)


def _update(body: Json, family: str) -> Statement:
    item = body["elem"]
    if isinstance(item, dict) and "elem" in item:
        item = item["elem"]["val"]
    return Update(body["op"], body["set"].removeprefix("@"), _keys(item))


def _queue(body: Any, family: str) -> Statement:
    return Verdict("queue")


_STATEMENTS: dict[str, Callable[[Any, str], Part]] = {
    "match": _match,
    "vmap": _lookup,
    "dnat": _nat("dnat"),
    "snat": _nat("snat"),
    "masquerade": _nat("masquerade"),
    "redirect": _nat("redirect"),
    "reject": _reject,
    "mangle": _mangle,
    "set": _update,
    "queue": _queue,
}
