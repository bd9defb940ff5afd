"""Random search: the baseline that every explorer has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flextensor.explorers.history import History
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np


class Random:
    """Uniform over the legal points that were not measured yet."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._history = History(space, rng)

    def ask(self, count: int) -> list[Point]:
        """Fresh uniform points."""
        return self._history.filled((), count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember what was measured."""
        self._history.tell(points, seconds)
