"""Reductions along contiguous memory: partial results in vector lanes, folded at the end.

    out[i] = sum over k of f(i, k)   ->   part[i, v] = sum over k of f(i, k * lanes + v)
                                          out[i]     = sum over v of part[i, v] + remainder(i)

What gemv and row-wise sums need: a reduction that LLVM may not reorder by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx

from flextensor.schedulers import loops
from flextensor.schedulers.analysis import contiguous, points, unravel
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, reduce
from flextensor.schedulers.space import Config, Space, Value, sizes
from flextensor.targets.base import Target


class ReductionScheduler(Scheduler):
    """Takes a reduction whose last axes are contiguous in what it reads, and no spatial axis is."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage when vectors of its last reduction axes are the natural ones."""
        lanes = target.lanes(str(stage.buffer.dtype))
        if stage.combiner not in ("sum", "max", "min"):
            return None
        outer, inner = contiguous(program, stage)
        if points(inner) < 2 * lanes:
            return None
        return ReductionSchedule(stage, outer, inner, target)


class ReductionSchedule(StageSchedule):
    """One reduction along lanes."""

    def __init__(
        self, stage: Stage, outer: tuple[Iterator, ...], inner: tuple[Iterator, ...], target: Target
    ) -> None:
        self.stage, self.outer, self.inner, self.target = stage, outer, inner, target
        self.lanes = target.lanes(str(stage.buffer.dtype))
        self.length = points(inner)
        wide = [p for p, i in enumerate(stage.spatial) if i.extent > 1]
        self.row = wide[-1] if wide else len(stage.spatial) - 1
        """Where among the spatial iterators the one is whose neighbours are computed together."""
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
                sizes("parallel", (0, 1)),
            ),
            (self._illegal,),
            tuple(seeds[:6]),
        )

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        wanted = int(config["vectors"]) * int(config["rows"]) + int(config["vectors"]) + 1
        has = self.target.vector_registers
        return f"tile needs {wanted} vector registers, has {has}" if wanted > has else None

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """part[spatial, v], the remainder where lanes do not divide, and their fold."""
        stage, name = self.stage, self.stage.name
        width = int(config["vectors"]) * self.lanes
        whole = self.length // width
        combiner = stage.combiner or "sum"

        def term(indices: Any, others: list[Any], k: Any) -> Any:
            at = {i.var: v for i, v in zip(stage.spatial, indices, strict=True)}
            at |= {i.var: v for i, v in zip(self.outer, others, strict=True)}
            return rewrite(stage.value, at | unravel(k, self.inner), tensors.load)

        def axes(prefix: str) -> list[Any]:
            return [te.reduce_axis((0, i.extent), f"{prefix}{p}") for p, i in enumerate(self.outer)]

        others, steps = axes("r"), te.reduce_axis((0, whole), "k")
        part = te.compute(
            (*stage.shape, width),
            lambda *at: reduce(
                combiner,
                term(at[:-1], [a.var for a in others], steps.var * width + at[-1]),
                [*others, steps],
            ),
            name=f"{name}_part",
        )
        lane = te.reduce_axis((0, width), "v")
        fold = te.compute(
            stage.shape, lambda *at: reduce(combiner, part(*at, lane.var), [lane]), f"{name}_fold"
        )
        result = fold
        if self.length % width:
            again, rest = axes("q"), te.reduce_axis((0, self.length % width), "t")
            tail = te.compute(
                stage.shape,
                lambda *at: reduce(
                    combiner,
                    term(at, [a.var for a in again], rest.var + whole * width),
                    [*again, rest],
                ),
                name=f"{name}_tail",
            )
            join = {"sum": lambda a, b: a + b, "max": tirx.max, "min": tirx.min}[combiner]
            result = te.compute(stage.shape, lambda *at: join(fold(*at), tail(*at)), f"{name}_out")
        tensors.set(stage.buffer, result)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Rows unrolled, lanes vectorised, partial sums in registers."""
        name = self.stage.name
        part = sch.get_sblock(f"{name}_part")
        count = len(self.stage.spatial)
        nest = sch.get_loops(part)
        spatial, lane, reduction = nest[:count], nest[count], nest[count + 1 :]
        over, vector = sch.split(lane, [None, self.lanes])
        if spatial:
            outer, row = sch.split(spatial[self.row], [None, int(config["rows"])])
            around = [*spatial[: self.row], outer, *spatial[self.row + 1 :]]
            sch.reorder(*around, *reduction, row, over, vector)
            task = loops.fuse(sch, around)
            if int(config["parallel"]):
                chunk, task = sch.split(task, [self.target.cores, None])
                sch.parallel(chunk)
            registers = sch.cache_write(part, 0, "local")
            sch.reverse_compute_at(registers, task)
            self._fold(sch, task)
            kept = (
                sch.get_loops(registers)[-2:]
                if int(config["rows"]) > 1
                else [sch.get_loops(registers)[-1]]
            )
            wide, lanes = sch.split(kept[-1], [None, self.lanes])
            for loop in (*kept[:-1], wide):
                sch.unroll(loop)
            sch.vectorize(lanes)
            sch.unroll(row)
        else:
            sch.reorder(*reduction, over, vector)
        sch.unroll(over)
        sch.vectorize(vector)
        sch.decompose_reduction(part, reduction[0])

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
