"""Reductions along contiguous memory: partial results in vector lanes, folded at the end.

    out[i] = sum over k of f(i, k)   ->   part[i, v] = sum over k of f(i, k * lanes + v)
                                          out[i]     = sum over v of part[i, v] + rest[i, v]

What gemv and row-wise sums need: a reduction that LLVM may not reorder by itself. The tasks of one
may hold the stage that makes what is summed, as a bilinear form's, which is then read from a cache:

    t[n, m, k] = sum over j of z[n, j] * w[m, k, j]        for m in parallel:
    out[n, m]  = sum over k of t[n, m, k] * x[n, k]   ->       t[:, m, :] = ...
                                                               for n:  out[n, m] = ...
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.schedulers import loops
from flextensor.schedulers.analysis import contiguous, contraction, neutral, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import linear, rewrite
from flextensor.schedulers.layouts import unflatten
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, inlinable, reduce
from flextensor.schedulers.space import Config, Space, Value, sizes
from flextensor.schedulers.spatial import FEW
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

HELD = 2
"""Of the knob `parallel`, beside 0 (no task) and 1 (a task of the outputs for every core): a task
for every tile of rows, which may hold what is summed."""


@dataclasses.dataclass(frozen=True)
class Cuts:
    """A walk of `length` elements: `parts` of `steps` of a `width` each, and passes for the rest.

    The last pass begins early enough to end in time, and lanes of what is done count for nothing:

        47 elements, 16 lanes:  0..15, 16..31, and of 31..46 all but the first
    """

    width: int
    parts: int
    steps: int
    length: int

    @property
    def done(self) -> int:
        """Elements that are in a part."""
        return self.parts * self.steps * self.width

    @property
    def passes(self) -> int:
        """Vectors of the width over what is left."""
        return ceil_div(self.length - self.done, self.width)


class ReductionScheduler(Scheduler):
    """Takes a reduction whose last axes are contiguous in what it reads, and no spatial axis is."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage when vectors of its last reduction axes are the natural ones."""
        axes = _axes(program, stage, target)
        if axes is None:
            return None
        return ReductionSchedule(stage, *axes, target, _held(program, stage))


def _axes(
    program: Program, stage: Stage, target: Target
) -> tuple[tuple[Iterator, ...], tuple[Iterator, ...]] | None:
    """The outer reduction axes, and those that lanes walk along; None when these are too few."""
    if stage.combiner not in ("sum", "max", "min"):
        return None
    outer, inner = contiguous(program, stage)
    short = points(inner) < 2 * target.lanes(str(stage.buffer.dtype))
    return None if short else (outer, inner)


def _row(stage: Stage) -> int:
    """Where among the spatial iterators the one is whose neighbours are computed together."""
    wide = [p for p, i in enumerate(stage.spatial) if i.extent > 1]
    return wide[-1] if wide else len(stage.spatial) - 1


def _held(program: Program, stage: Stage) -> tuple[Iterator | None, ...] | None:
    """The iterator of each dimension of what tasks of a reduction may hold, a tensor that another
    stage computes for it alone, of which every row has elements of its own; None for a dimension
    of one element. None where the reduction reads no such tensor."""
    row = stage.spatial[_row(stage)] if points(stage.spatial) > 1 else None
    own = {i.var: i for i in (*stage.spatial, *stage.reduction)}
    for load in stage.loads:
        producer = program.producer(load.source)
        if producer is None or inlinable(program, producer) or len(program.consumers(producer)) > 1:
            continue
        forms = [linear(index) for index in load.indices]
        plain = [f for f in forms if f is not None and f.constant == 0 and len(f.terms) < 2]
        reads = [other for other in stage.loads if other.source.same_as(load.source)]
        if len(plain) < len(forms) or len(reads) > 1:
            continue
        found = [next((own[v] for v, c in f.terms.items() if c == 1), None) for f in plain]
        known = [i for i in found if i is not None]
        named = sum(len(f.terms) for f in plain) == len(known) == len({id(i) for i in known})
        if named and row in known:
            return tuple(found)
    return None


def holds(program: Program, stage: Stage, target: Target) -> bool:
    """Whether tasks of a stage that reads what another computes may hold it: a reduction along
    lanes, and no product of matrices."""
    found = contraction(stage)
    if found is not None and found.reuses:
        return False
    return _axes(program, stage, target) is not None and _held(program, stage) is not None


