"""Amounts of processors and memory as people write them: 100m, 64Mi, 2, 1e3.

Stands for k8s.io/apimachinery/pkg/api/resource (Quantity) and for the sums of a pod's requests
(k8s.io/kubernetes/pkg/api/v1/resource, PodRequests). Left out: the canonical form, sidecars among init containers.
"""

from __future__ import annotations

import re
from fractions import Fraction

from labs.cluster.resources import Object

_NUMBER = re.compile(r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?P<suffix>[A-Za-z]*|[eE][-+]?[0-9]+)")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}

# What the API says of a text that is none.
WRONG = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def is_quantity(value: str | int | float) -> bool:
    """Whether `parse` can read it."""
    try:
        parse(value)
    except ValueError:
        return False
    return True


def parse(quantity: str | int | float) -> Fraction:
    """A quantity as a number, in its base unit (processors, bytes, pieces). Raises ValueError."""
    match = _NUMBER.fullmatch(str(quantity).strip())
    if match is None:
        raise ValueError(WRONG)
    number, suffix = Fraction(match["number"]), match["suffix"]
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    if suffix in _DECIMAL:
        return _shift(number, _DECIMAL[suffix])
    if suffix[:1] in ("e", "E") and suffix[1:].lstrip("+-").isdecimal():
        return _shift(number, int(suffix[1:]))
    raise ValueError(WRONG)


def _shift(number: Fraction, places: int) -> Fraction:
    return number * Fraction(10**places) if places >= 0 else number / Fraction(10**-places)


def requests(pod: Object) -> dict[str, Fraction]:
    """What a pod asks of a node, by resource: its containers together, or the greediest init container."""
    total: dict[str, Fraction] = {}
    for container in pod["spec"]["containers"]:
        for name, amount in _requests(container).items():
            total[name] = total.get(name, Fraction()) + amount
    for container in pod["spec"].get("initContainers") or ():
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, Fraction()), amount)
    for name, quantity in (pod["spec"].get("overhead") or {}).items():
        total[name] = total.get(name, Fraction()) + parse(quantity)
    return total


def _requests(container: Object) -> dict[str, Fraction]:
    return {name: parse(text) for name, text in ((container.get("resources") or {}).get("requests") or {}).items()}
