"""Gradient-boosted trees (xgboost) on schedule features, as a correction of the analytic guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flextensor.cost_models.analytic import guess
from flextensor.schedulers.space import Point, Space

ENOUGH = 8
"""Measured points from which on trees say more than the analytic guess alone."""


class Learned:
    """log2(seconds) = analytic guess + trees(knobs, features). Failures count as slow."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        self._space, self._seed = space, seed
        self._trees: Any = None

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Refit on all points known; about 30 ms for hundreds."""
        finite = [s for s in seconds if math.isfinite(s)]
        if len(finite) < ENOUGH:
            return
        import numpy as np
        import xgboost

        slow = math.log2(max(finite)) + 1
        logs = [math.log2(s) if math.isfinite(s) else slow for s in seconds]
        rows, guesses = self._describe(points)
        labels = np.array(logs) - guesses
        settings = {
            "max_depth": 5, "eta": 0.2, "lambda": 1.0, "subsample": 0.8, "seed": self._seed,
            "nthread": 1, "verbosity": 0, "base_score": float(labels.mean()),
        }  # fmt: skip
        data = xgboost.DMatrix(rows, label=labels)
        self._trees = xgboost.train(settings, data, num_boost_round=60)

    def predict(self, points: Sequence[Point]) -> list[float]:
        """log2 of the expected seconds."""
        if not points:
            return []
        rows, guesses = self._describe(points)
        if self._trees is None:
            return [float(g) for g in guesses]
        import xgboost

        return [float(s) for s in guesses + self._trees.predict(xgboost.DMatrix(rows))]

    def _describe(self, points: Sequence[Point]) -> tuple[Any, Any]:
        """What the trees see of every point, one row each; and the analytic guesses."""
        import numpy as np

        rows, guesses = [], []
        for point in points:
            features = self._space.features(self._space.config(point))
            rows.append(self._space.encode(point) + list(features.values()))
            guesses.append(guess(features))
        return np.array(rows, dtype=np.float32), np.array(guesses)
