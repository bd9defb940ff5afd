"""Contractions of half precision on matrix units: tiles of the output per block, and per warp.

    for block of Y, block of X on the grid:
        for warp of Y, X in the block:
            for block of K:
                copy a panel of each operand into shared memory, all threads together
                for step of 16 of K:
                    load fragments of the panels, 16 x 16 each, held by a warp together
                    for fragment of Y, X:  sums[y, x] += a[y] * b[x]        # one instruction
            for fragment of Y:
                sums -> shared memory -> fused elementwise consumers, rounding -> output

Sides and their gathered panels are those of `flextensor.schedulers.gpu_contraction`: a convolution
is a GEMM, tiles need not divide, only copies and the last write are guarded. A side's panel has
its elements as rows, or as columns, by which of them are neighbours in memory, and is copied in
vectors of up to 16 bytes where these stay whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te

from flextensor.schedulers import gpu_estimate, gpu_loops
from flextensor.schedulers import gpu_tensor_core_operands as operands
from flextensor.schedulers.analysis import Contraction, contraction, iterators, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.gpu_loops import flatten
from flextensor.schedulers.gpu_tensor_core_plan import SKEW, TILE, WARP, Plan
from flextensor.schedulers.layouts import Side, guarded, unflatten
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

SEEDS = (
    # warps of Y and X, fragments of each that a warp has, steps of a panel, panels at a time
    (2, 2, 4, 4, 2, 3), (2, 4, 4, 4, 2, 3), (4, 2, 4, 4, 2, 3), (2, 2, 4, 4, 4, 2),
    (2, 2, 2, 4, 2, 4), (2, 2, 4, 2, 2, 4), (2, 2, 2, 2, 4, 3), (4, 2, 2, 4, 2, 1),
    (2, 2, 2, 2, 2, 1), (1, 2, 2, 2, 4, 3), (1, 4, 2, 2, 2, 1), (1, 1, 2, 2, 2, 2),
    (1, 1, 1, 1, 1, 1),
)  # fmt: skip
MOST_LOADS = 32
"""Loads of a thread that are written one after the other: more take long to compile."""
PACKERS = 256
"""Threads of a block that packs."""


class GpuTensorCoreScheduler(Scheduler):
    """Takes sums of products of float16 operands in float32."""

    name = "gpu_tensor_core"

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a device whose matrix units take its operands."""
        if not target.threads_per_block or not target.matrix_tile("float16"):
            return None
        found = contraction(stage)
        if found is None or not found.k or min(points(found.m), points(found.n)) < 2:
            return None
        if str(stage.buffer.dtype) != "float32":
            return None
        a, b = operands.half(found.a), operands.half(found.b)
        if a is None or b is None:
            return None
        return GpuTensorCoreSchedule(program, dataclasses.replace(found, a=a, b=b), target)


