"""Server-side apply: a client says what it wants of an object, and the server remembers that it did.

Stands for k8s.io/apimachinery/pkg/util/managedfields (Apply) and the merging of sigs.k8s.io/structured-merge-diff. A
field that a manager stops wanting goes, unless somebody else wants it; a field of somebody else's with another value is
a conflict. Left out: applying to subresources.

What belongs here: merging what is applied. What does not: fields as such (`labs.cluster.api.fieldsets`), who has which
(`labs.cluster.api.managers`), HTTP, storing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from labs.cluster.api import managers, status
from labs.cluster.api.fieldsets import ITSELF, Path, leaves, remove, step_to, tree_of, value_at
from labs.cluster.api.shapes import Shape, shape_of
from labs.cluster.resources import Object, Resource

# kubectl may take over what kubectl applied on the client's side before (managedfields/internal/lastappliedmanager.go).
KUBECTL = "kubectl"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def apply(current: Object | None, applied: Object, resource: Resource, manager: str, *, force: bool) -> Object:
    """The object that results when `manager` applies `applied`. Raises ApiError 409."""
    wanted = managers.applied_fields(applied, resource)
    entries = managers.entries_of(current)
    if current is not None and not entries:
        entries = managers.before_apply(current, resource)
    mine = next((entry for entry in entries if _is_apply(entry, manager)), None)
    others = [entry for entry in entries if entry is not mine]
    base: Object = copy.deepcopy(current) if current is not None else {}
    base.get("metadata", {}).pop("managedFields", None)
    rivals = _conflicts(base, applied, wanted, others)
    serious = rivals if manager != KUBECTL else _not_applied_before(base, rivals)
    if serious and not force:
        raise status.apply_conflict(serious)
    lost = {path for _, path in rivals}
    others = [kept for entry in others if (kept := managers.without(entry, lost)) is not None]
    merged: Object = _merge(base, copy.deepcopy(applied), shape_of(resource))
    before = leaves(mine["fieldsV1"]) if mine else set()
    theirs = set().union(*(leaves(entry.get("fieldsV1") or {}) for entry in others))
    # Whole entries of lists first: without its key an entry would not be found.
    for path in sorted(before - wanted - theirs, key=lambda path: (path[-1] != ITSELF, -len(path))):
        remove(merged, path)
    if mine is None or mine["fieldsV1"] != tree_of(wanted):
        mine = managers.entry_for(manager, managers.APPLY, applied["apiVersion"], wanted)
    merged.setdefault("metadata", {})["managedFields"] = managers.in_order([*others, mine])
    return merged


def _is_apply(entry: Object, manager: str) -> bool:
    return entry.get("manager") == manager and entry.get("operation") == managers.APPLY


def _conflicts(base: Object, applied: Object, wanted: set[Path], others: list[Object]) -> list[tuple[Object, Path]]:
    """Who else wants another value of a field: entry and path."""
    found = []
    for entry in others:
        for path in sorted(leaves(entry.get("fieldsV1") or {}) & wanted):
            if path[-1] != ITSELF and value_at(base, path) != value_at(applied, path):
                found.append((entry, path))
    return found


def _not_applied_before(base: Object, rivals: list[tuple[Object, Path]]) -> list[tuple[Object, Path]]:
    """The conflicts about fields that do not have the value of `kubectl apply` without --server-side any more."""
    try:
        last = json.loads((base["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}"))
    except (KeyError, ValueError):
        return rivals
    return [(entry, path) for entry, path in rivals if value_at(base, path) != value_at(last, path)]


def _merge(base: Any, applied: Any, shape: Shape) -> Any:
    """`applied` laid over `base`: objects and keyed lists entry by entry, all else as a whole."""
    if not isinstance(base, dict) or not isinstance(applied, dict) or shape.atomic:
        return applied
    for name, value in applied.items():
        below = shape.field(name)
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] = _merge(base[name], value, below)
        elif isinstance(value, list) and isinstance(base.get(name), list) and below.keys is not None:
            base[name] = list(_merged_list(base[name], value, below.entry(), below.keys))
        else:
            base[name] = value
    return base


def _merged_list(base: list[Any], applied: list[Any], shape: Shape, keys: tuple[str, ...]) -> Iterator[Any]:
    wanted = {step_to(entry, keys): entry for entry in applied}
    for entry in base:
        found = wanted.pop(step_to(entry, keys), None)
        yield entry if found is None or not keys else _merge(entry, found, shape)
    yield from wanted.values()
