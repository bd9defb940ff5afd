"""The knobs of a contraction, the sizes that follow from them, and what makes them legal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.layouts import Cut, Side, ceil_div, round_up
from flextensor.schedulers.program import Iterator, Program
from flextensor.schedulers.space import Config, Knob, Space, Value, choice, sizes
from flextensor.targets.base import Target

PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every size that follows from a config of a contraction."""

    rows: Cut
    lanes: Cut
    row_side: str
    lane_side: str
    row_layout: str
    lane_layout: str
    row_at: str
    lane_at: str
    row_blocks_outer: bool
    row_tiles_outer: bool
    fused: bool
    vector: int
    vectors: int
    main: Iterator
    k_blocks: int
    k_length: int
    """The longest reduction iterator, padded to whole blocks."""
    k_unroll: int
    unrolled_windows: int
    window_points: int
    """Reduction points of the unrolled window loops."""

    @property
    def padded_k(self) -> dict[object, int]:
        """Reduction extents that are padded, by variable."""
        return {} if self.k_length == self.main.extent else {self.main.var: self.k_length}

    def k_extent(self, iterator: Iterator) -> int:
        """The extent, padded, of a reduction iterator."""
        return self.k_length if iterator is self.main else iterator.extent

    @property
    def registers(self) -> int:
        """Vector registers of the tile: accumulators, lane vectors, one broadcast."""
        return self.rows.tile * self.vectors + self.vectors + 1

    @property
    def body(self) -> int:
        """Vector operations of the unrolled body."""
        return self.k_unroll * self.window_points * self.rows.tile * self.vectors

    @classmethod
    def of(
        cls,
        config: Mapping[str, Value],
        found: Contraction,
        sides: Mapping[str, Side],
        target: Target,
    ) -> Plan:
        """The plan of a config."""
        c = config
        lane_side = str(c["lanes"])
        row_side = "n" if lane_side == "m" else "m"
        dtype = str(found.stage.buffer.dtype)
        vector = target.lanes(dtype)
        vectors = int(c["vectors"])
        cuts = {}
        for role, side, tile in (
            ("row", row_side, int(c["rows"])),
            ("lane", lane_side, vectors * vector),
        ):
            layout = str(c[f"{side}_layout"])
            pitches = sides[side].pitches(layout)
            cuts[role] = Cut.of(sides[side].extents, pitches, int(c[f"{side}_parts"]), tile)
        main = max(found.k, key=lambda i: i.extent)
        unroll = int(c["k_unroll"])
        parts = int(c["k_parts"])
        length = round_up(ceil_div(main.extent, parts), unroll)
        blocks = ceil_div(main.extent, length)
        windows = int(c["unroll_windows"])
        others = [i.extent for i in found.k if i is not main]
        return cls(
            rows=cuts["row"],
            lanes=cuts["lane"],
            row_side=row_side,
            lane_side=lane_side,
            row_layout=str(c[f"{row_side}_layout"]),
            lane_layout=str(c[f"{lane_side}_layout"]),
            row_at=str(c[f"{row_side}_at"]),
            lane_at=str(c[f"{lane_side}_at"]),
            row_blocks_outer=(c["blocks_order"] == "m" ) == (row_side == "m"),
            row_tiles_outer=(c["tiles_order"] == "m") == (row_side == "m"),
            fused=c["output_at"] == "block",
            vector=vector,
            vectors=vectors,
            main=main,
            k_blocks=blocks,
            k_length=blocks * length,
            k_unroll=unroll,
            unrolled_windows=windows,
            window_points=math.prod(others[len(others) - windows :]) if windows else 1,
        )


def layouts(program: Program, side: Side) -> tuple[str, ...]:
    """The layouts that fit a side; a buffer whose producer would be inlined is never `inline`."""
    options = []
    if side.operand.access is not None and program.producer(side.operand.buffer) is None:
        options.append("inline")
    if side.slides() is not None:
        options.append("flat")
    return (*options, "panel")


def contraction_space(
    program: Program, found: Contraction, sides: Mapping[str, Side], target: Target
) -> Space:
    """Every decision of `ContractionSchedule`."""
    main = max(found.k, key=lambda i: i.extent)
    windows = [i for i in found.k if i is not main]
    knobs: list[Knob] = [
        choice("lanes", _lane_sides(sides)),
        sizes("vectors", (1, 2, 3, 4, 6)),
        sizes("rows", ROWS),
        sizes("k_unroll", (1, 2, 4, 8)),
        sizes("k_parts", [p for p in PARTS if p <= max(main.extent // 8, 1)]),
        sizes("unroll_windows", range(min(len(windows), 2) + 1)),
        choice("blocks_order", ("m", "n")),
        choice("tiles_order", ("m", "n")),
        choice("output_at", ("block", "root")),
    ]
    for name, side in sides.items():
        first = side.extents[0] if side.extents else 1
        knobs += [
            choice(f"{name}_layout", layouts(program, side)),
            choice(f"{name}_at", ("root", "block")),
            sizes(f"{name}_parts", [p for p in PARTS if p <= first]),
        ]
    space = Space(tuple(knobs), (lambda c: _illegal(c, found, sides, target),))
    return dataclasses.replace(space, seeds=(), features=lambda c: {})


def _lane_sides(sides: Mapping[str, Side]) -> tuple[str, ...]:
    """Sides with anything to put in lanes."""
    wide = [n for n, s in sides.items() if math.prod(s.extents) > 1]
    return tuple(wide) or ("m",)


def _illegal(
    config: Mapping[str, Value], found: Contraction, sides: Mapping[str, Side], target: Target
) -> str | None:
    plan = Plan.of(config, found, sides, target)
    if plan.registers > target.vector_registers:
        return f"tile needs {plan.registers} vector registers, has {target.vector_registers}"
    if plan.body > target.max_unroll:
        return f"unrolled body has {plan.body} operations, limit {target.max_unroll}"
    if plan.lane_layout == "inline" and not plan.lanes.exact:
        return "lanes read in place need tiles that divide"
    if plan.padded_k and "inline" in (plan.row_layout, plan.lane_layout):
        return "a padded reduction needs both operands packed"
    if plan.fused and (plan.rows.lone or plan.lanes.lone):
        return "a lone partial tile cannot be computed per block of the output"
    if plan.rows.tile >= 2 * max(plan.rows.points, 1):
        return "tile is twice as tall as the rows"
    return None


__all__ = ["Config", "Plan", "contraction_space", "layouts", "points"]
