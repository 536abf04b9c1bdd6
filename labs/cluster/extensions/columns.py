"""The columns that a definition adds to `kubectl get` (additionalPrinterColumns).

Stands for k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor. The library python-jsonpath
evaluates the paths, which are JSONPath with two liberties: no "$" in front, and names with a backslash before a dot.

What belongs here: from an object to cells. What does not: tables as such (`labs.cluster.api.tables`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

from labs.cluster.resources import Object

AGE: Object = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
_NAME = re.compile(r"\.((?:[^.\[\]\\]|\\.)+)")


def shown(columns: tuple[Object, ...]) -> tuple[Object, ...]:
    """The columns of a kind whose definition names these: its age, if none are named."""
    return columns or (AGE,)


def cell(item: Object, column: Object, ago: Callable[[str], str]) -> Any:
    """What a column shows of an object: its first match, None without one. `ago` says how long ago a moment was."""
    found = next(iter(_compiled(column["jsonPath"]).findall(item)), None)
    if found is None:
        return None
    match column["type"]:
        case "string":
            return found if isinstance(found, str) else json.dumps(found, separators=(",", ":"))
        case "date":
            return _date(found, ago)
        case "integer":
            return int(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
        case "number":
            return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    return found if isinstance(found, bool) else None


def _date(found: Any, ago: Callable[[str], str]) -> str:
    try:
        return ago(str(found))
    except ValueError:
        return "<invalid>"


@functools.lru_cache(maxsize=1000)
def _compiled(path: str) -> Any:
    # A tenth of a second, for which a cluster without custom objects need not wait.
    import jsonpath

    def name(match: re.Match[str]) -> str:
        plain = re.sub(r"\\(.)", r"\1", match[1])
        return f"[{json.dumps(plain)}]"

    # Inside of a filter (@.type) names are left as they are.
    parts = re.split(r"(\[[^\]]*\])", path)
    return jsonpath.compile("$" + "".join(part if part.startswith("[") else _NAME.sub(name, part) for part in parts))
