"""Gradient-boosted trees that are trained to order points, not to tell their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flextensor.cost_models import Example
from flextensor.cost_models.analytic import guess
from flextensor.cost_models.learned import (
    ENOUGH,
    ROUNDS,
    SETTINGS,
    Learned,
    columns,
    matrix,
)
from flextensor.schedulers.space import Point, Space

PAIRS = {
    "objective": "rank:pairwise", "lambdarank_pair_method": "mean",
    "lambdarank_num_pair_per_sample": 8,
}  # fmt: skip
"""Every point beside eight others of its shape, drawn at random."""


class Ranked(Learned):
    """Orders points by trees that learned from pairs, and tells times as xgboost does.

    The trees start from the analytic estimate. Pairs are of one shape each: times of two shapes say
    nothing of a schedule. Their scores have no unit, by which formulations could be compared.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__(space, seed)
        self._pairs: Any = None
        self._pair_columns: dict[str, int] = {}
        self._unranked = False

    def study(self, examples: Sequence[Example]) -> None:
        """Learn from one shape of another operator."""
        super().study(examples)
        self._unranked = True

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from another shape's space."""
        super().recall(space, points, seconds)
        self._unranked = True

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from all points of this shape."""
        super().fit(points, seconds)
        self._unranked = True

    def rank(self, points: Sequence[Point]) -> list[float]:
        """Scores without a unit, lower is faster."""
        if not points:
            return []
        if self._unranked:
            self._learn_pairs()
        if self._pairs is None:
            return self.predict(points)
        import numpy as np
        import xgboost

        described = self._described(points)
        estimates = np.array([guess(d) for d in described])
        rows = matrix(described, self._pair_columns)
        data = xgboost.DMatrix(rows, base_margin=-estimates)
        return [-float(score) for score in self._pairs.predict(data)]

    def _learn_pairs(self) -> None:
        """Trees anew from the pairs of every shape."""
        import numpy as np
        import xgboost

        self._unranked = False
        shapes = self.shapes
        known = [example for _, own in shapes for example in own]
        if len(known) < ENOUGH:
            return
        self._pair_columns = columns(known)
        estimates = np.array([guess(described) for described, _ in known])
        times = estimates + np.array([rest for _, rest in known])
        data = xgboost.DMatrix(
            matrix([described for described, _ in known], self._pair_columns),
            label=times.max() - times,  # the more, the faster
            base_margin=-estimates,
            qid=np.repeat(np.arange(len(shapes)), [len(own) for _, own in shapes]),
            weight=np.array([weight for weight, _ in shapes]),
        )
        settings = {**SETTINGS, **PAIRS, "seed": self._seed}
        self._pairs = xgboost.train(settings, data, num_boost_round=ROUNDS)