class ReductionSchedule(StageSchedule):
    """One reduction along lanes."""

    def __init__(
        self,
        stage: Stage,
        outer: tuple[Iterator, ...],
        inner: tuple[Iterator, ...],
        target: Target,
        held: Sequence[Iterator | None] | None = None,
    ) -> None:
        self.stage, self.outer, self.inner, self.target = stage, outer, inner, target
        self.held = held
        self.lanes = target.lanes(str(stage.buffer.dtype))
        self.length = points(inner)
        self.row = _row(stage)
        rows = stage.spatial[self.row].extent if stage.spatial else 1
        seeds: list[Config] = [
            {"vectors": v, "rows": r, "parallel": p}
            for r in (4, 2, 8, 1)
            for v in (2, 4, 1)
            for p in (1, 0)
            if rows % r == 0 and v * self.lanes <= self.length
        ]
        self.space = Space(
            (
                sizes("vectors", [v for v in (1, 2, 4, 8) if v * self.lanes <= self.length]),
                sizes("rows", [r for r in (1, 2, 4, 8, 16) if rows % r == 0]),
                sizes("parallel", (0, 1, HELD) if held else (0, 1)),
            ),
            (self._illegal,),
            tuple(seeds[:6]),
        )

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        wanted = int(config["vectors"]) * int(config["rows"]) + int(config["vectors"]) + 1
        has = self.target.vector_registers
        return f"tile needs {wanted} vector registers, has {has}" if wanted > has else None

    def elements(self, config: Mapping[str, Value], dimension: int) -> int:
        if self.held is None or int(config["parallel"]) != HELD:
            return 0
        iterator = self.held[dimension]
        if iterator is self.stage.spatial[self.row]:
            return int(config["rows"])
        return iterator.extent if iterator else 1

    def variants(self, holds: bool) -> tuple[Config, ...]:
        """Tasks of some rows around what they hold."""
        rows = next(knob.values for knob in self.space.knobs if knob.name == "rows")
        few: list[Config] = [{"parallel": HELD, "rows": r} for r in (1, 2, 4) if r in rows]
        return tuple(few) if holds else ({},)

    def _cuts(self, config: Mapping[str, Value]) -> Cuts:
        """The walk of a config. One sum alone is cut for the cores, in no more parts than steps of
        each, since less than a step of every part is left."""
        width = int(config["vectors"]) * self.lanes
        alone = points(self.stage.spatial) == 1 and self.stage.points >= FEW
        most = self.target.cores if alone and int(config["parallel"]) else 1
        parts = min(most, math.isqrt(self.length // width))
        return Cuts(width, parts, self.length // (parts * width), self.length)

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """part[spatial, v] of whole vectors, what is left beside it, and the fold of lanes."""
        stage, name, cuts = self.stage, self.stage.name, self._cuts(config)
        combiner = str(stage.combiner)

        def term(indices: Any, others: list[Any], k: Any) -> Any:
            at = dict.fromkeys((i.var for i in stage.reduction), 0)
            at |= {i.var: v for i, v in zip(stage.spatial, indices, strict=True)}
            at |= {i.var: a.var for i, a in zip(self.outer, others, strict=True)}
            ks = unflatten(k, [i.extent for i in self.inner])
            at |= {i.var: v for i, v in zip(self.inner, ks, strict=True)}
            return rewrite(stage.value, at, tensors.load)

        def axes(prefix: str) -> list[Any]:
            return [te.reduce_axis((0, i.extent), f"{prefix}{p}") for p, i in enumerate(self.outer)]

        def partial(*at: Any) -> Any:
            *own, v = at
            step = own.pop(0) * cuts.steps + steps.var if cuts.parts > 1 else steps.var
            return reduce(combiner, term(own, others, step * cuts.width + v), [*others, steps])

        others, steps = axes("r"), te.reduce_axis((0, cuts.steps), "k")
        shape = (*stage.shape, cuts.width)
        if cuts.parts > 1:
            several = te.compute((cuts.parts, *shape), partial, name=f"{name}_part")
            p = te.reduce_axis((0, cuts.parts), "p")
            lanes = te.compute(
                shape, lambda *at: reduce(combiner, several(p.var, *at), [p]), f"{name}_sums"
            )
        else:
            lanes = te.compute(shape, partial, name=f"{name}_part")
        if cuts.passes:
            again, last = axes("q"), te.reduce_axis((0, cuts.passes), "t")

            def left(*at: Any) -> Any:
                begin = cuts.done + last.var * cuts.width
                k = tirx.min(begin, self.length - cuts.width) + at[-1]
                value = term(at[:-1], again, k)
                fresh = tirx.Select(k >= begin, value, neutral(combiner, str(value.ty.dtype)))
                return reduce(combiner, fresh, [*again, last])

            summed, rest = lanes, te.compute(shape, left, name=f"{name}_rest")
            join = {"sum": lambda a, b: a + b, "max": tirx.max, "min": tirx.min}[combiner]
            lanes = te.compute(shape, lambda *at: join(rest(*at), summed(*at)), f"{name}_lanes")
        lane = te.reduce_axis((0, cuts.width), "v")
        fold = te.compute(
            stage.shape, lambda *at: reduce(combiner, lanes(*at, lane.var), [lane]), f"{name}_fold"
        )
        tensors.set(stage.buffer, fold)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Rows unrolled, lanes vectorised, partial sums in registers."""
        name, cuts = self.stage.name, self._cuts(config)
        sums = [sch.get_sblock(f"{name}_part")]
        if cuts.passes and cuts.parts == 1:
            sums.append(sch.get_sblock(f"{name}_rest"))
            lanes = sch.get_sblock(f"{name}_lanes")
            for block in sums:
                sch.set_scope(block, 0, "local")
        else:
            lanes = sch.cache_write(sums[0], 0, "local")
        *spatial, lane = sch.get_loops(lanes)
        over, vector = sch.split(lane, [None, self.lanes])
        if spatial:
            at = self.row if cuts.parts == 1 else 0
            outer, row = sch.split(spatial[at], [None, int(config["rows"])])
            around = [*spatial[:at], outer, *spatial[at + 1 :]]
            if int(config["parallel"]) == HELD:
                around.insert(0, around.pop(at))
            sch.reorder(*around, row, over, vector)
            task = self._tasks(config, sch, around)
            for block in sums:
                sch.compute_at(block, task, preserve_unit_loops=True)
            if cuts.parts == 1:
                self._fold(sch, task)
            sch.unroll(row)
        sch.unroll(over)
        sch.vectorize(vector)
        if cuts.parts > 1:
            others = ["sums", "rest"] if cuts.passes else ["sums"]
            sums += [sch.get_sblock(f"{name}_{other}") for other in others]
        for block in sums:
            self._accumulate(sch, block)

    def _tasks(self, config: Mapping[str, Value], sch: Any, around: list[Any]) -> Any:
        """The loops over outputs as one, in parallel as `parallel` says; what is left of it within
        a task."""
        if int(config["parallel"]) == HELD:
            sch.parallel(around[0])
            return loops.fuse(sch, around[1:]) if around[1:] else around[0]
        task = loops.fuse(sch, around)
        tasks = min(self.target.cores, loops.extent(sch, task))
        if int(config["parallel"]) and tasks > 1:
            chunk, task = sch.split(task, [tasks, None])
            sch.parallel(chunk)
        return task

    def _accumulate(self, sch: Any, block: Any) -> None:
        """Rows and lanes of a sum inside its steps: row in 4, v in 32, k in 8  ->  for k in 8, row
        in unrolled(4), over in unrolled(2): vectorized(16)."""
        axes = sch.get(block).iter_vars
        nest = sch.get_loops(block)[-len(axes) :]
        count = sum(axis.iter_type == tirx.IterVar.CommReduce for axis in axes)
        *rows, lane = nest[:-count]
        steps = nest[-count:]
        over, vector = sch.split(lane, [None, self.lanes])
        sch.reorder(*steps, *rows, over, vector)
        for loop in (*rows, over):
            sch.unroll(loop)
        sch.vectorize(vector)
        sch.decompose_reduction(block, steps[0])

    def _fold(self, sch: Any, task: Any) -> None:
        """Sums of lanes at once, while they are in L1: rows side by side, for each is a chain.

        for n in 512, m in 64:  part[..]              for n in 512, m in 64:
        for n in 512, m in 256, v in 32:         ->       part[..]
            fold[n, m] += part[n, m, v]                   for v in 32, row in unrolled(4):
                                                              fold[n, m * 4 + row] += part[row, v]
        """
        fold = sch.get_sblock(f"{self.stage.name}_fold")
        sch.reverse_compute_at(fold, task, preserve_unit_loops=True)
        *own, lane = sch.get_loops(fold)[-1 - len(self.stage.spatial) :]
        row = own[self.row]
        sch.reorder(lane, row)
        first = sch.decompose_reduction(fold, lane)
        sch.unroll(row)
        sch.unroll(sch.get_loops(first)[-1])
