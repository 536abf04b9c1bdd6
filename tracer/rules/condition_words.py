"""A condition in words, for where no rule's own text stands beside it: the words of nft, whoever wrote the rule.

What belongs here: words for one condition. What does not: sentences about rules (`tracer.rule_sentences`).
"""

from __future__ import annotations

from tracer.rules.model import Condition, Interval, Match, Unknown, Value, address_text, prefixes

_LAST_IPV4 = (1 << 32) - 1


def condition_words(condition: Condition) -> str:
    """A condition in words of nft, or its own where it is unknown."""
    if isinstance(condition, Unknown):
        return condition.text
    if not isinstance(condition, Match):
        return type(condition).__name__.lower()
    sign = "!= " if condition.negated else ""
    if condition.set is not None:
        return f"{' . '.join(condition.keys)} {sign}@{condition.set}"
    words = [_value_words(condition.keys, value) for value in condition.values]
    mask = "" if condition.mask is None else f" & {condition.mask:#x}"
    return f"{' . '.join(condition.keys)}{mask} {sign}{', '.join(words)}"


def _value_words(keys: tuple[str, ...], value: Value) -> str:
    if isinstance(value, Interval):
        return _interval_words(keys[0], value)
    if isinstance(value, tuple):
        return " . ".join(_value_words((key,), part) for key, part in zip(keys, value, strict=False))
    if isinstance(value, int) and "mark" in keys[0]:
        return f"{value:#x}"
    return str(value)


def _interval_words(key: str, interval: Interval) -> str:
    low, high = interval
    if not key.endswith("addr"):
        return str(low) if low == high else f"{low}-{high}"
    family = "ip6" if "ip6" in key or high > _LAST_IPV4 else "ip"
    if low == high:
        return address_text(low, family)
    found = prefixes(interval, family)
    return found[0] if len(found) == 1 else f"{address_text(low, family)}-{address_text(high, family)}"
