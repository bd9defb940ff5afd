"""GUESS: how fast a candidate will be, without building it. `create` makes one by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from flextensor.errors import unknown
from flextensor.schedulers.space import Point, Space

__all__ = ["CostModel", "Example", "create", "names"]


Example = tuple[dict[str, float], float]
"""What describes a config, by role; log2 of its seconds over the analytic estimate."""


class CostModel(Protocol):
    """Predicts from the points of one space."""

    def study(self, examples: Sequence[Example]) -> None:
        """Learn from other operators, before anything else."""

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from measured points of another shape's space, before any of this one's."""

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from measured points (seconds; infinite for failures), all that are known."""

    def predict(self, points: Sequence[Point]) -> list[float]:
        """One score per point, lower is faster; log2 of seconds where the model knows them."""

    def rank(self, points: Sequence[Point]) -> list[float]:
        """One score per point, lower is faster, which orders points of this space alone."""


_HOME = {
    "xgboost": ("flextensor.cost_models.learned", "Learned"),
    "ranked": ("flextensor.cost_models.ranked", "Ranked"),
    "ensemble": ("flextensor.cost_models.ensemble", "Ensemble"),
    "analytic": ("flextensor.cost_models.analytic", "Analytic"),
    "none": ("flextensor.cost_models.analytic", "Indifferent"),
}


def names() -> tuple[str, ...]:
    """Every cost model."""
    return tuple(_HOME)


def create(name: str, space: Space, seed: int = 0) -> CostModel:
    """The cost model called `name`; `InputError` with the nearest names for another one."""
    if name not in _HOME:
        raise unknown("cost model", name, _HOME)
    module, cls = _HOME[name]
    model: CostModel = getattr(importlib.import_module(module), cls)(space, seed)
    return model
