"""What a chain of small transforms costs, guessed without lowering it: where its source is copied
to, what it computes, and where its tiles go."""

from __future__ import annotations

import math
from typing import Any

from flextensor.schedulers.contraction_estimate import BYTES, FETCHED, PACK, level, pack_cycles
from flextensor.schedulers.program import Stage
from flextensor.targets.base import Target

VECTOR = 3.2
"""Cycles of a vector of points, with its share of loads and stores."""
SCATTER = 1.0
"""Cycles beside those of a point whose tile is spread, where every lane is stored on its own. Both
from the profile of transforms of 6 x 6 points in vectors of 8 lanes, as are `PACK` cycles for an
element that a task copies, or that a first transform reads from a line of its own."""

AGAIN = 64.0
"""Bytes that a core stores in L3 and loads again in a cycle, for what one task makes and reads;
from eleven layers timed with such tiles and with blocks of them that stay in L2."""


def transform_cycles(chain: tuple[Stage, ...], width: int, spread: bool) -> float:
    """Cycles of one core for all points of a chain, in vectors of a `width`."""
    points = sum(stage.points for stage in chain)
    return points * (VECTOR / width + (SCATTER if spread else 0.0))


def source_cycles(
    source: Any, steps: int, place: str, first: Stage, target: Target, turned: bool
) -> float:
    """Cycles of one core to bring the source of the `first` stage to its lanes, which step through
    dimension `steps` by one: as `place` says, a copy of all, one in every task, or ``inline``.
    Whether a copy is `turned` in registers."""
    shape = [int(n) for n in source.shape]
    if place == "inline":
        return 0.0 if steps == len(shape) - 1 else PACK * first.points
    elements = math.prod(shape)
    return pack_cycles(elements, elements * BYTES if place == "copy" else 0, target, turned)


def store_cycles(elements: int, tasks: float, target: Target) -> float:
    """Cycles that one core waits to store tiles: all of them before others read them, when the more
    of the last cache is filled, the more leaves it; or what each of so many `tasks` reads itself,
    which leaves it once half of it is full of what the tasks of all cores have, and L2 before."""
    size = elements * BYTES / max(tasks, 1)
    if level(size, target) is None:
        return 0.0
    held = 2 * (size * target.cores if tasks else size) / max(target.l3_bytes, 1)
    left = min(max(held - 1, 0.0) if tasks else held, 1.0)
    again = 1 / AGAIN if tasks else 0.0
    return elements * 2 * BYTES * (left / FETCHED["memory"] + again)
