"""The downward API: what a pod is told of itself, in its environment and in volumes.

Stands for pkg/fieldpath and for the resource half of pkg/api/v1/resource (ExtractContainerResourceValue). What does not
belong here: where the texts go (`labs.cluster.podenv`, `labs.cluster.volumecontents`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from labs.cluster.quantities import parse
from labs.cluster.resources import Object

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def field_text(pod: Object, path: str, fields: Mapping[str, str]) -> str:
    """What a fieldPath gives; "" for a field that is not set. `fields`: those that are not in the pod itself."""
    if path in fields:
        return fields[path]
    found = _SUBSCRIPT.fullmatch(path)
    if found is not None:
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return "\n".join(f"{key}={_quoted(text)}" for key, text in sorted(value.items()))
    return str(value or "")


def _quoted(text: str) -> str:
    """A text as Go's %q writes it, for the characters that labels and most annotations consist of."""
    return json.dumps(text, ensure_ascii=False)


def resource_text(pod: Object, container: str, reference: Object, allocatable: Mapping[str, str]) -> str:
    """What a resourceFieldRef gives: a whole number of its divisor, rounded up.

    `container`: whose, unless it says; `allocatable`: what the node has, which is the limit of those that set none.
    """
    name = reference.get("containerName") or container
    everyone = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())]
    entry: Object = next((one for one in everyone if one["name"] == name), {})
    kind, _, resource = reference["resource"].partition(".")
    given = ((entry.get("resources") or {}).get(kind) or {}).get(resource)
    if given is None and kind == "limits":
        given = allocatable.get(resource)
    amount = parse(given) if given is not None else Fraction()
    divisor = parse(reference.get("divisor") or "1") or Fraction(1)
    if resource == "cpu":  # divisors of processors are counted in thousandths
        divisor = Fraction(math.ceil(divisor * 1000), 1000)
    return str(math.ceil(amount / divisor))
