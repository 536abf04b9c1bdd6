"""Who wants which field of an object: metadata.managedFields.

Stands for k8s.io/apimachinery/pkg/util/managedfields. A manager that applies has one entry for what it applies, one
that writes otherwise has an entry for the fields whose values are its own, one for each subresource that it writes
through. Left out: the cluster's own controllers and kubelets, which write to the store and not to the API: what they
write is nobody's here. Two things differ: whether a list or map itself is a field of its maker's depends on pointers in
the real API, and a Service's IP families are its author's here, also when the server chose them.

What belongs here: entries. What does not: merging what is applied (`labs.cluster.api.apply`).
"""

from __future__ import annotations

from labs.cluster.api.fieldsets import Path, changes, fields_of, leaves, tree_of
from labs.cluster.api.shapes import shape_of
from labs.cluster.resources import Object, Resource
from labs.cluster.store import now

APPLY, UPDATE = "Apply", "Update"
BEFORE_APPLY = "before-first-apply"
ANCIENT = "ancient-changes"
MOST_UPDATES = 10
# What of the metadata is the server's, or the object's very name (managedfields/internal/stripmeta.go).
SERVERS_OWN = frozenset(
    {
        *("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields"),
        *("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"),
    }
)


def entries_of(item: Object | None) -> list[Object]:
    """The entries of an object, also when there is none."""
    return list((item or {}).get("metadata", {}).get("managedFields") or ())


def updated(
    entries: list[Object], old: Object, new: Object, resource: Resource, manager: str, subresource: str = ""
) -> list[Object]:
    """The entries after `manager` has made `new` out of `old`, {} for an object that it creates."""
    shape, status = shape_of(resource), subresource == "status" or not resource.has_status
    added, removed = changes(_managed(old, status=status), _managed(new, status=status), shape)
    if not added and not removed:
        return entries
    fields, others = set(added), []
    for entry in entries:
        if (entry.get("manager"), entry.get("operation"), entry.get("subresource", "")) == (
            manager,
            UPDATE,
            subresource,
        ):
            fields |= leaves(entry.get("fieldsV1") or {}) - removed
        elif (kept := without(entry, added | removed)) is not None:
            others.append(kept)
    if not fields:
        return others
    return in_order([*others, entry_for(manager, UPDATE, resource.api_version, fields, subresource)])


def before_apply(item: Object, resource: Resource) -> list[Object]:
    """The entries of an object of which nobody knows who made it, when somebody applies to it for the first time."""
    fields = set(fields_of(_managed(item, status=not resource.has_status), shape_of(resource), containers=True))
    return [entry_for(BEFORE_APPLY, UPDATE, resource.api_version, fields)]


def applied_fields(item: Object, resource: Resource) -> set[Path]:
    """The fields that somebody wants who applies this."""
    return set(fields_of(_managed(item, status=True), shape_of(resource))) - {()}


def entry_for(manager: str, operation: str, version: str, fields: set[Path], subresource: str = "") -> Object:
    """An entry of now."""
    return {
        "manager": manager,
        "operation": operation,
        "apiVersion": version,
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": tree_of(fields),
        **({"subresource": subresource} if subresource else {}),
    }


def without(entry: Object, paths: set[Path]) -> Object | None:
    """An entry without some fields; None when nothing is left."""
    fields = leaves(entry.get("fieldsV1") or {})
    if fields.isdisjoint(paths):
        return entry
    left = fields - paths
    return {**entry, "fieldsV1": tree_of(left)} if left else None


def _managed(item: Object, *, status: bool) -> Object:
    """The part of an object that can be somebody's."""
    left_out = ("apiVersion", "kind", "metadata") if status else ("apiVersion", "kind", "metadata", "status")
    part = {name: value for name, value in item.items() if name not in left_out}
    metadata = {name: value for name, value in (item.get("metadata") or {}).items() if name not in SERVERS_OWN}
    return {**part, "metadata": metadata} if metadata else part


def in_order(entries: list[Object]) -> list[Object]:
    """Appliers first, then by time; of those who update, the oldest beyond a number become one entry."""

    def rank(entry: Object) -> tuple[str, ...]:
        return tuple(entry.get(name) or "" for name in ("operation", "time", "manager", "apiVersion", "subresource"))

    entries = sorted(entries, key=rank)
    updates = [entry for entry in entries if entry.get("operation") == UPDATE and not entry.get("subresource")]
    if len(updates) <= MOST_UPDATES:
        return entries
    old = updates[: len(updates) - MOST_UPDATES + 1]
    fields = set().union(*(leaves(entry.get("fieldsV1") or {}) for entry in old))
    ancient = {**entry_for(ANCIENT, UPDATE, old[-1]["apiVersion"], fields), "time": old[-1]["time"]}
    return sorted([ancient, *(entry for entry in entries if entry not in old)], key=rank)
