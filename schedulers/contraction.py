"""Contractions as register tiles over packed, padded or sliding operands.

    for block of M, block of N in parallel:
        pack what is packed per block
        for block of K:
            for tile of M, tile of N:
                for k:  acc[rows, vectors] += row[rows] * lane[vectors]   # all in registers
        write the block out, through the fused elementwise consumers

Inside the task of a transform that takes the sums, blocks of K may be the outer loop: each then
has what other transforms make for it, and adds to all sums of the task.

One side gives the vector lanes, the other one scalars (*rows*) that are broadcast. GEMM, einsum,
every convolution, its transposed, grouped and dilated kin, and Winograd's products are this one
loop nest; what few filters share is `window`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from tvm import te

from flextensor.schedulers import loops
from flextensor.schedulers.analysis import Contraction, contraction, iterators, points
from flextensor.schedulers.base import Extents, Scheduler, StageSchedule
from flextensor.schedulers.contraction_space import Plan, contraction_space, made, near_parts
from flextensor.schedulers.layouts import Cut, Element, Side
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, steps
from flextensor.schedulers.space import Config, Value
from flextensor.schedulers.units import VECTORS, Unit
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

At = Callable[[dict[Any, Any]], Any]
"""Values of the axes of the sum, by variable -> an element of one side."""


class ContractionScheduler(Scheduler):
    """Takes sums of products in which at least one operand is used more than once."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage when both sides have something to hold in registers, or a window slides."""
        found = contraction(stage)
        if found is None or not found.reuses:
            return None
        return ContractionSchedule(program, found, target)


