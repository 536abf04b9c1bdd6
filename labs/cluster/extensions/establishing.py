"""Definitions come into force, and go: names are given to whoever asks first, kinds are served, their objects removed.

Stands for three controllers of k8s.io/apiextensions-apiserver: pkg/controller/status (names), establish and finalizer;
and for the API server's handlers, which follow the condition Established.

What belongs here: the status of definitions, and what follows from it. What does not: what they mean
(`labs.cluster.extensions.definitions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from labs.cluster.deletion import delete
from labs.cluster.extensions.definitions import CLEANUP, condition, is_established, resources, stored
from labs.cluster.resources import DEFINITIONS, Object, key_of
from labs.cluster.store import DELETED, Change, Store, now

WATCHED = (None,)
TEXTS = ("plural", "singular", "kind", "listKind")


def concerns(change: Change) -> bool:
    """Whether a change is one of a definition, or takes away a custom object for which its definition may wait."""
    return change.resource == DEFINITIONS or (change.kind == DELETED and not change.resource.version)


def reconciler(store: Store) -> Callable[[], None]:
    """The function that makes the kinds that are served those that are defined."""
    served: dict[str, tuple[str, Object]] = {}  # name of a definition -> the version of it that is in force, and it

    def reconcile() -> None:
        for definition in store.list(DEFINITIONS):
            _accept_names(store, definition)
        definitions = {key_of(item)[1]: item for item in store.list(DEFINITIONS)}
        for name, definition in definitions.items():
            version = definition["metadata"]["resourceVersion"]
            if is_established(definition) and served.get(name, ("", {}))[0] != version:
                store.kinds.define(name, resources(definition))
                served[name] = version, definition
            if "deletionTimestamp" in definition["metadata"]:
                _finish(store, definition)
        for name in [name for name in served if store.find(DEFINITIONS, "", name) is None]:
            store.end_watches(stored(served.pop(name)[1]))
            store.kinds.define(name, ())

    return reconcile


def _accept_names(store: Store, definition: Object) -> None:
    """Give a definition the names that it wants, as far as they are free in its group."""
    wanted, status = definition["spec"]["names"], definition["status"]
    if status["acceptedNames"] == wanted:
        return
    accepted, mistake = _names(store, definition)
    conditions = [_condition("NamesAccepted", "True", "NoConflicts", "no conflicts found")]
    if mistake is not None:
        conditions = [_condition("NamesAccepted", "False", *mistake)]
    if is_established(definition):
        conditions.append(condition(definition, "Established"))
    elif mistake is None:
        words = "the initial names have been accepted"
        conditions.append(_condition("Established", "True", "InitialNamesAccepted", words))
    else:
        conditions.append(_condition("Established", "False", "NotAccepted", "not all names are accepted"))
    conditions += [entry for entry in status.get("conditions") or () if entry["type"] == "Terminating"]
    before = condition(definition, "NamesAccepted")
    if (accepted, _told(before)) != (status["acceptedNames"], _told(conditions[0])):
        status = {**status, "acceptedNames": accepted, "conditions": conditions}
        store.update_status(DEFINITIONS, "", definition["metadata"]["name"], status)


def _names(store: Store, definition: Object) -> tuple[Object, tuple[str, str] | None]:
    """The names that a definition gets, and the last thing that is wrong with what it wants: reason and message."""
    wanted, mine = definition["spec"]["names"], definition["status"]["acceptedNames"]
    names, kinds = _taken(store, definition)
    accepted, mistake = dict(mine), None
    for field in TEXTS:
        taken = kinds if field in ("kind", "listKind") else names
        if wanted.get(field) != mine.get(field) and wanted.get(field) in taken:
            mistake = f"{field[0].upper()}{field[1:]}Conflict", f'"{wanted[field]}" is already in use'
        elif field in wanted:
            accepted[field] = wanted[field]
    short = [name for name in wanted.get("shortNames") or () if name in names]
    if short:
        told = [f'"{name}" is already in use' for name in short]
        mistake = "ShortNamesConflict", told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    for field in ("shortNames", "categories"):
        if field == "categories" or not short:
            accepted.pop(field, None)
            if wanted.get(field):
                accepted[field] = wanted[field]
    return accepted, mistake


def _taken(store: Store, definition: Object) -> tuple[set[str], set[str]]:
    """The names of resources and of kinds that others have in the same group."""
    names: set[str] = set()
    kinds: set[str] = set()
    for other in store.list(DEFINITIONS):
        if other["spec"]["group"] == definition["spec"]["group"] and key_of(other) != key_of(definition):
            theirs = other["status"]["acceptedNames"]
            names |= {theirs["plural"], theirs.get("singular", ""), *(theirs.get("shortNames") or ())}
            kinds |= {theirs["kind"], theirs.get("listKind", "")}
    return names - {""}, kinds - {""}


def _condition(kind: str, value: str, reason: str, message: str) -> Object:
    return {"lastTransitionTime": now(), "message": message, "reason": reason, "status": value, "type": kind}


def _told(entry: Object) -> tuple[str, ...]:
    return tuple(str(entry.get(field)) for field in ("status", "reason", "message"))


def _finish(store: Store, definition: Object) -> None:
    """Remove all objects of a kind whose definition is being deleted, and then the definition."""
    name, resource = definition["metadata"]["name"], stored(definition)
    if CLEANUP not in (definition["metadata"].get("finalizers") or ()):
        return
    if condition(definition, "Terminating").get("reason") != "InstanceDeletionInProgress":
        kept = [entry for entry in definition["status"].get("conditions") or () if entry["type"] != "Terminating"]
        words = "CustomResource deletion is in progress"
        kept.append(_condition("Terminating", "True", "InstanceDeletionInProgress", words))
        store.update_status(DEFINITIONS, "", name, {**definition["status"], "conditions": kept})
    for item in store.list(resource):
        if "deletionTimestamp" not in item["metadata"]:
            delete(store, resource, *key_of(item))
    if not store.list(resource):
        _release(store, name)


def _release(store: Store, name: str) -> None:
    current = store.get(DEFINITIONS, "", name)
    left: Iterable[str] = [one for one in current["metadata"]["finalizers"] if one != CLEANUP]
    metadata = {**current["metadata"], "finalizers": left}
    if left:
        store.update(DEFINITIONS, {**current, "metadata": metadata})
    else:
        store.delete(DEFINITIONS, "", name)
