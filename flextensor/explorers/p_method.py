"""The P-method of FlexTensor (ASPLOS 2020, section 5.1): annealed starts, all directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np


class PMethod(Proposer):
    """Proposes every neighbour of a start that is chosen by simulated annealing."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        super().__init__(space, rng)
        self._open: list[Point] = []

    def propose(self, count: int) -> Iterator[Point]:
        """All neighbours of one annealed start after the other; the last start is gone on with."""
        for start in dict.fromkeys([*self._open, *self.history.starts(8 * count)]):
            self._open = [start]
            yield from self.space.neighbours(start)
