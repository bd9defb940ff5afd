"""Simulated annealing over ratios (FlexTensor, ASPLOS 2020, section 5.1, without its Q-network)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flextensor.explorers.history import History
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

UNIFORM = 0.1
"""Share of proposals that are uniform over the space."""


class Annealing:
    """Walks from good points, chosen with probability exp(-gamma (E* - E) / E*), and some anew."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._history = History(space, rng)

    def ask(self, count: int) -> list[Point]:
        """Random walks of one to three moves from annealed starts; a tenth is uniform."""
        walked = self._walks(8 * count)
        near = self._history.filled(walked, count)[: max(round((1 - UNIFORM) * count), 1)]
        return self._history.filled(near, count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self._history.tell(points, seconds)

    def _walks(self, count: int) -> Iterator[Point]:
        for start in self._history.starts(count):
            point = start
            for _ in range(int(self._rng.integers(1, 4))):
                around = self._space.neighbours(point)
                if around:
                    point = around[int(self._rng.integers(len(around)))]
            yield point
