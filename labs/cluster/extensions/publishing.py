"""The schema of a custom kind as the API's OpenAPI documents show it: for `kubectl explain`, and for clients that
validate before they send.

Stands for k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder and pkg/apiserver/schema (ToKubeOpenAPI,
ToStructuralOpenAPIV2). Version 2 knows less: alternatives, nulls and "an integer or a string" are left out of it, as
the real one leaves them out.

What belongs here: schemas. What does not: the documents that they are parts of (`labs.cluster.api.openapi`).
"""

from __future__ import annotations

from typing import Any

from labs.cluster.extensions.structural import PRESERVE
from labs.cluster.extensions.values import INT_OR_STRING
from labs.cluster.resources import Object, Resource

METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# What each object has, in the words of the real documents.
CONVENTIONS = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"
TEXTS = {
    "apiVersion": f"The versioned schema of this representation of an object. More info: {CONVENTIONS}#resources",
    "kind": f"The REST resource that this object represents. More info: {CONVENTIONS}#types-kinds",
}
NOT_IN_VERSION_2 = frozenset({"oneOf", "anyOf", "allOf", "not", "nullable", "default", "x-kubernetes-validations"})


def public_name(resource: Resource) -> str:
    """The name of a custom type: io.k8s.networking.gateway.v1.HTTPRoute."""
    return f"{'.'.join(reversed(resource.group.split('.')))}.{resource.version}.{resource.kind}"


def version_3(resource: Resource) -> Object:
    """The schema for OpenAPI v3."""
    return _whole(_schema(resource), {"allOf": [{"$ref": f"#/components/schemas/{METADATA}"}]})


def version_2(resource: Resource) -> Object:
    """The schema for OpenAPI v2."""
    reduced: Object = _reduced(_schema(resource))
    return _whole(reduced, {"$ref": f"#/definitions/{METADATA}"})


def _schema(resource: Resource) -> Object:
    assert resource.custom is not None
    return resource.custom.schema


def _whole(schema: Object, metadata: Object) -> Object:
    """A schema with what all objects have."""
    if schema.get(PRESERVE) and not schema.get("properties"):
        return {**schema, "type": "object"}
    texts = {name: {"type": "string", "description": text} for name, text in TEXTS.items()}
    return {**schema, "properties": {**(schema.get("properties") or {}), **texts, "metadata": metadata}}


def _reduced(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    if schema.get("nullable") or schema.get(INT_OR_STRING):
        # Said in version 2, either would be refused by clients that take it literally.
        return {key: schema[key] for key in ("description", INT_OR_STRING, PRESERVE) if key in schema}
    kept = {key: value for key, value in schema.items() if key not in NOT_IN_VERSION_2}
    if "properties" in kept:
        kept["properties"] = {name: _reduced(below) for name, below in kept["properties"].items()}
    for word in ("items", "additionalProperties"):
        if word in kept:
            kept[word] = _reduced(kept[word])
    return kept
