"""The types of the API's objects: which fields there are, and what may stand in them.

Stands for the Go structs in k8s.io/api and the strict JSON decoder over them (sigs.k8s.io/json): the same words for a
field that does not exist and for a value of the wrong type. The types themselves are in schema.json, which
scripts/schema writes. Left out: ranges (an int32 that is too large).

What belongs here: reading objects by type. What does not: whether values make sense (`labs.cluster.validation`).
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labs.cluster import quantities
from labs.cluster.resources import Object, Resource

WIDE = frozenset(
    {
        "generation",
        "observedGeneration",
        "activeDeadlineSeconds",
        "terminationGracePeriodSeconds",
        "deletionGracePeriodSeconds",
        "runAsUser",
        "runAsGroup",
        "fsGroup",
        "tolerationSeconds",
        "expirationSeconds",
    }
)
# Objects whose values are all text; the other maps hold quantities, which may be numbers.
TEXT_MAPS = frozenset(
    {"labels", "annotations", "matchLabels", "nodeSelector", "selector", "data", "stringData", "binaryData", "options"}
)
QUANTITY_MAPS = frozenset({"limits", "requests", "capacity", "allocatable", "overhead"})
# Texts that are times in Go.
TIMES = frozenset(
    {
        *("creationTimestamp", "deletionTimestamp", "firstTimestamp", "lastTimestamp", "eventTime", "lastObservedTime"),
        *("deprecatedFirstTimestamp", "deprecatedLastTimestamp", "lastProbeTime", "lastTransitionTime", "timeAdded"),
        *("lastUpdateTime", "lastHeartbeatTime", "startTime", "startedAt", "finishedAt", "acquireTime", "renewTime"),
        "time",
    }
)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
# Lists that objects show also when they are empty (no omitempty).
SHOWN_EMPTY = frozenset({"endpoints", "ports", "containers", "paths"})
# Fields of whole objects that are structs, and no pointers, in whatever kind has them.
STRUCTS = frozenset({"spec", "status", "source"})
INNER = frozenset({"acceptedNames"})  # the same for fields of such structs
# Types of required fields that are pointers in Go: null, and not empty, when nobody set them.
POINTERS = frozenset({"meta_v1.LabelSelector", "core_v1.LocalObjectReference"})
_GROUPS = {
    "": "core_v1",
    "apps": "apps_v1",
    "discovery.k8s.io": "discovery_v1",
    "networking.k8s.io": "networking_v1",
    "events.k8s.io": "events_v1",
    "autoscaling": "autoscaling_v1",
    "coordination.k8s.io": "coordination_v1",
    "apiextensions.k8s.io": "apiextensions_v1",
}


# What is not of a Go struct, so that nulls and empty lists in it are values.
WHOLE = frozenset({"openAPIV3Schema"})


class WrongType(ValueError):
    """A value can't be read as the type of its field; the text is what Go's decoder says."""


@functools.cache
def types() -> dict[str, dict[str, str]]:
    """All types: name -> field -> type. A type is `string`, `int`, …, or the name of another one, with "[]" before it
    for a list, and "!" behind it when the field is required."""
    document: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("schema.json").read_text())
    return document


def type_name(resource: Resource) -> str | None:
    """The type of a kind's objects; None for one that has no type here (custom resources)."""
    name = f"{_GROUPS.get(resource.group, '')}.{resource.kind}" if resource.custom is None else ""
    return name if name in types() else None


def fields_of(kind: str) -> dict[str, str]:
    """The fields of a type, {} for one that has none."""
    return types().get(kind.lstrip("[]").rstrip("!"), {})


def check(item: Object, kind: str) -> list[str]:
    """The paths of the fields that the type does not have, in order. Raises WrongType for a value of another type."""
    return list(_unknown(item, kind, "", "", kind.rpartition(".")[2]))


def without_nulls(value: Any) -> Any:
    """A JSON value as it comes out of a Go struct again: a field that is null or an empty list is one that is not
    there."""
    if isinstance(value, dict):
        return {
            key: entry if key in WHOLE else without_nulls(entry)
            for key, entry in value.items()
            if entry is not None and (entry != [] or key in SHOWN_EMPTY)
        }
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value if entry is not None]
    return value


