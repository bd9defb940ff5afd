"""Random search: the baseline that every explorer has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np


class Random:
    """Uniform over the legal points that were not measured yet."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._seen: set[Point] = set()

    def ask(self, count: int) -> list[Point]:
        """Fresh uniform points."""
        drawn = self._space.sample(self._rng, count + len(self._seen))
        return [p for p in drawn if p not in self._seen][:count]

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember what was measured."""
        self._seen.update(points)
