"""Names, labels, annotations, owners, finalizers (k8s.io/apimachinery/pkg/api/validation/objectmeta.go)."""

from __future__ import annotations

import json

from labs.cluster import names
from labs.cluster.fielderrors import (
    FieldError,
    forbidden,
    invalid,
    required,
)
from labs.cluster.resources import Object, Resource
from labs.cluster.validation.words import Errors, labels

ANNOTATION_BYTES = 256 * 1024
# Names that other rules hold for, or that controllers make.
FREE_NAMES = frozenset({"Event", "CustomResourceDefinition"})


def metadata(resource: Resource, metadata: Object) -> Errors:
    name, stem = metadata.get("name"), metadata.get("generateName")
    special = {"Service": names.dns1035_label, "Namespace": names.dns1123_label} if resource.custom is None else {}
    rule = special.get(resource.kind, names.dns1123_subdomain)
    if stem:
        # What comes behind it makes a hyphen at the end legal.
        yield from (invalid("metadata.generateName", stem, text) for text in rule(stem.rstrip("-") or stem))
    if not name:
        yield required("metadata.name", "name or generateName is required")
    elif resource.kind not in FREE_NAMES or resource.custom is not None:
        yield from (invalid("metadata.name", name, text) for text in rule(name))
    if not resource.namespaced and metadata.get("namespace"):
        yield forbidden("metadata.namespace", "not allowed on this type")
    yield from labels(metadata.get("labels"), "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        yield from (invalid("metadata.annotations", key, text) for text in names.qualified_name(key.lower()))
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATION_BYTES:
        yield FieldError(
            "FieldValueTooLong", "metadata.annotations", f"Too long: must have at most {ANNOTATION_BYTES} bytes"
        )
    for index, owner in enumerate(metadata.get("ownerReferences") or ()):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield invalid(f"metadata.ownerReferences[{index}].{field}", "", f"{field} must not be empty")
    for finalizer in metadata.get("finalizers") or ():
        yield from (invalid("metadata.finalizers", finalizer, text) for text in names.qualified_name(finalizer))


def update_metadata(item: Object, old: Object) -> Errors:
    if "deletionTimestamp" in old["metadata"]:
        before = set(old["metadata"].get("finalizers") or ())
        added = [name for name in item["metadata"].get("finalizers") or () if name not in before]
        if added:
            shown = f"[]string{{{', '.join(map(json.dumps, added))}}}"
            detail = f"no new finalizers can be added if the object is being deleted, found new finalizers {shown}"
            yield forbidden("metadata.finalizers", detail)
