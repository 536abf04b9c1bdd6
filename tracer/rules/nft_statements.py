"""The text of one nft rule, or set element, as the statements of libnftables-json(5): so that one reader serves both.

What belongs here: nft(8)'s rule syntax, as `nft list ruleset` prints it. What does not: what it means (`nft_rule`), and
tables, chains and sets (`nft_text`).

A rule always gives statements: from the first word that we do not understand on, the rest is one statement
{"unknown": "its words"}, but for the verdict at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([{},()]|[^\s{},()"]+)')
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_PREFIX = re.compile(r"([0-9a-fA-F.:]+)/(\d+)")
_ADDRESS = r"(?:\d+\.\d+\.\d+\.\d+|[0-9a-fA-F]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*)"
_RANGE = re.compile(rf"(\d+)-(\d+)|({_ADDRESS})-({_ADDRESS})")
_TARGET = re.compile(rf"(?:\[({_ADDRESS})\]|({_ADDRESS}(?:-{_ADDRESS})?))?(?::(\d+(?:-\d+)?))?")
_DURATION = re.compile(r"(\d+)(w|d|h|ms|m|s)")
_SECONDS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_VERDICTS = frozenset(("accept", "drop", "return", "continue"))
_BARE_META = frozenset(
    ("iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "iifgroup", "oifgroup", "skuid", "skgid", "mark")
)
_HEADERS = frozenset(
    ("ip", "ip6", "tcp", "udp", "udplite", "sctp", "dccp", "th", "icmp", "icmpv6", "igmp", "ether", "vlan", "arp", "ah")
)
_OPERATORS = frozenset(("==", "!=", "<", ">", "<=", ">=", "!"))
_NAT_FLAGS = frozenset(("random", "fully-random", "persistent"))
_DEFAULT_REJECT = {"ip": "icmp", "ip6": "icmpv6", "inet": "icmpx", "bridge": "icmpx"}


class _NotUnderstood(Exception):
    """A word that this reader does not know."""


class Word(str):
    """A token that stood in quotes: never a keyword."""

    __slots__ = ()


def parse_statements(text: str, family: str) -> tuple[list[Json], str | None]:
    """The statements of a rule, and its comment. family: of its table."""
    words = _Words(text, family)
    statements: list[Json] = []
    comment = None
    while words.left():
        start = words.position
        try:
            if words.next_is("comment"):
                words.take()
                comment = str(words.take())
            else:
                statements.append(words.statement())
        except (_NotUnderstood, ValueError):
            words.position = start
            statements += words.rest()
    return statements, comment


_FIELD = re.compile(r"\d+\.\d+\.\d+\.\d+|[0-9a-f:]*:[0-9a-f:]*|[a-z]\w*|\d+")


def parse_element(text: str, is_map: bool) -> Any:
    """One element of a set or map, as nft writes it in JSON. Raises ValueError for what is none."""
    value_text, _, data = text.partition(" : ")
    kind, _, chain = data.partition(" ")
    fields = value_text.split(" . ")
    if is_map and chain and kind in ("goto", "jump") and all(map(_FIELD.fullmatch, fields)):
        # 10.0.0.1 . tcp . 80 : goto CHAIN, of which kube-proxy writes one for each address
        values = [int(field) if field.isdecimal() else field for field in fields]
        return [values[0] if len(values) == 1 else {"concat": values}, {kind: {"target": chain}}]
    words = _Words(text, "")
    try:
        return words.element(is_map)
    except _NotUnderstood as error:
        raise ValueError(str(error)) from None


def split_elements(text: str) -> list[str]:
    """The elements between the braces of a set: at each comma outside of quotes."""
    if '"' not in text:
        return [item for item in (piece.strip() for piece in text.split(",")) if item]
    items = []
    start = position = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|,', text):
        if match.group() == ",":
            position = match.start()
            items.append(text[start:position].strip())
            start = position + 1
    items.append(text[start:].strip())
    return [item for item in items if item]


def seconds(text: str) -> float:
    """1d2h3m4s500ms as seconds; a bare number is seconds. Raises ValueError for anything else."""
    if text.isdigit():
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(count + unit for count, unit in parts) != text:
        raise ValueError(f"no duration: {text!r}")
    return sum(int(count) * _SECONDS[unit] for count, unit in parts)


class _Words:
    """The words of a rule, taken one after another."""

    def __init__(self, text: str, family: str) -> None:
        self._text = text
        self._family = family
        matches = list(_TOKEN.finditer(text))
        self._tokens = [Word(match[1]) if match[1] is not None else match[2] for match in matches]
        self._starts = [match.start() for match in matches]
        self.position = 0

    def left(self) -> bool:
        return self.position < len(self._tokens)

    def peek(self) -> str:
        return self._tokens[self.position] if self.left() else ""

    def next_is(self, *words: str) -> bool:
        token = self.peek()
        return token in words and not isinstance(token, Word)

    def take(self, *expected: str) -> str:
        if not self.left() or (expected and not self.next_is(*expected)):
            raise _NotUnderstood(f"{self.peek()!r}, not {' or '.join(expected) or 'a word'}")
        self.position += 1
        return self._tokens[self.position - 1]

    def skip(self, word: str) -> bool:
        """Take this word if it comes next."""
        if self.next_is(word):
            self.position += 1
            return True
        return False

    def rest(self) -> list[Json]:
        """All that is left as one unknown statement, and the verdict at its end, if there is one."""
        end = len(self._tokens)
        verdict: Json | None = None
        comment = next((i for i in range(self.position, end) if self._tokens[i] == "comment"), end)
        if self._tokens[comment - 1] in _VERDICTS:
            end, verdict = comment - 1, {str(self._tokens[comment - 1]): None}
        elif comment - 2 >= self.position and self._tokens[comment - 2] in ("jump", "goto"):
            end, verdict = comment - 2, {self._tokens[comment - 2]: {"target": str(self._tokens[comment - 1])}}
        else:
            end = comment
        start = self._starts[self.position]
        stop = self._starts[end] if end < len(self._tokens) else len(self._text)
        self.position = comment
        unknown = self._text[start:stop].strip()
        return [*([{"unknown": unknown}] if unknown else []), *([verdict] if verdict else [])]

    def statement(self) -> Json:
        word = self.peek()
        if isinstance(word, Word):
            raise _NotUnderstood(word)
        if word in _VERDICTS or word in ("jump", "goto"):
            return self._verdict()
        read = _STATEMENTS.get(word)
        if read is not None:
            self.take()
            return read(self, word)
        return self._comparison()

    def _verdict(self) -> Json:
        word = self.take("jump", "goto", *_VERDICTS)
        return {word: None if word in _VERDICTS else {"target": str(self.take())}}

    def _comparison(self) -> Json:
        left = self._key()
        if self.skip("vmap"):
            return {"vmap": {"key": left, "data": self._data(is_map=True)}}
        if self.next_is("set") and set(left) <= {"meta", "ct", "payload"}:
            self.take()
            return {"mangle": {"key": left, "value": self._sum()}}
        if self.skip("&"):
            left = {"&": [left, self._group()]}
        op = self.take() if self.peek() in _OPERATORS else None
        if self._is_tcp_flags(left) and not self.next_is("{"):
            return self._tcp_flags(left, op)
        if op is None:
            op = "in" if self._is_bitmask(left) and not self.next_is("{") else "=="
        right = self._right()
        return {"match": {"op": op, "left": left, "right": right}}

    @staticmethod
    def _is_bitmask(left: Json) -> bool:
        return "ct" in left and left["ct"]["key"] in ("state", "status")

    @staticmethod
    def _is_tcp_flags(left: Json) -> bool:
        return left.get("payload") == {"protocol": "tcp", "field": "flags"}

    def _tcp_flags(self, left: Json, op: str | None) -> Json:
        """`syn`, `fin,syn / fin,syn,rst,ack`, `!= 0x0`."""
        flags = self._list()
        if self.skip("/"):
            return {"match": {"op": op or "==", "left": {"&": [left, self._list()]}, "right": flags}}
        return {"match": {"op": op or "in", "left": left, "right": flags}}

    def _key(self) -> Json:
        keys = [self._field()]
        while self.skip("."):
            keys.append(self._field())
        return keys[0] if len(keys) == 1 else {"concat": keys}

    def _field(self) -> Json:
        word = self.take()
        if word == "meta":
            return {"meta": {"key": str(self.take())}}
        if word in _BARE_META:
            return {"meta": {"key": word}}
        if word == "ct":
            return {"ct": self._ct()}
        if word == "fib":
            flags = [str(self.take())]
            while self.skip("."):
                flags.append(str(self.take()))
            return {"fib": {"result": self.take("type", "oif", "oifname", "check"), "flags": flags}}
        if word == "numgen":
            mode, _, modulus = self.take("random", "inc"), self.take("mod"), int(self.take())
            return {"numgen": {"mode": mode, "mod": modulus, "offset": int(self.take()) if self.skip("offset") else 0}}
        if word in _HEADERS and not isinstance(word, Word):
            return {"payload": {"protocol": word, "field": str(self.take())}}
        raise _NotUnderstood(word)

    def _ct(self) -> Json:
        body: Json = {}
        if self.next_is("original", "reply"):
            body["dir"] = self.take()
        if self.next_is("ip", "ip6"):
            body["family"] = self.take()
        return {"key": str(self.take()), **body}

    def _sum(self) -> Any:
        """The value that a field is set to: `0x1`, or `meta mark & 0xff | 0x1`."""
        if _NUMBER.fullmatch(self.peek()):
            return self._value()
        value: Any = self._field()
        while self.next_is("&", "|", "^", "and", "or", "xor"):
            operator = {"and": "&", "or": "|", "xor": "^"}.get(word := self.take(), word)
            value = {operator: [value, self._value()]}
        return value

    def _group(self) -> Any:
        """`0x4000`, or `(fin | syn)`."""
        if not self.skip("("):
            return self._value()
        parts = [self._value()]
        while self.skip("|"):
            parts.append(self._value())
        self.take(")")
        return {"|": parts}

    def _right(self) -> Any:
        if self.skip("{"):
            return {"set": self._elements(is_map=False)}
        return self._list()

    def _list(self) -> Any:
        """One value, or several with commas (or `|`) between."""
        values = [self._concatenation()]
        while self.skip(",") or self.skip("|"):
            values.append(self._concatenation())
        return values[0] if len(values) == 1 else values

    def _concatenation(self) -> Any:
        values = [self._value()]
        while self.skip("."):
            values.append(self._value())
        return values[0] if len(values) == 1 else {"concat": values}

    def _value(self) -> Any:
        token = self.take()
        if isinstance(token, Word):
            return str(token)
        if token in ("{", "}", "(", ")", ","):
            raise _NotUnderstood(token)
        if _NUMBER.fullmatch(token):
            return int(token, 0) if token.startswith("0x") else int(token)
        prefix = _PREFIX.fullmatch(token)
        if prefix is not None:
            return {"prefix": {"addr": prefix[1], "len": int(prefix[2])}}
        interval = _RANGE.fullmatch(token)
        if interval is not None:
            low, high, first, last = interval.groups()
            return {"range": [first, last] if low is None else [int(low), int(high)]}
        return token

    def _data(self, is_map: bool) -> Any:
        """`@name`, or an anonymous set or map."""
        if self.skip("{"):
            return {"set": self._elements(is_map)}
        token = self.take()
        if not token.startswith("@"):
            raise _NotUnderstood(token)
        return token

    def _elements(self, is_map: bool) -> list[Any]:
        elements = [self.element(is_map)]
        while self.skip(","):
            elements.append(self.element(is_map))
        self.take("}")
        return elements

    def element(self, is_map: bool) -> Any:
        value = self._concatenation()
        about: Json = {}
        while self.next_is("comment", "timeout", "expires", "counter"):
            word = self.take()
            if word == "counter":
                about["counter"] = self._counts()
            else:
                about[word] = str(self.take()) if word == "comment" else int(seconds(self.take()))
        if about:
            value = {"elem": {"val": value, **about}}
        if not is_map:
            return value
        self.take(":")
        if self.next_is("jump", "goto", *_VERDICTS):
            return [value, self._verdict()]
        return [value, self._concatenation()]

    def _counts(self) -> Json | None:
        if not self.skip("packets"):
            return None
        packets = int(self.take())
        self.take("bytes")
        return {"packets": packets, "bytes": int(self.take())}

    def counter(self, word: str) -> Json:
        if self.skip("name"):
            return {"counter": str(self.take())}
        return {"counter": self._counts()}

    def log(self, word: str) -> Json:
        body: Json = {}
        while self.next_is("prefix", "group", "snaplen", "queue-threshold", "level", "flags"):
            key = self.take()
            body[key] = self._list() if key == "flags" else self._value()
        return {"log": body or None}

    def limit(self, word: str) -> Json:
        self.take("rate")
        over = self.skip("over")
        rate, _, per = self.take().partition("/")
        body: Json = {"rate": int(rate)}
        if not per:
            unit, _, per = self.take().partition("/")
            body["rate_unit"] = unit
        body["per"] = per
        if self.skip("burst"):
            body["burst"] = int(self.take())
            body["burst_unit"] = str(self.take())
        if over:
            body["inv"] = True
        return {"limit": body}

    def reject(self, word: str) -> Json:
        if not self.skip("with"):
            kind = _DEFAULT_REJECT.get(self._family)
            return {"reject": {"type": kind, "expr": "port-unreachable"} if kind else None}
        kind = self.take("icmp", "icmpv6", "icmpx", "tcp")
        if kind == "tcp":
            self.take("reset")
            return {"reject": {"type": "tcp reset"}}
        self.skip("type")
        return {"reject": {"type": kind, "expr": str(self.take())}}

    def nat(self, word: str) -> Json:
        body: Json = {}
        if self.next_is("ip", "ip6"):
            body["family"] = self.take()
        flags = []
        if self.skip("prefix"):
            flags.append("netmap")
            body["type_flags"] = "prefix"
        elif self.skip("addr"):  # older nft: `dnat ip addr . port to …`, of a map that holds both
            self.take(".")
            self.take("port")
        if self.skip("to"):
            if self.next_is("numgen", "ip", "ip6", "tcp", "udp", "meta", "ct", "jhash", "symhash"):
                key = self._key()
                self.take("map")
                body["addr"] = {"map": {"key": key, "data": self._data(is_map=True)}}
                if self.peek().startswith(":"):
                    body.update(self._target())
            else:
                body.update(self._target())
        while self.next_is(*_NAT_FLAGS):
            flags.append(self.take())
            self.skip(",")
        if flags:
            body["flags"] = flags if len(flags) > 1 else flags[0]
        return {word: body or None}

    def _target(self) -> Json:
        if _PREFIX.fullmatch(self.peek()):
            return {"addr": self._value()}
        target = _TARGET.fullmatch(self.take())
        if target is None:
            raise _NotUnderstood("no address")
        body: Json = {}
        address = target[1] or target[2]
        if address:
            low, dash, high = address.partition("-")
            body["addr"] = {"range": [low, high]} if dash else address
        if target[3]:
            first, dash, last = target[3].partition("-")
            body["port"] = {"range": [int(first), int(last)]} if dash else int(first)
        return body

    def update(self, word: str) -> Json:
        name = self.take()
        if not name.startswith("@"):
            raise _NotUnderstood(name)
        self.take("{")
        item: Any = self._key()
        if self.skip("timeout"):
            item = {"elem": {"val": item, "timeout": int(seconds(self.take()))}}
        self.take("}")
        return {"set": {"op": word, "elem": item, "set": str(name)}}

    def plain(self, word: str) -> Json:
        return {word: None}


_STATEMENTS: dict[str, Callable[[_Words, str], Json]] = {
    "counter": _Words.counter,
    "log": _Words.log,
    "limit": _Words.limit,
    "reject": _Words.reject,
    "notrack": _Words.plain,
    **dict.fromkeys(("dnat", "snat", "masquerade", "redirect"), _Words.nat),
    **dict.fromkeys(("add", "update", "delete"), _Words.update),
}
