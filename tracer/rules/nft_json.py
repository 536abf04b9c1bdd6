"""What `nft -j list ruleset` prints: tables, chains, sets and maps of nftables.

What belongs here: the objects of libnftables-json(5). What does not: its statements and expressions (`nft_rule`), which
are read when a rule is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tracer.errors import FormatError
from tracer.rules.model import Chain, Element, Hook, Origin, Rule, Rules, RuleSet, Set, Table
from tracer.rules.nft_rule import element, parse_rule

Json = dict[str, Any]


def read_nft_json(text: str, name: str = "<nft -j>") -> RuleSet:
    """The tables of `nft -j list ruleset` (or of some of its objects).

    Raises FormatError, with the file's name and the line or object, for what is not libnftables-json(5). Kinds of
    objects that we do not know are passed over, as the schema asks.
    """
    try:
        objects = json.loads(text)["nftables"]
        if not isinstance(objects, list):
            raise TypeError
    except json.JSONDecodeError as error:
        raise FormatError(f"{name}:{error.lineno}: no JSON: {error.msg}") from None
    except ValueError as error:  # a number of more digits than Python takes
        raise FormatError(f"{name}:1: no JSON of nft: {error}") from None
    except (KeyError, TypeError, RecursionError):
        raise FormatError(f'{name}:1: no output of nft -j: {{"nftables": […]}} is missing') from None
    return read_objects(objects, name)


def read_objects(objects: list[Any], name: str) -> RuleSet:
    """The same from decoded objects; `name` is what errors call them."""
    reader = _Reader(name)
    for number, item in enumerate(objects, 1):
        try:
            for kind, body in item.items():
                reader.add(kind, body)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{name}:1: object {number} is not as nft writes it: {error!r}") from None
    return reader.rules


class _Open(NamedTuple):
    """A table to which chains and sets are still added."""

    family: str
    chains: dict[str, Chain]
    sets: dict[str, Set]


class _Reader:
    """The tables so far; chains and sets may come in any order after their table."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.rules = RuleSet()
        self._tables: dict[tuple[str, str], _Open] = {}

    def add(self, kind: str, body: Json) -> None:
        if kind == "table":
            chains: dict[str, Chain] = {}
            sets: dict[str, Set] = {}
            family, name = _text(body, "family"), _text(body, "name")
            table = Table(family, name, Origin.NFTABLES, chains, sets, body.get("comment"))
            if (family, name) in self._tables:
                raise ValueError(f"a second table {family} {name}")
            self._tables[family, name] = _Open(family, chains, sets)
            self.rules.tables.append(table)
        elif kind == "chain":
            self._add_chain(self._tables[body["family"], body["table"]], body)
        elif kind == "set" or kind == "map":
            opened = self._tables[body["family"], body["table"]]
            opened.sets[_text(body, "name")] = _set(body, opened.family, self._name)
        elif kind == "rule":
            if not isinstance(body["expr"], list):
                raise TypeError("expr is no list")
            opened = self._tables[body["family"], body["table"]]
            opened.chains[body["chain"]].rules.raw.append(body)
            _mark_dynamic(opened.sets, body["expr"])

    def _add_chain(self, table: _Open, body: Json) -> None:
        hook = None
        if "hook" in body:
            device = body.get("dev")
            device = ",".join(device) if isinstance(device, list) else device
            hook = Hook(_text(body, "hook"), int(body["prio"]), _text(body, "type"), device)
        rules = Rules([], _parser(table.family))
        name = _text(body, "name")
        table.chains[name] = Chain(name, rules, hook, body.get("policy"), body.get("comment"))


def _mark_dynamic(sets: dict[str, Set], statements: list[Any]) -> None:
    """Sets that rules fill. `nft -j` before v1.0.7 does not tell the flag, which nft's text has."""
    for statement in statements:
        filled = statement.get("set") if isinstance(statement, dict) else None
        name = filled.get("set") if isinstance(filled, dict) else None
        found = sets.get(name.removeprefix("@")) if isinstance(name, str) else None
        if found is not None:
            found.flags |= {"dynamic"}


def _parser(family: str) -> Callable[[Json], Rule]:
    return lambda body: parse_rule(body["expr"], family, body.get("comment"))


def _text(body: Json, key: str) -> str:
    value = body[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _set(body: Json, family: str, file: str) -> Set:
    kind = body["type"]
    fields = tuple(kind) if isinstance(kind, list) else (kind,) if isinstance(kind, str) else ("typeof",)
    data = body.get("map")
    elements = body.get("elem") or []
    if not isinstance(elements, list):
        raise TypeError("elem is no list")

    def read() -> tuple[Element, ...]:
        try:
            return tuple(element(item, fields, family) for item in elements)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{file}:1: elements of {body['name']} are not as nft writes them: {error!r}") from None

    return Set(
        name=body["name"],
        type=fields,
        data=data if data is None or isinstance(data, str) else "typeof",
        flags=frozenset(body.get("flags", ())),
        timeout=body.get("timeout"),
        size=body.get("size"),
        comment=body.get("comment"),
        read=read,
    )
