"""Rules of a schema (x-kubernetes-validations): what must hold between the fields of a custom object.

Stands for k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel. The library common-expression-language evaluates
them, with the functions that Kubernetes adds (`labs.cluster.extensions.functions`). Left out: `messageExpression`, the
costs of rules, and functions that are not there: a rule that needs one always holds here.

What belongs here: rules and the values they are about. What does not: the rest of a schema
(`labs.cluster.extensions.values`).
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from labs.cluster.extensions.functions import FUNCTIONS
from labs.cluster.extensions.values import LIST_KEYS, LIST_TYPE, type_of
from labs.cluster.fielderrors import FieldError
from labs.cluster.resources import Object

RULES = "x-kubernetes-validations"
ABSENT = object()
REASONS = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
_WORDS = dict(zip(REASONS, ("Invalid value", "Forbidden", "Required value", "Duplicate value"), strict=True))
# A field of such a name is written __name__ in rules (CEL's reserved words).
RESERVED = frozenset(
    {
        *("as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop"),
        *("namespace", "null", "package", "return", "true", "var", "void", "while"),
    }
)
ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}

log = logging.getLogger(__name__)


def mistakes(item: Object, schema: Object, old: Object | None = None) -> Iterator[FieldError]:
    """Which rules an object breaks that has no other mistakes; `old`: what it is to replace."""
    yield from _broken(item, ABSENT if old is None else old, schema, "")


def _broken(value: Any, old: Any, schema: Object, path: str) -> Iterator[FieldError]:
    if value is None:
        return
    for rule in schema.get(RULES) or ():
        words = _complaint(rule, value, old, schema)
        if words is not None:
            reason = rule.get("reason") if rule.get("reason") in _WORDS else REASONS[0]
            shown = f'"{type_of(value)}": ' if reason in ("FieldValueInvalid", "FieldValueDuplicate") else ""
            field = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
            yield FieldError(reason, field or "<nil>", f"{_WORDS[reason]}: {shown}{words}")
    if isinstance(value, dict):
        for name, entry in value.items():
            below = (schema.get("properties") or {}).get(name, schema.get("additionalProperties"))
            if isinstance(below, dict):
                before = old.get(name, ABSENT) if isinstance(old, dict) else ABSENT
                yield from _broken(entry, before, below, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, entry in enumerate(value):
            before = _counterpart(entry, old, schema)
            yield from _broken(entry, before, schema["items"], f"{path}[{number}]")


def _counterpart(entry: Any, old: Any, schema: Object) -> Any:
    """What an entry of a list was before, where entries can be told apart."""
    if schema.get(LIST_TYPE) == "map" and isinstance(old, list) and isinstance(entry, dict):
        keys = schema.get(LIST_KEYS) or ()
        return next((one for one in old if all(one.get(key) == entry.get(key) for key in keys)), ABSENT)
    return ABSENT


def _complaint(rule: Object, value: Any, old: Any, schema: Object) -> str | None:
    """What is said of a value that breaks a rule; None of one that keeps it."""
    expression = rule["rule"].strip()
    compares = re.search(r"\boldSelf\b", expression) is not None
    if compares and old is ABSENT:
        return None  # a rule for changes only
    words = rule.get("message") or f"failed rule: {expression}"
    variables = {"self": _escaped(value, schema), **({"oldSelf": _escaped(old, schema)} if compares else {})}
    try:
        program, used = _program(expression)
        context = _context(variables, used)
        return None if program.execute(context) is not False else words
    except (KeyError, IndexError) as error:
        what = f"no such key: {error.args[0]}" if isinstance(error, KeyError) else str(error)
        return f"{what} evaluating rule: {rule.get('message') or expression}"
    except RuntimeError as error:
        if not str(error).startswith("Undefined"):
            return f"{error} evaluating rule: {rule.get('message') or expression}"
        log.info("rule %r can't be tried: %s", expression, error)
        return None
    except (ValueError, TypeError) as error:
        log.info("rule %r can't be tried: %s", expression, error)
        return None


def _escaped(value: Any, schema: Object) -> Any:
    """A value whose fields are named as rules name them; the keys of maps stay as they are."""
    if isinstance(value, list):
        inside = schema.get("items") or {}
        return [_escaped(entry, inside) for entry in value]
    if not isinstance(value, dict):
        return float(value) if schema.get("type") == "number" and isinstance(value, int) else value
    properties, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    return {
        _name(name) if name in properties else name: _escaped(
            entry, properties.get(name) or (rest if isinstance(rest, dict) else {})
        )
        for name, entry in value.items()
    }


def _name(field: str) -> str:
    if field in RESERVED:
        return f"__{field}__"
    for text, escape in ESCAPES.items():
        field = field.replace(text, escape)
    return field


@functools.lru_cache(maxsize=1000)
def _program(expression: str) -> tuple[Any, dict[str, Callable[..., Any]]]:
    """A rule that can be evaluated, and the functions beyond CEL's own that it uses."""
    # Half a second, for which a cluster without custom objects need not wait.
    import cel

    program = cel.compile(expression)
    return program, {name: FUNCTIONS[name] for name in program.functions() if name in FUNCTIONS}


def _context(variables: Object, used: dict[str, Callable[..., Any]]) -> Any:
    import cel

    return cel.Context(variables, used)
