"""The P-method of FlexTensor (ASPLOS 2020, section 5.1): annealed starts, all directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flextensor.explorers.history import History
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np


class PMethod:
    """Proposes every neighbour of a start that is chosen by simulated annealing."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space = space
        self._history = History(space, rng)
        self._open: list[Point] = []

    def ask(self, count: int) -> list[Point]:
        """All neighbours of one annealed start after the other; the last start is gone on with."""
        return self._history.filled(self._around(count), count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self._history.tell(points, seconds)

    def _around(self, count: int) -> Iterator[Point]:
        for start in dict.fromkeys([*self._open, *self._history.starts(count)]):
            self._open = [start]
            yield from self._space.neighbours(start)
