"""Stages without much reuse: maps, copies, gathers; and whatever nobody else takes.

for outer spatial loops in parallel:
    for reduction:  out[vector] = combine(out[vector], value)

What is read by digits of an index, as the diagonals of blocks, may have all of a block unrolled.
Every place in it is a number then, so that LLVM loads vectors and shuffles them, and gathers none:

    for j in 256, k in 8:  out[j] += in[k, j // 8 * 8 + (j % 8 + k) % 8]
    ->  for jo in 32:      out[jo * 8] += in[0, jo * 8];  out[jo * 8 + 1] += in[0, jo * 8 + 1];  ..
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

from flextensor.schedulers import loops
from flextensor.schedulers.analysis import split_groups
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target

FEWEST = 4
"""Neighbours that are worth a vector."""


class SpatialScheduler(Scheduler):
    """Takes every stage."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule:
        """The stage as it stands, its spatial loops parallel and vectorised."""
        return SpatialSchedule(stage, target)


class SpatialSchedule(StageSchedule):
    """One stage whose loops are kept, cut and run in parallel."""

    def __init__(self, stage: Stage, target: Target) -> None:
        self.stage, self.target = stage, target
        inner = stage.spatial[-1].extent if stage.spatial else 1
        lanes = target.lanes(str(stage.buffer.dtype))
        vectors = [v for v in (1, 2, 4) if inner % (v * lanes) == 0]
        wide = [i.extent for i in stage.spatial[:-1] if i.extent > 1]
        outer = min(len(wide), 3)
        tasks = list(itertools.accumulate(wide, operator.mul))
        enough = next((n for n, t in enumerate(tasks[:outer], 1) if t >= 8 * target.cores), outer)
        small = stage.reduction and stage.reduction[-1].extent <= 16
        knobs = (
            sizes("vectors", [0, *vectors]),
            sizes("parallel", range(outer + 1)),
            sizes("unroll_k", (0, 1) if small else (0,)),
            choice("order", ("kx", "xk") if stage.reduction else ("kx",)),
        )
        seeds: tuple[Config, ...] = tuple(
            {"vectors": v, "parallel": p, "unroll_k": 0, "order": "kx"}
            for v in (0, vectors[-1] if vectors else 0)
            for p in (*({min(outer, 1), outer} - {enough}), enough)
        )
        self.digits = self._digits()
        if not self.digits:
            self.space = Space(knobs, seeds=seeds)
            return
        first = {**seeds[-1], "vectors": 0, "unroll_k": int(bool(small))}
        seeds = ({**first, "digits": 1}, *({**seed, "digits": 0} for seed in seeds))
        self.space = Space((*knobs, sizes("digits", (0, 1))), (self._illegal,), seeds)

    def _digits(self) -> tuple[int, ...]:
        """Of every spatial dimension how many neighbours its last digit tells apart, 1 where it is
        read as a whole; none where those of the innermost fill no vector, or where a block of all
        digits is too much to unroll."""
        _, outputs = split_groups(self.stage)
        digits = tuple(parts[1].extent if len(parts) == 2 else 1 for parts in outputs)
        reduction = self.stage.reduction[-1].extent if self.stage.reduction else 1
        few = not digits or digits[-1] < FEWEST
        return () if few or math.prod(digits) * reduction > self.target.max_unroll else digits

    @staticmethod
    def _illegal(config: Mapping[str, Value]) -> str | None:
        if int(config["digits"]) and (int(config["vectors"]) or config["order"] != "kx"):
            return "unrolled digits have neither vectors nor another order"
        return None

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """The stage as it stands; nothing is fused into it."""
        tensors.plain(self.stage)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Outer spatial loops fused and parallel; whole vectors of the innermost one, or all of a
        block of digits."""
        block = sch.get_sblock(self.stage.name)
        nest = sch.get_loops(block)
        spatial, reduction = nest[: len(self.stage.spatial)], nest[len(self.stage.spatial) :]
        if not spatial:
            return
        unrolled: list[Any] = []
        if self.digits and int(config["digits"]):
            pairs = [sch.split(s, [None, d]) for s, d in zip(spatial, self.digits, strict=True)]
            spatial, unrolled = [outer for outer, _ in pairs], [inner for _, inner in pairs]
        wide = [loop for loop in spatial[:-1] if loops.extent(sch, loop) > 1]
        head = (
            spatial[: spatial.index(wide[int(config["parallel"]) - 1]) + 1]
            if (int(config["parallel"]) and wide)
            else []
        )
        inner = spatial[-1]
        lanes = self.target.lanes(str(self.stage.buffer.dtype))
        tail = list(unrolled)
        if int(config["vectors"]):
            inner, over, lane = sch.split(inner, [None, int(config["vectors"]), lanes])
            tail = [over, lane]
        middle = [*spatial[len(head) : -1], inner]
        if reduction and config["order"] == "kx":
            # the innermost spatial loop runs inside the reduction, where LLVM can vectorise it
            inside = tail or [inner]
            around = middle if tail else middle[:-1]
            sch.reorder(*head, *around, *reduction, *inside)
        else:
            sch.reorder(*head, *middle, *reduction, *tail)
        if head:
            sch.parallel(loops.fuse(sch, head))
        elif loops.extent(sch, middle[0]) > 1:
            chunk, _ = sch.split(middle[0], [self.target.cores, None])
            sch.parallel(chunk)
        for loop in unrolled:
            sch.unroll(loop)
        if tail and not unrolled:
            sch.unroll(tail[0])
            sch.vectorize(tail[1])
        if int(config["unroll_k"]):
            sch.unroll(reduction[-1])
        if reduction:
            sch.decompose_reduction(block, reduction[0])
