"""Server-side apply: a client says what it wants of an object, and the server remembers that it did.

Stands for k8s.io/apimachinery/pkg/util/managedfields and sigs.k8s.io/structured-merge-diff, in a plainer way: each
manager that applies has one entry in managedFields, with the fields that it wants; a field that it stops wanting goes,
unless another manager wants it; two that want different values are a conflict. Left out: the fields of those who write
otherwise (create, update, patch), which are nobody's here, so that applying over them is never a conflict; and
subresources.

What belongs here: field sets and merging by them. What does not: HTTP, storing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from labs.cluster.api import status
from labs.cluster.api.strategic import merge_key
from labs.cluster.resources import Object
from labs.cluster.schema import fields_of
from labs.cluster.store import now

Path = tuple[str, ...]
# Lists that the server tells apart by more than the key of strategic merge (listMapKey tags).
LIST_KEYS = {
    ("Container", "ports"): ("containerPort", "protocol"),
    ("EphemeralContainer", "ports"): ("containerPort", "protocol"),
    ("ServiceSpec", "ports"): ("port", "protocol"),
    ("PodSpec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
}
DEFAULTS = {"protocol": "TCP"}
NOT_MANAGED = frozenset({("f:apiVersion",), ("f:kind",), ("f:metadata",), ("f:metadata", "f:name")})


def apply(current: Object | None, applied: Object, kind: str | None, manager: str, *, force: bool) -> Object:
    """The object that results when `manager` applies `applied`. Raises ApiError 409."""
    wanted = _leaves(_field_set(applied, kind or ""))
    entries = list((current or {}).get("metadata", {}).get("managedFields") or ())
    mine = next((entry for entry in entries if _is_apply(entry, manager)), None)
    others = [entry for entry in entries if entry is not mine]
    base: Object = copy.deepcopy(current) if current is not None else {}
    base.get("metadata", {}).pop("managedFields", None)
    rivals = _conflicts(base, applied, kind or "", wanted, others)
    if rivals and not force:
        raise status.apply_conflict(rivals)
    others = [kept for entry in others if (kept := _without(entry, {path for _, path in rivals})) is not None]
    merged: Object = _merge(base, copy.deepcopy(applied), kind or "")
    before = _leaves(mine["fieldsV1"]) if mine else set()
    theirs = set().union(*(_leaves(entry.get("fieldsV1") or {}) for entry in others)) if others else set()
    # Whole entries of lists first: without its key an entry would not be found.
    for path in sorted(before - wanted - theirs, key=lambda path: (path[-1] != ".", -len(path))):
        _remove(merged, path)
    fields = _tree(wanted)
    if mine is None or mine["fieldsV1"] != fields:
        mine = {
            "manager": manager,
            "operation": "Apply",
            "apiVersion": applied["apiVersion"],
            "time": now(),
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
    merged.setdefault("metadata", {})["managedFields"] = [*others, mine]
    return merged


def _is_apply(entry: Object, manager: str) -> bool:
    return entry.get("manager") == manager and entry.get("operation") == "Apply"


# --- field sets -------------------------------------------------------------------------------------------------------


def _keys(kind: str, field: str) -> tuple[str, ...] | None:
    """The keys of a list; () for a set of plain values, None for one that is a single value."""
    short = kind.rstrip("!").rpartition(".")[2]
    if (short, field) in LIST_KEYS:
        return LIST_KEYS[short, field]
    key = merge_key(kind, field)
    return None if key is None else (key,) if key else ()


def _item_step(entry: Any, keys: tuple[str, ...]) -> str:
    """How an entry of a list is named in a field set: k:{"name":"web"}, or v:"value"."""
    if not keys:
        return f"v:{json.dumps(entry)}"
    identity = {key: entry.get(key, DEFAULTS.get(key)) for key in keys}
    return f"k:{json.dumps(identity, separators=(',', ':'), sort_keys=True)}"


def _field_set(value: Any, kind: str) -> Object:
    """The fields of an object as managedFields has them."""
    tree: Object = {}
    fields = fields_of(kind)
    for name, entry in value.items():
        tree[f"f:{name}"] = _branch(entry, kind, name, fields.get(name, ""))
    return tree


def _branch(value: Any, kind: str, name: str, below: str) -> Object:
    if isinstance(value, dict) and value:
        return _field_set(value, below)
    keys = _keys(kind, name)
    if isinstance(value, list) and keys is not None:
        inside = below.rstrip("!").removeprefix("[]")
        return {_item_step(entry, keys): {".": {}, **_field_set(entry, inside)} if keys else {} for entry in value}
    return {}


def _leaves(tree: Object, prefix: Path = ()) -> set[Path]:
    """All paths that end; "." marks an entry of a list itself."""
    found: set[Path] = set()
    for step, below in tree.items():
        path = (*prefix, step)
        found |= _leaves(below, path) if below else {path}
    return found - NOT_MANAGED


def _tree(leaves: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(leaves):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def _without(entry: Object, paths: set[Path]) -> Object | None:
    """An entry of managedFields without some fields; None when nothing is left."""
    if not paths:
        return entry
    left = _leaves(entry.get("fieldsV1") or {}) - paths
    return {**entry, "fieldsV1": _tree(left)} if left else None


# --- values -----------------------------------------------------------------------------------------------------------


def _conflicts(
    base: Object, applied: Object, kind: str, wanted: set[Path], others: list[Object]
) -> list[tuple[str, Path]]:
    """Who else wants another value of a field: manager and path."""
    found = []
    for entry in others:
        for path in sorted(_leaves(entry.get("fieldsV1") or {}) & wanted):
            if path[-1] != "." and _value(base, path) != _value(applied, path):
                found.append((str(entry.get("manager", "unknown")), path))
    return found


def _value(item: Any, path: Path) -> Any:
    """What is at a path; None when nothing is."""
    for step in path:
        if step.startswith("f:"):
            item = item.get(step[2:]) if isinstance(item, dict) else None
        elif step.startswith("k:"):
            item = _entry(item, json.loads(step[2:]))
        elif step.startswith("v:"):
            wanted = json.loads(step[2:])
            item = wanted if isinstance(item, list) and wanted in item else None
    return item


def _entry(items: Any, identity: Object) -> Any:
    for entry in items if isinstance(items, list) else ():
        if all(entry.get(key, DEFAULTS.get(key)) == value for key, value in identity.items()):
            return entry
    return None


def _merge(base: Any, applied: Any, kind: str) -> Any:
    """`applied` laid over `base`: objects and keyed lists entry by entry, all else as a whole."""
    if not isinstance(base, dict) or not isinstance(applied, dict):
        return applied
    fields = fields_of(kind)
    for name, value in applied.items():
        keys = _keys(kind, name)
        below = fields.get(name, "")
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] = _merge(base[name], value, below)
        elif isinstance(value, list) and isinstance(base.get(name), list) and keys is not None:
            base[name] = list(_merged_list(base[name], value, below.rstrip("!").removeprefix("[]"), keys))
        else:
            base[name] = value
    return base


def _merged_list(base: list[Any], applied: list[Any], kind: str, keys: tuple[str, ...]) -> Iterator[Any]:
    wanted = {_item_step(entry, keys): entry for entry in applied}
    for entry in base:
        found = wanted.pop(_item_step(entry, keys), None)
        yield entry if found is None or not keys else _merge(entry, found, kind)
    yield from wanted.values()


def _remove(item: Any, path: Path) -> None:
    """Take away what is at a path."""
    parent, last = _value(item, path[:-1]), path[-1]
    if last == ".":
        _drop_entry(item, path[:-1])
    elif last.startswith("f:") and isinstance(parent, dict):
        parent.pop(last[2:], None)
    elif last.startswith("v:") and isinstance(parent, list):
        value = json.loads(last[2:])
        if value in parent:
            parent.remove(value)


def _drop_entry(item: Any, path: Path) -> None:
    """Take an entry of a keyed list away."""
    items = _value(item, path[:-1])
    entry = _value(item, path)
    if isinstance(items, list) and entry in items:
        items.remove(entry)
