"""Random search: the baseline that every explorer has to beat."""

from __future__ import annotations

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point


class Random(Proposer):
    """Uniform over the legal points that were not measured yet."""

    def propose(self, count: int) -> tuple[Point, ...]:
        """Nothing: all that is asked for is uniform."""
        return ()
