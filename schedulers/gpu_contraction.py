"""Contractions on devices with thread blocks: tiles of the output per block, and per thread.

    for block of Y, block of X on the grid:
        for virtual, for thread of Y, X in the block:
            for block of K:
                copy a panel of each operand into shared memory, all threads together
                for k:  acc[y, x] += panel_y[k, y] * panel_x[k, x]       # registers of one thread
            write acc out, through the fused elementwise consumers

X is the side (M or N) whose elements are neighbours in the output, so that neighbouring threads
write them. All iterators of a side are one index, and all of the reduction one more, whatever their
number: a convolution is a GEMM whose panels are gathered. Tiles need not divide. Panels are padded
with zeros while they are copied, and only the copy and the last write are guarded.

Panels may be fetched a step ahead (`gpu_loops.pipeline`) or copied beside the kernel several steps
ahead (`gpu_copies`), their rows padded against conflicts of banks, and copies and outputs be
vectors. The reduction may begin with its last iterators: with channels innermost, a panel of a
convolution lies at one place of the window. Where outputs are too few to keep the device busy,
blocks compute parts of the reduction, and a second kernel adds them, always in the same order.

On a device whose threads take turns, a CPU, a block may be one thread, whose sums are vectors of X:

    for k:  acc[y, x : x + 8] += panel_y[k, y] * panel_x[k, x : x + 8]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.operators.stages import guarded
from flextensor.schedulers import gpu_loops, gpu_parts
from flextensor.schedulers.analysis import Contraction, contraction, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.gpu_contraction_space import GpuContractionSpace
from flextensor.schedulers.gpu_plan import Plan
from flextensor.schedulers.gpu_tensor_core_operands import places
from flextensor.schedulers.gpu_two_sided import TwoSidedSchedule
from flextensor.schedulers.layouts import unflatten
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Value
from flextensor.targets.base import Target


class GpuContractionScheduler(Scheduler):
    """Takes sums of products whose operands are both used more than once."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a device with thread blocks, when both sides have something to tile."""
        if not target.threads_per_block:
            return None
        found = contraction(stage)
        if found is None or not found.k or min(points(found.m), points(found.n)) < 2:
            return None
        return GpuContractionSchedule(program, found, target)


