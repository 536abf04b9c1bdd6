"""Strategic merge patches: a merge patch that knows which lists are keyed.

Stands for k8s.io/apimachinery/pkg/util/strategicpatch (mergeMap, mergeSlice, normalizeElementOrder) and for the
patchStrategy and patchMergeKey tags of the API's types, which are the table MERGE_KEYS. Pure: values in, a new value
out. Left out: patches against objects without types (custom resources), which the API refuses as well.
"""

from __future__ import annotations

import copy
from typing import Any

from labs.cluster.schema import fields_of

DIRECTIVE, RETAIN = "$patch", "$retainKeys"
ORDER, DELETE_PRIMITIVES = "$setElementOrder/", "$deleteFromPrimitiveList/"

# (type, field) -> the key by which the list's objects are told apart; "" for a list of plain values that is a set.
# Lists that are not here are replaced as a whole (tolerations, args, …).
MERGE_KEYS = {
    ("ObjectMeta", "ownerReferences"): "uid",
    ("ObjectMeta", "finalizers"): "",
    ("PodSpec", "volumes"): "name",
    ("PodSpec", "initContainers"): "name",
    ("PodSpec", "containers"): "name",
    ("PodSpec", "ephemeralContainers"): "name",
    ("PodSpec", "imagePullSecrets"): "name",
    ("PodSpec", "hostAliases"): "ip",
    ("PodSpec", "topologySpreadConstraints"): "topologyKey",
    ("PodSpec", "resourceClaims"): "name",
    ("PodSpec", "schedulingGates"): "name",
    ("PodStatus", "conditions"): "type",
    ("PodStatus", "podIPs"): "ip",
    ("PodStatus", "hostIPs"): "ip",
    ("Container", "ports"): "containerPort",
    ("Container", "env"): "name",
    ("Container", "volumeMounts"): "mountPath",
    ("Container", "volumeDevices"): "devicePath",
    ("EphemeralContainer", "ports"): "containerPort",
    ("EphemeralContainer", "env"): "name",
    ("EphemeralContainer", "volumeMounts"): "mountPath",
    ("EphemeralContainer", "volumeDevices"): "devicePath",
    ("ServiceSpec", "ports"): "port",
    ("ServiceStatus", "conditions"): "type",
    ("ServiceAccount", "secrets"): "name",
    ("DeploymentStatus", "conditions"): "type",
    ("ReplicaSetStatus", "conditions"): "type",
    ("DaemonSetStatus", "conditions"): "type",
    ("NamespaceStatus", "conditions"): "type",
    ("NodeSpec", "podCIDRs"): "",
    ("NodeStatus", "conditions"): "type",
    ("NodeStatus", "addresses"): "type",
}


class BadPatch(ValueError):
    """The patch can't be understood: its form is wrong."""


class NoMergeKey(ValueError):
    """An entry of a keyed list does not have the key."""


def apply(original: Any, patch: dict[str, Any], kind: str) -> Any:
    """What `original`, of a type of `labs.cluster.schema`, becomes. Raises BadPatch or NoMergeKey."""
    return _map(copy.deepcopy(original), copy.deepcopy(patch), kind)


def merge_key(kind: str, field: str) -> str | None:
    """The key of a list, "" for a set of plain values, None for a list that is one value."""
    return MERGE_KEYS.get((kind.rstrip("!").rpartition(".")[2], field))


