"""The knobs of a contraction, the sizes that follow from them, and what makes them legal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.contraction_estimate import BYTES, features, roles, task_batch
from flextensor.schedulers.layouts import Cut, Side
from flextensor.schedulers.program import Iterator, Program, fusable, inlinable, reindexed
from flextensor.schedulers.reduction import holds
from flextensor.schedulers.space import Config, Knob, Later, Space, Value, choice, sizes
from flextensor.schedulers.transform_analysis import is_transform
from flextensor.schedulers.units import VECTORS, Unit
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div, round_up

PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


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
    k_outer: bool
    """Whether blocks of the reduction are around all of a consumer's task, so that what transforms
    make for a task is made for one of them at a time, and stays near."""
    output: str
    """Where the output is written: per ``block``, in a pass at the ``root``, or never: the
    consumer then reads the accumulators where they lie, in ``blocks``, all of them at once or
    those of one of its tasks, inside its parallel loop (``consumer``)."""
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
    window_loops: int
    """Window loops that are not unrolled."""
    rows_ahead: int
    """Rows beyond those of a tile that its unrolled body reads, where a window slides over them."""

    @property
    def padded_k(self) -> dict[object, int]:
        """Reduction extents that are padded, by variable."""
        return {} if self.k_length == self.main.extent else {self.main.var: self.k_length}

    def k_extent(self, iterator: Iterator) -> int:
        """The extent, padded, of a reduction iterator."""
        return self.k_length if iterator is self.main else iterator.extent

    @property
    def steps(self) -> int:
        """Steps of the reduction in the unrolled body."""
        return self.k_unroll * self.window_points

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
        blocks, length = cut_reduction(main.extent, int(c["k_parts"]), unroll)
        windows = int(c["unroll_windows"])
        others = [i for i in found.k if i is not main]
        looped, unrolled = others[: len(others) - windows], others[len(others) - windows :]
        return cls(
            rows=cuts["row"],
            lanes=cuts["lane"],
            row_side=row_side,
            lane_side=lane_side,
            row_layout=str(c[f"{row_side}_layout"]),
            lane_layout=str(c[f"{lane_side}_layout"]),
            row_at=str(c[f"{row_side}_at"]),
            lane_at=str(c[f"{lane_side}_at"]),
            row_blocks_outer=(c["blocks_order"] == "m") == (row_side == "m"),
            row_tiles_outer=(c["tiles_order"] == "m") == (row_side == "m"),
            k_outer=c["blocks_order"] == "k",
            output=str(c["output_at"]),
            vector=vector,
            vectors=vectors,
            main=main,
            k_blocks=blocks,
            k_length=length,
            k_unroll=unroll,
            unrolled_windows=windows,
            window_points=points(tuple(unrolled)),
            window_loops=sum(i.extent > 1 for i in looped),
            rows_ahead=_rows_ahead(
                sides[row_side], cuts["row"], str(c[f"{row_side}_layout"]), unrolled
            ),
        )


def _rows_ahead(side: Side, cut: Cut, layout: str, unrolled: list[Iterator]) -> int:
    """`Plan.rows_ahead`: 0 where taps have rows of their own, or rows are clamped at an edge."""
    if not unrolled or layout == "panel" or side.slides is None:
        return 0
    if layout == "inline" and not cut.exact:
        return 0
    slide = side.slides[-1]
    reach = sum((i.extent - 1) * slide.taps.terms.get(i.var, 0) for i in unrolled)
    return reach // slide.stride


def cut_reduction(extent: int, parts: int, unroll: int) -> tuple[int, int]:
    """About `parts` blocks of whole unrolled steps: their number, and the length of all."""
    length = round_up(ceil_div(extent, parts), unroll)
    blocks = ceil_div(extent, length)
    return blocks, blocks * length


def near_parts(
    whole: Plan,
    found: Contraction,
    sides: Mapping[str, Side],
    made: Collection[str],
    target: Target,
) -> int:
    """Parts of the reduction, of those that divide it, in each of which half of L2 holds what a
    task reads in place of the sides that are `made` by transforms, if no more than two tasks do;
    of a plan whose reduction is not cut."""
    rows, lanes = roles(whole, sides)
    batch, size = points(found.batch) / task_batch(whole, found), 0.0
    for name, role, other in ((whole.row_side, rows, lanes), (whole.lane_side, lanes, rows)):
        if name in made and role.layout == "inline" and other.cut.blocks <= 2:
            size += batch * role.whole(whole) / role.cut.blocks
    exact = [p for p in PARTS if whole.main.extent % p == 0]
    return next((p for p in exact if size / p <= target.l2_bytes / 2), exact[-1])


def layouts(program: Program, side: Side) -> tuple[str, ...]:
    """The layouts that fit a side; a buffer whose producer would be inlined is `inline` only if
    that renames the elements of an input, and words in which no window slides are never `flat`: a
    tile's rows would lie far apart."""
    options = []
    if side.operand.access is not None and not side.group:
        producer = program.producer(side.operand.buffer)
        if producer is None or not inlinable(program, producer) or reindexed(program, producer):
            options.append("inline")
    words = side.group is not None and side.group.part > 0
    if side.slides is not None and (not words or any(s.taps.terms for s in side.slides)):
        options.append("flat")
    return (*options, "panel")


