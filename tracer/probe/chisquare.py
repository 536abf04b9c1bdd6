"""Pearson's chi-square test: how likely is it that chance alone spreads flows as unevenly as was observed?

What belongs here: the statistic, and the chi-square distribution's upper tail. What does not: what is compared.

scipy would do the same and takes 100 MB; for whole degrees of freedom the tail is a finite sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Test(NamedTuple):
    """The result of a test. p_value: the chance of a spread at least as uneven, if the expectation holds."""

    statistic: float
    degrees: int
    p_value: float


def test(observed: Sequence[int], expected: Sequence[float]) -> Test:
    """Compare counts with expected counts, each above 0, for two classes or more whose sums are equal.

    Raises ValueError for anything else. The approximation is good where five or more are expected in each class.
    """
    if len(observed) != len(expected) or len(observed) < 2 or min(expected) <= 0:
        raise ValueError("a chi-square test compares two classes or more, and expects something in each")
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in zip(observed, expected, strict=True))
    degrees = len(observed) - 1
    return Test(statistic, degrees, upper_tail(statistic, degrees))


def upper_tail(statistic: float, degrees: int) -> float:
    """Q(χ² | ν), the chance that a chi-square variable of ν `degrees` of freedom (1 or more) exceeds `statistic`.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.4.4 (ν odd) and 26.4.5 (ν even), with h = χ²/2:

        ν even:  Q = Σ e^-h h^r / r!,  r = 0 … ν/2 - 1
        ν odd:   Q = erfc(√h) + Σ e^-h h^(r-1/2) / Γ(r + 1/2),  r = 1 … (ν - 1)/2

    All terms are positive, so that nothing cancels; each is taken as a logarithm first, so that none overflows.
    """
    if degrees < 1 or not statistic >= 0:
        raise ValueError(f"no chi-square distribution has {degrees} degrees of freedom, or reaches {statistic}")
    if statistic == 0:
        return 1.0
    half = statistic / 2
    shift = 0.5 if degrees % 2 else 0.0
    powers = (r + shift for r in range(degrees // 2))
    terms = (math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers)
    return min(1.0, math.fsum(terms) + (math.erfc(math.sqrt(half)) if degrees % 2 else 0.0))
