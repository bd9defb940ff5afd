"""Gradient-boosted trees that correct the analytic estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flextensor.cost_models import Example
from flextensor.cost_models.analytic import guess
from flextensor.schedulers.space import Point, Space

ENOUGH = 8
"""Examples below which the analytic estimate stands alone."""
OWN, OTHERS, FOREIGN = 24.0, 3.0, 1.0
"""Weights of an example of this space, of another shape's, and of another operator's."""
SETTINGS = {
    "max_depth": 5, "eta": 0.2, "lambda": 1.0, "subsample": 0.8, "nthread": 1, "verbosity": 0,
}  # fmt: skip
ROUNDS = 60


class Learned:
    """xgboost on log2(seconds / estimate), over knobs and features that hold across shapes.

    Of every shape it learns how much faster or slower than the shape's median a point is: the
    median says how fast the host was that day, and what no schedule changes.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        self._space, self._seed = space, seed
        self._shapes: list[tuple[float, Sequence[Example]]] = []
        self._own: list[Example] = []
        self._known: dict[Point, dict[str, float]] = {}
        self._columns: dict[str, int] = {}
        self._trees: Any = None
        self._level = 0.0
        self._stale = False

    @property
    def shapes(self) -> list[tuple[float, Sequence[Example]]]:
        """What it knows of every shape, its own last: the weight of an example, and examples."""
        return [(weight, known) for weight, known in [*self._shapes, (OWN, self._own)] if known]

    def study(self, examples: Sequence[Example]) -> None:
        """Learn from a shape of another operator, before anything else."""
        self._shapes.append((FOREIGN, examples))
        self._stale = True

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from another shape's space first."""
        described = [space.describe(space.config(p)) for p in points]
        self._shapes.append((OTHERS, examples(described, seconds)))
        self._stale = True

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from all points; failures count as twice the slowest that worked."""
        self._own = examples(self._described(points), seconds)
        self._stale = True

    def _train(self) -> None:
        """Trees anew from all examples, when they are wanted and there are new ones."""
        shapes, self._stale = self.shapes, False
        known = [example for _, own in shapes for example in own]
        if len(known) < ENOUGH:
            return
        import numpy as np
        import xgboost

        self._columns = columns(known)
        rests = [np.array([rest for _, rest in own]) for _, own in shapes]
        levels = [float(np.median(rest)) for rest in rests]
        weights = [weight * len(own) for weight, own in shapes]
        self._level = levels[-1] if self._own else middle(levels, weights)
        data = xgboost.DMatrix(
            matrix([described for described, _ in known], self._columns),
            label=np.concatenate([r - level for r, level in zip(rests, levels, strict=True)]),
            weight=np.repeat([weight for weight, _ in shapes], [len(own) for _, own in shapes]),
        )
        settings = {**SETTINGS, "base_score": 0.0, "seed": self._seed}
        self._trees = xgboost.train(settings, data, num_boost_round=ROUNDS)

    def predict(self, points: Sequence[Point]) -> list[float]:
        """log2 of the expected seconds."""
        if not points:
            return []
        if self._stale:
            self._train()
        described = self._described(points)
        guesses = [guess(d) for d in described]
        if self._trees is None:
            return guesses
        import xgboost

        rest = self._trees.predict(xgboost.DMatrix(matrix(described, self._columns)))
        return [a + self._level + float(b) for a, b in zip(guesses, rest, strict=True)]

    def rank(self, points: Sequence[Point]) -> list[float]:
        """The expected seconds order points, too."""
        return self.predict(points)

    def _described(self, points: Sequence[Point]) -> list[dict[str, float]]:
        """What describes points of this space; a point is drafted, and fitted, many times."""
        for point in points:
            if point not in self._known:
                self._known[point] = self._space.describe(self._space.config(point))
        return [self._known[point] for point in points]


def middle(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted median: shapes for which there is no estimate, or a bad one, do not move it."""
    pairs = sorted(zip(values, weights, strict=True))
    half = sum(weights) / 2

    def reached(ordered: list[tuple[float, float]]) -> float:
        total = itertools.accumulate(weight for _, weight in ordered)
        return next(value for (value, _), t in zip(ordered, total, strict=True) if t >= half)

    return (reached(pairs) + reached(pairs[::-1])) / 2


def columns(known: Sequence[Example]) -> dict[str, int]:
    """The column of every name in the examples."""
    names = dict.fromkeys(name for described, _ in known for name in described)
    return {name: place for place, name in enumerate(names)}


def matrix(described: Sequence[dict[str, float]], places: Mapping[str, int]) -> Any:
    """One row each; 0 for a choice's values that were not chosen, nan for what is not known."""
    import numpy as np

    empty = [0.0 if "=" in name else math.nan for name in places]
    rows = np.tile(np.array(empty, dtype=np.float32), (len(described), 1))
    for row, values in zip(rows, described, strict=True):
        for name, value in values.items():
            place = places.get(name)
            if place is not None:
                row[place] = value
    return rows


def examples(described: Sequence[dict[str, float]], seconds: Sequence[float]) -> list[Example]:
    """What measured points teach, by their descriptions; nothing while none has worked."""
    finite = [s for s in seconds if math.isfinite(s)]
    if not finite:
        return []
    slow = math.log2(max(finite)) + 1
    found = []
    for values, measured in zip(described, seconds, strict=True):
        log = math.log2(measured) if math.isfinite(measured) else slow
        found.append((values, log - guess(values)))
    return found
