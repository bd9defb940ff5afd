"""What a plan of a contraction costs, guessed without lowering it: arithmetic with its waste,
packing, and what its loops fetch again from caches that are too small.

    for tile of the outer side:            its panel is held while the inner tiles pass
        for tile of the inner side:        all panels of a block pass once for every outer tile:
            for k: ...                     from L2 for next to nothing, from L3 while tiles multiply

A panel is what one tile reads of an operand in a block of the reduction. The goal of blocking is as
in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), section 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.layouts import Cut, Side
from flextensor.schedulers.loops import LINE, PAGE, shared_places
from flextensor.schedulers.transposition import width
from flextensor.schedulers.units import Unit
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

if TYPE_CHECKING:
    from flextensor.schedulers.contraction_space import Plan

CLOCK = 3e9
"""Cycles per second of the machine that estimates are for."""
BYTES = 4
"""Of an element: operands of other sizes differ in all candidates alike."""
FETCHED = {"l3": 16.0, "memory": 3.0}
"""Bytes that a core gets in a cycle from what lies beyond L2, where what it reads again and again
comes while it multiplies; chosen for how estimates rank the trials that are shipped."""
FAR = 3.0
"""Cycles that a step of the reduction waits for what lies on another page than the step before."""
CONFLICT = 1.0
"""Cycles that it waits for a line that shares its place in L1 with the lines of all other steps.
Both chosen as `FETCHED` is, and for the order of first picks timed in turns on a CPU with AVX2."""
SPILLED = 1.5
"""How many times longer a step takes whose sums leave their registers."""
PACK, TURN = 2.0, 0.5
"""Cycles that one core takes to pack an element, and to transpose one in registers, beside what it
waits for memory."""


@dataclasses.dataclass(frozen=True)
class Role:
    """One operand as rows or as lanes of a plan."""

    side: Side
    cut: Cut
    layout: str
    at: str

    def distinct(self, plan: Plan) -> int:
        """Elements for one step of the side's iterators, all of the reduction: a window that slides
        reads again what its neighbour has read."""
        ks = self.side.own_k if self.layout == "panel" else self.side.still_k
        return math.prod(plan.k_extent(i) for i in ks)

    def panel(self, plan: Plan) -> float:
        """Bytes that a tile reads in a block of the reduction."""
        return self.cut.tile * self.distinct(plan) / plan.k_blocks * BYTES

    def whole(self, plan: Plan) -> float:
        """Bytes of the operand, which is read from where it fits when a block begins."""
        return self.cut.padded * self.distinct(plan) * BYTES

    def strided(self, plan: Plan, target: Target) -> float:
        """Cycles that a step of the reduction waits where the operand is read in place: for a page,
        and for lines of which L1 holds few, since a large power of two divides how far they lie
        apart."""
        step = self._step(plan)
        if step < LINE:
            return 0.0
        lines = ceil_div(self.cut.tile * BYTES, LINE) if self.side.contiguous else self.cut.tile
        places = shared_places(step)
        held = target.l1_bytes // PAGE * places
        shared = lines * plan.k_length // plan.k_blocks > held
        return (FAR if step >= PAGE else 0.0) + (CONFLICT * lines / places if shared else 0.0)

    def turned(self, target: Target) -> bool:
        """Whether the copy is transposed in registers (`flextensor.schedulers.transposition`)."""
        side = self.side
        fits = self.layout == "panel" and self.cut.exact and not side.group and not side.contiguous
        return fits and side.operand.buffer is not None and bool(width(self.cut.tile, target))

    def _step(self, plan: Plan) -> int:
        """Bytes between neighbours along the longest reduction, where it is read in place."""
        step = self.side.steps.get(plan.main.var, 0) if self.layout == "inline" else 0
        return abs(step) * BYTES

    def packed(self, plan: Plan, blocks: int) -> float:
        """Elements to pack, again for each of the other side's blocks where a task does it."""
        if self.layout == "inline" or (self.at == "root" and self.side.fixed):
            return 0.0
        group = self.side.group
        if self.layout == "flat":
            own = math.prod(int(e) for e in self.side.operand.buffer.shape)
        else:
            own = points(self.side.own_batch) * self.cut.padded
            own *= math.prod(i.extent for i in self.side.own_k) * (group.size if group else 1)
        own *= group.terms if group else 1
        return own * (blocks if self.at == "block" and self.layout == "panel" else 1)


def roles(plan: Plan, sides: Mapping[str, Side]) -> tuple[Role, Role]:
    """Rows and lanes."""
    return (
        Role(sides[plan.row_side], plan.rows, plan.row_layout, plan.row_at),
        Role(sides[plan.lane_side], plan.lanes, plan.lane_layout, plan.lane_at),
    )


