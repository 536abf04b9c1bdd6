"""How the values of an object can be parted among those who want something of it: field by field, entry by entry, or
not at all.

Stands for the schemas of sigs.k8s.io/structured-merge-diff, which are made from the API's tags (listType, listMapKey,
mapType, structType) and from the x-kubernetes-… words of custom kinds.

What belongs here: the shape of kinds. What does not: what is done with fields (`labs.cluster.api.fieldsets`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

from labs.cluster import schema
from labs.cluster.api.strategic import merge_key
from labs.cluster.extensions.structural import EMBEDDED
from labs.cluster.extensions.values import LIST_KEYS, LIST_TYPE
from labs.cluster.resources import Object, Resource

# Lists that the server tells apart by more than the key of strategic merge (listMapKey tags).
KEYS = {
    ("Container", "ports"): ("containerPort", "protocol"),
    ("EphemeralContainer", "ports"): ("containerPort", "protocol"),
    ("ServiceSpec", "ports"): ("port", "protocol"),
    ("PodSpec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
}
# Objects that are one value: types (structType=atomic), and fields (mapType=atomic).
ATOMIC_TYPES = frozenset(
    {
        *("LabelSelector", "ObjectFieldSelector", "ResourceFieldSelector", "ConfigMapKeySelector", "SecretKeySelector"),
        *("ObjectReference", "LocalObjectReference", "TypedLocalObjectReference", "NodeSelector", "NodeSelectorTerm"),
    }
)
ATOMIC_FIELDS = frozenset({("ServiceSpec", "selector"), ("PodSpec", "nodeSelector")})
METADATA = "meta_v1.ObjectMeta"


class Shape(Protocol):
    """The shape of a value."""

    @property
    def keys(self) -> tuple[str, ...] | None:
        """By what the entries of a list are told apart; () for a set of plain values, None for a list that is one
        value."""

    @property
    def atomic(self) -> bool:
        """Whether an object is one value."""

    @property
    def is_map(self) -> bool:
        """Whether an object has whatever names its author likes, as labels have."""

    def field(self, name: str) -> Shape:
        """The shape of a field."""

    def entry(self) -> Shape:
        """The shape of a list's entries."""


def shape_of(resource: Resource) -> Shape:
    """The shape of a kind's objects."""
    if resource.custom is not None:
        return Structural(resource.custom.schema, whole=True)
    return typed(schema.type_name(resource) or "")


@dataclass(frozen=True, slots=True)
class Typed:
    """The shape of a type of `labs.cluster.schema`. Get one with `typed`."""

    kind: str
    keys: tuple[str, ...] | None
    atomic: bool
    is_map: bool

    def field(self, name: str) -> Typed:
        return typed(schema.fields_of(self.kind).get(name, "").rstrip("!"), self.kind, name)

    def entry(self) -> Typed:
        return typed(self.kind.removeprefix("[]"))


@functools.cache  # there are a few thousand places in all types, and each write asks for dozens
def typed(kind: str, owner: str = "", name: str = "") -> Typed:
    """The shape of a type, found in the field `name` of the type `owner`."""
    place = owner.rpartition(".")[2], name
    key = merge_key(owner, name)
    keys = KEYS.get(place, None if key is None else (key,) if key else ())
    return Typed(kind, keys, kind.rpartition(".")[2] in ATOMIC_TYPES or place in ATOMIC_FIELDS, kind == "map")


@dataclass(frozen=True, slots=True)
class Structural:
    """The shape of a part of a custom object. `whole`: it is an object of the API itself."""

    schema: Object
    whole: bool = False

    @property
    def keys(self) -> tuple[str, ...] | None:
        kind = self.schema.get(LIST_TYPE)
        return tuple(self.schema.get(LIST_KEYS) or ()) if kind == "map" else () if kind == "set" else None

    @property
    def atomic(self) -> bool:
        return bool(self.schema.get("x-kubernetes-map-type") == "atomic")

    @property
    def is_map(self) -> bool:
        return not self.schema.get("properties")

    def field(self, name: str) -> Shape:
        if name == "metadata" and (self.whole or self.schema.get(EMBEDDED)):
            return typed(METADATA)
        below = (self.schema.get("properties") or {}).get(name, self.schema.get("additionalProperties"))
        return Structural(below if isinstance(below, dict) else {})

    def entry(self) -> Structural:
        return Structural(self.schema.get("items") or {})
