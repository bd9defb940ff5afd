"""Coordinate descent: one knob at a time from the best point, then from the next best."""

from __future__ import annotations

from collections.abc import Iterator

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point


class CoordinateDescent(Proposer):
    """Every legal neighbour of the best point, then of the second best, and so on."""

    def propose(self, count: int) -> Iterator[Point]:
        """Neighbours of the best points."""
        for point in self.history.ranked():
            yield from self.space.neighbours(point)
