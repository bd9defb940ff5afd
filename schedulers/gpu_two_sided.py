"""What contractions on devices with thread blocks have in common: an output of two flat sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flextensor.schedulers import gpu_parts
from flextensor.schedulers.analysis import Contraction, iterators, points
from flextensor.schedulers.base import StageSchedule
from flextensor.schedulers.gpu_loops import flatten
from flextensor.schedulers.layouts import Side
from flextensor.schedulers.program import Stage, Tensors
from flextensor.targets.base import Target


class TwoSidedSchedule(StageSchedule):
    """A contraction out[batch, Y, X], all iterators of a side one index; X is the side (M or N)
    whose elements are neighbours in the output."""

    fuses = True

    def __init__(self, found: Contraction, target: Target) -> None:
        self.stage, self.found, self.target = found.stage, found, target
        m = Side(found.a, found.m, found.batch, found.k)
        n = Side(found.b, found.n, found.batch, found.k)
        last = [parts for parts in found.outputs if parts][-1][-1]
        self.sides = {"y": n, "x": m} if last in found.m else {"y": m, "x": n}

    @property
    def flat_shape(self) -> list[int]:
        """Batch, and each side as one index."""
        sides = (points(self.sides[side].iterators) for side in ("y", "x"))
        return [*(i.extent for i in self.found.batch), *sides]

    def coordinates(self, indices: Sequence[Any]) -> list[Any]:
        """Batch, and the flat index of each side, of an element of the output."""
        at = iterators(self.found.outputs, indices)
        sides = (self.sides[s].iterators for s in ("y", "x"))
        return [at[i.var] for i in self.found.batch] + [
            flatten([at[i.var] for i in side], [i.extent for i in side]) for side in sides
        ]

    def finish(self, flat: Any, k_split: int, tensors: Tensors, final: Stage) -> None:
        """The output, through fused consumers, of F[batch, y, x]; of F[part, batch, y, x] where the
        reduction has parts, which are added first."""
        name = self.stage.name
        if k_split > 1:
            flat = gpu_parts.total(flat, k_split, self.flat_shape, name)

        def out(*indices: Any) -> Any:
            return flat(*self.coordinates(indices))

        tensors.written(self.stage, out, final)
