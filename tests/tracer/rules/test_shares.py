"""The bound by which counts are held against shares: it must let chance be, and must see the mistakes that we know."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.tracer.rules.shares import unlikeliness
from tests.tracer.rules.test_explain_random import MANY, UNLIKELY


def test_what_can_not_be_is_impossible() -> None:
    assert unlikeliness({"a": 1, "b": 299}, {"b": 1.0}) == 0.0
    assert unlikeliness({"a": 1, "b": 299}, {"a": 0.0, "b": 1.0}) == 0.0


def test_what_is_as_told_is_likely() -> None:
    assert unlikeliness({"a": 100, "b": 200}, {"a": 1 / 3, "b": 2 / 3}) == 1.0
    assert unlikeliness({"a": 20}, {"a": 1.0}) == 1.0


def test_chance_does_not_stray_so_far() -> None:
    random = Random(1)
    shares = {"a": 0.05, "b": 0.45, "c": 0.2, "d": 0.3}
    bounds = []
    for _ in range(2_000):
        counts = Counter(random.choices(list(shares), list(shares.values()), k=MANY))
        bounds.append(unlikeliness(counts, shares))
    for limit in (0.1, 0.01, 0.001):
        assert sum(bound <= limit for bound in bounds) <= 2_000 * limit
    assert min(bounds) > UNLIKELY


def test_probabilities_that_are_not_compounded_are_seen() -> None:
    """1/3, then 1/2 of the rest, then the rest, taken for 1/3, 1/2 and 1/6."""
    even = {"a": MANY // 3, "b": MANY // 3, "c": MANY // 3}
    assert unlikeliness(even, {"a": 1 / 3, "b": 1 / 2, "c": 1 / 6}) < UNLIKELY


def test_a_chance_the_wrong_way_round_is_seen() -> None:
    assert unlikeliness({"a": MANY // 4, "b": MANY * 3 // 4}, {"a": 3 / 4, "b": 1 / 4}) < UNLIKELY
