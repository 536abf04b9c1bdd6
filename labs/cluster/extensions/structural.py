"""What a structural schema says of an object's form: which fields it has, and what they are when nobody says so.

Stands for k8s.io/apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting}. Pure: JSON values in, new JSON
values out. A schema is the openAPIV3Schema of one version.

What belongs here: pruning and defaults, also of what is read. What does not: whether values are allowed
(`labs.cluster.extensions.values`).
"""

from __future__ import annotations

import copy
from typing import Any

from labs.cluster.resources import Object, Resource

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
# What every object has, whatever its schema says.
OBJECT_FIELDS = frozenset({"apiVersion", "kind", "metadata"})


def in_version(resource: Resource, item: Object) -> Object:
    """A stored object as a version of its kind shows it: with that version's name, fields and defaults, whatever there
    was when it was stored (the conversion strategy None)."""
    if resource.custom is None:
        return item
    kept, _ = pruned(item, resource.custom.schema)
    whole: Object = completed(kept, resource.custom.schema)
    return {**whole, "apiVersion": resource.api_version}


def pruned(item: Object, schema: Object) -> tuple[Object, list[str]]:
    """An object without the fields that its schema does not have, and the paths of those: spec.listeners[0].nme."""
    unknown: list[str] = []
    kept: Object = _pruned(item, schema, "", unknown, whole=True)
    return kept, unknown


def _pruned(value: Any, schema: Object, path: str, unknown: list[str], *, whole: bool = False) -> Any:
    """`whole`: the value is an object of the API, not a part of one."""
    if isinstance(value, list):
        inside = schema.get("items")
        if not isinstance(inside, dict):
            return value
        return [_pruned(entry, inside, f"{path}[{number}]", unknown) for number, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, entry in value.items():
        here = f"{path}.{name}" if path else name
        if (whole or schema.get(EMBEDDED)) and name in OBJECT_FIELDS:
            kept[name] = entry
            continue
        below = _below(schema, name)
        if isinstance(below, dict):
            kept[name] = _pruned(entry, below, here, unknown)
        elif below or schema.get(PRESERVE):
            kept[name] = entry
        else:
            unknown.append(here)
    return kept


def _below(schema: Object, name: str) -> Object | bool:
    """The schema of a field; True where any may be, False where there is none."""
    properties: Object = schema.get("properties") or {}
    found: Object | bool = properties[name] if name in properties else schema.get("additionalProperties", False)
    return found


def completed(value: Any, schema: Object) -> Any:
    """A value with the schema's defaults where it has nothing, or a null that it may not have."""
    if isinstance(value, list):
        inside = schema.get("items")
        return [completed(entry, inside) for entry in value] if isinstance(inside, dict) else value
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, below in (schema.get("properties") or {}).items():
        if "default" in below and (name not in filled or (filled[name] is None and not below.get("nullable"))):
            filled[name] = copy.deepcopy(below["default"])
    for name, entry in filled.items():
        found = _below(schema, name)
        if isinstance(found, dict):
            filled[name] = completed(entry, found)
    return filled
