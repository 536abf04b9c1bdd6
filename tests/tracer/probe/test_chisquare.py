"""The chi-square test, against published tables."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tracer.probe import chisquare

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4, "Critical Values of the Chi-Square Distribution", upper
# tail: degrees of freedom, then the values exceeded with these probabilities.
LEVELS = (0.10, 0.05, 0.025, 0.01, 0.001)
NIST = {
    1: (2.706, 3.841, 5.024, 6.635, 10.828),
    2: (4.605, 5.991, 7.378, 9.210, 13.816),
    3: (6.251, 7.815, 9.348, 11.345, 16.266),
    4: (7.779, 9.488, 11.143, 13.277, 18.467),
    5: (9.236, 11.070, 12.833, 15.086, 20.515),
    9: (14.684, 16.919, 19.023, 21.666, 27.877),
    10: (15.987, 18.307, 20.483, 23.209, 29.588),
    29: (39.087, 42.557, 45.722, 49.588, 58.301),
    30: (40.256, 43.773, 46.979, 50.892, 59.703),
    99: (117.407, 123.225, 128.422, 134.642, 148.230),
    100: (118.498, 124.342, 129.561, 135.807, 149.449),
}


@pytest.mark.parametrize("degrees", NIST)
def test_upper_tail_is_that_of_the_table(degrees: int) -> None:
    for level, value in zip(LEVELS, NIST[degrees], strict=True):
        # the table rounds the value to 0.0005, which moves the tail by that times the density, at most level / 2 here
        assert chisquare.upper_tail(value, degrees) == pytest.approx(level, abs=0.0005 * level)


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 11, 999, 1000])
def test_upper_tail_falls_from_one_to_nothing(degrees: int) -> None:
    values = [chisquare.upper_tail(degrees * factor / 10, degrees) for factor in range(60)]
    assert values[0] == 1.0
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(values))
    assert chisquare.upper_tail(1e6, degrees) < 1e-300


def test_two_degrees_are_an_exponential() -> None:
    for value in (0.1, 1.0, 7.5, 80.0):
        assert chisquare.upper_tail(value, 2) == pytest.approx(math.exp(-value / 2), rel=1e-12)


def test_the_statistic() -> None:
    """Sixty throws of a die, a textbook's example: χ² 13.4 with 5 degrees of freedom, p 0.0199."""
    result = chisquare.test([5, 8, 9, 8, 10, 20], [10] * 6)
    assert (result.statistic, result.degrees) == (pytest.approx(13.4), 5)
    assert result.p_value == pytest.approx(0.0199, abs=5e-5)


def test_the_p_value_of_honest_chance_is_uniform() -> None:
    dice = random.Random(3)
    values = []
    for _ in range(400):
        throws = dice.choices(range(3), weights=(1, 1, 2), k=400)
        values.append(chisquare.test([throws.count(n) for n in range(3)], [100, 100, 200]).p_value)
    assert sum(value < 0.1 for value in values) == pytest.approx(40, abs=18)  # three standard deviations
    assert sum(value < 0.5 for value in values) == pytest.approx(200, abs=30)


@pytest.mark.parametrize(("observed", "expected"), [([], []), ([3], [3.0]), ([1, 2], [1.5]), ([1, 2], [0.0, 3.0])])
def test_what_can_not_be_compared(observed: list[int], expected: list[float]) -> None:
    with pytest.raises(ValueError, match="chi-square"):
        chisquare.test(observed, expected)


@pytest.mark.parametrize(("statistic", "degrees"), [(1.0, 0), (-1.0, 2), (math.nan, 2)])
def test_what_is_no_chi_square(statistic: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="degrees"):
        chisquare.upper_tail(statistic, degrees)
