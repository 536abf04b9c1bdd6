"""JSON Merge Patch (RFC 7386): a document, with what a patch names changed, and what it names null taken away.

What belongs here: that one function, which the API and the lessons' faults share. What does not: other kinds of patches
(`labs.cluster.api.patches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(target: Any, patch: Any) -> Any:
    """Section 2 of the RFC. `target` stays as it is; what is unchanged is shared with the result."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result
