"""What is wrong with an object, field by field, in the API's words.

Stands for k8s.io/apimachinery/pkg/util/validation/field/errors.go and errors.NewInvalid. Values that the real one
prints as Go would (`%#v`) are printed so here, since that is what learners find when they search for the message.

What belongs here: the form of such errors. What does not: what is right (`labs.cluster.validation`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tracer.errors import K8snetError


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake: the `reason` as machines read it, the field's path, and the words."""

    reason: str
    field: str
    words: str

    def __str__(self) -> str:
        return f"{self.field}: {self.words}"


def required(field: str, detail: str = "") -> FieldError:
    """It must be there."""
    return FieldError("FieldValueRequired", field, _with("Required value", detail))


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """It is malformed."""
    return FieldError("FieldValueInvalid", field, _with(f"Invalid value: {_shown(value)}", detail))


def unsupported(field: str, value: Any, known: Iterable[str]) -> FieldError:
    """It is none of a few words."""
    words = ", ".join(json.dumps(word) for word in known)
    return FieldError("FieldValueNotSupported", field, f"Unsupported value: {_shown(value)}: supported values: {words}")


def duplicate(field: str, value: Any) -> FieldError:
    """It is there twice."""
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {_shown(value)}")


def missing(field: str, value: Any) -> FieldError:
    """It names something that is not there."""
    return FieldError("FieldValueNotFound", field, f"Not found: {_shown(value)}")


def forbidden(field: str, detail: str) -> FieldError:
    """It may not be there, or not change."""
    return FieldError("FieldValueForbidden", field, _with("Forbidden", detail))


def too_long(field: str, limit: int) -> FieldError:
    """It has too many bytes."""
    return FieldError("FieldValueTooLong", field, f"Too long: must have at most {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    """It has too many entries."""
    return FieldError("FieldValueTooMany", field, f"Too many: {count}: must have at most {limit} items")


def _with(words: str, detail: str) -> str:
    return f"{words}: {detail}" if detail else words


@dataclass(frozen=True, slots=True)
class GoText:
    """A value that is already written as Go writes it."""

    text: str


def _shown(value: Any) -> str:
    if isinstance(value, GoText):
        return value.text
    if value is None:
        return '"null"'
    if isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    return go_value(value)


def go_value(value: Any) -> str:
    """A JSON value as Go's `%v` prints its decoded form: map[a:1 b:[x y]]."""
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{go_value(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list):
        return f"[{' '.join(map(go_value, value))}]"
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def go_string_map(value: dict[str, Any] | None) -> str:
    """Labels as Go's `%#v` prints them."""
    if value is None:
        return "map[string]string(nil)"
    pairs = ", ".join(f"{json.dumps(key)}:{json.dumps(str(value[key]))}" for key in sorted(value))
    return f"map[string]string{{{pairs}}}"


def go_label_selector(selector: dict[str, Any] | None) -> str:
    """A label selector as Go's `%#v` prints it."""
    if selector is None:
        return "(*v1.LabelSelector)(nil)"
    expressions = [
        f"v1.LabelSelectorRequirement{{Key:{json.dumps(entry.get('key', ''))}, "
        f"Operator:{json.dumps(entry.get('operator', ''))}, Values:{_go_strings(entry.get('values'))}}}"
        for entry in selector.get("matchExpressions") or ()
    ]
    listed = f"[]v1.LabelSelectorRequirement{{{', '.join(expressions)}}}" if expressions else ""
    return (
        f"v1.LabelSelector{{MatchLabels:{go_string_map(selector.get('matchLabels'))}, "
        f"MatchExpressions:{listed or '[]v1.LabelSelectorRequirement(nil)'}}}"
    )


def _go_strings(values: list[str] | None) -> str:
    return "[]string(nil)" if values is None else f"[]string{{{', '.join(map(json.dumps, values))}}}"


class Invalid(K8snetError):
    """An object can't be stored; `errors` say which fields, `message` says it in one line."""

    def __init__(self, kind: str, name: str, errors: Iterable[FieldError], group: str = "") -> None:
        self.kind, self.name, self.group = kind, name, group
        self.errors = list(dict.fromkeys(errors))
        texts = [str(error) for error in self.errors]
        told = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        what = f"{kind}.{group}" if group else kind
        super().__init__(f'{what} "{name}" is invalid: {told}')
