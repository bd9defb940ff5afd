"""The knobs of a contraction on matrix units, what is legal, and good configs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator as Items
from collections.abc import Mapping

from flextensor.schedulers import gpu_estimate, gpu_loops
from flextensor.schedulers import gpu_tensor_core_operands as operands
from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.gpu_tensor_core_operands import Laid
from flextensor.schedulers.gpu_tensor_core_plan import TILE, Plan
from flextensor.schedulers.layouts import Side
from flextensor.schedulers.program import Iterator, Program
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

SEEDS = (
    # warps of Y and X, fragments of each that a warp has, steps of a panel, panels at a time
    (2, 2, 4, 4, 2, 3), (2, 4, 4, 4, 2, 3), (4, 2, 4, 4, 2, 3), (2, 2, 4, 4, 4, 2),
    (2, 4, 4, 4, 4, 3), (4, 2, 4, 4, 4, 3), (2, 2, 4, 4, 4, 3), (2, 2, 2, 4, 4, 3),
    (2, 2, 2, 4, 2, 4), (2, 2, 4, 2, 2, 4), (2, 2, 2, 2, 4, 3), (4, 2, 2, 4, 2, 1),
    (2, 2, 2, 2, 2, 1), (1, 2, 2, 2, 4, 3), (1, 4, 2, 2, 2, 1), (1, 1, 2, 2, 2, 2),
    (1, 1, 1, 1, 1, 1),
)  # fmt: skip
SHORTEST_PART = 128
"""Elements of a reduction that are worth blocks of their own."""
MOST_WAVES = 8
"""Blocks for every core, from which nothing is gained by more."""
SPLIT_OUTPUTS = 64 << 10
"""Outputs of a core from which a reduction is in one part."""
SPLITS = (2, 3, 4, 6, 8, 12, 16)


@dataclasses.dataclass(frozen=True)
class GpuTensorCoreSpace:
    """What decides over a contraction: its roles, its sides ``y`` and ``x``, and the device."""

    program: Program
    found: Contraction
    sides: Mapping[str, Side]
    target: Target

    @functools.cached_property
    def extents(self) -> dict[str, int]:
        """Of ``y``, ``x``, ``k`` and, where X may be laid out, ``laid``: the reduction then."""
        sides = {name: points(side.iterators) for name, side in self.sides.items()}
        laid = self.laid
        padded = {} if laid is None else {"laid": points(laid.taps) * laid.row}
        return {**sides, "k": points(self.found.k), **padded}

    @functools.cached_property
    def rows(self) -> dict[str, bool]:
        """Whether a side's panel has its elements as rows."""
        return {name: operands.along_k(side) for name, side in self.sides.items()}

    def along(self, which: str) -> tuple[Iterator, ...]:
        """What varies along the rows of a side's panel."""
        side = self.sides[which]
        return side.k if self.rows[which] else side.iterators

    @functools.cached_property
    def _runs(self) -> dict[str, tuple[int, int]]:
        return {
            name: operands.run(side.operand, self.program.inputs, self.along(name))
            for name, side in self.sides.items()
        }

    @property
    def together(self) -> dict[str, int]:
        """How many of the last iterators along a side's rows are one walk through memory."""
        return {name: count for name, (count, _) in self._runs.items()}

    @property
    def widths(self) -> dict[str, int]:
        """Elements that lie together along a side's rows, as operands are given."""
        return {name: width for name, (_, width) in self._runs.items()}

    @functools.cached_property
    def laid(self) -> Laid | None:
        """The copy of X that panels may be copied of, where they are not read in whole vectors."""
        return Laid.of(self.sides["x"]) if self.widths["x"] < operands.WIDTHS[0] else None

    @functools.cached_property
    def taps_first(self) -> tuple[Iterator, ...]:
        """The reduction in the order in which weights are packed."""
        sliding = operands.sliding(self.sides["x"]) if not self.rows["x"] else ()
        return (*sliding, *(i for i in self.found.k if i not in sliding))

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """All sizes that follow from a config."""
        return Plan.of(config, self.extents, self.rows)

    def width(self, plan: Plan, side: str) -> int:
        """Elements of a vector that is copied into a side's panel."""
        copied = plan.packed if side == "y" else plan.laid
        return operands.WIDTHS[0] if copied else self.widths[side]

    def written(self, plan: Plan) -> int:
        """Elements that lie together along X where the sums are written, at most four."""
        if plan.k_split > 1:
            return math.gcd(self.extents["x"], 4)
        return operands.written(self.found, self.sides["x"])

    def space(self) -> Space:
        """Every way to run it; the first values of the later knobs are what older trials ran."""
        knobs = [
            knob
            for side in ("y", "x")
            for knob in (
                sizes(f"{side}_warps", (1, 2, 4, 8)),
                sizes(f"{side}_fragments", (1, 2, 3, 4, 6, 8)),
            )
        ]
        knobs.append(sizes("k_steps", (1, 2, 4, 8)))
        knobs.append(sizes("stages", range(1, self.target.copies_ahead + 2)))
        if (packed := self._packed()) != ["none"]:
            knobs.append(choice("packed", packed))
        if (splits := self._splits()) != [1]:
            knobs.append(sizes("k_split", splits))
        if (units := self._units()) != ["wmma"]:
            knobs.append(choice("unit", units))
        space = Space(tuple(knobs), (self._illegal,))
        return dataclasses.replace(
            space, seeds=space.starts(self._wanted()), features=self._features
        )

    def _packed(self) -> list[str]:
        """What kernels of their own may lay out, the default first."""
        own = ["y", "none"] if self.taps_first != self.found.k else ["none"]
        return own if self.laid is None else [*own, "both"]

    def _units(self) -> list[str]:
        """Kinds of instructions, the default first."""
        dtype = str(self.found.a.value.ty)
        return ["wmma", "mma"] if self.target.lane_tile(dtype) == TILE else ["wmma"]

    def _splits(self) -> list[int]:
        """Parts of the reduction that may go to blocks of their own: none where the outputs
        keep the device busy, or a part were short."""
        outputs = points(self.found.batch) * self.extents["y"] * self.extents["x"]
        longest = self.extents["k"] // SHORTEST_PART
        most = min(longest, SPLIT_OUTPUTS * self.target.cores // outputs)
        return [1, *(n for n in SPLITS if n <= most)]

    def _wanted(self) -> Items[Config]:
        """Good configs, not all of which are of the space."""
        ways = [w for w in ("both", "y", "none") if w in self._packed()][:2]
        for packed in ways:
            for y_warps, x_warps, y_fragments, x_fragments, k_steps, stages in SEEDS:
                wanted: Config = {
                    "y_warps": y_warps, "y_fragments": y_fragments,
                    "x_warps": x_warps, "x_fragments": x_fragments,
                    "k_steps": k_steps, "stages": stages, "packed": packed, "k_split": 1,
                }  # fmt: skip
                plan = self.plan(wanted)
                if 1 in (self.width(plan, "y"), self.width(plan, "x")):
                    wanted["stages"] = min(stages, 2)
                for blocks in (1, 2):
                    split: Config = {"k_split": self._filling(plan, blocks)}
                    for unit in reversed(self._units()):
                        yield wanted | split | {"unit": unit}

    def _filling(self, plan: Plan, blocks: int) -> int:
        """Parts of the reduction that give every core so many blocks at most."""
        panels = ceil_div(plan.k_extent, plan.k_tile)
        most = min(blocks * self.target.cores // self._tiles(plan), panels // plan.stages)
        fitting = [n for n in self._splits() if n == 1 or n <= most]
        whole = [n for n in fitting if panels % n == 0]
        return whole[-1] if 2 * whole[-1] > fitting[-1] else fitting[-1]

    def _tiles(self, plan: Plan) -> int:
        """Tiles of the output."""
        return points(self.found.batch) * plan.y.blocks * plan.x.blocks

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        plan, target = self.plan(config), self.target
        if plan.threads > target.threads_per_block:
            return f"{plan.threads} threads a block, limit {target.threads_per_block}"
        if plan.registers > target.thread_registers:
            return f"a thread needs {plan.registers} registers, has {target.thread_registers}"
        if plan.registers * plan.threads > (target.block_registers or math.inf):
            return f"a block has {target.block_registers} registers, its threads need more"
        if plan.stages > 2 and 1 in (self.width(plan, "y"), self.width(plan, "x")):
            return "what is gathered is not copied further ahead than by one panel"
        if plan.stages > plan.k_blocks:
            return "there are not so many panels"
        limit = target.launch_shared_bytes
        if plan.shared_bytes > limit:
            return f"a block needs {plan.shared_bytes} bytes of shared memory, limit {limit}"
        if plan.y.blocks > gpu_loops.MOST_BLOCKS:
            return f"more than {gpu_loops.MOST_BLOCKS} blocks along the second side of the grid"
        for side in ("y", "x"):
            if not plan.turns(side, self.width(plan, side)):
                return "a panel is no whole number of copies by all threads"
            band = plan.band(side)
            if band.block >= 2 * max(band.extent, TILE) and band.block > TILE:
                return "a block is twice as long as the side"
        if plan.k_tile >= 2 * max(plan.k_extent, TILE):
            return "a panel is twice as long as the reduction"
        if (plan.k_split - 1) * plan.k_blocks * plan.k_tile >= plan.k_extent:
            return "a part of the reduction is empty"
        if plan.k_split > 1 and self._tiles(plan) * plan.k_split > MOST_WAVES * target.cores:
            return "the tiles keep the device busy without parts of the reduction"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Sizes that decide the time. `estimate` is a guess in seconds on a device of 1 GHz."""
        plan, target = self.plan(config), self.target
        batch = points(self.found.batch)
        blocks = self._tiles(plan) * plan.k_split
        k = plan.k_padded
        work = batch * plan.y.padded * plan.x.padded * k
        loads = work / plan.y.own + work / plan.x.own
        widths = {side: self.width(plan, side) for side in ("y", "x")}
        copied = sum(
            blocks / plan.k_split * k * plan.band(side).block / widths[side] for side in ("y", "x")
        )
        seconds = self._seconds(plan, widths)
        log = math.log2
        return {
            "estimate": seconds,
            "log_estimate": log(seconds),
            "waste": work / batch / (self.extents["y"] * self.extents["x"] * self.extents["k"]),
            "blocks": log(blocks),
            "waves": ceil_div(blocks, target.cores) * target.cores / blocks,
            "threads": log(plan.threads),
            "shared": log(plan.shared_bytes),
            "loads": log(loads),
            "copied": log(copied),
            "registers": log(plan.registers),
            "parts": log(plan.k_split),
        }

    def _seconds(self, plan: Plan, widths: Mapping[str, int]) -> float:
        """The contraction, and the kernels before and after it."""
        gathered = {name for name, side in self.sides.items() if len(side.iterators) > 1}
        if plan.laid:
            gathered.discard("x")
        batch, moved = points(self.found.batch), []
        if plan.packed and not self.program.fixed(self.sides["y"].operand.buffer):
            own = points(self.sides["y"].own_batch)
            moved.append(2 * gpu_estimate.HALF_BYTES * own * plan.y.padded * plan.k_padded)
        if plan.laid and self.laid is not None:
            rows = points(self.laid.leading) * self.laid.rows
            moved.append(2 * gpu_estimate.HALF_BYTES * rows * self.laid.row)
        if plan.k_split > 1:
            outputs = batch * self.extents["y"] * self.extents["x"]
            moved.append(2 * gpu_estimate.WORD * outputs * plan.k_split)
        found = gpu_estimate.matrix_seconds(plan, batch, widths, gathered, self.target)
        return found + sum(gpu_estimate.moving_seconds(b, self.target) for b in moved)
