"""The knobs of a contraction on a device with thread blocks, what is legal, and good configs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

from flextensor.operators.workload import BufferSpec
from flextensor.schedulers import gpu_copies, gpu_estimate, gpu_loops
from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.gpu_copies import Copy
from flextensor.schedulers.gpu_estimate import WORD, Access
from flextensor.schedulers.gpu_plan import PANELS, Plan
from flextensor.schedulers.layouts import Side
from flextensor.schedulers.program import Program
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.launches import item_bytes
from flextensor.targets.rounding import ceil_div

STAGED = ("both", "y", "x", "none")
SHORTEST_PART = 32
"""Elements of a reduction that are worth blocks of their own."""
MOST_WAVES = 8
"""Blocks for every core, from which nothing is gained by more."""
SPLIT_THREADS = 64 << 10
"""Outputs of a core from which a reduction is in one part."""
MOST_LOADS = 64
"""Of an operand that is computed where it is used, in an unrolled body: each load brings what
guards it and where it lies, and hundreds of them take TVM a minute."""
MOST_BODIES = 2
"""Unrolled bodies, as large as one may be, of a kernel: four of a convolution that held half as
much took NVRTC six seconds, and two took it two."""
DEEPEST = 256
"""The longest panel of those that divide a reduction."""
UNROLLED = 512
"""Multiply-adds that seeds unroll, where that is more than eight steps."""
SEED_PANELS = 3
"""Of which two are under way: more take the shared memory of another block."""
TILES = (
    # virtual threads, threads and elements of a thread: of Y, of X; k of a panel
    (2, 16, 4, 2, 16, 4, 8), (2, 16, 4, 1, 16, 4, 16), (1, 16, 4, 2, 16, 4, 16),
    (1, 16, 4, 1, 16, 4, 16), (4, 16, 4, 2, 16, 4, 8), (2, 16, 4, 4, 16, 4, 8),
    (2, 8, 4, 2, 16, 4, 8), (2, 16, 4, 2, 8, 4, 8), (2, 8, 4, 2, 8, 4, 16),
    (1, 8, 4, 1, 8, 4, 32), (1, 8, 4, 2, 8, 4, 16), (2, 8, 4, 1, 8, 4, 16),
)  # fmt: skip
"""Tiles that are copied and written in vectors and fetched ahead. A thread's elements come in
fours, a span apart: neighbouring threads then read neighbouring vectors of a panel."""
SEEDS = (
    # threads of Y and X, elements of each that a thread computes, k of a panel
    (8, 8, 4, 4, 8), (16, 16, 4, 4, 8), (8, 16, 8, 4, 16), (16, 16, 8, 8, 8), (4, 8, 8, 8, 16),
    (8, 8, 2, 2, 16), (4, 4, 8, 8, 8), (2, 4, 8, 16, 16), (1, 4, 8, 16, 16), (1, 16, 8, 4, 16),
    (4, 16, 4, 4, 8), (8, 32, 4, 2, 8), (4, 4, 2, 2, 8), (1, 8, 4, 4, 8), (1, 1, 4, 16, 8),
    (1, 1, 1, 1, 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GpuContractionSpace:
    """What decides over a contraction: its roles, its sides ``y`` and ``x``, and the device."""

    program: Program
    found: Contraction
    sides: Mapping[str, Side]
    target: Target

    @functools.cached_property
    def extents(self) -> dict[str, int]:
        """Of ``y``, ``x`` and ``k``."""
        sides = {name: points(side.iterators) for name, side in self.sides.items()}
        return {**sides, "k": points(self.found.k)}

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """All sizes that follow from a config."""
        return Plan.of(config, self.extents)

    @functools.cached_property
    def copies(self) -> dict[str, Copy]:
        """How each side can be copied beside the kernel."""
        return {name: gpu_copies.copy_of(self.program, s) for name, s in self.sides.items()}

    def width(self, plan: Plan, side: str, vector: int) -> int:
        """Elements of a side that are copied at a time, where they may be `vector`."""
        return min(vector, self.copies[side].width) if plan.panels > 1 else vector

    @functools.cached_property
    def run(self) -> int:
        """Elements of X in a row that are neighbours in the output too."""
        length = 1
        stored = [i for parts in self.found.outputs for i in parts]
        own = self.sides["x"].iterators
        for mine, theirs in zip(reversed(own), reversed(stored), strict=False):
            if mine is not theirs:
                break
            length *= mine.extent
        return length

    def space(self) -> Space:
        """Every way to run it; the first values of the later knobs are what older trials ran."""
        knobs = [
            knob
            for side in ("y", "x")
            for knob in (
                sizes(f"{side}_virtual", (1, 2, 3, 4, 7, 8)),
                sizes(f"{side}_threads", (1, 2, 4, 8, 16, 32, 64, 128)),
                sizes(f"{side}_inner", (1, 2, 3, 4, 6, 7, 8, 12, 16)),
            )
        ]
        space = Space(
            (
                *knobs,
                sizes("k_tile", self._k_tiles()),
                sizes("k_unroll", (1, 2, 4, 8, 16)),
                choice("staged", STAGED),
                sizes("vector", (1, 2, 4)),
                sizes("pad", (0, 4)),
                choice("prefetch", self._prefetch()),
                sizes("out_vector", [v for v in (1, 2, 4) if self.run % v == 0]),
                sizes("k_split", self._splits()),
                sizes("k_turn", range(max(len(self.found.k), 1))),
                *([sizes("x_lanes", self._lanes())] if self._in_turns else ()),
            ),
            (self._illegal,),
        )
        return dataclasses.replace(
            space, seeds=space.starts(self._wanted()), features=self._features
        )

    @property
    def _in_turns(self) -> bool:
        """Whether threads of a block run one after the other: on a CPU."""
        return self.target.warp == 1

    def _k_tiles(self) -> list[int]:
        """Depths of a panel. A CPU, which gains nothing by barriers, has those that divide the
        reduction too: then a side that is not staged needs no guard."""
        depths = {t for t in (1, 2, 4, 8, 16, 32, 64) if t < 2 * self.extents["k"]}
        if self._in_turns:
            depths |= {t for t in range(1, DEEPEST + 1) if self.extents["k"] % t == 0}
        return sorted(depths)

    def _lanes(self) -> list[int]:
        """Widths of the vectors that a thread of a CPU computes with; those of a GPU are warps. TVM
        writes a vector of bytes that do not lie together as CUDA's, which OpenCL C has not."""
        wide = all(item_bytes(buffer) >= WORD for buffer in self.program.inputs)
        return [1, *(n for n in (4, 8, 16) if wide and n <= self.target.lanes())]

    def _prefetch(self) -> list[str]:
        """How panels of later steps may come before those of this one are used."""
        copied = any(copy.width for copy in self.copies.values())
        most = self.target.copies_ahead + 1 if copied else 1
        return [way for way, panels in PANELS.items() if panels <= most]

    def _ways(self) -> list[Config]:
        """What seeds change to come ahead otherwise than by registers: copies beside the kernel."""
        found = [way for way in self._prefetch() if 1 < PANELS[way] <= SEED_PANELS]
        width = max(copy.width for copy in self.copies.values())
        ahead: list[Config] = [{"prefetch": way, "vector": width} for way in found[-1:]]
        return [{}, *ahead]

    def _splits(self) -> list[int]:
        """Parts of the reduction that may go to blocks of their own: none where the outputs
        keep the device busy, or a part were short."""
        outputs = points(self.found.batch) * self.extents["y"] * self.extents["x"]
        longest = self.extents["k"] // SHORTEST_PART
        most = min(longest, SPLIT_THREADS * self.target.cores // outputs)
        return [1, *(n for n in (2, 4, 8, 16, 32, 64) if n <= most)]

    def _wanted(self) -> Iterator[Config]:
        """Good configs, not all of which are of the space."""
        names = ("y_virtual", "y_threads", "y_inner", "x_virtual", "x_threads", "x_inner", "k_tile")
        for tile in TILES:
            sizes = dict(zip(names, tile, strict=True))
            own = math.prod(
                sizes[f"{side}_{what}"] for side in "yx" for what in ("virtual", "inner")
            )
            wanted: Config = {
                **sizes, "k_unroll": min(sizes["k_tile"], max(UNROLLED // own, 8)),
                "staged": "both", "vector": 4, "pad": 4, "prefetch": "register", "out_vector": 4,
                "k_split": 1, "k_turn": 0,
            }  # fmt: skip
            for split in sorted({1, self._filling(wanted)}):
                for turn in range(min(len(self.found.k), 2)):
                    for way in self._ways():
                        yield wanted | {"k_split": split, "k_turn": turn} | way
        yield from self._wanted_in_turns() if self._in_turns else ()
        for staged in ("both", "none"):
            for y_threads, x_threads, y_inner, x_inner, k_tile in SEEDS:
                yield {
                    "y_virtual": 1, "y_threads": y_threads, "y_inner": y_inner,
                    "x_virtual": 1, "x_threads": x_threads, "x_inner": x_inner,
                    "k_tile": k_tile, "k_unroll": 1, "staged": staged, "vector": 1,
                    "pad": 0, "prefetch": "none", "out_vector": 1, "k_split": 1,
                    "k_turn": 0,
                }  # fmt: skip

    def _wanted_in_turns(self) -> Iterator[Config]:
        """Blocks of one thread, whose sums are vectors: X as it lies in memory, or a panel of it
        that many rows of Y use."""
        lanes = self._lanes()[-1]
        if lanes == 1:
            return
        depths = [t for t in self._k_tiles() if self.extents["k"] % t == 0]
        deep = {max(t for t in depths if t <= most) for most in (64, DEEPEST)}
        ways = [("none", 1, 1, 0)]
        ways += itertools.product(("x",), (1, 4, 8), deep, range(min(len(self.found.k), 2)))
        for (staged, virtual, depth, turn), rows, vectors in itertools.product(
            ways, (1, 2, 3, 4, 6, 8), (1, 2)
        ):
            yield {
                "y_virtual": virtual, "y_threads": 1, "y_inner": rows,
                "x_virtual": 1, "x_threads": 1, "x_inner": vectors * lanes,
                "k_tile": depth, "k_unroll": 1, "staged": staged, "vector": 1, "pad": 0,
                "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": turn,
                "x_lanes": lanes,
            }  # fmt: skip

    def _filling(self, config: Mapping[str, Value]) -> int:
        """Parts of the reduction that give every core two blocks at most."""
        plan = self.plan(config)
        return max(
            n for n in self._splits() if n == 1 or n * self._tiles(plan) <= 2 * self.target.cores
        )

    def _tiles(self, plan: Plan) -> int:
        """Tiles of the output."""
        return points(self.found.batch) * plan.y.blocks * plan.x.blocks

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        plan, target = self.plan(config), self.target
        if plan.threads > target.threads_per_block:
            return f"{plan.threads} threads a block, limit {target.threads_per_block}"
        if plan.registers > target.thread_registers:
            return f"a thread needs {plan.registers} registers, has {target.thread_registers}"
        if plan.held * plan.threads > (target.block_registers or math.inf):
            # a compiler finds room for addresses where it can, for values it cannot
            return f"a block has {target.block_registers} registers, its threads need more"
        size = BufferSpec("panels", (plan.shared,), str(self.found.stage.buffer.dtype)).nbytes
        limit = target.launch_shared_bytes if plan.panels > 1 else target.shared_bytes
        if size > limit:
            return f"panels need {size} bytes of shared memory, limit {limit}"
        if plan.body > target.max_unroll:
            return f"unrolled body has {plan.body} operations, limit {target.max_unroll}"
        if plan.bodies * plan.body > MOST_BODIES * target.max_unroll:
            return (
                f"unrolled bodies have {plan.bodies * plan.body} operations, "
                f"limit {MOST_BODIES * target.max_unroll}"
            )
        if self._computed(plan) > MOST_LOADS:
            return f"unrolled body computes more than {MOST_LOADS} loads of what is not staged"
        if plan.k_tile % plan.k_unroll:
            return "a panel is no whole number of unrolled steps"
        if plan.y.blocks > gpu_loops.MOST_BLOCKS:
            return f"more than {gpu_loops.MOST_BLOCKS} blocks along the second side of the grid"
        for side, tile in (("y", plan.y), ("x", plan.x)):
            if tile.block >= 2 * max(tile.extent, 1) and tile.block > 1:
                return "a block is twice as long as the side"
            if side not in plan.staged and plan.k_padded:
                return "a padded reduction needs both panels"
        vector, out_vector = int(config["vector"]), int(config["out_vector"])
        if (plan.pad or plan.ahead) and not plan.staged:
            return "only panels are padded and fetched ahead"
        if any(row <= plan.pad for row in plan.rows):
            return "a panel's rows are no longer than what lies between them"
        if (plan.k_split - 1) * plan.k_blocks * plan.k_tile >= plan.k_extent:
            return "a part of the reduction is empty"
        if plan.k_split > 1 and self._tiles(plan) * plan.k_split > MOST_WAVES * self.target.cores:
            return "the tiles keep the device busy without parts of the reduction"
        if plan.prefetch and plan.k_blocks < 2:
            return "one panel has no next one to fetch"
        if plan.panels > plan.k_blocks:
            return "there are not so many panels"
        if plan.panels > 1 and not all(self.copies[side].width for side in plan.staged):
            return "what is computed is not copied beside the kernel"
        if plan.panels > 1 and vector > max(self.copies[side].width for side in plan.staged):
            return "no such vectors lie together to be copied beside the kernel"
        if plan.lanes > 1 and plan.threads > 1:
            return "only a thread alone computes vectors"
        if plan.x.inner % plan.lanes or plan.x.inner % out_vector:
            return "a thread's outputs are no whole number of vectors"
        if any(self._along(plan, s) % self.width(plan, s, vector) for s in plan.staged):
            # such a vector is none in memory, and TVM fails at some of them
            return "what is copied along memory is no whole number of vectors"
        if vector > 1 and plan.x.threads == 1 < plan.threads and target.warp == 1:
            # PoCL compiles some of these wrongly, which the emulation of CUDA runs as they should
            return "a column of threads that take turns copies no vectors"
        if vector > 1 and not plan.staged:
            return "only panels are loaded in vectors"
        return None

    def _in_rows(self, side: Side, lanes: int) -> bool:
        """Whether every vector of a side is of one row of an input, and no division finds it."""
        given = side.operand.buffer in self.program.inputs
        return lanes > 1 and given and side.iterators[-1].extent % lanes == 0

    def _computed(self, plan: Plan) -> int:
        """Unrolled loads of sides that are not staged and not as given: padded, or dilated."""
        tiles = {"y": plan.y, "x": plan.x}
        return plan.k_unroll * sum(
            tiles[name].own
            for name, side in self.sides.items()
            if name not in plan.staged and side.operand.buffer not in self.program.inputs
        )

    def _along(self, plan: Plan, side: str) -> int:
        """Elements of a side's panel in the order of memory before they begin anew: a row, or
        where the reduction comes first, the depth of the panel."""
        row = plan.rows[plan.staged.index(side)]
        return row if self.sides[side].contiguous else plan.k_tile

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Sizes that decide the time. `estimate` is a guess in seconds on a device of 1 GHz."""
        plan, target = self.plan(config), self.target
        batch = points(self.found.batch)
        blocks = self._tiles(plan) * plan.k_split
        work = batch * plan.y.padded * plan.x.padded * plan.k_split * plan.k_blocks * plan.k_tile
        loads = work / plan.x.own + work / plan.y.own
        copied = blocks * plan.k_blocks * plan.copied
        in_place = {"x"} - set(plan.staged)  # by vectors, if there are any
        accesses = {
            name: Access(
                side.contiguous,
                len(side.iterators) > 1
                and not (name in in_place and self._in_rows(side, plan.lanes)),
                self.width(plan, name, int(config["vector"])) if name in plan.staged else 1,
            )
            for name, side in self.sides.items()
        }
        outputs = batch * self.extents["y"] * self.extents["x"]
        seconds = gpu_estimate.seconds(plan, self._tiles(plan), outputs, accesses, target)
        log = math.log2
        return {
            "estimate": seconds,
            "log_estimate": log(seconds),
            "waste": work / batch / (self.extents["y"] * self.extents["x"] * self.extents["k"]),
            "blocks": log(blocks),
            "waves": ceil_div(blocks, target.cores) * target.cores / blocks,
            "threads": log(plan.threads),
            "accumulators": log(plan.accumulators),
            "shared": log(plan.shared + 1),
            "loads": log(loads),
            "copied": log(copied + 1),
            "body": log(plan.body),
            "panel_y": log(plan.y.block * plan.k_tile),
            "panel_x": log(plan.x.block * plan.k_tile),
            "hidden": float(plan.ahead),
            "parts": log(plan.k_split),
            "lanes": log(plan.lanes),
        }
