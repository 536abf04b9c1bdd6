"""What is wrong with a CustomResourceDefinition, in the API's own words.

Stands for k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation and pkg/apiserver/schema (structural
schemas). Left out: whether defaults fit their schemas, whether patterns and rules can be read, and x-kubernetes-…
words that contradict each other.

What belongs here: right and wrong. What does not: defaults (`labs.cluster.extensions.definitions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from labs.cluster import names
from labs.cluster.extensions.definitions import is_established, storage_version
from labs.cluster.extensions.rules import RULES
from labs.cluster.extensions.structural import EMBEDDED, PRESERVE
from labs.cluster.extensions.values import INT_OR_STRING, LIST_KEYS, LIST_TYPE
from labs.cluster.fielderrors import FieldError, GoText, duplicate, forbidden, invalid, required, unsupported
from labs.cluster.resources import Object

Errors = Iterator[FieldError]

APPROVED = "api-approved.kubernetes.io"
PROTECTED = re.compile(r"(.+\.)?(k8s|kubernetes)\.io")
TYPES = ("array", "boolean", "integer", "number", "object", "string")
COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
NOT_SUPPORTED = ("id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref")
JUNCTORS = ("allOf", "anyOf", "oneOf")
MAP_TYPE = "x-kubernetes-map-type"
FIELD_TYPES: dict[tuple[type, ...], tuple[str, ...]] = {
    (str,): ("type", "format", "title", "description", "pattern", LIST_TYPE, MAP_TYPE),
    (bool,): ("nullable", "uniqueItems", "exclusiveMaximum", "exclusiveMinimum", INT_OR_STRING, PRESERVE, EMBEDDED),
    (int,): ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    (float, int): ("minimum", "maximum", "multipleOf"),
    (list,): ("required", "enum", *JUNCTORS, LIST_KEYS, RULES),
    (dict,): ("properties", "not"),
    (dict, list): ("items",),
    (dict, bool): ("additionalProperties",),
}
ENTRY_TYPES = {"required": str, LIST_KEYS: str, RULES: dict, **dict.fromkeys(JUNCTORS, dict)}


def definition(item: Object) -> Errors:
    """What is wrong with a definition, after its defaults."""
    spec = item["spec"]
    wanted, group = spec["names"], spec.get("group", "")
    expected = f"{wanted.get('plural', '')}.{group}"
    if item["metadata"].get("name") != expected:
        yield invalid("metadata.name", item["metadata"].get("name"), 'must be spec.names.plural+"."+spec.group')
    if PROTECTED.fullmatch(group) and APPROVED not in (item["metadata"].get("annotations") or {}):
        words = f'protected groups must have approval annotation "{APPROVED}", see '
        yield required(
            f"metadata.annotations[{APPROVED}]", f"{words}https://github.com/kubernetes/enhancements/pull/1111"
        )
    if not group:
        yield required("spec.group")
    elif "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")
    else:
        yield from (invalid("spec.group", group, text) for text in names.dns1123_subdomain(group))
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        if spec.get("scope"):
            yield unsupported("spec.scope", spec["scope"], ("Cluster", "Namespaced"))
        else:
            yield required("spec.scope")
    yield from _versions(spec)
    yield from _names(wanted)
    strategy = spec["conversion"]["strategy"]
    if strategy == "Webhook":
        yield forbidden("spec.conversion.strategy", "webhooks are not called here; use None")
    elif strategy != "None":
        yield unsupported("spec.conversion.strategy", strategy, ("None", "Webhook"))
    if spec.get("preserveUnknownFields"):
        words = "set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        yield invalid("spec.preserveUnknownFields", True, f"cannot set to true, {words}")


def update(item: Object, old: Object) -> Errors:
    """What can't become of a definition."""
    fixed = [("spec.group", item["spec"].get("group"), old["spec"]["group"])]
    fixed.append(("spec.names.plural", item["spec"]["names"].get("plural"), old["spec"]["names"]["plural"]))
    if is_established(old):
        fixed.append(("spec.scope", item["spec"].get("scope"), old["spec"]["scope"]))
        fixed.append(("spec.names.kind", item["spec"]["names"].get("kind"), old["spec"]["names"]["kind"]))
    for field, new, before in fixed:
        if new != before:
            yield invalid(field, new, "field is immutable")
    known = [version["name"] for version in item["spec"]["versions"]]
    for number, name in enumerate(old["status"].get("storedVersions") or ()):
        if name not in known:
            yield invalid(f"status.storedVersions[{number}]", name, "must appear in spec.versions")