def features(
    plan: Plan, found: Contraction, sides: Mapping[str, Side], target: Target, unit: Unit
) -> dict[str, float]:
    """Sizes that decide the time: arithmetic with waste, tile, packing, footprints, tasks.

    `estimate` is a guess in seconds.
    """
    rows, lanes = roles(plan, sides)
    ks = math.prod(plan.k_extent(i) for i in found.k)
    batch = points(found.batch)
    work = batch * plan.rows.padded * plan.lanes.padded * ks
    rate = unit.rate(plan)
    if plan.lane_layout == "inline" and not lanes.side.contiguous:
        rate /= 6  # every lane is a load of its own
    if unit.spills(plan, target):
        rate /= SPILLED
    tasks = task_batch(plan, found) * plan.rows.blocks * plan.lanes.blocks
    balance = tasks / (target.cores * ceil_div(tasks, target.cores))
    packs = rows.packed(plan, plan.lanes.blocks), lanes.packed(plan, plan.rows.blocks)
    packed = sum(packs)
    packing = sum(
        pack_cycles(elements, role.whole(plan), target, role.turned(target))
        for elements, role in zip(packs, (rows, lanes), strict=True)
    )
    tile = rows.cut.tile * lanes.cut.tile
    multiply = tile / unit.products(plan) / rate
    fetched = fetch_cycles(plan, found, rows, lanes, target, multiply)
    cycles = work / tile * (multiply + fetched) + pass_cycles(plan, batch, target)
    seconds = (cycles / balance + packing) / (target.cores * CLOCK)
    log = math.log2
    return {
        "estimate": seconds,
        "log_estimate": log(seconds),
        "waste": work / (batch * plan.rows.points * plan.lanes.points * ks),
        "tile": plan.rows.tile * plan.vectors,
        "rate": rate,
        "registers": unit.registers(plan),
        "body": log(plan.steps * unit.instructions(plan)),
        "packed": log(packed + 1),
        "fetched": fetched,
        "tasks": log(tasks),
        "balance": balance,
        "lane_panel": log(lanes.panel(plan)),
        "row_panel": log(rows.panel(plan)),
        "block": log(plan.rows.tiles * plan.rows.tile * plan.lanes.tiles * plan.lanes.tile),
        "row_tiles": log(plan.rows.tiles),
        "lane_tiles": log(plan.lanes.tiles),
        "k_blocks": plan.k_blocks,
    }


def task_batch(plan: Plan, found: Contraction) -> int:
    """Points of the batch that are tasks of their own: inside a consumer's only groups are, whose
    tiles it sums apart."""
    if plan.output != "consumer":
        return points(found.batch)
    split = [i for parts in found.outputs if len(parts) == 2 for i in parts]
    return points(tuple(i for i in found.batch if i in split))


def fetch_cycles(
    plan: Plan, found: Contraction, rows: Role, lanes: Role, target: Target, multiply: float
) -> float:
    """Cycles that one step of the reduction of one register tile waits for its operands and, where
    the reduction is cut into blocks, its sums. What all tiles of a block read again comes while
    they `multiply`, which takes so many cycles."""
    outer, inner = (rows, lanes) if plan.row_tiles_outer else (lanes, rows)
    block = inner.panel(plan) * inner.cut.tiles + outer.panel(plan)
    held = outer.panel(plan) + inner.panel(plan)
    sums = rows.cut.tile * lanes.cut.tile * BYTES
    cycles = rows.strided(plan, target) + lanes.strided(plan, target)
    if plan.k_blocks > 1:
        tiles = rows.cut.tiles * lanes.cut.tiles
        if plan.k_outer:
            tiles *= points(found.batch) // task_batch(plan, found)
        place = level(sums * tiles, target)
        steps = math.prod(plan.k_extent(i) for i in found.k) / plan.k_blocks
        cycles += 2 * sums / steps / FETCHED[place or "l3"]
    again = 0.0
    for role, within, passes in ((inner, block, outer.cut.tiles), (outer, held, inner.cut.tiles)):
        steps = math.prod(plan.k_extent(i) for i in role.side.own_k)
        each = role.cut.tile * BYTES * role.distinct(plan) / steps
        first, later = level(role.whole(plan), target), level(within, target)
        cycles += each / FETCHED[first] / passes if first else 0.0
        again += each / FETCHED[later] if later else 0.0
    return cycles + max(again - multiply, 0.0)


def pass_cycles(plan: Plan, batch: int, target: Target) -> float:
    """Cycles that cores wait for sums on their way to who reads them next: within a task if that
    is where, else after all tasks, and once more if a pass of its own puts them in their places."""
    sums = batch * plan.rows.padded * plan.lanes.padded
    within = plan.rows.blocks * plan.lanes.blocks if plan.output == "consumer" else 1
    place = level(sums / within * BYTES, target)
    passes = 2 if plan.output == "root" else 1
    return passes * sums * 3 * BYTES / FETCHED[place] if place else 0.0


def pack_cycles(elements: float, size: float, target: Target, turned: bool) -> float:
    """Cycles of one core to pack so many elements of an operand of `size` bytes: each is read, its
    place is fetched and written back. Whether it is `turned` in registers."""
    place = level(size, target)
    return elements * ((TURN if turned else PACK) + (3 * BYTES / FETCHED[place] if place else 0.0))


def level(size: float, target: Target) -> str | None:
    """The nearest level beyond L2 that holds so many bytes beside what else passes."""
    if size <= 0.75 * target.l2_bytes:
        return None
    return "l3" if size <= target.l3_bytes / 2 else "memory"
