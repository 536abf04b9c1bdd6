"""What is wrong with a custom object, by the schema of its version, in the API's own words.

Stands for k8s.io/apiextensions-apiserver/pkg/apiserver/validation and schema/listtype, and for the messages of
k8s.io/kube-openapi/pkg/validation/errors. The library jsonschema does the checking: an openAPIV3Schema is JSON Schema
Draft 4 with a few words of its own. Left out: formats other than those in `FORMATS`, which the real one checks too;
patterns that Go knows and Python does not; of the alternatives of anyOf and oneOf, whose mistakes are told is a guess.

What belongs here: one object against its schema. What does not: rules that compare fields
(`labs.cluster.extensions.rules`).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from labs.cluster.fielderrors import FieldError, GoText, duplicate, invalid, required, too_long, too_many, unsupported
from labs.cluster.resources import Object

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

INT_OR_STRING = "x-kubernetes-int-or-string"
LIST_TYPE, LIST_KEYS = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"
_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
FORMATS: dict[str, Callable[[Any], Any]] = {
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "cidr": lambda text: ipaddress.ip_network(text, strict=False),
    "uuid": uuid.UUID,
    "byte": lambda text: base64.b64decode(text, validate=True),
    "date": datetime.date.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
}


def mistakes(item: Object, schema: Object) -> list[FieldError]:
    """What is wrong with an object, in the order of its fields."""
    found = [one for error in _validator(schema).iter_errors(item) for one in _told(error)]
    return found or list(_duplicates(item, schema, ""))


def type_of(value: Any) -> str:
    """The type of a JSON value as OpenAPI names it."""
    return _TYPES.get(type(value), "null")


def _validator(schema: Object) -> Any:
    # A quarter of a second, for which a cluster without custom objects need not wait.
    import jsonschema

    def of_type(validator: Any, kind: str, value: Any, below: Object) -> Iterable[ValidationError]:
        if value is not None or not below.get("nullable"):
            yield from jsonschema.Draft4Validator.VALIDATORS["type"](validator, kind, value, below)

    def of_enum(validator: Any, known: Any, value: Any, below: Object) -> Iterable[ValidationError]:
        if value is not None or not below.get("nullable"):
            yield from jsonschema.Draft4Validator.VALIDATORS["enum"](validator, known, value, below)

    def int_or_string(_: Any, wanted: bool, value: Any, below: Object) -> Iterable[ValidationError]:
        if wanted and type(value) not in (int, str) and not (value is None and below.get("nullable")):
            yield jsonschema.ValidationError("")

    def of_pattern(validator: Any, pattern: str, value: Any, below: Object) -> Iterable[ValidationError]:
        # Of a text that is too long or too short, only that is told.
        if isinstance(value, str) and not below.get("minLength", 0) <= len(value) <= below.get("maxLength", len(value)):
            return
        with contextlib.suppress(re.error):
            yield from jsonschema.Draft4Validator.VALIDATORS["pattern"](validator, pattern, value, below)

    formats = jsonschema.FormatChecker(())
    for name, read in FORMATS.items():
        formats.checks(name, ValueError)(lambda value, read=read: not isinstance(value, str) or read(value) is not None)
    numbers = jsonschema.Draft4Validator.TYPE_CHECKER.redefine("integer", _is_integer)
    words = {"type": of_type, "enum": of_enum, "pattern": of_pattern, INT_OR_STRING: int_or_string}
    extend: Any = jsonschema.validators.extend
    kind = extend(jsonschema.Draft4Validator, words, type_checker=numbers)
    return kind(schema, format_checker=formats)


def _is_integer(_: Any, value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _told(error: ValidationError) -> Iterable[FieldError]:
    """What the API says of one mistake that the library found."""
    limit: Any = error.validator_value
    value: Any = error.instance
    field = _path(error.absolute_path)
    here = f"{field} in body"
    match error.validator:
        case "required":
            # The library has one error for each missing field, and does not say which but in words.
            missing = [name for name in limit if error.message.startswith(f"{name!r} ")]
            yield from (required(f"{field}.{name}" if field else name) for name in missing)
        case "type" | "format":
            found = type_of(value) if error.validator == "type" else value
            yield FieldError(
                "FieldValueTypeInvalid",
                field,
                f"Invalid value: {json.dumps(found)}: {here} must be of type {limit}: {json.dumps(found)}",
            )
        case "x-kubernetes-int-or-string":
            found = type_of(value)
            words = f"Invalid value: {json.dumps(found)}: {here} must be of type integer,string: {json.dumps(found)}"
            yield FieldError("FieldValueTypeInvalid", field, words)
        case "enum":
            yield unsupported(field, value, (one if isinstance(one, str) else json.dumps(one) for one in limit))
        case "maxLength":
            yield too_long(field, limit)
        case "maxItems" | "maxProperties":
            yield too_many(field, len(value), limit)
        case "anyOf" | "oneOf" | "allOf" | "not":
            yield from _of_alternatives(error, field)
        case _:
            yield invalid(field, _shown(value), f"{here} should {_wanted(error)}")


def _wanted(error: ValidationError) -> str:
    limit, schema = error.validator_value, error.schema
    assert isinstance(schema, dict)
    match error.validator:
        case "pattern":
            return f"match '{limit}'"
        case "minimum":
            return f"be greater than {'' if schema.get('exclusiveMinimum') else 'or equal to '}{limit}"
        case "maximum":
            return f"be less than {'' if schema.get('exclusiveMaximum') else 'or equal to '}{limit}"
        case "minLength":
            return f"be at least {limit} chars long"
        case "minItems":
            return f"have at least {limit} items"
        case "minProperties":
            return f"have at least {limit} properties"
        case "multipleOf":
            return f"be a multiple of {limit}"
    return f"be right: {error.message}"


def _of_alternatives(error: ValidationError, field: str) -> Iterable[FieldError]:
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    found = "Found none valid"
    if not branches and error.validator == "oneOf":
        schemas: Any = error.validator_value
        valid = sum(_validator(schema).is_valid(error.instance) for schema in schemas)
        found = f"Found {valid} valid alternatives"
    words = {
        "anyOf": "must validate at least one schema (anyOf)",
        "oneOf": f"must validate one and only one schema (oneOf). {found}",
        "allOf": "must validate all the schemas (allOf)",
        "not": "must not validate the schema (not)",
    }
    yield invalid(field, "", f'"{field}" {words[str(error.validator)]}')
    for inner in min(branches.values(), key=len, default=[]):
        yield from _told(inner)


def _duplicates(value: Any, schema: Object, field: str) -> Iterable[FieldError]:
    """Entries of sets and maps that are there twice."""
    if isinstance(value, dict):
        for name, entry in value.items():
            below = (schema.get("properties") or {}).get(name, schema.get("additionalProperties"))
            if isinstance(below, dict):
                yield from _duplicates(entry, below, f"{field}.{name}" if field else name)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        seen = set()
        for number, entry in enumerate(value):
            identity = _identity(entry, schema)
            text = json.dumps(identity, sort_keys=True)
            if identity is not None and text in seen:
                yield duplicate(f"{field}[{number}]", _shown(identity))
            seen.add(text)
            yield from _duplicates(entry, schema["items"], f"{field}[{number}]")


def _identity(entry: Any, schema: Object) -> Any:
    """By what an entry of a list is told apart from the others; None when nothing forbids equal ones."""
    match schema.get(LIST_TYPE):
        case "set":
            return entry
        case "map" if isinstance(entry, dict):
            return {key: entry[key] for key in schema.get(LIST_KEYS) or () if key in entry}
    return None


def _shown(value: Any) -> Any:
    """A value as the API shows it in an error."""
    if isinstance(value, dict):
        return GoText(
            f"map[string]interface {{}}{{{', '.join(f'{json.dumps(key)}:{_go(value[key])}' for key in value)}}}"
        )
    return GoText(_go(value)) if isinstance(value, list) else value


def _go(value: Any) -> str:
    """A JSON value as Go's `%#v` prints it."""
    shown = _shown(value) if isinstance(value, dict) else None
    if isinstance(shown, GoText):
        return shown.text
    if isinstance(value, list):
        return f"[]interface {{}}{{{', '.join(map(_go, value))}}}"
    return json.dumps(value)


def _path(parts: Iterable[Any]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
