"""Several models' opinion: their mean, less their spread where they disagree."""

from __future__ import annotations

from collections.abc import Sequence

from flextensor.cost_models import Example
from flextensor.cost_models.learned import Learned
from flextensor.schedulers.space import Point, Space

MEMBERS = 4
"""Models of an ensemble, which differ by their seed."""


class Ensemble:
    """The mean of four xgboost models; points that they disagree on are measured sooner.

    `boldness` is how much of their spread (log2 of seconds) a point is preferred by.
    """

    def __init__(self, space: Space, seed: int = 0, boldness: float = 1.0) -> None:
        self.members = [Learned(space, MEMBERS * seed + member) for member in range(MEMBERS)]
        self.boldness = boldness

    def study(self, examples: Sequence[Example]) -> None:
        """Let every member learn from other operators."""
        for member in self.members:
            member.study(examples)

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Let every member learn from another shape's space."""
        for member in self.members:
            member.recall(space, points, seconds)

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Let every member learn from points of its own space."""
        for member in self.members:
            member.fit(points, seconds)

    def predict(self, points: Sequence[Point]) -> list[float]:
        """log2 of the expected seconds."""
        return self._said(points, 0.0)

    def rank(self, points: Sequence[Point]) -> list[float]:
        """log2 of the seconds hoped for."""
        return self._said(points, self.boldness)

    def _said(self, points: Sequence[Point], boldness: float) -> list[float]:
        import numpy as np

        if not points:
            return []
        said = np.array([member.predict(points) for member in self.members])
        return [float(v) for v in said.mean(0) - boldness * said.std(0)]
