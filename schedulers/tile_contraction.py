"""Contractions in tile registers: matrices of 16 x 16 sums that one instruction adds to.

    acc[rows, vectors] += row[rows] * lane[vectors]                    one product a lane
    acc[16 R, 16 V]    += rows[16 R, 64] * lanes[64, 16 V]             in R x V tiles, of int8

All else is `flextensor.schedulers.contraction`. Both operands are packed, so that 64 bytes along
the reduction lie together: of int8 64 elements, of bfloat16 32.

    rows    P[.., k // 64, i, k % 64 // 4]             words of four neighbours along k
    lanes   P[.., k // 64, k % 64 // 4, i]

float32, where a formulation allows it (`flextensor.operators.workload.Workload.in_terms`), is
packed as two terms of bfloat16, and three of the four products of terms are summed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import te, tirx
from tvm.s_tir import SBlock, SBlockRealize

from flextensor.operators.workload import PRODUCTS
from flextensor.schedulers import loops, tile_intrinsics
from flextensor.schedulers.analysis import Contraction, contraction, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.contraction import At, ContractionSchedule
from flextensor.schedulers.contraction_space import Plan
from flextensor.schedulers.dot_contraction import grouped, narrow, product
from flextensor.schedulers.layouts import Side
from flextensor.schedulers.program import Program, Stage
from flextensor.schedulers.units import Unit
from flextensor.targets import tiles
from flextensor.targets.base import Target
from flextensor.targets.dot_products import SUMS

TASKS = "flextensor_tiles"
"""The annotation of a loop whose iterations have tile registers."""
LEAST_FILLED = 0.2
"""The least share of the groups along the reduction that must be elements: tiles are some five
times as fast as vectors."""
FIRST_TILES = (
    ("n", 32, 2), ("m", 32, 2), ("n", 16, 3), ("m", 16, 3), ("n", 48, 1), ("m", 48, 1),
    ("n", 16, 2), ("m", 16, 2), ("n", 32, 1), ("m", 32, 1), ("n", 16, 1), ("m", 16, 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TileUnit(Unit):
    """Tile registers, of which a register tile has rows / 16 x vectors of sums."""

    rows: tuple[int, ...] = (16, 32, 48)
    vectors: tuple[int, ...] = (1, 2, 3)
    block: int = 2
    ahead: bool = True
    products_of_terms: int = 1
    """That are summed for one product."""

    def registers(self, plan: Plan) -> int:
        """Sums, and what one step loads, have a tile register each."""
        rows, lanes = plan.rows.tile // tiles.ROWS, plan.vectors
        return rows * lanes + rows + lanes

    def available(self, target: Target) -> tuple[int, str]:
        """Whatever the vector registers."""
        return tiles.REGISTERS, "tile registers"

    def spills(self, plan: Plan, target: Target) -> bool:
        """Never: tile registers have numbers, and are LLVM's affair no more."""
        return False

    def first_tiles(self, target: Target) -> tuple[tuple[str, int, int], ...]:
        """Whatever the vector registers."""
        return FIRST_TILES

    def instructions(self, plan: Plan) -> int:
        """Multiplications and loads."""
        return self.registers(plan) * self.products_of_terms

    def rate(self, plan: Plan) -> float:
        """A load takes half the time of a multiplication, and four of these must be in flight;
        half of what is left then goes to caches."""
        rows, lanes = plan.rows.tile // tiles.ROWS, plan.vectors
        return min(1.0, rows * lanes / 4) / max(1.0, (rows + lanes) / 2 / (rows * lanes)) / 2

    def products(self, plan: Plan) -> float:
        """16 x 16 in 16 cycles; a whole group counts as one."""
        return 16.0 / self.products_of_terms


