"""What the API says of its own types: OpenAPI, for `kubectl explain`, `kubectl apply` and their like.

Stands for k8s.io/kube-openapi and the documents that kube-apiserver publishes at /openapi/v3 and /openapi/v2. Made from
`labs.cluster.schema` and the merge keys, with the names that the real documents have. Left out: descriptions (explain
shows fields and types), responses, and all operations but those by which kubectl finds what it looks for.

What belongs here: the documents as JSON values. What does not: the schemas of custom kinds
(`labs.cluster.extensions.publishing`), the encoding as protobuf (`labs.cluster.api.openapi_proto`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from labs.cluster import schema
from labs.cluster.api.discovery import GIT_VERSION
from labs.cluster.api.openapi_proto import encode
from labs.cluster.api.strategic import merge_key
from labs.cluster.extensions import publishing as custom
from labs.cluster.kinds import Kinds
from labs.cluster.resources import Resource

METADATA = "meta_v1.ObjectMeta"
GVK = "x-kubernetes-group-version-kind"
# Fields whose patches also say which keys stay (patchStrategy retainKeys).
RETAIN = {("DeploymentSpec", "strategy"), ("PodSpec", "volumes"), ("PodSpec", "resourceClaims")}
_PACKAGES = {
    "meta": "io.k8s.apimachinery.pkg.apis.meta",
    "apiextensions": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
}
_PLAIN: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "int": {"type": "integer", "format": "int32"},
    "number": {"type": "number", "format": "double"},
    "bool": {"type": "boolean"},
    "map": {"type": "object", "additionalProperties": {"type": "string"}},
    "any": {"type": "object"},
}
_QUERY = ("dryRun", "fieldManager", "fieldValidation", "force", "pretty")


class OpenApi:
    """The documents of one API. Each is made when it is first asked for, and again when kinds came or went."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._revision = -1
        self._made: dict[str, Any] = {}

    def index(self) -> dict[str, Any]:
        """/openapi/v3: where the document of each group and version is."""
        return dict(self._once("/openapi/v3", self._index))

    def group(self, prefix: str) -> dict[str, Any] | None:
        """The OpenAPI v3 document of one group and version, or None for one that is not served."""
        resources = [resource for resource in self._kinds.served() if resource.prefix == prefix]
        return dict(self._once(prefix, lambda: _group_document(resources))) if resources else None

    def swagger(self) -> dict[str, Any]:
        """/openapi/v2: everything in one document."""
        return dict(self._once("/openapi/v2", lambda: _swagger(self._kinds.served())))

    def swagger_as_protobuf(self) -> bytes:
        """The same for those who take it in that form only."""
        return bytes(self._once("protobuf", lambda: encode(self.swagger())))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if self._revision != self._kinds.revision:
            self._made.clear()
            self._revision = self._kinds.revision
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _index(self) -> dict[str, Any]:
        paths = {}
        for prefix in sorted({resource.prefix for resource in self._kinds.served()}):
            text = json.dumps(self.group(prefix), sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:32].upper()
            paths[prefix[1:]] = {"serverRelativeURL": f"/openapi/v3{prefix}?hash={digest}"}
        return {"paths": paths}


def _group_document(resources: list[Resource]) -> dict[str, Any]:
    schemas = {}
    roots = [name for resource in resources if (name := schema.type_name(resource))]
    for kind in _reachable([*roots, *([METADATA] if any(resource.custom for resource in resources) else [])]):
        schemas[public_name(kind)] = _type(kind, "#/components/schemas/")
    for resource in resources:
        if resource.custom is not None:
            schemas[custom.public_name(resource)] = {**custom.version_3(resource), GVK: [gvk(resource)]}
        else:
            name = public_name(str(schema.type_name(resource)))
            schemas[name] = {**schemas[name], GVK: [gvk(resource)]}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": {path: item for resource in resources for path, item in _paths(resource, 3)},
        "components": {"schemas": schemas},
    }


def _swagger(resources: Iterable[Resource]) -> dict[str, Any]:
    definitions = {}
    for kind in _reachable([METADATA, *(name for resource in resources if (name := schema.type_name(resource)))]):
        definitions[public_name(kind)] = _type(kind, "#/definitions/")
    for resource in resources:
        if resource.custom is not None:
            definitions[custom.public_name(resource)] = {**custom.version_2(resource), GVK: [gvk(resource)]}
        else:
            entry = definitions[public_name(str(schema.type_name(resource)))]
            entry[GVK] = [*entry.get(GVK, ()), gvk(resource)]
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": {path: item for resource in resources for path, item in _paths(resource, 2)},
        "definitions": definitions,
    }


def gvk(resource: Resource) -> dict[str, str]:
    """A kind as the documents name it."""
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


def public_name(kind: str) -> str:
    """The name that a type has in the real documents: io.k8s.api.core.v1.Pod."""
    module, _, name = kind.partition(".")
    group, _, version = module.partition("_")
    package = _PACKAGES.get(group, f"io.k8s.api.{group}")
    return f"{package}.{version}.{name}"


def _reachable(roots: Iterable[str]) -> list[str]:
    """All types that these lead to."""
    found: dict[str, None] = {}
    pending = list(roots)
    while pending:
        kind = pending.pop()
        if kind not in found:
            found[kind] = None
            for below in schema.types()[kind].values():
                bare = below.lstrip("[]").rstrip("!")
                if bare in schema.types():
                    pending.append(bare)
    return sorted(found)


def _type(kind: str, prefix: str) -> dict[str, Any]:
    fields = schema.types()[kind]
    properties = {name: _field(kind, name, below, prefix) for name, below in fields.items()}
    required = [name for name, below in fields.items() if below.endswith("!")]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }


def _field(kind: str, name: str, below: str, prefix: str) -> dict[str, Any]:
    entry = _value(below.rstrip("!"), prefix, name)
    short, key = kind.rpartition(".")[2], merge_key(kind, name)
    strategies = (["merge"] if key is not None else []) + (["retainKeys"] if (short, name) in RETAIN else [])
    if strategies:
        entry["x-kubernetes-patch-strategy"] = ",".join(strategies)
    if key:
        entry["x-kubernetes-patch-merge-key"] = key
    return entry


def _value(kind: str, prefix: str, name: str) -> dict[str, Any]:
    if kind.startswith("[]"):
        return {"type": "array", "items": _value(kind[2:], prefix, name)}
    if kind in schema.types():
        reference = {"$ref": prefix + public_name(kind)}
        return {"allOf": [reference]} if prefix.startswith("#/components") else reference
    if kind == "int-or-string":
        return {"type": "string", "format": "int-or-string"}
    if kind == "quantity":
        return {"type": "string"}
    if kind == "int" and name in schema.WIDE:
        return {"type": "integer", "format": "int64"}
    return dict(_PLAIN[kind])


def _paths(resource: Resource, version: int) -> list[tuple[str, dict[str, Any]]]:
    """The paths of a kind, with the operations that tell of it."""
    base = f"{resource.prefix}/{'namespaces/{namespace}/' if resource.namespaced else ''}{resource.plural}"
    plain = {"type": "string"}
    parameters = [{"name": name, "in": "query", **({"schema": plain} if version == 3 else plain)} for name in _QUERY]

    def operation(action: str) -> dict[str, Any]:
        return {
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            GVK: gvk(resource),
        }

    collection = {"get": operation("list"), "post": operation("post")}
    one = {"get": operation("get"), "put": operation("put"), "patch": operation("patch")}
    return [(base, collection), (f"{base}/{{name}}", one)]
