"""Checks that all kinds share: one of a few words, an IP address, labels."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from labs.cluster import names
from labs.cluster.fielderrors import (
    FieldError,
    invalid,
    required,
    unsupported,
)
from labs.cluster.resources import Object

Errors = Iterator[FieldError]


def one_of(value: Any, field: str, known: tuple[str, ...]) -> Errors:
    if not value:
        yield required(field)
    elif value not in known:
        yield unsupported(field, value, known)


def ip(text: str, field: str) -> Errors:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        yield invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")


def labels(found: Object | None, field: str) -> Errors:
    """What is wrong with labels."""
    for key, value in (found or {}).items():
        yield from (invalid(field, key, text) for text in names.qualified_name(key))
        yield from (invalid(field, value, text) for text in names.label_value(value or ""))
