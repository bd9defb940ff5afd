"""Stages without much reuse: maps, copies, gathers; and whatever nobody else takes.

for outer spatial loops in parallel:
    for reduction:  out[vector] = combine(out[vector], value)

A long reduction may take several steps at a time, in every pass over the innermost loop: rows of a
matrix that stream from memory side by side, where one by one each would wait for its page.

    for ko in 512:  for n in 4096:  out[n] += b[ko * 8, n];  ..;  out[n] += b[ko * 8 + 7, n]

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
from flextensor.targets.rounding import ceil_div

FEWEST = 4
"""Neighbours that are worth a vector."""
SHORT = 16
"""Steps of a reduction that are unrolled all at once, or not at all."""
ABREAST = (8, 16, 4)
"""Steps of a longer one that are taken at a time, the most promising first."""
FEW = 1 << 14
"""Points that one core is done with before others have begun."""


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
        steps = stage.reduction[-1].extent if stage.reduction else 0
        small = 0 < steps <= SHORT
        abreast = ABREAST if steps > SHORT else ()
        knobs = (
            sizes("vectors", [0, *vectors]),
            sizes("parallel", range(outer + 1)),
            sizes("unroll_k", (0, 1) if small else (0, *abreast)),
            choice("order", ("kx", "xk") if stage.reduction else ("kx",)),
        )
        seeds: tuple[Config, ...] = tuple(
            {"vectors": v, "parallel": p, "unroll_k": 0, "order": "kx"}
            for v in (0, vectors[-1] if vectors else 0)
            for p in (*({min(outer, 1), outer} - {enough}), enough)
        )
        streams = {**seeds[-1], "vectors": 0}
        seeds = (*({**streams, "unroll_k": u} for u in abreast), *seeds)
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
        if int(config["digits"]) and int(config["unroll_k"]) > 1:
            return "unrolled digits take one step of a reduction at a time"
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
        tasks, middle = self._tasks(sch, head, [*spatial[len(head) : -1], inner])
        inner, steps = middle[-1], int(config["unroll_k"])
        abreast = []
        if steps > 1:
            *others, last = reduction
            last, inside = sch.split(last, [None, steps])
            reduction, abreast = [*others, last], [inside]
        if reduction and config["order"] == "kx":
            # the innermost spatial loop runs inside the reduction, where LLVM can vectorise it
            around = middle if tail and not abreast else middle[:-1]
            within = [] if tail and not abreast else [inner]
            sch.reorder(*tasks, *around, *reduction, *within, *abreast, *tail)
        else:
            sch.reorder(*tasks, *middle, *reduction, *abreast, *tail)
        if tasks:
            sch.parallel(loops.fuse(sch, tasks))
        for loop in (*unrolled, *abreast):
            sch.unroll(loop)
        if tail and not unrolled:
            sch.unroll(tail[0])
            sch.vectorize(tail[1])
        if steps == 1:
            sch.unroll(reduction[-1])
        if reduction:
            sch.decompose_reduction(block, reduction[0])

    def _tasks(self, sch: Any, head: list[Any], middle: list[Any]) -> tuple[list[Any], list[Any]]:
        """The loops that are parallel, and the others as they are then: where `head` has none, or
        leaves cores idle and only the innermost loop, the first of more than one step is cut.

        for m in 1, n in 4096  ->  for no in parallel(2), m in 1, ni in 2048
        """
        first = next((loop for loop in middle if loops.extent(sch, loop) > 1), None)
        missing = ceil_div(self.target.cores, math.prod(loops.extent(sch, loop) for loop in head))
        last = head and (missing == 1 or first is not middle[-1])
        if first is None or last or self.stage.points < FEW:
            return head, middle
        length = loops.extent(sch, first)
        chunk, rest = sch.split(first, [missing, None])
        if length % missing:
            sch.annotate(rest, "pragma_loop_partition_hint", 1)  # or every step asks where it ends
        return [*head, chunk], [rest if loop is first else loop for loop in middle]
