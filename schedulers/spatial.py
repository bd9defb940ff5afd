"""Stages without much reuse: maps, copies, gathers; and whatever nobody else takes.

for outer spatial loops in parallel:
    for reduction:  out[vector] = combine(out[vector], value)
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any

from flextensor.schedulers import loops
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Space, Value, choice, sizes
from flextensor.targets.base import Target


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
        self.space = Space(
            (
                sizes("vectors", [0, *vectors]),
                sizes("parallel", range(outer + 1)),
                sizes("unroll_k", (0, 1) if small else (0,)),
                choice("order", ("kx", "xk") if stage.reduction else ("kx",)),
            ),
            seeds=tuple(
                {"vectors": v, "parallel": p, "unroll_k": 0, "order": "kx"}
                for v in (0, vectors[-1] if vectors else 0)
                for p in (*({min(outer, 1), outer} - {enough}), enough)
            ),
        )

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """The stage as it stands; nothing is fused into it."""
        tensors.plain(self.stage)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Outer spatial loops fused and parallel; whole vectors of the innermost one."""
        block = sch.get_sblock(self.stage.name)
        nest = sch.get_loops(block)
        spatial, reduction = nest[: len(self.stage.spatial)], nest[len(self.stage.spatial) :]
        if not spatial:
            return
        wide = [loop for loop in spatial[:-1] if loops.extent(sch, loop) > 1]
        head = (
            spatial[: spatial.index(wide[int(config["parallel"]) - 1]) + 1]
            if (int(config["parallel"]) and wide)
            else []
        )
        inner = spatial[-1]
        lanes = self.target.lanes(str(self.stage.buffer.dtype))
        tail: list[Any] = []
        if int(config["vectors"]):
            inner, over, lane = sch.split(inner, [None, int(config["vectors"]), lanes])
            tail = [over, lane]
        middle = [*spatial[len(head) : -1], inner]
        vectorised = bool(tail)
        if reduction and config["order"] == "kx":
            # the innermost spatial loop runs inside the reduction, where LLVM can vectorise it
            inside = tail if vectorised else [inner]
            around = middle if vectorised else middle[:-1]
            sch.reorder(*head, *around, *reduction, *inside)
        else:
            sch.reorder(*head, *middle, *reduction, *tail)
        if head:
            sch.parallel(loops.fuse(sch, head))
        elif loops.extent(sch, middle[0]) > 1:
            chunk, _ = sch.split(middle[0], [self.target.cores, None])
            sch.parallel(chunk)
        if vectorised:
            sch.unroll(tail[0])
            sch.vectorize(tail[1])
        if int(config["unroll_k"]):
            sch.unroll(reduction[-1])
        if reduction:
            sch.decompose_reduction(block, reduction[0])
