"""What every explorer shares: it remembers points, starts from good ones, proposes fresh ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flextensor.schedulers.space import Point, Space

if TYPE_CHECKING:
    import numpy as np

GAMMA = 8.0
"""Sharpness of the choice of starts: a point twice as slow as the best has weight exp(-4)."""


class History:
    """Points with their seconds (infinite for failures), of one space."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.seconds: dict[Point, float] = {}

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self.seconds.update(zip(points, seconds, strict=True))

    def ranked(self) -> list[Point]:
        """Points that worked, fastest first."""
        worked = [p for p, s in self.seconds.items() if math.isfinite(s)]
        return sorted(worked, key=lambda p: self.seconds[p])

    def starts(self, count: int) -> list[Point]:
        """Points drawn with probability exp(-gamma (E* - E) / E*), E being 1 / seconds
        (FlexTensor, ASPLOS 2020, section 5.1); empty while nothing has worked."""
        worked = self.ranked()
        if not worked:
            return []
        best = self.seconds[worked[0]]
        weights = [math.exp(-GAMMA * (1 - best / self.seconds[p])) for p in worked]
        total = sum(weights)
        chosen = self.rng.choice(len(worked), size=count, p=[w / total for w in weights])
        return [worked[i] for i in chosen.tolist()]

    def filled(self, proposed: Iterable[Point], count: int) -> list[Point]:
        """Up to `count` proposals that were not measured yet, uniform ones where too few."""
        fresh: dict[Point, None] = {}
        for point in proposed:
            if len(fresh) >= count:
                return list(fresh)
            if point not in self.seconds:
                fresh[point] = None
        missing = count - len(fresh)
        if missing > 0:
            known = self.seconds.keys() | fresh.keys()
            fresh |= dict.fromkeys(self.space.sample(self.rng, missing, known))
        return list(fresh)


class Proposer(ABC):
    """An `Explorer` that is told by its history: members say only where they would go next."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.history = History(space, rng)

    @abstractmethod
    def propose(self, count: int) -> Iterable[Point]:
        """Legal points, best first, measured ones among them or not; about `count` are wanted."""

    def ask(self, count: int) -> list[Point]:
        """Up to `count` proposals that were not measured yet, uniform ones where too few."""
        return self.history.filled(self.propose(count), count)

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Remember measured points and their times."""
        self.history.tell(points, seconds)