class ContractionSchedule(StageSchedule):
    """One contraction of a program on a target."""

    fuses = True
    order: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    """How the dimensions of the accumulators of a block lie, of row tile, row, lane tile, lane."""

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        self.stage = found.stage
        self.found = found
        self.target = target
        self.sides = self._sides(program)
        self.group = self.sides["m"].group
        self.made = made(program, self.sides)
        self.space = contraction_space(program, self.found, self.sides, target, self._unit())

    def _sides(self, program: Program) -> dict[str, Side]:
        found = self.found
        return {
            name: Side(
                operand, own, found.batch, found.k, program.fixed(operand.buffer),
                steps=steps(program, operand.buffer, operand.access) if operand.access else {},
            )
            for name, operand, own in (("m", found.a, found.m), ("n", found.b, found.n))
        }  # fmt: skip

    def _unit(self) -> Unit:
        """What multiplies."""
        return VECTORS

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """All sizes that follow from a config."""
        return Plan.of(config, self.found, self.sides, self.target)

    def readers(
        self, config: Mapping[str, Value], buffer: Any, along: Collection[int] = ()
    ) -> float:
        plan = self.plan(config)
        rows, lanes = (self.sides[s].reads(buffer) for s in (plan.row_side, plan.lane_side))
        layout = plan.row_layout if rows else plan.lane_layout
        if rows == lanes or layout != "inline":
            return 0
        side, cut, others = plan.row_side, plan.rows, plan.lanes.blocks
        if lanes:
            side, cut, others = plan.lane_side, plan.lanes, plan.rows.blocks
        readers = others * self._overlap(side, cut)
        if plan.output == "consumer":
            return readers  # tasks of a transform have all that it sums along
        access = self.sides[side].operand.access
        assert access is not None
        apart = [i for i in self.found.batch if any(i.var in access[d].terms for d in along)]
        return readers * points(tuple(apart))

    def _overlap(self, side: str, cut: Cut) -> float:
        """How many blocks of a side read the same element, in the mean: a window slides beyond a
        block of 2 rows by 2, so that each row is read by two blocks."""
        slides = self.sides[side].slides
        if not slides or cut.blocks == 1:
            return 1
        steps = slides[0].span
        return cut.blocks * (cut.block + steps) / (cut.blocks * cut.block + steps)

    def parts_of(self, config: Mapping[str, Value], buffer: Any) -> float:
        plan = self.plan(config)
        rows = self.sides[plan.row_side].reads(buffer)
        side, cut = (plan.row_side, plan.rows) if rows else (plan.lane_side, plan.lanes)
        return cut.blocks / self._overlap(side, cut) * (plan.k_blocks if plan.k_outer else 1)

    def piece(self, config: Mapping[str, Value], wanted: Extents, buffer: Any, d: int) -> int:
        if not self.inside(config):
            return 0
        for name, side in self.sides.items():
            access = side.operand.access
            if access is None or config[f"{name}_layout"] != "inline" or not side.reads(buffer):
                continue
            along = dict(access[d].terms)
            for first in side.iterators[:1]:
                if along == {first.var: 1}:
                    return wanted(self._dimension(first))
            plan = self.plan(config)
            if plan.k_outer and along == {plan.main.var: 1}:
                return plan.k_length // plan.k_blocks
        return 0

    def width(self, config: Mapping[str, Value], buffer: Any) -> int:
        plan = self.plan(config)
        inline = plan.lane_layout == "inline" and self.sides[plan.lane_side].reads(buffer)
        return plan.lanes.tile if inline else 0

    def inside(self, config: Mapping[str, Value]) -> bool:
        return config["output_at"] == "consumer"

    def misfit(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> str | None:
        if not self.inside(config):
            return None
        plan = self.plan(config)
        for side, cut in ((plan.row_side, plan.rows), (plan.lane_side, plan.lanes)):
            for position, it in enumerate(self.sides[side].iterators):
                dimension = self._dimension(it)
                wanted = consumer.elements(theirs, dimension)
                block = it.extent if position else cut.block
                groups = len(self.found.outputs[dimension]) == 2
                if groups and it.extent % max(wanted, 1) and wanted % it.extent:
                    return f"a task of {wanted} is part of several groups of {it.extent}"
                if wanted < it.extent and (not wanted or wanted % block):
                    return f"blocks of {block} do not fill a task of {wanted}"
        return None

    def fitted(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> Config:
        found = dict(config)
        if not self.inside(config):
            return found
        for name, side in self.sides.items():
            for first in side.iterators[:1]:
                wanted = consumer.elements(theirs, self._dimension(first)) or first.extent
                found[f"{name}_parts"] = ceil_div(first.extent, wanted)
        if found["blocks_order"] == "k":
            whole = self.plan({**found, "k_parts": 1})
            found["k_parts"] = near_parts(whole, self.found, self.sides, self.made, self.target)
        found = self.space.config(self.space.project(found))
        if self.misfit(found, consumer, theirs) is not None:
            found["output_at"] = "blocks"
        return found

    def variants(self, holds: bool) -> tuple[Config, ...]:
        """Blocks of the reduction around a task, too, where transforms make what it reads."""
        orders = next(k.values for k in self.space.knobs if k.name == "blocks_order")
        return ({}, {"blocks_order": "k"}) if "k" in orders else ({},)

    def _dimension(self, iterator: Iterator) -> int:
        """The dimension of the output that an iterator belongs to."""
        return next(d for d, parts in enumerate(self.found.outputs) if iterator in parts)

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Packed operands, the padded accumulators Z[batch, ro, lo, rt, ri, lt, li] (the last four
        as `order` says), the output."""
        plan = self.plan(config)
        rows = self._element(plan, "rows", tensors)
        lanes = self._element(plan, "lanes", tensors)
        batch = self.found.batch

        def product(at: Sequence[Any], k: dict[Any, Any]) -> Any:
            b, (ro, lo, *tile) = at[: len(batch)], at[len(batch) :]
            rt, ri, lt, li = (tile[self.order.index(p)] for p in range(4))
            return self._product(
                lambda k: lanes(b, lo, lt, li, k), lambda k: rows(b, ro, rt, ri, k), k
            )

        r, v = plan.rows, plan.lanes
        shape = [i.extent for i in batch]
        tile = (r.tiles, r.tile, v.tiles, v.tile)
        shape += [r.blocks, v.blocks, *(tile[p] for p in self.order)]
        z = self._sums(plan, self._accumulators(plan, shape, product), rows, lanes)

        def out(*indices: Any) -> Any:
            at = iterators(self.found.outputs, indices)
            ro, rq = r.locate([at[i.var] for i in self.sides[plan.row_side].iterators])
            lo, lq = v.locate([at[i.var] for i in self.sides[plan.lane_side].iterators])
            own = [at[i.var] for i in batch]
            tile = (rq // r.tile, rq % r.tile, lq // v.tile, lq % v.tile)
            return z(*own, ro, lo, *(tile[p] for p in self.order))

        if plan.output in ("blocks", "consumer"):
            tensors.set(self.stage.buffer, out)
        else:
            tensors.written(self.stage, out, final)

    def _accumulators(
        self, plan: Plan, shape: list[int], product: Callable[[Sequence[Any], dict[Any, Any]], Any]
    ) -> Any:
        """The sums of products over the whole reduction, of such a shape."""
        axes = self._reduction(plan)

        def accumulate(*at: Any) -> Any:
            k = {var: axis.var for var, axis in axes.items()}
            return te.sum(product(at, k), axis=list(axes.values()))

        return te.compute(shape, accumulate, name=f"{self.stage.name}_acc")

    def _reduction(self, plan: Plan) -> dict[Any, Any]:
        """The axes of the sum by variable: those of K in order, then those of a group."""
        axes = {
            i.var: te.reduce_axis((0, plan.k_extent(i)), name=f"k{p}")
            for p, i in enumerate(self.found.k)
        }
        if self.group:
            axes[self.group.var] = te.reduce_axis((0, self.group.size), name="group")
        return axes

    def _product(self, lane: At, row: At, k: dict[Any, Any]) -> Any:
        """What is summed, of the elements of either side at values of the axes."""
        return lane(k) * row(k)

    def _sums(self, plan: Plan, z: Any, rows: Element, lanes: Element) -> Callable[..., Any]:
        """The sums, by the indices of the accumulators `z`."""
        return lambda *at: z(*at)

    def _element(self, plan: Plan, role: str, tensors: Tensors) -> Element:
        which = plan.row_side if role == "rows" else plan.lane_side
        cut = plan.rows if role == "rows" else plan.lanes
        layout = plan.row_layout if role == "rows" else plan.lane_layout
        side = self._packed(self.sides[which], role)
        if layout == "inline":
            return side.inline(cut, tensors)
        make = side.flat if layout == "flat" else side.panel
        return make(cut, tensors, f"{self.stage.name}_{role}", plan.padded_k)

    def _packed(self, side: Side, role: str) -> Side:
        """A side as it is packed in its role."""
        return side

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Place every block, tile the accumulators, hold them in registers."""
        plan, name = self.plan(config), self.stage.name
        acc = sch.get_sblock(f"{name}_acc")
        task = None
        if plan.output == "block":
            task = self._tile_output(plan, sch, sch.get_sblock(f"{name}_out"), acc)
        elif plan.output == "consumer":
            task = sch.get_loops(sch.get_consumers(acc)[0])[0]
            sch.compute_at(acc, task, preserve_unit_loops=True)
        elif plan.output == "root":
            loops.copy(sch, sch.get_sblock(f"{name}_out"), self.target)
        nest = sch.get_loops(acc)
        count = len(self.found.batch) + 6 + self._reductions(plan)
        own = nest[-count:]
        batch, own = own[: len(self.found.batch)], own[len(self.found.batch) :]
        (ro, lo, *tile), k = own[:6], own[6:]
        rt, ri, lt, li = (tile[self.order.index(p)] for p in range(4))
        if task is None:
            order = [ro, lo] if plan.row_blocks_outer else [lo, ro]
            sch.reorder(*batch, *order, rt, ri, lt, li)
            task = sch.fuse(*batch, *order)
            sch.parallel(task)
        around = [*batch, ro, lo] if plan.k_outer else []
        acc, tile, k = self._inner(plan, sch, acc, [rt, ri, lt, li], k)
        for role, at, layout in (
            ("rows", plan.row_at, plan.row_layout),
            ("lanes", plan.lane_at, plan.lane_layout),
        ):
            if layout == "inline":
                continue
            block = sch.get_sblock(f"{name}_{role}")
            side = self.sides[plan.row_side if role == "rows" else plan.lane_side]
            columns = len(side.own_k) if layout == "panel" and not side.group else 0
            if at == "block":
                sch.compute_at(block, task, preserve_unit_loops=True)
            if layout == "flat":
                loops.by_rows(sch, block, side.row(plan.rows if role == "rows" else plan.lanes))
            if at == "root":
                loops.pack(sch, block, columns, self.target)
                continue
            if columns and side.contiguous:
                loops.interleave(sch, block, columns)
            else:
                loops.transpose(sch, block, columns, self.target)
        self._tile(plan, sch, acc, tile, k, around)

    def _reductions(self, plan: Plan) -> int:
        """Reduction loops of the accumulators."""
        return len(self._reduction(plan))

    def _inner(
        self, plan: Plan, sch: Any, acc: Any, tile: list[Any], k: list[Any]
    ) -> tuple[Any, list[Any], list[Any]]:
        """The block that multiplies, the loops of its register tile, and those of its reduction."""
        return acc, tile, k

    def _tile_output(self, plan: Plan, sch: Any, out: Any, acc: Any) -> Any:
        """Cut the output's loops at the blocks of both sides, and accumulate inside; the parallel
        loop over blocks."""
        nest, inner = loops.by_iterator(sch, out, self.found.outputs)
        outer: dict[str, Any] = {}
        for side, cut in ((plan.row_side, plan.rows), (plan.lane_side, plan.lanes)):
            for first in self.sides[side].iterators[:1]:
                outer[side], nest[first.var] = sch.split(nest[first.var], [cut.blocks, cut.block])
        batch = [nest.pop(i.var) for i in self.found.batch]
        inner += nest.values()
        order = [plan.row_side, plan.lane_side]
        if not plan.row_blocks_outer:
            order.reverse()
        tasks = batch + [outer[s] for s in order if s in outer]
        if not tasks:
            tasks = [inner.pop(0)]
        sch.reorder(*tasks, *inner)
        # before they are fused: TVM does not see through a group's number in a fused loop
        sch.compute_at(acc, tasks[-1], preserve_unit_loops=True)
        task = loops.fuse(sch, tasks)
        sch.parallel(task)
        loops.vectorize_inner(sch, sch.get_loops(out)[1:], self.target)
        return task

    def _tile(
        self, plan: Plan, sch: Any, acc: Any, tile: list[Any], k: list[Any], around: list[Any]
    ) -> None:
        """ko, what is `around` the tiles, tiles, k..., then the unrolled register tile."""
        rt, ri, lt, li = tile
        lv, lane = sch.split(li, [None, plan.vector])
        tiles = [rt, lt] if plan.row_tiles_outer else [lt, rt]
        blocked = plan.k_blocks > 1
        ko, group = self._order(plan, sch, [*around, *tiles], k, [ri, lv, lane])
        if around:
            sch.annotate(ko, loops.HOLDS, True)
        sch.unroll(ri)
        sch.unroll(lv)
        if not group:
            sch.vectorize(lane)
        if blocked:
            first = sch.decompose_reduction(acc, ko)
            loops.vectorize_inner(sch, sch.get_loops(first), self.target)
            self._multiply(plan, sch, lane, "global")
            return
        registers = sch.cache_write(acc, 0, "local")
        sch.reverse_compute_at(registers, tiles[1])
        *written, vectors = sch.get_loops(registers)[-2:]
        over, vector = sch.split(vectors, [None, plan.vector])
        for loop in (*written, over):
            sch.unroll(loop)
        sch.vectorize(vector)
        first = sch.decompose_reduction(acc, ko)
        if group:
            sch.vectorize(sch.get_loops(first)[-1])
        self._multiply(plan, sch, lane, "local")

    def _order(
        self, plan: Plan, sch: Any, tiles: list[Any], k: list[Any], inner: list[Any]
    ) -> tuple[Any, list[Any]]:
        """Blocks of the reduction around the tiles, or within them if there is but one; the loop
        over blocks, and those of a group, innermost."""
        reduction = self.found.k
        k, group = k[: len(reduction)], k[len(reduction) :]
        main = reduction.index(plan.main)
        ko, ki, ku = sch.split(k[main], [plan.k_blocks, None, plan.k_unroll])
        others = [loop for p, loop in enumerate(k) if p != main]
        lead = [ko, *tiles] if plan.k_blocks > 1 else [*tiles, ko]
        sch.reorder(*lead, ki, *others, ku, *inner, *group)
        sch.unroll(ku)
        for loop in others[len(others) - plan.unrolled_windows :]:
            sch.unroll(loop)
        return ko, group

    def _multiply(self, plan: Plan, sch: Any, lane: Any, scope: str) -> None:
        """A vector of sums: LLVM's affair, but for groups. `scope` has the sums."""