def status(item: Object) -> Errors:
    """What is wrong with the status that a client gives a definition, with which others work on."""
    stored, path = item["status"].get("storedVersions") or [], "status.storedVersions"
    if not stored:
        yield invalid(path, GoText("[]string(nil)"), "must have at least one stored version")
    elif storage_version(item) not in stored:
        yield invalid(path, stored, f"must have the storage version {storage_version(item)}")


def _names(wanted: Object) -> Errors:
    for field in ("plural", "singular", "kind", "listKind"):
        text, path = wanted.get(field), f"spec.names.{field}"
        if not text:
            yield required(path)
        elif field in ("kind", "listKind"):
            mistakes = ",".join(names.dns1035_label(text.lower()))
            if mistakes:
                yield invalid(path, text, f"may have mixed case, but should otherwise match: {mistakes}")
        else:
            mistakes = ",".join(names.dns1035_label(text))
            if mistakes:
                yield invalid(path, text, mistakes)
    for field in ("shortNames", "categories"):
        for number, text in enumerate(wanted.get(field) or ()):
            mistakes = ",".join(names.dns1035_label(text))
            if mistakes:
                yield invalid(f"spec.names.{field}[{number}]", text, mistakes)
    if wanted.get("kind") and wanted.get("kind") == wanted.get("listKind"):
        yield invalid("spec.names.listKind", wanted["listKind"], "kind and listKind may not be the same")


def _versions(spec: Object) -> Errors:
    versions = spec["versions"]
    if sum(bool(version["storage"]) for version in versions) != 1:
        yield invalid("spec.versions", versions, "must have exactly one version marked as storage version")
    if len({version["name"] for version in versions}) != len(versions):
        yield invalid("spec.versions", versions, "must contain unique version names")
    schemas = [(version.get("schema") or {}).get("openAPIV3Schema") for version in versions]
    same = all(schema == schemas[0] for schema in schemas)
    for number, (version, schema) in enumerate(zip(versions, schemas, strict=True)):
        path = f"spec.versions[{number}]"
        yield from (invalid(f"{path}.name", version["name"], text) for text in names.dns1035_label(version["name"]))
        if schema is None:
            yield required(f"{path}.schema.openAPIV3Schema", "schemas are required")
        elif not same or number == 0:
            # Where all versions have the same one, the real API takes it out of them before it looks.
            yield from _root("spec.validation.openAPIV3Schema" if same else f"{path}.schema.openAPIV3Schema", schema)
        for place, column in enumerate(version.get("additionalPrinterColumns") or ()):
            yield from _column(f"{path}.additionalPrinterColumns[{place}]", column)
        yield from _subresources(f"{path}.subresources", version.get("subresources") or {})


def _column(path: str, column: Object) -> Errors:
    if not column.get("name"):
        yield required(f"{path}.name")
    if column.get("type") not in COLUMN_TYPES:
        words = f"must be one of {','.join(COLUMN_TYPES)}"
        yield invalid(f"{path}.type", column["type"], words) if column.get("type") else required(f"{path}.type", words)
    if not column.get("jsonPath"):
        yield required(f"{path}.JSONPath")
    elif not column["jsonPath"].startswith("."):
        yield invalid(f"{path}.JSONPath", column["jsonPath"], "must be a simple json path starting with .")


