"""The functions that Kubernetes adds to CEL's own for rules.

Stands for k8s.io/apiserver/pkg/cel/library (lists, regex, urls, ip, cidr, quantity) and cel-go's string extension. Left
out: url(), ip(), cidr(), quantity(), format() and semver(), which give objects with methods of their own.

What belongs here: functions of plain values; what they raise breaks the rule. What does not: rules
(`labs.cluster.extensions.rules`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from labs.cluster import quantities


def _at(text: str, index: int) -> str:
    """One character; "" behind the last."""
    if not 0 <= index <= len(text):
        raise ValueError(f"index out of range: {index}")
    return text[index : index + 1]


def _index_of(value: Any, wanted: Any, start: int = 0) -> int:
    """Of a part of a text, or an entry of a list; -1 for none."""
    if isinstance(value, str):
        return value.find(wanted, start)
    return next((index for index, entry in enumerate(value) if entry == wanted), -1)


def _last_index_of(value: Any, wanted: Any) -> int:
    if isinstance(value, str):
        return value.rfind(wanted)
    return max((index for index, entry in enumerate(value) if entry == wanted), default=-1)


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if not separator:
        return list(text) if limit < 0 else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _substring(text: str, start: int, end: int | None = None) -> str:
    end = len(text) if end is None else end
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"invalid substring range. start: {start}, end: {end}")
    return text[start:end]


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in re.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


def _is_sorted(values: list[Any]) -> bool:
    return all(first <= second for first, second in pairwise(values))


def _is_url(text: str) -> bool:
    """An absolute path, or a URL with a scheme (Go's url.ParseRequestURI)."""
    return re.match(r"/|[a-zA-Z][a-zA-Z0-9+.-]*:", text) is not None and " " not in text


def _is(read: Callable[[str], Any]) -> Callable[[str], bool]:
    """Whether something can be read so."""

    def test(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return True

    return test


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "charAt": _at,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "join": lambda texts, separator="": separator.join(texts),
    "lowerAscii": lambda text: re.sub("[A-Z]+", lambda match: match[0].lower(), text),
    "upperAscii": lambda text: re.sub("[a-z]+", lambda match: match[0].upper(), text),
    "replace": lambda text, old, new, limit=-1: text.replace(old, new, limit),
    "split": _split,
    "substring": _substring,
    "trim": lambda text: text.strip(),
    "find": _find,
    "findAll": _find_all,
    "isSorted": _is_sorted,
    "sum": lambda values: sum(values),
    "min": lambda *values: min(values[0] if isinstance(values[0], list) else values),
    "max": lambda *values: max(values[0] if isinstance(values[0], list) else values),
    "isURL": _is_url,
    "isIP": _is(ipaddress.ip_address),
    "isCIDR": _is(ipaddress.ip_network),
    "isQuantity": quantities.is_quantity,
}