def contraction_space(
    program: Program,
    found: Contraction,
    sides: Mapping[str, Side],
    target: Target,
    unit: Unit = VECTORS,
) -> Space:
    """Every decision of `ContractionSchedule`."""
    main = max(found.k, key=lambda i: i.extent)
    windows = [i for i in found.k if i is not main]
    knobs: list[Knob] = [
        choice("lanes", _lane_sides(sides)),
        sizes("vectors", unit.vectors),
        sizes("rows", unit.rows),
        sizes("k_unroll", (1, 2, 4, 8)),
        sizes("k_parts", [p for p in PARTS if p <= max(main.extent // unit.block, 1)]),
        sizes("unroll_windows", range(min(len(windows), 2) + 1)),
        choice("blocks_order", _orders(program, found, sides, unit)),
        choice("tiles_order", ("m", "n")),
        choice("output_at", _outputs(program, found, target)),
    ]
    for name, side in sides.items():
        first = side.extents[0] if side.extents else 1
        knobs += [
            choice(f"{name}_layout", layouts(program, side)),
            choice(f"{name}_at", ("root",) if side.summed else ("root", "block")),
            sizes(f"{name}_parts", [*(p for p in PARTS if p < first), first]),
        ]
    space = Space(
        tuple(knobs),
        (lambda c: _illegal(c, found, sides, target, unit),),
        features=lambda c: features(Plan.of(c, found, sides, target), found, sides, target, unit),
        canonical=lambda c: _canonical(c, knobs, Plan.of(c, found, sides, target), sides),
    )
    seeds = Later(lambda: _seeds(space, found, sides, target, unit))
    return dataclasses.replace(space, seeds=seeds)


def _canonical(
    config: Mapping[str, Value], knobs: list[Knob], plan: Plan, sides: Mapping[str, Side]
) -> Config:
    """The first of all configs of the same plan: where nothing is packed it matters not where,
    numbers of parts may round to the same blocks, and a single block or tile has no order, nor have
    blocks in a consumer's tasks."""
    same, values = dict(config), {knob.name: knob.values for knob in knobs}
    for side, layout, cut in (
        (plan.row_side, plan.row_layout, plan.rows),
        (plan.lane_side, plan.lane_layout, plan.lanes),
    ):
        if layout == "inline":
            same[f"{side}_at"] = "root"
        pitches = sides[side].pitches(layout)
        same[f"{side}_parts"] = next(
            p
            for p in values[f"{side}_parts"]
            if Cut.of(cut.extents, pitches, int(p), cut.tile) == cut
        )
    same["k_parts"] = next(
        p
        for p in values["k_parts"]
        if cut_reduction(plan.main.extent, int(p), plan.k_unroll) == (plan.k_blocks, plan.k_length)
    )
    if 1 in (plan.rows.blocks, plan.lanes.blocks) or plan.output == "consumer":
        same["blocks_order"] = "k" if plan.k_outer else "m"
    if 1 in (plan.rows.tiles, plan.lanes.tiles):
        same["tiles_order"] = "m"
    return same


def _seeds(
    space: Space, found: Contraction, sides: Mapping[str, Side], target: Target, unit: Unit
) -> tuple[Config, ...]:
    """Register tiles that keep the multipliers busy: with the lanes packed, all packed, and, where
    lanes lie contiguous, nothing packed; each with the best blocks by estimate, and once more in
    blocks of the reduction whose panels fit L1 or L2. Where a whole panel does not fit L2, also one
    block of rows for every core, which passes by panels of lanes in blocks of the reduction that
    fit. All of it inside a consumer's tasks, whose size is not known here, and in tasks of its
    own."""
    ahead = {f"{n}_at": "root" for n, s in sides.items() if s.fixed or unit.ahead}
    knobs = {k.name: k.values for k in space.knobs}
    within = [at for at in knobs["output_at"] if at == "consumer"]
    others = [at for at in knobs["output_at"] if at not in within]
    places = [outputs for outputs in (within, others) if outputs]
    picks = dict[tuple[Value, ...], Config]()
    steps = points(found.k)

    def best(wanted: Iterable[Config]) -> Config | None:
        """The fastest by estimate of the legal ones, each at its nearest point."""
        options = map(space.config, map(space.project, wanted))
        legal = (config for config in options if space.reason(config) is None)
        return min(legal, key=lambda config: space.features(config)["estimate"], default=None)

    for lanes, rows, vectors in unit.first_tiles(target):
        panel = (rows + vectors * target.lanes("float32")) * steps * BYTES
        deep, near = (ceil_div(panel, size // 2) for size in (target.l2_bytes, target.l1_bytes))
        for packed in ("lanes", "all", "nothing"):
            if packed == "nothing" and not sides[lanes].contiguous:
                continue
            wanted: Config = {
                "lanes": lanes, "rows": rows, "vectors": vectors, "k_unroll": 1, "k_parts": 1,
                "unroll_windows": 1, "blocks_order": "m", "tiles_order": "n",
                "m_at": "root", "n_at": "block", "m_parts": 1 if packed == "all" else 8,
            }  # fmt: skip
            wanted |= ahead
            for side in sides:
                wanted[f"{side}_layout"] = knobs[f"{side}_layout"][-1 if packed == "all" else 0]
            if packed == "lanes" and wanted[f"{lanes}_layout"] == "inline":
                wanted |= {f"{lanes}_layout": "panel", f"{lanes}_at": "root"}
            blocked: Config = {
                **wanted, "k_parts": deep, "tiles_order": lanes, "m_at": "root", "n_at": "root",
                f"{lanes}_layout": "panel",
            }  # fmt: skip
            cuts = [{**wanted, "n_parts": parts} for parts in (16, 4, 1)]
            parted = {side: 1 if side == lanes else target.cores for side in sides}
            blocks = [{**blocked, **{f"{side}_parts": n for side, n in parted.items()}}]
            for starts in (cuts, blocks) if deep > 1 else (cuts,):
                for outputs in places:
                    pick = best({**start, "output_at": at} for start in starts for at in outputs)
                    if pick is None:
                        continue
                    if unit.spills(Plan.of(pick, found, sides, target), target):
                        smaller = ({**pick, "k_unroll": 2}, {**pick, "unroll_windows": 0})
                        pick = best([pick, *smaller]) or pick
                    parts = [n for n in (near, deep) if n > 1 and starts is cuts]
                    again = (
                        [{**pick, "k_parts": n, "tiles_order": s} for s in sides] for n in parts
                    )
                    for seed in (pick, *map(best, again)):
                        if seed is not None:
                            picks.setdefault(tuple(seed.values()), seed)
    return tuple(picks.values())


def _outputs(program: Program, found: Contraction, target: Target) -> tuple[str, ...]:
    """Where the output may be written; an intermediate one that nobody is fused to, nowhere, and
    only what has tasks of its own to hold it may have it in them."""
    stage = found.stage
    if stage.buffer.same_as(program.output) or fusable(program, stage):
        return "block", "root"
    after = program.consumers(stage)
    if len(after) == 1 and (is_transform(after[0]) or holds(program, after[0], target)):
        return "consumer", "blocks", "block", "root"
    return "blocks", "block", "root"


def _orders(
    program: Program, found: Contraction, sides: Mapping[str, Side], unit: Unit
) -> tuple[str, ...]:
    """Blocks of which side are outermost, or those of the reduction, where transforms make an
    operand that vectors multiply, and take the output."""
    takes = any(map(is_transform, program.consumers(found.stage)))
    holds = takes and made(program, sides) and unit is VECTORS
    return ("m", "n", "k") if holds else ("m", "n")


def made(program: Program, sides: Mapping[str, Side]) -> tuple[str, ...]:
    """The sides whose operand transforms make."""
    producers = {name: program.producer(side.operand.buffer) for name, side in sides.items()}
    return tuple(name for name, stage in producers.items() if stage and is_transform(stage))


def _lane_sides(sides: Mapping[str, Side]) -> tuple[str, ...]:
    """Sides with anything to put in lanes."""
    wide = [n for n, s in sides.items() if math.prod(s.extents) > 1]
    return tuple(wide) or ("m",)


def _illegal(
    config: Mapping[str, Value],
    found: Contraction,
    sides: Mapping[str, Side],
    target: Target,
    unit: Unit,
) -> str | None:
    plan = Plan.of(config, found, sides, target)
    crowded = unit.crowded(plan, target)
    if crowded is not None:
        return crowded
    body = plan.steps * unit.instructions(plan)
    if body > target.max_unroll:
        return f"unrolled body has {body} operations, limit {target.max_unroll}"
    if plan.lane_layout == "inline" and not plan.lanes.exact:
        return "lanes read in place need tiles that divide"
    if plan.padded_k and "inline" in (plan.row_layout, plan.lane_layout):
        return "a padded reduction needs both operands packed"
    for name, layout in ((plan.row_side, plan.row_layout), (plan.lane_side, plan.lane_layout)):
        slides = sides[name].slides if layout == "flat" and plan.padded_k else None
        if any(plan.main.var in slide.taps.terms for slide in slides or ()):
            return "a window that slides cannot be padded"
    if plan.output in ("block", "consumer") and (plan.rows.lone or plan.lanes.lone):
        return "a lone partial tile cannot be computed per block of the output"
    if plan.k_outer and (plan.output != "consumer" or plan.k_blocks == 1):
        return "no blocks of the reduction are around a consumer's task"
    if plan.output == "block":
        inner = [parts[1] for parts in found.outputs if len(parts) == 2]
        for side, cut in ((plan.row_side, plan.rows), (plan.lane_side, plan.lanes)):
            cuts = cut.blocks * cut.block
            if any(i in inner and i.extent != cuts for i in sides[side].iterators[:1]):
                return "a group is no whole number of the output's blocks"
    if plan.rows.tile > unit.rows[0] and plan.rows.tile >= 2 * max(plan.rows.points, 1):
        return "tile is twice as tall as the rows"
    return None
