"""Contractions of narrow numbers whose products are summed in groups by one instruction.

    acc[rows, vectors] += row[rows] * lane[vectors]          one product a lane and instruction
    acc[rows, vectors] += sum over g of row[rows, g] * lane[vectors, g]               a few of them

All else is `flextensor.schedulers.contraction`: the same tiles, cuts and layouts, but that both
operands are always packed, with a group of the reduction innermost: 4 of int8, 2 of bfloat16.

What multiplies int8 wants one side unsigned. That side is packed as a + 128, and as
sum (a + 128) * b = sum a * b + 128 * sum b, the sums of the other side, times 128, are taken off
where the output is written. Integers wrap, so that this is exact whatever comes between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tvm import te, tirx

from flextensor.schedulers import loops
from flextensor.schedulers.analysis import (
    Contraction,
    Operand,
    contraction,
    operand_of,
    slides,
)
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.contraction import At, ContractionSchedule
from flextensor.schedulers.contraction_space import Plan
from flextensor.schedulers.expression import split_variable
from flextensor.schedulers.groups import Group
from flextensor.schedulers.layouts import Element, Side
from flextensor.schedulers.program import Iterator, Program, Stage
from flextensor.schedulers.space import Value
from flextensor.targets.base import Target
from flextensor.targets.dot_products import DEFINE_BFLOAT16, SUMS
from flextensor.targets.rounding import ceil_div


class DotContractionScheduler(Scheduler):
    """Takes sums of products of int8 in int32, or of bfloat16 in float32, which found no tiles."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a CPU that sums groups of such products at a time."""
        found = contraction(stage)
        if found is None or not found.reuses or target.threads_per_block:
            return None
        dtype = narrow(found)
        if not dtype or not target.dot_group(dtype):
            return None
        return DotContractionSchedule(program, found, target)


def narrow(found: Contraction) -> str:
    """The dtype of both operands, where it is one whose products are summed in another; else ''."""
    values = [o.value.value for o in (found.a, found.b) if isinstance(o.value, tirx.Cast)]
    dtypes = {str(value.ty) for value in values}
    dtype = dtypes.pop() if len(values) == 2 and len(dtypes) == 1 else ""
    return dtype if SUMS.get(dtype) == str(found.stage.buffer.dtype) else ""


class DotContractionSchedule(ContractionSchedule):
    """One contraction of a program in groups."""

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        self.dtype = narrow(found)
        self.parts = target.dot_group(self.dtype)
        super().__init__(program, found, target)

    def _sides(self, program: Program) -> dict[str, Side]:
        """Both sides in groups; of int8, that is raised whose sums would be harder to take."""
        self.found, group = grouped(self.found, self.parts)
        self.summed, stored = "", {"m": "uint16", "n": "uint16"}
        if self.dtype == "int8":
            raised = "n" if slides(self.found.b, self.found.n, self.found.k) else "m"
            self.summed = "m" if raised == "n" else "n"
            stored = {raised: "uint8", self.summed: "int8"}
        return {
            name: dataclasses.replace(
                side, group=group, stored=stored[name], summed=name == self.summed
            )
            for name, side in super()._sides(program).items()
        }

    def _product(self, lane: At, row: At, k: dict[Any, Any]) -> Any:
        return product(self.dtype, lane(k), row(k))

    def _sums(self, plan: Plan, z: Any, rows: Element, lanes: Element) -> Callable[..., Any]:
        """The accumulators, less 128 times the sums of what they were multiplied with."""
        if not self.summed:
            return super()._sums(plan, z, rows, lanes)
        by_rows = plan.row_side == self.summed
        cut, element = (plan.rows, rows) if by_rows else (plan.lanes, lanes)
        own = [b in self.sides[self.summed].own_batch for b in self.found.batch]
        axes = {i.var: te.reduce_axis((0, plan.k_extent(i)), "k") for i in self.found.k}
        assert self.group is not None
        axes[self.group.var] = te.reduce_axis((0, self.group.size), "group")

        def raised(*at: Any) -> Any:
            *some, o, t, i = at
            batch = [some.pop(0) if reads else 0 for reads in own]
            value = element(batch, o, t, i, {var: axis.var for var, axis in axes.items()})
            return te.sum(value.astype("int32") * 128, axis=list(axes.values()))

        shape = [i.extent for i, reads in zip(self.found.batch, own, strict=True) if reads]
        shape += [cut.blocks, cut.tiles, cut.tile]
        extra = te.compute(shape, raised, name=f"{self.stage.name}_extra")

        def sums(*at: Any) -> Any:
            *batch, ro, lo, rt, ri, lt, li = at
            some = [b for b, reads in zip(batch, own, strict=True) if reads]
            place = (ro, rt, ri) if by_rows else (lo, lt, li)
            return z(*at) - extra(*some, *place)

        return sums

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """As any contraction; the sums of a side after it was packed, in parallel."""
        super().arrange(config, sch)
        if not self.summed:
            return
        block = sch.get_sblock(f"{self.stage.name}_extra")
        count = len(self.found.k) + 1
        nest = sch.get_loops(block)
        *outer, last = nest[:-count]
        *k, group = nest[-count:]
        sch.reorder(*outer, *k, last, group)
        sch.parallel(loops.fuse(sch, outer))
        first = sch.decompose_reduction(block, k[0])
        loops.vectorize_inner(sch, sch.get_loops(first), self.target)

    def _multiply(self, plan: Plan, sch: Any, lane: Any, scope: str) -> None:
        from flextensor.schedulers import dot_intrinsics

        sides = (self.sides[side] for side in (plan.lane_side, plan.row_side))
        lanes, rows = (side.stored or self.dtype for side in sides)
        sch.tensorize(lane, dot_intrinsics.dot(lanes, rows, scope))
        if self.dtype == "bfloat16":
            block = sch.get_sblock(f"{self.stage.name}_acc_init")
            sch.annotate(sch.get_loops(block)[0], "pragma_import_llvm", DEFINE_BFLOAT16)


def product(dtype: str, lane: Any, row: Any) -> Any:
    """The product of two packed elements of `dtype`, in the dtype of its sums."""
    if dtype == "bfloat16":
        lane, row = (tirx.reinterpret(dtype, value) for value in (lane, row))
    return lane.astype(SUMS[dtype]) * row.astype(SUMS[dtype])


def grouped(found: Contraction, size: int) -> tuple[Contraction, Group]:
    """The contraction with one iterator of its reduction in groups of `size`, and its casts gone.

    That is the longest that moves no window, so that a window may slide over groups; else the
    longest of all.
    """
    taps = {
        i.var
        for operand, own in ((found.a, found.m), (found.b, found.n))
        for i in found.k
        if slides(operand, own, (i,))
    }
    old = max(found.k, key=lambda i: (i.var not in taps, i.extent))
    whole = Iterator(
        tirx.Var(f"{old.var.name}_o", old.var.ty), ceil_div(old.extent, size), reduction=True
    )
    group = Group(whole, tirx.Var(f"{old.var.name}_g", old.var.ty), size, old.extent)

    def regrouped(operand: Operand) -> Operand:
        value = operand.value.value if isinstance(operand.value, tirx.Cast) else operand.value
        value = split_variable(value, old.var, whole.var, group.var, size)
        return operand_of(value, tuple(whole if i is old else i for i in operand.iterators))

    k = tuple(whole if i is old else i for i in found.k)
    return dataclasses.replace(found, k=k, a=regrouped(found.a), b=regrouped(found.b)), group
