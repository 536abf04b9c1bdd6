"""The words that nft uses for the statements and expressions of libnftables-json(5): JSON to text.

`nft list ruleset` prints the same rule in the same words, so that a rule reads alike whichever way it came to us; a
test compares. What we do not know is printed as its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]

_DEEP = "…"
# nftables src/meta.c, meta_key_is_unqualified()
_UNQUALIFIED = frozenset(("iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "iifgroup", "oifgroup"))
_DEFAULT_REJECT = {"ip": "icmp", "ip6": "icmpv6", "inet": "icmpx", "bridge": "icmpx"}  # with port-unreachable
_BITMASKS = frozenset(
    ("state", "status", "tcp flags")
)  # of ct and tcp: nft asks these for any bit, unless told otherwise
_QUOTED_KEYS = frozenset(("iifname", "oifname", "iif", "oif", "helper"))


def rule_words(statements: Sequence[Any], family: str, comment: str | None = None) -> str:
    """A whole rule. family: of its table."""
    words = [statement_words(statement, family) for statement in statements]
    if comment is not None:
        words.append(f'comment "{comment}"')
    return " ".join(words)


def statement_words(statement: Any, family: str) -> str:
    """One statement. Never raises."""
    try:
        ((kind, body),) = statement.items()
        write = _STATEMENTS.get(kind)
        if write is not None:
            return write(body, family)
        return f"{kind} {body}" if isinstance(body, str | int) else kind if body is None else _plain(statement)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return _plain(statement)
    except RecursionError:  # deeper than nft ever nests
        return _DEEP


def _plain(item: Any) -> str:
    try:
        return json.dumps(item, separators=(",", ":"), default=repr)
    except RecursionError:
        return _DEEP


def _match(body: Json, family: str) -> str:
    left, right, op = body["left"], body["right"], body["op"]
    masked = isinstance(left, dict) and "&" in left
    if masked and _key(left["&"][0]) == "tcp flags":
        mask = _value(left["&"][1]).replace(" | ", ",")
        return f"tcp flags {'' if op == '==' else op + ' '}{_value(right).replace(' | ', ',')} / {mask}"
    whole = masked or (_key(left) in _BITMASKS and not isinstance(right, dict))
    sign = "" if op == "in" or (op == "==" and not whole) else f"{op} "
    return f"{_expression(left)} {sign}{_value(right, _key(left))}"


def _expression(item: Any) -> str:
    if not isinstance(item, dict):
        return _value(item)
    ((kind, body),) = item.items()
    write = _EXPRESSIONS.get(kind)
    return write(body) if write is not None else _plain(item)


def _meta(body: Json) -> str:
    key: str = body["key"]
    return key if key in _UNQUALIFIED else f"meta {key}"


def _ct(body: Json) -> str:
    words = ["ct", body.get("dir"), body.get("family"), body["key"]]
    return " ".join(word for word in words if word)


def _fib(body: Json) -> str:
    flags = body["flags"]
    return f"fib {' . '.join(flags) if isinstance(flags, list) else flags} {body['result']}"


def _numgen(body: Json) -> str:
    offset = f" offset {body['offset']}" if body.get("offset") else ""
    return f"numgen {body['mode']} mod {body['mod']}{offset}"


def _operation(operator: str) -> Callable[[Any], str]:
    def write(body: Any) -> str:
        left, *others = body
        return f" {operator} ".join([_expression(left), *(_value(other, _key(left)) for other in others)])

    return write


def _map(body: Json) -> str:
    return f"{_expression(body['key'])} map {_data(body['data'], _key(body['key']))}"


_EXPRESSIONS: dict[str, Callable[[Any], str]] = {
    "payload": lambda body: f"{body['protocol']} {body['field']}",
    "meta": _meta,
    "ct": _ct,
    "fib": _fib,
    "numgen": _numgen,
    "concat": lambda body: " . ".join(map(_expression, body)),
    "map": _map,
    "&": _operation("&"),
    "|": _operation("|"),
    "^": _operation("^"),
    "<<": _operation("<<"),
    ">>": _operation(">>"),
}


def _key(item: Any) -> str:
    """What is compared, which decides how nft writes a number: `meta mark`, `tcp flags`."""
    if isinstance(item, dict):
        ((kind, body),) = item.items()
        if kind in ("meta", "ct"):
            return str(body["key"])
        if kind == "payload":
            return f"{body['protocol']} {body['field']}"
        if kind in ("&", "|", "^"):
            return _key(body[0])
    return ""


def _value(item: Any, key: str = "") -> str:
    if isinstance(item, list):
        return ",".join(_value(part, key) for part in item)
    if isinstance(item, dict):
        ((kind, body),) = item.items()
        if kind == "set":
            return _braces([_element(part, key) for part in body])
        if kind == "prefix":
            return f"{_value(body['addr'])}/{body['len']}"
        if kind == "range":
            return "-".join(_value(end, key) for end in body)
        if kind == "concat":
            return " . ".join(_value(part) for part in body)
        if kind == "|":
            return " | ".join(_value(part, key) for part in body)
        return _expression(item)
    if isinstance(item, int):
        return f"0x{item:08x}" if key == "mark" else str(item)
    if key in _QUOTED_KEYS and not item.startswith("@"):
        return f'"{item}"'
    return str(item)


def _braces(words: list[str]) -> str:
    return "{ " + ", ".join(words) + " }"


def _element(item: Any, key: str) -> str:
    if isinstance(item, list):
        left, right = item
        return f"{_element(left, key)} : {verdict_words(right) if isinstance(right, dict) else _value(right)}"
    if isinstance(item, dict) and "elem" in item:
        comment = item["elem"].get("comment")
        return _value(item["elem"]["val"], key) + (f' comment "{comment}"' if comment is not None else "")
    return _value(item, key)


def _data(item: Any, key: str) -> str:
    return item if isinstance(item, str) else _braces([_element(part, key) for part in item["set"]])


def verdict_words(item: Json) -> str:
    """`goto CHAIN`, `drop` and so on."""
    ((kind, body),) = item.items()
    if kind in ("jump", "goto"):
        return f"{kind} {body['target']}"
    return kind if body is None else _expression(item)


def _nat(kind: str) -> Callable[[Any, str], str]:
    def write(body: Json | None, family: str) -> str:
        body = body or {}
        words = [kind]
        address, port = body.get("addr"), body.get("port")
        words += [body.get("family", ""), body.get("type_flags", "")]
        if address is not None or port is not None:
            where = "" if address is None else _value(address)
            if port is not None:
                is_map = isinstance(address, dict) and "map" in address
                where = (f"[{where}]" if ":" in where and not is_map else where) + f":{_value(port)}"
            words += ["to", where]
        flags = body.get("flags", ())
        words.append(",".join(flag for flag in ([flags] if isinstance(flags, str) else flags) if flag != "netmap"))
        return " ".join(word for word in words if word)

    return write


def _reject(body: Json | None, family: str) -> str:
    if not body or (body.get("type") == _DEFAULT_REJECT.get(family) and body.get("expr") == "port-unreachable"):
        return "reject"
    return " ".join(["reject with", body["type"], *([body["expr"]] if "expr" in body else [])])


def _mangle(body: Json, family: str) -> str:
    return f"{_expression(body['key'])} set {_value(body['value'], _key(body['key']))}"


def _set(body: Json, family: str) -> str:
    item = body["elem"]
    timeout = ""
    if isinstance(item, dict) and "elem" in item:
        if "timeout" in item["elem"]:
            timeout = f" timeout {duration_words(item['elem']['timeout'])}"
        item = item["elem"]["val"]
    return f"{body['op']} {body['set']} {{ {_expression(item)}{timeout} }}"


def duration_words(seconds: int) -> str:
    """90061 as 1d1h1m1s (nftables src/datatype.c, time_print)."""
    words = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        words += f"{count}{unit}" if count else ""
    return words or "0s"


def _counter(body: Any, family: str) -> str:
    if isinstance(body, dict):
        return f"counter packets {body['packets']} bytes {body['bytes']}"
    return "counter" if body is None else f'counter name "{body}"'


def _log(body: Json | None, family: str) -> str:
    words = ["log"]
    for key, value in (body or {}).items():
        words.append(f'prefix "{value}"' if key == "prefix" else f"{key} {_value(value)}")
    return " ".join(words)


def _limit(body: Json, family: str) -> str:
    over = "over " if body.get("inv") else ""
    unit = f" {body['rate_unit']}" if body.get("rate_unit", "packets") != "packets" else ""
    burst = f" burst {body['burst']} {body.get('burst_unit', 'packets')}" if body.get("burst") else ""
    burst = "" if burst == " burst 5 packets" else burst  # nft says nothing of its default
    return f"limit rate {over}{body['rate']}{unit}/{body['per']}{burst}"


_STATEMENTS: dict[str, Callable[[Any, str], str]] = {
    "match": _match,
    "vmap": lambda body, family: f"{_expression(body['key'])} vmap {_data(body['data'], _key(body['key']))}",
    **{kind: _nat(kind) for kind in ("dnat", "snat", "masquerade", "redirect")},
    "reject": _reject,
    "mangle": _mangle,
    "set": _set,
    "counter": _counter,
    "log": _log,
    "limit": _limit,
    "jump": lambda body, family: f"jump {body['target']}",
    "goto": lambda body, family: f"goto {body['target']}",
}
