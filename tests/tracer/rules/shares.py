"""Whether counts fit shares: a bound that holds for any number of trials, so that tests may run with random seeds.

What belongs here: statistics. What does not: what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")


def unlikeliness(counts: Mapping[K, int], shares: Mapping[K, float]) -> float:
    """An upper bound of the probability that counts stray so far, or farther, from these shares; 0 for the impossible.

    By relative entropy D, the likelihood ratio of which chi-square is an approximation: of n trials with k outcomes,
    P(D >= x) <= exp(-n x) (e n x / (k - 1))^(k - 1) where n x > k - 1 (R. Agrawal, Finite-Sample Concentration of the
    Multinomial in Relative Entropy, IEEE Transactions on Information Theory 66 (2020), theorem 1.2).
    """
    trials = sum(counts.values())
    if any(count and shares.get(key, 0.0) <= 0.0 for key, count in counts.items()):
        return 0.0
    strayed = sum(count * math.log(count / trials / shares[key]) for key, count in counts.items() if count)
    free = sum(share > 0.0 for share in shares.values()) - 1
    if strayed <= free or free == 0:
        return 1.0
    return min(1.0, math.exp(-strayed + free * math.log(math.e * strayed / free)))
