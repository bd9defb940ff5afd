"""An evolutionary search: crossover of good points, and mutation of their knobs."""

from __future__ import annotations

from collections.abc import Iterator

from flextensor.explorers.history import Proposer
from flextensor.schedulers.space import Point

PARENTS = 32
"""The fittest points, from which pairs are drawn with the odds of `History.starts`."""
MUTATION = 0.15
"""Probability that a knob of a child takes another value."""


class Evolutionary(Proposer):
    """Children of two good points each, with mutations."""

    def propose(self, count: int) -> Iterator[Point]:
        """Legal children."""
        fittest = set(self.history.ranked()[:PARENTS])
        drawn = [p for p in self.history.starts(16 * count) if p in fittest]
        for mother, father in zip(drawn[::2], drawn[1::2], strict=False):
            side = self.rng.random(len(mother)) < 0.5
            change = self.rng.random(len(mother)) < MUTATION
            child = tuple(
                int(self.rng.integers(len(knob.values))) if new else (a if left else b)
                for a, b, left, new, knob in zip(
                    mother, father, side.tolist(), change.tolist(), self.space.knobs, strict=True
                )
            )
            if self.space.legal(child):
                yield self.space.representative(child)
