"""Simulated annealing over ratios (FlexTensor, ASPLOS 2020, section 5.1, without its Q-network)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

GAMMA = 4.0
"""Sharpness of the choice of starts: a point twice as slow as the best has weight exp(-4)."""


class Annealing:
    """Walks from good points, chosen with probability exp(-gamma (t - t*) / t*), and some anew."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._history: dict[Point, float] = {}

    def ask(self, count: int) -> list[Point]:
        """Random walks of one to three moves from annealed starts; a tenth is uniform."""
        finite = {p: s for p, s in self._history.items() if math.isfinite(s)}
        fresh: dict[Point, None] = {}
        if finite:
            best = min(finite.values())
            starts = list(finite)
            weights = [math.exp(-GAMMA * (finite[p] - best) / best) for p in starts]
            total = sum(weights)
            chances = [w / total for w in weights]
            for _ in range(8 * count):
                if len(fresh) >= 0.9 * count:
                    break
                point = starts[int(self._rng.choice(len(starts), p=chances))]
                for _ in range(int(self._rng.integers(1, 4))):
                    around = self._space.neighbours(point)
                    if around:
                        point = around[int(self._rng.integers(len(around)))]
                if point not in self._history:
                    fresh[point] = None
        for point in self._space.sample(self._rng, count + len(self._history)):
            if len(fresh) >= count:
                break
            if point not in self._history:
                fresh[point] = None
        return list(fresh)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self._history.update(zip(points, seconds, strict=True))
