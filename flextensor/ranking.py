"""How well one order agrees with another, and what its first picks are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of ranks, equal values sharing theirs; 0 where one does not vary.

    >>> spearman([1, 5, 9], [2, 3, 80]), spearman([1, 2, 3], [7, 7, 7])
    (1.0, 0.0)
    """
    first, second = _ranks(a), _ranks(b)
    if not (first.std() and second.std()):
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def regret(guesses: ArrayLike, seconds: ArrayLike, picks: int) -> float:
    """The fastest of the first picks, over the fastest: 1 where the guesses find it.

    >>> regret([1, 2, 3], [4.0, 3.0, 2.0], 1), regret([1, 2, 3], [4.0, 3.0, 2.0], 2)
    (2.0, 1.5)
    """
    order, times = np.argsort(guesses, kind="stable"), np.asarray(seconds)
    return float(times[order[:picks]].min() / times.min())


def _ranks(values: ArrayLike) -> np.ndarray[Any, Any]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray[Any, Any] = (last - (counts - 1) / 2)[inverse]
    return ranks
