"""A CustomResourceDefinition as an object: its defaults, and the kinds that it means.

Stands for k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go, registry/customresourcedefinition
(strategy) and the part of pkg/apiserver/customresource_handler.go that makes something to serve of a definition.

What belongs here: from a definition to values. What does not: what is wrong with it
(`labs.cluster.extensions.correctness`), whether its names are free (`labs.cluster.extensions.establishing`).
"""

from __future__ import annotations

from labs.cluster.resources import CustomVersion, Object, Resource

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def complete(definition: Object) -> None:
    """Fill in what a definition leaves open, in place."""
    spec = definition["spec"] = definition.get("spec") or {}
    names = spec["names"] = spec.get("names") or {}
    spec["versions"] = [{"name": "", "served": False, "storage": False, **one} for one in spec.get("versions") or ()]
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")
    spec.setdefault("conversion", {}).setdefault("strategy", "None")


def first_status(definition: Object) -> None:
    """Give a new definition its status: the version in which objects will be stored, and no names yet."""
    definition["status"] = {
        "acceptedNames": {"kind": "", "plural": ""},
        "conditions": [],
        "storedVersions": [storage_version(definition)],
    }


def remember_storage(definition: Object) -> None:
    """Add the version in which objects are stored now to those in which some may be, in place."""
    name, status = storage_version(definition), definition.get("status") or {}
    if name not in (status.get("storedVersions") or ()):
        definition["status"] = {**status, "storedVersions": [*(status.get("storedVersions") or ()), name]}


def storage_version(definition: Object) -> str:
    """The version in which objects are stored."""
    return next((version["name"] for version in definition["spec"]["versions"] if version["storage"]), "")


def condition(definition: Object, kind: str) -> Object:
    """A condition of a definition, {} when it has none of that type."""
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == kind), {})


def is_established(definition: Object) -> bool:
    """Whether its kind is to be served."""
    return condition(definition, "Established").get("status") == "True"


def resources(definition: Object) -> tuple[Resource, ...]:
    """The kind that a definition means, in each version that is to be served, under the names that it was given."""
    spec, names = definition["spec"], definition["status"]["acceptedNames"]
    return tuple(
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            singular=names.get("singular", ""),
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            custom=_version(definition, version),
        )
        for version in spec["versions"]
        if version["served"]
    )


def stored(definition: Object) -> Resource:
    """The kind as the store has it, whatever versions there are."""
    spec, names = definition["spec"], definition["spec"]["names"]
    return Resource(spec["group"], "", names["plural"], "", names["kind"], spec["scope"] == "Namespaced")


def _version(definition: Object, version: Object) -> CustomVersion:
    spec, subresources = definition["spec"], version.get("subresources") or {}
    kind, api_version = spec["names"]["kind"], f"{spec['group']}/{version['name']}"
    warning = version.get("deprecationWarning") or f"{api_version} {kind} is deprecated"
    return CustomVersion(
        schema=(version.get("schema") or {}).get("openAPIV3Schema") or {},
        columns=tuple(version.get("additionalPrinterColumns") or ()),
        has_status=subresources.get("status") is not None,
        scale=subresources.get("scale"),
        storage=f"{spec['group']}/{storage_version(definition)}",
        list_kind=definition["status"]["acceptedNames"].get("listKind") or f"{kind}List",
        warning=warning if version.get("deprecated") else "",
        terminating="deletionTimestamp" in definition["metadata"],
    )
