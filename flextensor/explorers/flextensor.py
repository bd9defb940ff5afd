"""The default: annealing, and the neighbours of the best point where that gains nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flextensor.explorers.annealing import Annealing
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

GAIN = 0.99
"""A round gained something if the best takes less than this share of its seconds before."""


class FlexTensor(Annealing):
    """Annealing, and after a round without a gain all neighbours of the best point.

    A cost model that likes the wrong points asks for their like again and again, and is not
    corrected by what they measure; the neighbours of the best are no choice of its own.
    """

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        super().__init__(space, rng)
        self._best = math.inf
        self._near = False

    def ask(self, count: int) -> list[Point]:
        """Up to `count` annealed proposals, or no other points than neighbours of the best."""
        best = min(self.history.seconds.values(), default=math.inf)
        self._near = best >= GAIN * self._best and not self._near
        self._best = best
        return (self._neighbours()[:count] if self._near else []) or super().ask(count)

    def _neighbours(self) -> list[Point]:
        best = self.history.ranked()[:1]
        return [p for b in best for p in self.space.neighbours(b) if p not in self.history.seconds]
