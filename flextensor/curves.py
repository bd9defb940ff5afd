"""What searches left behind, as curves: the best so far over trials and seconds, and bands."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 1000
"""Draws of a bootstrap."""

Run = Mapping[str, Any]
"""One search: ``case``, ``variant``, ``seed``, and ``trace``, (wall seconds since it began, median
seconds per call or None for a failure) of every trial."""


def fastest(run: Run) -> float:
    """Seconds of the fastest kernel of a search, infinite where nothing worked."""
    return min((s for _, s in run["trace"] if s is not None), default=math.inf)


def best_known(runs: Iterable[Run]) -> dict[str, float]:
    """Seconds of the fastest kernel of every case, by whichever run found it."""
    best: dict[str, float] = {}
    for run in runs:
        best[run["case"]] = min(best.get(run["case"], math.inf), fastest(run))
    return best


def progress(run: Run, best: float) -> list[tuple[float, float]]:
    """(wall seconds, best speed so far as a share of the best known) after every trial."""
    top, rows = math.inf, []
    for seconds, value in run["trace"]:
        top = min(top, value if value is not None else math.inf)
        rows.append((seconds, best / top if math.isfinite(top) else 0.0))
    return rows


def reached(rows: Sequence[tuple[float, float]], share: float) -> tuple[int, float] | None:
    """(trials, wall seconds) until a share was reached; None when it never was."""
    for number, (seconds, value) in enumerate(rows, 1):
        if value >= share:
            return number, seconds
    return None


def at(rows: Sequence[tuple[float, float]], axis: str, place: float) -> float:
    """The share reached at a number of trials or wall seconds."""
    value = 0.0
    for number, (seconds, share) in enumerate(rows, 1):
        if (number if axis == "trials" else seconds) > place:
            break
        value = share
    return value


def band(groups: Sequence[Array]) -> tuple[Array, Array, Array]:
    """The median over all rows of all groups, and its 95 % confidence interval, by column.

    A group has the searches of one workload by one explorer, a row each. The interval is a
    bootstrap's: seeds are drawn anew within every workload, which are what they are. With one seed
    it has no width.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    draws = [
        np.median(np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups]), axis=0)
        for _ in range(RESAMPLES if any(len(g) > 1 for g in groups) else 1)
    ]
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return np.median(np.concatenate(groups), axis=0), low, high


def geomean_band(groups: Iterable[Sequence[float]]) -> tuple[float, float, float]:
    """The geomean of ratios, every workload with the same weight, and its 95 % confidence interval.

    A group has the log2 of the ratios of one workload; as in `band`, seeds are drawn anew.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    own = [np.array(group) for group in groups]
    means = [
        np.mean([g[rng.integers(len(g), size=len(g))].mean() for g in own])
        for _ in range(RESAMPLES)
    ]
    low, high = 2 ** np.quantile(means, (0.025, 0.975))
    return 2 ** float(np.mean([g.mean() for g in own])), float(low), float(high)


def grouped(runs: Iterable[Run], best: Mapping[str, float]) -> dict[str, dict[str, list[Any]]]:
    """The progress of every run, by variant and by case."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run["variant"]][run["case"]].append(progress(run, best[run["case"]]))
    return found