class GpuContractionSchedule(TwoSidedSchedule):
    """One contraction of a program on a device with thread blocks."""

    def __init__(self, program: Program, found: Contraction, target: Target) -> None:
        super().__init__(found, target)
        self.decides = GpuContractionSpace(program, found, self.sides, target)
        self.space = self.decides.space()

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Panels S[batch, block, kb, k, i], accumulators Z[batch, ys, xs, y, x], the same as two
        flat sides F[batch, y, x], and the output. With parts of the reduction, they are the first
        index of Z, F and of their sums P[part, batch, y, x], and the output adds these."""
        plan, name = self.decides.plan(config), self.stage.name
        batch = [i.extent for i in self.found.batch]
        parts = [plan.k_split] if plan.k_split > 1 else []
        y, x = (self._element(plan, side, tensors) for side in ("y", "x"))
        kb = te.reduce_axis((0, plan.k_blocks), "kb")
        kk = te.reduce_axis((0, plan.k_tile), "kk")

        def accumulate(*at: Any) -> Any:
            *b, ys, xs, yi, xi = at
            first = b.pop(0) * plan.k_blocks if parts else 0
            ks = (first + kb.var, kk.var)
            term = y(b, *plan.y.panel(ys, yi), *ks) * x(b, *plan.x.panel(xs, xi), *ks)
            return te.sum(term, axis=[kb, kk])

        shape = [*parts, *batch, plan.y.spans, plan.x.spans, plan.y.span, plan.x.span]
        z = te.compute(shape, accumulate, name=f"{name}_acc")

        def flat(*at: Any) -> Any:
            *b, yq, xq = at
            (ys, yi), (xs, xi) = plan.y.locate(yq), plan.x.locate(xq)
            return z(*b, ys, xs, yi, xi)

        f = te.compute([*parts, *batch, plan.y.padded, plan.x.padded], flat, name=f"{name}_flat")
        self.finish(f, plan.k_split, tensors, final)

    def _element(self, plan: Plan, which: str, tensors: Tensors) -> Callable[..., Any]:
        """(batch, block, element, block of k, k) -> a side's operand, from its panel if staged."""
        side, tile = self.sides[which], {"y": plan.y, "x": plan.x}[which]
        own = [p for p, b in enumerate(self.found.batch) if b in side.own_batch]
        together, width = 1, 1
        if plan.panels > 1:
            copy = self.decides.copies[which]
            together, width = copy.together, copy.width

        def value(b: Sequence[Any], o: Any, i: Any, kb: Any, k: Any, guard: bool) -> Any:
            q, kq = o * tile.block + i, kb * plan.k_tile + k
            inside = []
            if tile.padded != tile.extent:
                # of whole vectors, where TVM would look at each of their elements
                inside.append(tirx.floordiv(q, width) < tile.extent // width)
                q = q if guard else tirx.min(q, tile.extent - 1)
            if plan.k_padded:
                inside.append(kq < plan.k_extent)
            turned = self.found.k[plan.k_turn :] + self.found.k[: plan.k_turn]
            ks = unflatten(kq, [i.extent for i in turned])
            at = {i.var: v for i, v in zip(turned, ks, strict=True)}
            at |= places(q, side.iterators, together)
            at |= {self.found.batch[p].var: v for p, v in zip(own, b, strict=True)}
            found = rewrite(side.operand.value, at, tensors.load)
            return guarded(inside, found) if guard else found

        if which not in plan.staged:
            return lambda b, o, i, kb, k: value([b[p] for p in own], o, i, kb, k, False)
        shape = [self.found.batch[p].extent for p in own]
        shape += [tile.blocks, plan.k_split * plan.k_blocks, plan.k_tile, tile.block]

        def body(*at: Any) -> Any:
            *b, o, kb, k, i = at
            return value(b, o, i, kb, k, True)

        panel = te.compute(shape, body, name=f"{self.stage.name}_{which}")
        return lambda b, o, i, kb, k: panel(*(b[p] for p in own), o, kb, k, i)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Blocks and threads over the output, panels shared, sums in registers."""
        plan, name = self.decides.plan(config), self.stage.name
        flat, acc = sch.get_sblock(f"{name}_flat"), sch.get_sblock(f"{name}_acc")
        out = sch.get_sblock(f"{name}_out")
        if plan.k_split > 1:
            gpu_parts.arrange(
                sch, name, self.coordinates, self.flat_shape, len(self.stage.shape),
                int(config["out_vector"]), self.target,
            )  # fmt: skip
            out = sch.get_sblock(f"{name}_part")
        else:
            gpu_loops.relayout(sch, out, lambda *at: self.coordinates(at), len(self.stage.shape))
        *batch, y, x = sch.get_loops(flat)
        yb, yv, yt, yi = sch.split(y, plan.y.factors)
        xb, xv, xt, xi = sch.split(x, plan.x.factors)
        sch.reorder(*batch, yb, xb, yv, xv, yt, xt, yi, xi)
        gpu_loops.bind_blocks(sch, batch, yb, xb)
        sch.bind(yv, "vthread.y")
        sch.bind(xv, "vthread.x")
        sch.bind(yt, "threadIdx.y")
        sch.bind(xt, "threadIdx.x")
        sch.reverse_compute_at(out, xt, preserve_unit_loops=True)
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, xt, preserve_unit_loops=True)
        sch.compute_inline(flat)
        *units, yi, xi, kb, kk = sch.get_loops(acc)[-(len(batch) + 6) :]
        ko, ku = sch.split(kk, [None, plan.k_unroll])
        sch.reorder(kb, ko, ku, *units, yi, xi)
        if plan.lanes > 1:
            xi, lane = sch.split(xi, [None, plan.lanes])
            sch.vectorize(lane)
        for loop in (ku, yi, xi):
            sch.unroll(loop)
        for side in plan.staged:
            self._copy(plan, side, kb, self.decides.width(plan, side, int(config["vector"])), sch)
        *_, row, column = sch.get_loops(out)
        if (width := int(config["out_vector"])) > 1:
            column, vector = sch.split(column, [None, width])
            sch.vectorize(vector)
        sch.unroll(row)
        sch.unroll(column)
        sch.decompose_reduction(acc, kb)
        if plan.prefetch:
            gpu_loops.pipeline(sch, kb, len(plan.staged))
        if plan.panels > 1:
            gpu_loops.copy_ahead(sch, kb, len(plan.staged), plan.panels)

    def _copy(self, plan: Plan, side: str, kb: Any, width: int, sch: Any) -> None:
        """A panel in shared memory, copied by all threads of the block at every step of `kb`."""
        panel = sch.get_sblock(f"{self.stage.name}_{side}")
        # first the scope: what is shared is computed for all threads, and not for one
        sch.set_scope(panel, 0, "shared.dyn" if plan.panels > 1 else "shared")
        sch.compute_at(panel, kb, preserve_unit_loops=True)
        k, i = sch.get_loops(panel)[-2:]
        if not self.sides[side].contiguous:
            sch.reorder(i, k)
        fused = sch.fuse(*sch.get_loops(panel)[-2:])
        _, ty, tx, vector = sch.split(fused, [None, plan.y.threads, plan.x.threads, width])
        sch.bind(ty, "threadIdx.y")
        sch.bind(tx, "threadIdx.x")
        sch.vectorize(vector)
        if plan.pad:
            row = plan.rows[plan.staged.index(side)]
            sch.storage_align(panel, 0, axis=-2, factor=row, offset=plan.pad)
        if plan.prefetch:
            sch.annotate(panel, "tirx.manifest_shared_memory_local_stage", 1)
