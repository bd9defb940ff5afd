"""Explorers propose points: `ask(n) -> points`, `tell(points, seconds)`.

An explorer sees a space, the history it was told and a random generator; it never builds, times
or logs. Same seed and same history, same proposals.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from flextensor.errors import unknown

if TYPE_CHECKING:
    import numpy as np

    from flextensor.schedulers.space import Point, Space


class Explorer(Protocol):
    """One search strategy over one space."""

    def ask(self, count: int) -> list[Point]:
        """Up to `count` distinct legal points that were not told yet; none when none are left."""

    def tell(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Measured median seconds of points; infinite for a failure."""


_HOME = {
    "annealing": ("flextensor.explorers.annealing", "Annealing"),
    "coordinate-descent": ("flextensor.explorers.coordinate", "CoordinateDescent"),
    "evolutionary": ("flextensor.explorers.evolutionary", "Evolutionary"),
    "flextensor": ("flextensor.explorers.flextensor", "FlexTensor"),
    "p-method": ("flextensor.explorers.p_method", "PMethod"),
    "q-method": ("flextensor.explorers.q_method", "QMethod"),
    "random": ("flextensor.explorers.random", "Random"),
}


def names() -> Mapping[str, str]:
    """Every explorer with one line on what it does."""
    found = {}
    for name, (module, cls) in _HOME.items():
        doc = getattr(importlib.import_module(module), cls).__doc__ or ""
        found[name] = doc.splitlines()[0]
    return found


def create(name: str, space: Space, rng: np.random.Generator) -> Explorer:
    """The explorer called `name`; `InputError` with the nearest names for another one."""
    if name not in _HOME:
        raise unknown("explorer", name, _HOME)
    module, cls = _HOME[name]
    explorer: Explorer = getattr(importlib.import_module(module), cls)(space, rng)
    return explorer
