"""Simulated annealing over ratios (FlexTensor, ASPLOS 2020, section 5.1, without its Q-network)."""

from __future__ import annotations

from collections.abc import Iterator

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point

UNIFORM = 0.1
"""Share of proposals that are uniform over the space."""


class Annealing(Proposer):
    """Walks from good points, chosen with probability exp(-gamma (E* - E) / E*), and some anew."""

    def propose(self, count: int) -> list[Point]:
        """Random walks of one to three moves from annealed starts; a tenth is left to chance."""
        near = self.history.filled(self._walks(8 * count), count)
        return near[: max(round((1 - UNIFORM) * count), 1)]

    def _walks(self, count: int) -> Iterator[Point]:
        for start in self.history.starts(count):
            point = start
            for _ in range(int(self.rng.integers(1, 4))):
                point = self.space.step(point, self.rng) or point
            yield point