def _subresources(path: str, subresources: Object) -> Errors:
    scale = subresources.get("scale")
    if scale is None:
        return
    for field, below in (("specReplicasPath", ".spec"), ("statusReplicasPath", ".status"), ("labelSelectorPath", "")):
        text = scale.get(field)
        if not text and below:
            yield required(f"{path}.scale.{field}")
        elif text and not text.startswith((f"{below}.",) if below else (".spec.", ".status.")):
            where = below or "either .status or .spec"
            yield invalid(f"{path}.scale.{field}", text, f"should be a json path under {where}")


def _root(path: str, schema: Object) -> Errors:
    if not isinstance(schema, dict):
        yield invalid(path, schema, "must be a schema")
        return
    if schema.get("type") and schema["type"] != "object":
        yield invalid(f"{path}.type", schema["type"], "must be object at the root")
    yield from _schema(path, schema, "must not be empty at the root")


def _schema(path: str, schema: Any, untyped: str) -> Errors:
    """A structural schema. `untyped`: what is said when it has no type."""
    if not isinstance(schema, dict):
        yield invalid(path, schema, "must be a schema")
        return
    malformed = [invalid(f"{path}.{field}", value, words) for field, value, words in _malformed(schema)]
    if malformed:
        yield from malformed
        return
    for field in NOT_SUPPORTED:
        if field in schema:
            yield forbidden(f"{path}.{field}", f"{field} is not supported")
    if schema.get("uniqueItems"):
        words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield forbidden(f"{path}.uniqueItems", words)
    if mistake := _pattern_mistake(schema.get("pattern") or ""):
        yield invalid(f"{path}.pattern", schema["pattern"], f"must be a valid regular expression, but isn't: {mistake}")
    kind = schema.get("type")
    if not kind and not schema.get(INT_OR_STRING) and not schema.get(PRESERVE):
        yield required(f"{path}.type", untyped)
    elif kind and kind not in TYPES:
        yield unsupported(f"{path}.type", kind, TYPES)
    if kind == "array" and not isinstance(schema.get("items"), dict):
        yield required(f"{path}.items", "must be specified")
    if schema.get("properties") and isinstance(schema.get("additionalProperties"), dict):
        words = "additionalProperties and properties are mutual exclusive"
        yield forbidden(f"{path}.additionalProperties", words)
    if len(set(schema.get("required") or ())) != len(schema.get("required") or ()):
        yield duplicate(f"{path}.required", schema["required"][-1])
    for name, below in (schema.get("properties") or {}).items():
        yield from _schema(f"{path}.properties[{name}]", below, "must not be empty for specified object fields")
    if isinstance(schema.get("items"), dict):
        yield from _schema(f"{path}.items", schema["items"], "must not be empty for specified array items")
    if isinstance(schema.get("additionalProperties"), dict):
        below = schema["additionalProperties"]
        yield from _schema(f"{path}.additionalProperties", below, "must not be empty for specified object fields")
    yield from _alternatives(path, schema)


def _pattern_mistake(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def _malformed(schema: Object) -> Iterator[tuple[str, Any, str]]:
    """The fields of a schema that are of another type than in JSONSchemaProps, which the real API's decoder refuses."""
    for types, fields in FIELD_TYPES.items():
        for field in fields:
            value = schema.get(field)
            if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
                yield field, value, f"must be of type {types[0].__name__}"
    for field, inside in ENTRY_TYPES.items():
        value = schema.get(field)
        if isinstance(value, list) and not all(isinstance(entry, inside) for entry in value):
            yield field, value, f"must be a list of values of type {inside.__name__}"


def _alternatives(path: str, schema: Object) -> Errors:
    """Inside of junctors there may be conditions, but nothing that says what there is."""
    inside = [(f"{path}.{word}[{n}]", one) for word in JUNCTORS for n, one in enumerate(schema.get(word) or ())]
    if "not" in schema:
        inside.append((f"{path}.not", schema["not"]))
    for place, below in inside:
        for field in ("description", "type", "default", "additionalProperties", "nullable"):
            if isinstance(below, dict) and field in below and not schema.get(INT_OR_STRING):
                yield forbidden(f"{place}.{field}", "must be empty to be structural")
