"""Coordinate descent: one knob at a time from the best point, then from the next best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flextensor.explorers.history import History
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np


class CoordinateDescent:
    """Every legal neighbour of the best point, then of the second best, and so on."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space = space
        self._history = History(space, rng)

    def ask(self, count: int) -> list[Point]:
        """Neighbours of the best points that were not measured yet."""
        return self._history.filled(self._around(), count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self._history.tell(points, seconds)

    def _around(self) -> Iterator[Point]:
        for point in self._history.ranked():
            yield from self._space.neighbours(point)