def _map(original: dict[str, Any], patch: dict[str, Any], kind: str) -> dict[str, Any]:
    directive = patch.pop(DIRECTIVE, None)
    if directive == "replace":
        return {key: _plain(value) for key, value in patch.items() if value is not None and not key.startswith("$")}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadPatch(f"Unknown patch type found: {directive}")
    _retain(original, patch)
    fields = fields_of(kind)
    orders = {key.removeprefix(ORDER): patch.pop(key) for key in list(patch) if key.startswith(ORDER)}
    for key in [key for key in patch if key.startswith(DELETE_PRIMITIVES)]:
        gone, field = patch.pop(key), key.removeprefix(DELETE_PRIMITIVES)
        if not isinstance(gone, list):
            raise BadPatch("Invalid format of the delete list of primitives")
        if isinstance(original.get(field), list):
            original[field] = [value for value in original[field] if value not in gone]
    before = {field: list(original[field]) for field in orders if isinstance(original.get(field), list)}
    for field, value in patch.items():
        current = original.get(field)
        if value is None:
            original.pop(field, None)
        elif isinstance(value, dict) and isinstance(current, dict):
            original[field] = _map(current, value, fields.get(field, ""))
        elif isinstance(value, list) and isinstance(current, list):
            original[field] = _list(current, value, fields.get(field, ""), merge_key(kind, field))
        else:
            original[field] = _plain(value)
    for field, order in orders.items():
        list_key = merge_key(kind, field)
        if not isinstance(order, list) or list_key is None:
            raise BadPatch("Invalid format of the set element order list")
        if isinstance(original.get(field), list):
            original[field] = _ordered(original[field], order, before.get(field, []), list_key)
    return original


def _retain(original: dict[str, Any], patch: dict[str, Any]) -> None:
    """$retainKeys: of the original only these keys stay; the patch may set no others."""
    if RETAIN not in patch:
        return
    kept = patch.pop(RETAIN)
    if not isinstance(kept, list) or any(key not in kept for key in patch if not key.startswith("$")):
        raise BadPatch("Invalid patch format of retainKeys")
    for key in [key for key in original if key not in kept]:
        del original[key]


def _list(original: list[Any], patch: list[Any], kind: str, key: str | None) -> list[Any]:
    if key is None:
        return [_plain(entry) for entry in patch if not _is_directive(entry)]
    if key == "":
        return _ordered([*original, *(value for value in patch if value not in original)], patch, original, key)
    if any(isinstance(entry, dict) and entry.get(DIRECTIVE) == "replace" for entry in patch):
        return [_plain(entry) for entry in patch if not _is_directive(entry)]
    merged = list(original)
    wanted = [entry for entry in patch if not _is_directive(entry)]
    for entry in patch:
        if not isinstance(entry, dict):
            raise BadPatch("Invalid JSON document")
        if key not in entry:
            raise NoMergeKey(f"map: {entry} does not contain declared merge key: {key}")
        found = [index for index, item in enumerate(merged) if item.get(key) == entry[key]]
        if entry.get(DIRECTIVE) == "delete":
            merged = [item for index, item in enumerate(merged) if index not in found]
        elif found:
            merged[found[0]] = _map(merged[found[0]], entry, kind.removeprefix("[]"))
        else:
            merged.append(_plain(entry))
    return _ordered(merged, wanted, original, key)


def _is_directive(entry: Any) -> bool:
    return isinstance(entry, dict) and DIRECTIVE in entry


def _plain(value: Any) -> Any:
    """A value of a patch that meets nothing: without directives and nulls."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if not key.startswith("$") and entry is not None}
    if isinstance(value, list):
        return [_plain(entry) for entry in value if not _is_directive(entry) or set(entry) - {DIRECTIVE}]
    return value


def _ordered(merged: list[Any], order: list[Any], before: list[Any], key: str) -> list[Any]:
    """The list in the order that the client wants; entries that it does not know of stay where they were between the
    others (normalizeElementOrder)."""

    def identity(entry: Any) -> Any:
        return entry.get(key) if key and isinstance(entry, dict) else entry

    wanted = [identity(entry) for entry in order]
    server = [identity(entry) for entry in before]
    known = sorted(
        (entry for entry in merged if identity(entry) in wanted), key=lambda entry: wanted.index(identity(entry))
    )
    others = [entry for entry in merged if identity(entry) not in wanted]
    result: list[Any] = []
    while known or others:
        if not known or not others:
            return result + others + known
        left, right = identity(others[0]), identity(known[0])
        first = left in server and right in server and server.index(left) < server.index(right)
        result.append((others if first else known).pop(0))
    return result
