"""An evolutionary search: crossover of good points, and mutation of their knobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flextensor.explorers.history import History
from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

PARENTS = 32
"""The fittest points, from which pairs are drawn with the odds of `History.starts`."""
MUTATION = 0.15
"""Probability that a knob of a child takes another value."""


class Evolutionary:
    """Children of two good points each, with mutations."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._history = History(space, rng)

    def ask(self, count: int) -> list[Point]:
        """Legal children that were not measured yet."""
        return self._history.filled(self._children(8 * count), count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self._history.tell(points, seconds)

    def _children(self, count: int) -> Iterator[Point]:
        fittest = set(self._history.ranked()[:PARENTS])
        drawn = [p for p in self._history.starts(2 * count) if p in fittest]
        for mother, father in zip(drawn[::2], drawn[1::2], strict=False):
            side = self._rng.random(len(mother)) < 0.5
            change = self._rng.random(len(mother)) < MUTATION
            child = tuple(
                int(self._rng.integers(len(knob.values))) if new else (a if left else b)
                for a, b, left, new, knob in zip(
                    mother, father, side.tolist(), change.tolist(), self._space.knobs, strict=True
                )
            )
            if self._space.legal(child):
                yield child