def fill(item: Object, resource: Resource) -> None:
    """Give an object of a kind, in place, the fields that its Go struct shows also when nobody set them: "", 0, false,
    or a struct of such fields, so that whoever reads the object may count on them. What is a pointer in Go, a list or
    a time stays away."""
    kind = type_name(resource)
    if kind is None:
        return
    for name in types()[kind].keys() & STRUCTS:
        if item.get(name) is None:
            item[name] = {}
    _fill(item, kind)


def _fill(value: Any, kind: str) -> None:
    kind = kind.rstrip("!")
    if kind.startswith("[]") and isinstance(value, list):
        for entry in value:
            _fill(entry, kind[2:])
    fields = types().get(kind)
    if fields is None or not isinstance(value, dict):
        return
    for name, below in fields.items():
        if (below.endswith("!") or name in INNER) and name not in value and not name.endswith("Time"):
            zero = _zero(below.rstrip("!"))
            if zero is not None:
                value[name] = zero
        if name in value:
            _fill(value[name], below)


def _zero(kind: str) -> Any:
    if kind in types() and kind not in POINTERS:
        return {}
    return {"string": "", "int": 0, "int-or-string": 0, "bool": False}.get(kind)


def prune(value: Any, kind: str) -> Any:
    """A value without the fields that its type does not have."""
    kind = kind.rstrip("!")
    if kind.startswith("[]") and isinstance(value, list):
        return [prune(entry, kind[2:]) for entry in value]
    fields = types().get(kind)
    if fields is None or not isinstance(value, dict):
        return value
    return {name: prune(entry, fields[name]) for name, entry in value.items() if name in fields}


def _unknown(value: Any, kind: str, path: str, plain: str, owner: str) -> Iterator[str]:
    """`path` names list entries by number, `plain` does not: Go's decoder uses the one and the other."""
    if value is None:
        return
    kind = kind.rstrip("!")
    if kind.startswith("[]"):
        if not isinstance(value, list):
            raise _wrong(value, kind, plain, owner)
        for index, entry in enumerate(value):
            yield from _unknown(entry, kind[2:], f"{path}[{index}]", plain, owner)
    elif kind in types():
        if not isinstance(value, dict):
            raise _wrong(value, kind, plain, owner)
        fields = types()[kind]
        for name, entry in value.items():
            here, there = (f"{path}.{name}", f"{plain}.{name}") if path else (name, name)
            if name in fields:
                yield from _unknown(entry, fields[name], here, there, kind.rpartition(".")[2])
            else:
                yield here
    elif not _fits(value, kind):
        raise _wrong(value, kind, plain, owner)
    elif kind == "string" and plain.rpartition(".")[2] in TIMES and not _is_time(value):
        raise WrongType(f'parsing time {json.dumps(value)} as "2006-01-02T15:04:05Z07:00": cannot parse it')
    elif kind == "map" and plain.rpartition(".")[2] in QUANTITY_MAPS:
        for entry in value.values():
            if not _fits(entry, "quantity") or not quantities.is_quantity(entry):
                raise WrongType(quantities.WRONG)
    elif kind == "map" and plain.rpartition(".")[2] in TEXT_MAPS:
        for entry in value.values():
            if entry is not None and not isinstance(entry, str):
                raise _wrong(entry, "string", plain, owner)


def _is_time(text: str) -> bool:
    """Whether a text is a time as RFC 3339 has it."""
    if TIME.fullmatch(text) is None:
        return False
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _fits(value: Any, kind: str) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    match kind:
        case "string":
            return isinstance(value, str)
        case "int":
            return number or (isinstance(value, float) and value.is_integer())
        case "number":
            return number or isinstance(value, float)
        case "bool":
            return isinstance(value, bool)
        case "map":
            return isinstance(value, dict)
        case "int-or-string":
            return number or isinstance(value, str)
        case "quantity":
            return number or isinstance(value, str | float)
    return True


def _wrong(value: Any, kind: str, path: str, owner: str) -> WrongType:
    words = {dict: "object", list: "array", bool: "bool", str: "string"}
    found = words.get(type(value), "number")
    if found == "number" and kind in ("int",):
        found = f"number {json.dumps(value)}"
    last = path.rpartition(".")[2]
    go = {"int": "int64" if last in WIDE else "int32", "number": "float64", "map": "map[string]string"}.get(kind, kind)
    if kind.startswith("[]"):
        element = kind[2:]
        go = f"[]v1.{element.rpartition('.')[2]}" if "." in element else kind
    elif "." in kind:
        go = f"v1.{kind.rpartition('.')[2]}"
    return WrongType(f"json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go}")
