"""Sets of fields of an object, as managedFields has them, and values by such fields.

Stands for sigs.k8s.io/structured-merge-diff (fieldpath, typed). A field is a path of steps: `f:NAME` into an object,
`k:{"name":"web"}` to an entry of a keyed list, `v:"x"` to one of a set; the step "." at the end means the entry, list
or map itself. Pure.

What belongs here: paths, the trees that are made of them (FieldsV1), values at them. What does not: whose they are
(`labs.cluster.api.managers`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from labs.cluster.api.shapes import Shape
from labs.cluster.resources import Object

Path = tuple[str, ...]
ITSELF = "."
# What of a keyed list's key goes without saying.
DEFAULTS = {"protocol": "TCP"}


def fields_of(value: Any, shape: Shape, prefix: Path = (), *, containers: bool = False) -> Iterator[Path]:
    """All fields of a value. `containers`: also the maps and keyed lists themselves, as those have who made them."""
    keys = shape.keys
    if isinstance(value, dict) and value and not shape.atomic:
        if containers and shape.is_map:
            yield (*prefix, ITSELF)
        for name, entry in value.items():
            yield from fields_of(entry, shape.field(name), (*prefix, f"f:{name}"), containers=containers)
    elif isinstance(value, list) and value and keys is not None:
        if containers:
            yield (*prefix, ITSELF)
        below = shape.entry()
        for entry in value:
            here = (*prefix, step_to(entry, keys))
            if keys:
                yield (*here, ITSELF)
            if isinstance(entry, dict):
                yield from fields_of(entry, below, here)
            else:
                yield here
    else:
        yield prefix


def changes(old: Any, new: Any, shape: Shape, prefix: Path = ()) -> tuple[set[Path], set[Path]]:
    """The fields that are new or have another value, and those that are gone."""
    added: set[Path] = set()
    removed: set[Path] = set()
    _compare(old, new, shape, prefix, added, removed)
    return added, removed - added


def _compare(old: Any, new: Any, shape: Shape, prefix: Path, added: set[Path], removed: set[Path]) -> None:
    if old == new:
        return
    keys = shape.keys
    if isinstance(old, dict) and isinstance(new, dict) and not shape.atomic:
        pairs = [(f"f:{name}", old.get(name), new.get(name), shape.field(name)) for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and keys is not None:
        before, after = ({step_to(entry, keys): entry for entry in entries} for entries in (old, new))
        below = shape.entry()
        pairs = [(step, before.get(step), after.get(step), below) for step in {**before, **after}]
    else:
        removed |= set(fields_of(old, shape, prefix, containers=True)) if old is not None else set()
        added |= set(fields_of(new, shape, prefix, containers=True)) if new is not None else set()
        return
    for step, was, now, inside in pairs:
        here = (*prefix, step)
        if step.startswith("k:") and was is None:
            added.add((*here, ITSELF))
        if step.startswith("k:") and now is None:
            removed.add((*here, ITSELF))
        _compare(was, now, inside, here, added, removed)


def step_to(entry: Any, keys: tuple[str, ...]) -> str:
    """How an entry of a list is named: k:{"name":"web"}, or v:"value" without keys."""
    if not keys:
        return f"v:{json.dumps(entry)}"
    identity = {key: entry.get(key, DEFAULTS.get(key)) for key in keys} if isinstance(entry, dict) else {}
    return f"k:{json.dumps(identity, separators=(',', ':'), sort_keys=True)}"


def leaves(tree: Any, prefix: Path = ()) -> set[Path]:
    """The fields in a tree of managedFields (FieldsV1). Clients may write anything there: no step, no field."""
    found: set[Path] = set()
    for step, below in tree.items() if isinstance(tree, dict) else ():
        if _is_step(step):
            path = (*prefix, step)
            found |= leaves(below, path) if below and isinstance(below, dict) else {path}
    return found


def _is_step(step: str) -> bool:
    if step.startswith(("k:", "v:")):
        try:
            value = json.loads(step[2:])
        except ValueError:
            return False
        return step.startswith("v:") or isinstance(value, dict)
    return step == ITSELF or step.startswith("f:")


def tree_of(fields: set[Path]) -> Object:
    """The tree of some fields."""
    tree: Object = {}
    for path in sorted(fields):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def value_at(item: Any, path: Path) -> Any:
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


def remove(item: Any, path: Path) -> None:
    """Take away what is at a path, in place. Maps and lists themselves stay."""
    parent, last = value_at(item, path[:-1]), path[-1]
    if last == ITSELF:
        _drop_entry(item, path[:-1])
    elif last.startswith("f:") and isinstance(parent, dict):
        parent.pop(last[2:], None)
    elif last.startswith("v:") and isinstance(parent, list):
        value = json.loads(last[2:])
        if value in parent:
            parent.remove(value)


def _drop_entry(item: Any, path: Path) -> None:
    items = value_at(item, path[:-1])
    entry = value_at(item, path)
    if path[-1].startswith("k:") and isinstance(items, list) and entry in items:
        items.remove(entry)
