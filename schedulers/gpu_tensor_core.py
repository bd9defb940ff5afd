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

The instructions are those of `gpu_tensor_core_units`; where each lane knows its own sums (`mma`),
they are written from registers.

Sides and their gathered panels are those of `flextensor.schedulers.gpu_contraction`: a convolution
is a GEMM, tiles need not divide, only copies and the last write are guarded. A side's panel has
its elements as rows, or as columns, by which of them are neighbours in memory, and is copied in
vectors of up to 16 bytes where these stay whole. Where they do not, as in convolutions, kernels may
lay both operands out before (`gpu_tensor_core_pack`), and where tiles are few, blocks may sum parts
of the reduction, which another kernel adds (`gpu_parts`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.operators.stages import guarded
from flextensor.schedulers import gpu_loops, gpu_parts
from flextensor.schedulers import gpu_tensor_core_operands as operands
from flextensor.schedulers.analysis import Contraction, contraction, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.gpu_tensor_core_pack import Rows, Weights
from flextensor.schedulers.gpu_tensor_core_plan import SKEW, TILE, WARP, Plan
from flextensor.schedulers.gpu_tensor_core_space import GpuTensorCoreSpace
from flextensor.schedulers.gpu_tensor_core_units import SIDES, UNITS, Unit
from flextensor.schedulers.gpu_two_sided import TwoSidedSchedule
from flextensor.schedulers.layouts import unflatten
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors
from flextensor.schedulers.space import Value
from flextensor.targets.base import Target

MOST_LOADS = 32
"""Loads of a thread that are written one after the other: more take long to compile."""


class GpuTensorCoreScheduler(Scheduler):
    """Takes sums in float32 of products of operands of 16 bits: float16 or bfloat16."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a device whose matrix units take its operands."""
        if not target.threads_per_block or not any(map(target.matrix_tile, operands.HALF)):
            return None
        found = contraction(stage)
        if found is None or not found.k or min(points(found.m), points(found.n)) < 2:
            return None
        if str(stage.buffer.dtype) != "float32":
            return None
        a, b = operands.half(found.a), operands.half(found.b)
        if a is None or b is None or a.value.ty != b.value.ty:
            return None
        if not target.matrix_tile(str(a.value.ty)):
            return None
        return GpuTensorCoreSchedule(program, dataclasses.replace(found, a=a, b=b), target)


class GpuTensorCoreSchedule(TwoSidedSchedule):
    """One contraction of a program on matrix units."""

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        super().__init__(found, target)
        self.dtype = str(found.a.value.ty)
        self.decides = GpuTensorCoreSpace(program, found, self.sides, target)
        self.space = self.decides.space()

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Panels P[batch, y, k] or P[batch, k, y] of each side, their fragments, the sums
        Z[batch, y, x], y as the unit wants it, the same staged, and the output.
        With parts of the reduction, they are the first index of Z and of what is staged, and the
        output adds them."""
        plan, name = self.decides.plan(config), self.stage.name
        batch = [i.extent for i in self.found.batch]
        parts = [plan.k_split] if plan.k_split > 1 else []
        own = {
            s: [p for p, b in enumerate(self.found.batch) if b in side.own_batch]
            for s, side in self.sides.items()
        }
        y, x = (self._fragment(plan, side, own[side], tensors) for side in ("y", "x"))
        part = plan.k_blocks * plan.k_tile
        k = te.reduce_axis((0, part), "k")

        def accumulate(*at: Any) -> Any:
            b, yq, xq = list(at[: -len(rows) - 1]), at[-len(rows) - 1 : -1], at[-1]
            kq = b.pop(0) * part + k.var if parts else k.var
            left = y(*(b[p] for p in own["y"]), *yq, kq)
            right = x(*(b[p] for p in own["x"]), kq, xq)
            return te.sum(left.astype("float32") * right.astype("float32"), axis=k)

        rows = UNITS[plan.unit].rows(plan.y)
        shape = [*parts, *batch, *rows, plan.x.padded]
        z = te.compute(shape, accumulate, name=f"{name}_acc")
        s = te.compute(shape, lambda *at: z(*at), name=f"{name}_staged")

        def flat(*at: Any) -> Any:
            *b, yq, xq = at
            return s(*b, *unflatten(yq, rows), xq)

        sums = [*parts, *batch, plan.y.padded, plan.x.padded]
        f = te.compute(sums, flat, name=f"{name}_flat")
        self.finish(f, plan.k_split, tensors, final)

    def _fragment(self, plan: Plan, which: str, own: list[int], tensors: Tensors) -> Any:
        """A side's operand as the matrix units read it, y before k and k before x."""
        band, name = plan.band(which), f"{self.stage.name}_{which}"
        batch, rows = [self.found.batch[p] for p in own], plan.rows[which]
        extents = [i.extent for i in batch]

        def order(q: Any, kq: Any) -> tuple[Any, Any]:
            return (q, kq) if rows else (kq, q)

        if which == "y" and plan.packed:
            packed = self._packed(plan, batch, tensors)
        elif plan.laid:
            packed = self._copied(plan, batch, tensors)
        else:
            taps_first = self.decides.taps_first if plan.packed else self.found.k
            ks = self._ordered(plan, which, taps_first)
            value = self._value(plan, which, batch, tensors, ks)
            packed = lambda *at: value(*at[:-2], *order(*at[-2:]))  # noqa: E731  its own inverse
        shape = [*extents, *order(band.padded, plan.k_padded)]
        p = te.compute(shape, lambda *at: packed(*at), name=f"{name}_panel")

        def fragment(*at: Any) -> Any:
            if which == "x":
                b, kq, q = at[:-2], *at[-2:]
            else:
                b, kq = at[: -len(tiles) - 1], at[-1]
                q = gpu_loops.flatten(at[-len(tiles) - 1 : -1], tiles)
            return p(*b, *order(q, kq))

        tiles, k = UNITS[plan.unit].rows(band), plan.k_padded
        shape = [k, band.padded] if which == "x" else [*tiles, k]
        return te.compute([*extents, *shape], fragment, name=f"{name}_tile")

    def _value(
        self,
        plan: Plan,
        which: str,
        batch: Sequence[Iterator],
        tensors: Tensors,
        ks: Callable[[Any], tuple[dict[Any, Any], list[Any]]],
        clamped: bool = False,
    ) -> Callable[..., Any]:
        """(batch, q, k) -> a side's operand where it lies; `ks` gives the reduction's iterators,
        and what holds inside of it. It is zero beyond its ends. Beyond that of the side anything
        would do, for it is dropped: `clamped`, the last element."""
        side, band = self.sides[which], plan.band(which)
        together = 1 if self.decides.rows[which] else self.decides.together[which]

        def value(*given: Any) -> Any:
            *b, q, kq = given
            at, inside = ks(kq)
            if band.padded != band.extent and clamped:
                q = tirx.min(q, band.extent - 1)
            elif band.padded != band.extent:
                inside = [q < band.extent, *inside]
            at |= {i.var: v for i, v in zip(batch, b, strict=True)}
            at |= operands.places(q, side.iterators, together)
            return guarded(inside, rewrite(side.operand.value, at, tensors.load))

        return value

    def _ordered(
        self, plan: Plan, which: str, order: tuple[Iterator, ...]
    ) -> Callable[[Any], tuple[dict[Any, Any], list[Any]]]:
        """The reduction's iterators at a flat index in an order, and what holds inside of it."""
        decides = self.decides
        together = decides.together[which] if order == decides.along(which) else 1

        def ks(kq: Any) -> tuple[dict[Any, Any], list[Any]]:
            return operands.places(kq, order, together), self._inside(plan, kq)

        return ks

    def _packed(self, plan: Plan, batch: Sequence[Iterator], tensors: Tensors) -> Any:
        """The operand of Y as rows in the order of X's copy, or else with its taps outermost."""
        decides, laid = self.decides, self.decides.laid
        ks = self._ordered(plan, "y", decides.taps_first)
        if plan.laid and laid is not None:
            ks = laid.k
        turned = self._value(plan, "y", batch, tensors, ks)
        natural = self._ordered(plan, "y", self.found.k)
        plain = self._value(plan, "y", batch, tensors, natural, clamped=True)
        copy = self._weights(plan).write([i.extent for i in batch], plain, turned)

        def value(*given: Any) -> Any:
            return guarded(self._inside(plan, given[-1]), copy(*given))

        return value if plan.laid else copy

    def _inside(self, plan: Plan, kq: Any) -> list[Any]:
        """What holds of an index of the reduction that is not beyond it."""
        return [kq < plan.k_extent] if plan.k_padded != plan.k_extent else []

    def _weights(self, plan: Plan) -> Weights:
        """The kernel that packs Y: by way of a tile where its taps lie side by side."""
        decides, laid = self.decides, self.decides.laid
        taps = operands.sliding(self.sides["x"])
        inner = tuple(i for i in self.found.k if i not in taps)
        row = laid.row if plan.laid and laid is not None else points(inner)
        length = plan.k_extent if plan.laid else plan.k_padded
        turned = decides.rows["y"] and self.found.k == (*inner, *taps)
        turned = turned and length == decides.extents["k"]
        return Weights(
            f"{self.stage.name}_y_packed", plan.y.padded, row, points(taps) if turned else 1,
            length, decides.widths["y"],
        )  # fmt: skip

    def _copied(
        self, plan: Plan, batch: Sequence[Iterator], tensors: Tensors
    ) -> Callable[..., Any]:
        """(batch, q, k) -> the operand of X from its copy. What lies beyond X is computed, and
        dropped: the last element is as good as any."""
        laid, side, band = self.decides.laid, self.sides["x"], plan.x
        assert laid is not None
        copy = Rows(laid, f"{self.stage.name}_x_copy").write(tensors)
        together = laid.together(side.iterators)

        def value(*given: Any) -> Any:
            *b, q, kq = given
            if band.padded != band.extent:
                q = tirx.min(q, band.extent - 1)
            at = {i.var: v for i, v in zip(batch, b, strict=True)}
            at |= operands.places(q, side.iterators, together)
            *taps, along = unflatten(kq, [*(i.extent for i in laid.taps), laid.row])
            at |= {i.var: v for i, v in zip(laid.taps, taps, strict=True)}
            found = copy(*(at[i.var] for i in laid.leading), laid.place(at), along)
            return guarded(self._inside(plan, kq), found)

        return value

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Blocks and warps over the output, panels shared, sums and operands in fragments."""
        plan, name = self.decides.plan(config), self.stage.name
        unit = UNITS[plan.unit](sch, name, self.dtype)
        flat, acc, out = map(unit.block, ("flat", "acc", "out"))
        if plan.k_split > 1:
            width = min(self.decides.written(plan), operands.written(self.found, self.sides["x"]))
            gpu_parts.arrange(
                sch, name, self.coordinates, self.flat_shape, len(self.stage.shape), width,
                self.target,
            )  # fmt: skip
            out = sch.get_sblock(f"{name}_part")
        else:
            gpu_loops.relayout(sch, out, lambda *at: self.coordinates(at), len(self.stage.shape))
        *batch, y, x = sch.get_loops(flat)
        yb, yw, yf, yi = unit.split(y, plan.y)
        xb, xw, xf, xi = sch.split(x, [plan.x.blocks, plan.x.warps, plan.x.fragments, TILE])
        sch.reorder(*batch, yb, xb, yw, xw, yf, xf, yi, xi)
        gpu_loops.bind_blocks(sch, batch, yb, xb)
        sch.bind(xw, "threadIdx.z")
        sch.bind(yw, "threadIdx.y")
        sch.reverse_compute_at(out, yf, preserve_unit_loops=True)
        sch.compute_at(unit.block("staged"), yf, preserve_unit_loops=True)
        sch.set_scope(acc, 0, unit.scopes["sums"])
        sch.compute_at(acc, xw, preserve_unit_loops=True)
        yi, kb, ks = self._sums(plan, unit, acc)
        for side in SIDES:
            fragment = unit.block(f"{side}_tile")
            sch.set_scope(fragment, 0, unit.scopes[side])
            sch.compute_at(fragment, ks, preserve_unit_loops=True)
            self._copy(plan, sch, side, kb)
        sch.unroll(yf)  # registers have no addresses
        if plan.packed:
            self._weights(plan).arrange(sch)
        if plan.laid and self.decides.laid is not None:
            Rows(self.decides.laid, f"{name}_x_copy").arrange(sch)
        unit.spread(out, self.decides.written(plan))
        # at last: what an intrinsic does is opaque to TVM, and is moved no more
        unit.bare(acc)
        tile = sch.blockize(yi)
        first = sch.decompose_reduction(tile, kb)
        for side in SIDES:
            unit.read(side, plan.rows[side] != (side == "y"))
        if plan.stages > 1:
            gpu_loops.copy_ahead(sch, kb, len(SIDES), plan.stages)
        unit.multiply(tile, first)

    def _sums(self, plan: Plan, unit: Unit, acc: Any) -> tuple[Any, Any, Any]:
        """The sums by tiles; the loops of a tile, over panels and over steps of one."""
        sch, rows = unit.sch, len(unit.rows(plan.y))
        outer = len(self.found.batch) + (plan.k_split > 1)
        *units, x, k = sch.get_loops(acc)[-(outer + rows + 2) :]
        yf, yi = units[outer], units[-1]
        if rows == 1:
            yf, yi = sch.split(yf, [None, TILE])
        apart = [*units[:outer], *units[outer + 1 : -1]]  # one each
        xf, xi = sch.split(x, [None, TILE])
        kb, ks, ki = sch.split(k, [None, plan.k_steps, TILE])
        sch.reorder(kb, ks, *apart, yf, xf, yi, xi, ki)
        for loop in (ks, yf, xf):
            sch.unroll(loop)
        return yi, kb, ks

    def _copy(self, plan: Plan, sch: Any, side: str, kb: Any) -> None:
        """A side's panel in shared memory, copied by all threads in turns."""
        panel = sch.get_sblock(f"{self.stage.name}_{side}_panel")
        sch.set_scope(panel, 0, "shared.dyn")
        sch.compute_at(panel, kb, preserve_unit_loops=True)
        fused = sch.fuse(*sch.get_loops(panel)[-2:])
        parts = [None, plan.x.warps, plan.y.warps, WARP, self.decides.width(plan, side)]
        turns, xw, yw, lane, vector = sch.split(fused, parts)
        if self.decides.width(plan, side) == 1 and plan.turns(side, 1) <= MOST_LOADS:
            sch.unroll(turns)  # all loads are under way before the first is stored
        sch.bind(xw, "threadIdx.z")
        sch.bind(yw, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.vectorize(vector)
        sch.storage_align(panel, 0, axis=-2, factor=TILE, offset=SKEW)
