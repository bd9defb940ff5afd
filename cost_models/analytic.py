"""Models that learn nothing: the schedulers' own roofline estimates, and indifference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flextensor.cost_models import Example
from flextensor.schedulers.space import Point, Space


def guess(features: Mapping[str, float]) -> float:
    """log2 of the sum of the stages' estimates; 0 where there are none."""
    seconds = estimate(features)
    return math.log2(seconds) if seconds > 0 else 0.0


def estimate(features: Mapping[str, float]) -> float:
    """The sum of the stages' estimates, seconds; 0 where there are none."""
    return sum(v for k, v in features.items() if k.rpartition(".")[2] == "estimate")


class Analytic:
    """The sum of the estimates (seconds) that the schedulers give for each stage."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        self._space = space

    def study(self, examples: Sequence[Example]) -> None:
        """Nothing to learn."""

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Nothing to learn."""

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Nothing to learn."""

    def predict(self, points: Sequence[Point]) -> list[float]:
        """log2 of the estimated seconds; 0 where no scheduler gives an estimate."""
        return [guess(self._space.features(self._space.config(p))) for p in points]

    def rank(self, points: Sequence[Point]) -> list[float]:
        """The same: estimates order points, too."""
        return self.predict(points)


class Indifferent(Analytic):
    """Every candidate is as good as any other: explorers alone."""

    def predict(self, points: Sequence[Point]) -> list[float]:
        """All equal."""
        return [0.0] * len(points)