class TileContractionScheduler(Scheduler):
    """Takes sums of products of int8, bfloat16, or float32 in terms of bfloat16."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a CPU with tile registers, when both sides and the reduction fill them."""
        found = contraction(stage)
        if found is None or not found.k or target.threads_per_block:
            return None
        if min(points(found.m), points(found.n)) < 2:
            return None
        dtype = multiplied(program, found)
        if not dtype or not target.tile_depth(dtype):
            return None
        _, group = grouped(found, target.tile_depth(dtype))
        if LEAST_FILLED * group.whole.extent * group.size > group.extent:
            return None
        return TileContractionSchedule(program, found, target)


def multiplied(program: Program, found: Contraction) -> str:
    """The dtype of the products; '' where tiles have none for it."""
    if program.terms > 1 and str(found.stage.buffer.dtype) == "float32":
        read = {str(operand.value.ty) for operand in (found.a, found.b)}
        return "bfloat16" if read == {"float32"} and not narrow(found) else ""
    return narrow(found)


class TileContractionSchedule(ContractionSchedule):
    """One contraction of a program in tile registers."""

    order = (0, 2, 1, 3)

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        self.dtype = multiplied(program, found)
        self.terms = 1 if narrow(found) else program.terms
        self.pairs = PRODUCTS[self.terms]
        self.term = tirx.Var("term", "int32")
        super().__init__(program, found, target)

    def _sides(self, program: Program) -> dict[str, Side]:
        self.found, group = grouped(self.found, self.target.tile_depth(self.dtype))
        part = tiles.INSTRUCTIONS[self.dtype].part
        group = dataclasses.replace(group, part=part, terms=self.terms, term=self.term)
        stored = "uint16" if self.dtype == "bfloat16" else "int8"
        return {
            name: dataclasses.replace(side, group=group, stored=stored)
            for name, side in super()._sides(program).items()
        }

    def _unit(self) -> Unit:
        return TileUnit(products_of_terms=self.pairs)

    def _packed(self, side: Side, role: str) -> Side:
        """Of lanes, words of neighbours lie together; of rows, those of a group."""
        assert side.group is not None
        across = dataclasses.replace(side.group, across=role == "lanes")
        return dataclasses.replace(side, group=across)

    def _reduction(self, plan: Plan) -> dict[Any, Any]:
        """The pairs of terms stand between K and the group."""
        axes = super()._reduction(plan)
        if self.terms == 1:
            return axes
        assert self.group is not None
        group = axes.pop(self.group.var)
        pairs = te.reduce_axis((0, self.pairs), name="pair")
        return axes | {self.term: pairs, self.group.var: group}

    def _product(self, lane: At, row: At, k: dict[Any, Any]) -> Any:
        if self.terms == 1:
            return product(self.dtype, lane(k), row(k))
        pair = k[self.term]  # (0, 0), (0, 1), (1, 0)
        of_lane, of_row = (k | {self.term: term} for term in (pair // 2, pair % 2))
        return product(self.dtype, lane(of_lane), row(of_row))

    def _accumulators(self, plan: Plan, shape: list[int], product: Any) -> Any:
        """Blocks of the reduction are summed apart, and then together.

        acc = sum over k    ->    part[block] = sum over k of the block;  acc = sum of parts
        """
        if plan.k_blocks == 1:
            return super()._accumulators(plan, shape, product)
        axes, main = self._reduction(plan), plan.main.var
        length = plan.k_length // plan.k_blocks
        axes[main] = te.reduce_axis((0, length), name="k")
        at_block = len(self.found.batch) + 2

        def partial(*at: Any) -> Any:
            place, block = [*at[:at_block], *at[at_block + 1 :]], at[at_block]
            k = {var: axis.var for var, axis in axes.items()}
            k[main] = block * length + k[main]
            return te.sum(product(place, k), axis=list(axes.values()))

        of_part = [*shape[:at_block], plan.k_blocks, *shape[at_block:]]
        part = te.compute(of_part, partial, name=f"{self.stage.name}_part")
        blocks = te.reduce_axis((0, plan.k_blocks), name="block")
        return te.compute(
            shape,
            lambda *at: te.sum(part(*at[:at_block], blocks, *at[at_block:]), axis=blocks),
            name=f"{self.stage.name}_acc",
        )

    def _reductions(self, plan: Plan) -> int:
        return 1 if plan.k_blocks > 1 else super()._reductions(plan)

    def _inner(
        self, plan: Plan, sch: Any, acc: Any, tile: list[Any], k: list[Any]
    ) -> tuple[Any, list[Any], list[Any]]:
        """One block's part of a register tile, which is added to the sums before the next one."""
        if plan.k_blocks == 1:
            return super()._inner(plan, sch, acc, tile, k)
        (rt, ri, lt, li), (block,) = tile, k
        part = sch.get_sblock(f"{self.stage.name}_part")
        outer, inner = (rt, lt) if plan.row_tiles_outer else (lt, rt)
        sch.reorder(block, outer, inner, ri, li)
        sch.compute_at(part, inner, preserve_unit_loops=True)
        loops.vectorize_inner(sch, [li], self.target)
        first = sch.decompose_reduction(acc, block)
        loops.vectorize_inner(sch, sch.get_loops(first), self.target)
        count = 4 + len(self._reduction(plan))
        own = sch.get_loops(part)[-count:]
        return part, [own[:4][self.order.index(p)] for p in range(4)], own[4:]

    def _tile(
        self, plan: Plan, sch: Any, acc: Any, tile: list[Any], k: list[Any], around: list[Any]
    ) -> None:
        """tiles, k..., pairs of terms, then all of a register tile; nothing is `around` them."""
        rt, ri, lt, li = tile
        size = plan.rows.tile // tiles.ROWS, plan.vectors
        order = [rt, lt] if plan.row_tiles_outer else [lt, rt]
        *k, group = k
        pairs = [k.pop()] if self.terms > 1 else []
        whole = dataclasses.replace(plan, k_blocks=1)
        ko, _ = self._order(whole, sch, order, k, [*pairs, ri, li, group])
        for loop in pairs:
            sch.unroll(loop)
        sch.annotate(sch.get_loops(acc)[0], TASKS, True)
        sums = SUMS[self.dtype]
        stored = sch.cache_write(acc, 0, "local")
        sch.reverse_compute_at(stored, order[1])
        first = sch.decompose_reduction(acc, ko)
        sch.tensorize(sch.get_loops(first)[-2], tile_intrinsics.zero(*size, sums))
        sch.tensorize(sch.get_loops(stored)[-2], tile_intrinsics.store(*size, sums))
        sch.tensorize(ri, tile_intrinsics.multiply(*size, self.dtype))

    def wrap(self, func: Any) -> Any:
        """Tile registers are set up before every task, and given back after it.

        for task in parallel: ...   ->   for task in parallel: begin(); ...; end()
        """
        root = func.body.block
        nests = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
        tasks = [position for position, nest in enumerate(nests) if _has_tasks(nest)]
        for position in tasks:
            nests[position] = _set_up(nests[position], define=position == tasks[0])
        body = nests[0] if len(nests) == 1 else tirx.SeqStmt(nests)
        block = SBlock(
            root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init,
            root.alloc_buffers, root.match_buffers, root.annotations,
        )  # fmt: skip
        return func.with_body(SBlockRealize([], func.body.predicate, block))


def _has_tasks(nest: Any) -> bool:
    return isinstance(nest, tirx.For) and TASKS in nest.annotations


def _set_up(nest: Any, *, define: bool) -> Any:
    """A loop over tasks, each with tile registers; a program defines their functions once."""
    notes = {k: v for k, v in nest.annotations.items() if k != TASKS}
    notes |= {"pragma_import_llvm": tiles.DEFINE} if define else {}
    begin, end = (
        tirx.Evaluate(tirx.call_extern("int32", name)) for name in (tiles.BEGIN, tiles.END)
    )
    return tirx.For(
        nest.loop_var, nest.min, nest.extent, nest.kind, tirx.SeqStmt([begin, nest.body, end]),
        nest.thread_binding, notes, nest.step,
    )  # fmt: skip