class GpuTensorCoreSchedule(StageSchedule):
    """One contraction of a program on matrix units."""

    fuses = True

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        self.stage, self.found, self.target = found.stage, found, target
        m = Side(found.a, found.m, found.batch, found.k)
        n = Side(found.b, found.n, found.batch, found.k)
        last = [parts for parts in found.outputs if parts][-1][-1]
        self.sides = {"y": n, "x": m} if last in found.m else {"y": m, "x": n}
        self.extents = {name: points(side.iterators) for name, side in self.sides.items()}
        self.extents["k"] = points(found.k)
        self.rows = {name: operands.along_k(side) for name, side in self.sides.items()}
        runs = {
            name: operands.run(side.operand, program.inputs, self._along(name))
            for name, side in self.sides.items()
        }
        self.together = {name: count for name, (count, _) in runs.items()}
        self.widths = {name: width for name, (_, width) in runs.items()}
        self.written = operands.written(found, self.sides["x"])
        sliding = operands.sliding(self.sides["x"]) if not self.rows["x"] else ()
        self.taps_first = (*sliding, *(i for i in found.k if i not in sliding))
        self.space = self._space()

    def _along(self, which: str) -> tuple[Iterator, ...]:
        """What varies along the rows of a side's panel."""
        side = self.sides[which]
        return side.k if self.rows[which] else side.iterators

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """All sizes that follow from a config."""
        return Plan.of(config, self.extents, self.rows)

    def width(self, plan: Plan, side: str) -> int:
        """Elements of a vector that is copied into a side's panel."""
        return operands.WIDTHS[0] if side == "y" and plan.packed else self.widths[side]

    def _space(self) -> Space:
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
        if self.taps_first != self.found.k:
            knobs.append(choice("packed", ("y", "none")))
        space = Space(tuple(knobs), (self._illegal,))
        return dataclasses.replace(space, seeds=self._seeds(space), features=self._features)

    def _seeds(self, space: Space) -> tuple[Config, ...]:
        found: dict[tuple[Value, ...], Config] = {}
        for y_warps, x_warps, y_fragments, x_fragments, k_steps, stages in SEEDS:
            if 1 in self.widths.values():
                stages = min(stages, 2)
            wanted: Config = {
                "y_warps": y_warps, "y_fragments": y_fragments,
                "x_warps": x_warps, "x_fragments": x_fragments,
                "k_steps": k_steps, "stages": stages, "packed": "y",
            }  # fmt: skip
            config = space.config(space.project(wanted))
            if space.reason(config) is None:
                found.setdefault(tuple(config.values()), config)
        return tuple(found.values())

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
        if max(plan.y.blocks, points(self.found.batch)) > gpu_loops.MOST_BLOCKS:
            return f"more than {gpu_loops.MOST_BLOCKS} blocks along one side of the grid"
        for side in ("y", "x"):
            if not plan.turns(side, self.width(plan, side)):
                return "a panel is no whole number of copies by all threads"
            band = plan.band(side)
            if band.block >= 2 * max(band.extent, TILE) and band.block > TILE:
                return "a block is twice as long as the side"
        if plan.k_tile >= 2 * max(plan.k_extent, TILE):
            return "a panel is twice as long as the reduction"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Sizes that decide the time. `estimate` is a guess in seconds on a device of 1 GHz."""
        plan, target = self.plan(config), self.target
        batch = points(self.found.batch)
        blocks = batch * plan.y.blocks * plan.x.blocks
        k = plan.k_blocks * plan.k_tile
        work = batch * plan.y.padded * plan.x.padded * k
        loads = work / plan.y.own + work / plan.x.own
        copied = sum(
            blocks * k * plan.band(side).block / self.width(plan, side) for side in ("y", "x")
        )
        waves = ceil_div(blocks, target.cores) * target.cores / blocks
        gathered = {name for name, side in self.sides.items() if len(side.iterators) > 1}
        seconds = gpu_estimate.matrix_seconds(plan, batch, self.widths, gathered, target)
        log = math.log2
        return {
            "estimate": seconds,
            "log_estimate": log(seconds),
            "waste": work / batch / (self.extents["y"] * self.extents["x"] * self.extents["k"]),
            "blocks": log(blocks),
            "waves": waves,
            "threads": log(plan.threads),
            "shared": log(plan.shared_bytes),
            "loads": log(loads),
            "copied": log(copied),
            "registers": log(plan.registers),
        }

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Panels P[batch, y, k] or P[batch, k, y] of each side, their fragments, the sums
        Z[batch, fragment, warp, 16, x], the same staged, and the output. The fragments of a warp
        lie apart, so that one of each is dense in what is staged at a time."""
        plan, name = self.plan(config), self.stage.name
        batch = [i.extent for i in self.found.batch]
        own = {
            s: [p for p, b in enumerate(self.found.batch) if b in side.own_batch]
            for s, side in self.sides.items()
        }
        y, x = (self._fragment(plan, side, own[side], tensors) for side in ("y", "x"))
        k = te.reduce_axis((0, plan.k_blocks * plan.k_tile), "k")

        def accumulate(*at: Any) -> Any:
            *b, yf, yw, yi, xq = at
            left = y(*(b[p] for p in own["y"]), yf, yw, yi, k.var)
            right = x(*(b[p] for p in own["x"]), k.var, xq)
            return te.sum(left.astype("float32") * right.astype("float32"), axis=k)

        rows = [plan.y.blocks * plan.y.fragments, plan.y.warps, TILE]
        shape = [*batch, *rows, plan.x.padded]
        z = te.compute(shape, accumulate, name=f"{name}_acc")
        s = te.compute(shape, lambda *at: z(*at), name=f"{name}_staged")

        def flat(*at: Any) -> Any:
            *b, yq, xq = at
            return s(*b, *unflatten(yq, rows), xq)

        f = te.compute([*batch, plan.y.padded, plan.x.padded], flat, name=f"{name}_flat")

        def out(*indices: Any) -> Any:
            return f(*self._coordinates(indices))

        tensors.set(self.stage.buffer, out)
        if final is self.stage:
            tensors.set(self.stage.buffer, te.compute(self.stage.shape, out, name=f"{name}_out"))
        else:
            tensors.plain(final, name=f"{name}_out")

    def _coordinates(self, indices: Sequence[Any]) -> list[Any]:
        """Batch, and the flat index of each side, of an element of the output."""
        at = iterators(self.found.outputs, indices)
        sides = (self.sides[s].iterators for s in ("y", "x"))
        return [at[i.var] for i in self.found.batch] + [
            flatten([at[i.var] for i in side], [i.extent for i in side]) for side in sides
        ]

    def _fragment(self, plan: Plan, which: str, own: list[int], tensors: Tensors) -> Any:
        """A side's operand as the matrix units read it, y before k and k before x."""
        side, band, name = self.sides[which], plan.band(which), f"{self.stage.name}_{which}"
        batch, k = [self.found.batch[p] for p in own], plan.k_blocks * plan.k_tile
        order_of_k = self.taps_first if plan.packed else self.found.k

        def value(b: Sequence[Any], q: Any, kq: Any) -> Any:
            inside = []
            if band.padded != band.extent:
                inside.append(q < band.extent)
            if k != plan.k_extent:
                inside.append(kq < plan.k_extent)
            at = {i.var: v for i, v in zip(batch, b, strict=True)}
            for flat, of in ((q, side.iterators), (kq, order_of_k)):
                together = self.together[which] if of == self._along(which) else 1
                at |= operands.places(flat, of, together)
            return guarded(inside, rewrite(side.operand.value, at, tensors.load))

        extents = [i.extent for i in batch]

        def order(q: Any, kq: Any) -> tuple[Any, Any]:
            return (q, kq) if plan.rows[which] else (kq, q)

        def panel(*at: Any) -> Any:
            *b, row, column = at
            return value(b, *order(row, column))  # its own inverse

        shape = [*extents, *order(band.padded, k)]
        if which == "y" and plan.packed:
            packed = te.compute(shape, panel, name=f"{name}_packed")
            p = te.compute(shape, lambda *at: packed(*at), name=f"{name}_panel")
        else:
            p = te.compute(shape, panel, name=f"{name}_panel")

        def fragment(*at: Any) -> Any:
            if which == "x":
                *b, kq, q = at
            else:
                *b, f, w, i, kq = at
                q = (f * band.warps + w) * TILE + i
            return p(*b, *order(q, kq))

        rows = [band.blocks * band.fragments, band.warps, TILE]
        shape = [k, band.padded] if which == "x" else [*rows, k]
        return te.compute([*extents, *shape], fragment, name=f"{name}_tile")

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Blocks and warps over the output, panels shared, sums and operands in fragments."""
        from flextensor.schedulers import matrix_intrinsics as units

        plan, name = self.plan(config), self.stage.name
        flat, acc, staged, out = (
            sch.get_sblock(f"{name}_{part}") for part in ("flat", "acc", "staged", "out")
        )
        gpu_loops.relayout(sch, out, lambda *at: self._coordinates(at), len(self.stage.shape))
        *batch, y, x = sch.get_loops(flat)
        yb, yf, yw, yi = sch.split(y, [plan.y.blocks, plan.y.fragments, plan.y.warps, TILE])
        xb, xw, xf, xi = sch.split(x, [plan.x.blocks, plan.x.warps, plan.x.fragments, TILE])
        sch.reorder(*batch, yb, xb, yw, xw, yf, xf, yi, xi)
        if batch:
            sch.bind(sch.fuse(*batch), "blockIdx.z")
        sch.bind(yb, "blockIdx.y")
        sch.bind(xb, "blockIdx.x")
        sch.bind(xw, "threadIdx.z")
        sch.bind(yw, "threadIdx.y")
        sch.reverse_compute_at(out, yf, preserve_unit_loops=True)
        sch.compute_at(staged, yf, preserve_unit_loops=True)
        sch.set_scope(acc, 0, units.SUMS)
        sch.compute_at(acc, xw, preserve_unit_loops=True)
        yi, kb, ks = self._sums(plan, sch, acc)
        for side in ("y", "x"):
            fragment = sch.get_sblock(f"{name}_{side}_tile")
            sch.set_scope(fragment, 0, units.FRAGMENTS[side])
            sch.compute_at(fragment, ks, preserve_unit_loops=True)
            self._copy(plan, sch, side, kb)
        sch.unroll(yf)  # registers have no addresses
        if plan.packed:
            self._pack(sch)
        fused = sch.fuse(*sch.get_loops(out)[-2:])
        _, lane, vector = sch.split(fused, [None, WARP, self.written])
        sch.bind(lane, "threadIdx.x")
        sch.vectorize(vector)
        # at last: what an intrinsic does is opaque to TVM, and is moved no more
        sch.compute_inline(flat)
        tile = sch.blockize(yi)
        first = sch.decompose_reduction(tile, kb)
        # what is shared counts as wanted by all threads, and a warp wants its own sums
        sch.set_scope(staged, 0, units.SHARED)
        sch.tensorize(self._tiled(sch, staged), units.store())
        staged = sch.get_sblock(f"{name}_staged_o")
        sch.storage_align(staged, 0, axis=-2, factor=TILE, offset=SKEW)
        for side in ("y", "x"):
            fragment = sch.get_sblock(f"{name}_{side}_tile")
            transposed = plan.rows[side] != (side == "y")
            sch.tensorize(self._tiled(sch, fragment), units.load(side, transposed))
        if plan.stages > 1:
            sch.annotate(kb, "software_pipeline_stage", [0, 0, plan.stages - 1])
            sch.annotate(kb, "software_pipeline_order", [0, 1, 2])
            sch.annotate(kb, "software_pipeline_async_stages", [0])
        sch.tensorize(sch.get_loops(sch.get_child_blocks(first)[0])[0], units.zero())
        sch.tensorize(sch.get_loops(sch.get_child_blocks(tile)[0])[0], units.multiply())

    def _pack(self, sch: Any) -> None:
        """The rows of Y, a kernel of its own: neighbouring threads write neighbours."""
        loops = sch.get_loops(sch.get_sblock(f"{self.stage.name}_y_packed"))
        block, thread = sch.split(sch.fuse(*loops), [None, PACKERS])
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")

    def _sums(self, plan: Plan, sch: Any, acc: Any) -> tuple[Any, Any, Any]:
        """The sums by tiles; the loops of a tile, over panels and over steps of one."""
        *units, yf, yw, yi, x, k = sch.get_loops(acc)[-(len(self.found.batch) + 5) :]
        xf, xi = sch.split(x, [None, TILE])
        kb, ks, ki = sch.split(k, [None, plan.k_steps, TILE])
        sch.reorder(kb, ks, *units, yw, yf, xf, yi, xi, ki)
        for loop in (ks, yf, xf):
            sch.unroll(loop)
        return yi, kb, ks

    def _tiled(self, sch: Any, block: Any) -> Any:
        """The innermost loops by tiles; the outer loop of a tile."""
        y, x = sch.get_loops(block)[-2:]
        yo, yi = sch.split(y, [None, TILE])
        xo, xi = sch.split(x, [None, TILE])
        sch.reorder(yo, xo, yi, xi)
        sch.unroll(yo)
        sch.unroll(xo)
        return yi

    def _copy(self, plan: Plan, sch: Any, side: str, kb: Any) -> None:
        """A side's panel in shared memory, copied by all threads in turns."""
        from flextensor.schedulers import matrix_intrinsics as units

        panel = sch.get_sblock(f"{self.stage.name}_{side}_panel")
        sch.set_scope(panel, 0, units.SHARED)
        sch.compute_at(panel, kb, preserve_unit_loops=True)
        fused = sch.fuse(*sch.get_loops(panel)[-2:])
        parts = [None, plan.x.warps, plan.y.warps, WARP, self.width(plan, side)]
        turns, xw, yw, lane, vector = sch.split(fused, parts)
        if self.width(plan, side) == 1 and plan.turns(side, 1) <= MOST_LOADS:
            sch.unroll(turns)  # all loads are under way before the first is stored
        sch.bind(xw, "threadIdx.z")
        sch.bind(yw, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.vectorize(vector)
        sch.storage_align(panel, 0, axis=-2, factor=TILE, offset=SKEW)
