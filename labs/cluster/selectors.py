"""Label and field selectors, as `kubectl get -l` and `--field-selector` write them.

Stands for k8s.io/apimachinery/pkg/labels and pkg/fields, and for the selectors inside objects (metav1.LabelSelector,
the terms of a node selector). Left out: fields other than those in `FIELDS`, which the API
server refuses in the same words as the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from labs.cluster.resources import Object, Resource

Predicate = Callable[[Object], bool]

_SET = re.compile(r"(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^)]*)\)$")
_EQUALITY = re.compile(r"(?P<key>[^\s!=,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"(?P<absent>!?)\s*(?P<key>[^\s!=,()]+)$")
# Commas between requirements, not those inside parentheses.
_REQUIREMENTS = re.compile(r",(?![^()]*\))")

# Every kind has the first two (k8s.io/kubernetes/pkg/apis/core/v1/conversion.go).
FIELDS = {
    "": ("metadata.name", "metadata.namespace"),
    "Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
    ),
    "Node": ("spec.unschedulable",),
    "Namespace": ("status.phase",),
    "Service": ("spec.clusterIP", "spec.type"),
    "Secret": ("type",),
    "Event": (
        *(f"involvedObject.{part}" for part in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")),
        *("involvedObject.resourceVersion", "reason", "reportingComponent", "type"),
    ),
}


def label_selector(text: str) -> Predicate:
    """The predicate for a label selector such as "app=web,tier in (a, b),!old". Raises ValueError for what is none."""
    requirements = [_requirement(part.strip()) for part in _REQUIREMENTS.split(text) if part.strip()]
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in requirements)


def _requirement(text: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUALITY.match(text):
        key, value = match["key"], match["value"]
        if match["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(text):
        key, present = match["key"], not match["absent"]
        return lambda labels: (key in labels) is present
    raise ValueError(f"unable to parse requirement: {text!r}")


def matches_selector(selector: Object | None, labels: Object | None) -> bool:
    """Whether labels satisfy a LabelSelector (LabelSelectorAsSelector): an empty one is for all, none for nobody."""
    if selector is None:
        return False
    found = labels or {}
    return (selector.get("matchLabels") or {}).items() <= found.items() and all(
        satisfies(entry, found) for entry in selector.get("matchExpressions") or ()
    )


def satisfies(requirement: Object, labels: Object) -> bool:
    """Whether labels satisfy one requirement: key, operator, values."""
    value: str | None = labels.get(requirement["key"])
    values: list[str] = requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" if value is not None and re.fullmatch(r"-?\d+", value) is not None:
            return int(value) > int(values[0]) if requirement["operator"] == "Gt" else int(value) < int(values[0])
    return False


def field_selector(text: str, resource: Resource) -> Predicate:
    """The predicate for a field selector such as "metadata.name=a,status.phase!=Running". Raises ValueError."""
    tests: list[Predicate] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([^!=]+?)\s*(==|=|!=)\s*(.*)", part)
        if match is None:
            raise ValueError(f"invalid selector: {part!r}; can't understand {part!r}")
        field, operator, value = match.groups()
        special = FIELDS.get(resource.kind, ()) if resource.custom is None else ()
        if field not in FIELDS[""] and field not in special:
            raise ValueError(f"field label not supported: {field}")
        tests.append(_field_test(field.split("."), value, operator != "!="))
    return lambda item: all(test(item) for test in tests)


def _field_test(path: list[str], value: str, equal: bool) -> Predicate:
    def test(item: Object) -> bool:
        found: Any = item
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        text = str(found).lower() if isinstance(found, bool) else str(found or "")
        return (text == value) is equal

    return test
