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

Panels may be fetched a step ahead (`gpu_loops.pipeline`), their rows padded against conflicts of
banks, and copies and outputs be vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.operators.workload import BufferSpec
from flextensor.schedulers import gpu_loops
from flextensor.schedulers.analysis import Contraction, contraction, iterators, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.gpu_loops import flatten
from flextensor.schedulers.gpu_plan import Plan
from flextensor.schedulers.layouts import Side, guarded, unflatten
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div

STAGED = ("both", "y", "x", "none")
PREFETCH = ("none", "register")
"""Whether the panels of the next step are fetched before those of this one are used."""
LOAD_CYCLES = 500
"""What a panel takes to come from memory."""
BUSY_THREADS = 1024
"""Threads that a core may work on at a time: while some wait, others do not."""
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


class GpuContractionScheduler(Scheduler):
    """Takes sums of products whose operands are both used more than once."""

    name = "gpu_contraction"

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a device with thread blocks, when both sides have something to tile."""
        if not target.threads_per_block:
            return None
        found = contraction(stage)
        if found is None or not found.k or min(points(found.m), points(found.n)) < 2:
            return None
        return GpuContractionSchedule(found, target)


class GpuContractionSchedule(StageSchedule):
    """One contraction of a program on a device with thread blocks."""

    fuses = True

    def __init__(self, found: Contraction, target: Target) -> None:
        self.stage, self.found, self.target = found.stage, found, target
        m = Side(found.a, found.m, found.batch, found.k)
        n = Side(found.b, found.n, found.batch, found.k)
        last = [parts for parts in found.outputs if parts][-1][-1]
        self.sides = {"y": n, "x": m} if last in found.m else {"y": m, "x": n}
        self.extents = {name: points(side.iterators) for name, side in self.sides.items()}
        self.extents["k"] = points(found.k)
        self.run = self._run()
        self.space = self._space()

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """All sizes that follow from a config."""
        return Plan.of(config, self.extents)

    def _run(self) -> int:
        """Elements of X in a row that are neighbours in the output too."""
        length = 1
        stored = [i for parts in self.found.outputs for i in parts]
        own = self.sides["x"].iterators
        for mine, theirs in zip(reversed(own), reversed(stored), strict=False):
            if mine is not theirs:
                break
            length *= mine.extent
        return length

    def _space(self) -> Space:
        k_tiles = [t for t in (1, 2, 4, 8, 16, 32, 64) if t < 2 * self.extents["k"]]
        knobs = [
            knob
            for side in ("y", "x")
            for knob in (
                sizes(f"{side}_virtual", (1, 2, 4)),
                sizes(f"{side}_threads", (1, 2, 4, 8, 16, 32, 64, 128)),
                sizes(f"{side}_inner", (1, 2, 3, 4, 6, 7, 8, 12, 16)),
            )
        ]
        space = Space(
            (
                *knobs,
                sizes("k_tile", k_tiles),
                sizes("k_unroll", (1, 2, 4, 8, 16)),
                choice("staged", STAGED),
                sizes("vector", (1, 2, 4)),
                sizes("pad", (0, 4)),
                choice("prefetch", PREFETCH),
                sizes("out_vector", [v for v in (1, 2, 4) if self.run % v == 0]),
            ),
            (self._illegal,),
        )
        return dataclasses.replace(space, seeds=self._seeds(space), features=self._features)

    def _seeds(self, space: Space) -> tuple[Config, ...]:
        found: dict[tuple[Value, ...], Config] = {}
        for wanted in self._wanted():
            config = space.config(space.project(wanted))
            if space.reason(config) is None:
                found.setdefault(tuple(config.values()), config)
        return tuple(found.values())

    def _wanted(self) -> Iterator[Config]:
        """Good configs, not all of which are of the space."""
        names = ("y_virtual", "y_threads", "y_inner", "x_virtual", "x_threads", "x_inner", "k_tile")
        for tile in TILES:
            sizes = dict(zip(names, tile, strict=True))
            yield {
                **sizes, "k_unroll": min(sizes["k_tile"], 8), "staged": "both", "vector": 4,
                "pad": 4, "prefetch": "register", "out_vector": 4,
            }  # fmt: skip
        for staged in ("both", "none"):
            for y_threads, x_threads, y_inner, x_inner, k_tile in SEEDS:
                yield {
                    "y_virtual": 1, "y_threads": y_threads, "y_inner": y_inner,
                    "x_virtual": 1, "x_threads": x_threads, "x_inner": x_inner,
                    "k_tile": k_tile, "k_unroll": 1, "staged": staged, "vector": 1,
                    "pad": 0, "prefetch": "none", "out_vector": 1,
                }  # fmt: skip

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        plan, target = self.plan(config), self.target
        if plan.threads > target.threads_per_block:
            return f"{plan.threads} threads a block, limit {target.threads_per_block}"
        if plan.registers > target.thread_registers:
            return f"a thread needs {plan.registers} registers, has {target.thread_registers}"
        size = BufferSpec("panels", (plan.shared,), str(self.stage.buffer.dtype)).nbytes
        if size > target.shared_bytes:
            return f"panels need {size} bytes of shared memory, limit {target.shared_bytes}"
        if plan.body > target.max_unroll:
            return f"unrolled body has {plan.body} operations, limit {target.max_unroll}"
        if plan.k_tile % plan.k_unroll:
            return "a panel is no whole number of unrolled steps"
        if max(plan.y.blocks, points(self.found.batch)) > gpu_loops.MOST_BLOCKS:
            return f"more than {gpu_loops.MOST_BLOCKS} blocks along one side of the grid"
        for side, tile in (("y", plan.y), ("x", plan.x)):
            if tile.block >= 2 * max(tile.extent, 1) and tile.block > 1:
                return "a block is twice as long as the side"
            if side not in plan.staged and plan.k_extent % plan.k_tile:
                return "a padded reduction needs both panels"
        vector, out_vector = int(config["vector"]), int(config["out_vector"])
        if (plan.pad or plan.prefetch) and not plan.staged:
            return "only panels are padded and fetched ahead"
        if any(row <= plan.pad for row in plan.rows):
            return "a panel's rows are no longer than what lies between them"
        if plan.prefetch and plan.k_blocks < 2:
            return "one panel has no next one to fetch"
        if plan.x.inner % out_vector:
            return "a thread's outputs are no whole number of vectors"
        if vector > 1 and any(plan.k_tile * getattr(plan, s).block % vector for s in plan.staged):
            return "a panel is no whole number of vectors"
        if vector > 1 and not plan.staged:
            return "only panels are loaded in vectors"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """Sizes that decide the time. `estimate` is a guess in seconds on a device of 1 GHz."""
        plan, target = self.plan(config), self.target
        batch = points(self.found.batch)
        blocks = batch * plan.y.blocks * plan.x.blocks
        work = batch * plan.y.padded * plan.x.padded * plan.k_blocks * plan.k_tile
        loads = work / plan.y.inner / plan.y.virtual + work / plan.x.inner / plan.x.virtual
        copied = blocks * plan.k_blocks * plan.copied
        copies = copied * (2 + 2 / int(config["vector"]))
        share = ceil_div(blocks, target.cores)
        waves = share * target.cores / blocks
        busy = (work + loads + copies) * waves / (target.cores * target.lanes())
        beside = max(min(share, BUSY_THREADS // plan.threads), 1)
        waits = 0 if plan.prefetch else plan.k_blocks * LOAD_CYCLES * share / beside
        seconds = (busy + waits) / 1e9
        log = math.log2
        return {
            "estimate": seconds,
            "log_estimate": log(seconds),
            "waste": work / batch / (self.extents["y"] * self.extents["x"] * self.extents["k"]),
            "blocks": log(blocks),
            "waves": waves,
            "threads": log(plan.threads),
            "accumulators": log(plan.accumulators),
            "shared": log(plan.shared + 1),
            "loads": log(loads),
            "copied": log(copied + 1),
            "body": log(plan.body),
            "panel_y": log(plan.y.block * plan.k_tile),
            "panel_x": log(plan.x.block * plan.k_tile),
            "waits": log(waits + 1),
        }

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Panels S[batch, block, kb, k, i], accumulators Z[batch, ys, xs, y, x], the same as two
        flat sides F[batch, y, x], and the output."""
        plan, name = self.plan(config), self.stage.name
        batch = [i.extent for i in self.found.batch]
        y, x = (self._element(plan, side, tensors) for side in ("y", "x"))
        kb = te.reduce_axis((0, plan.k_blocks), "kb")
        kk = te.reduce_axis((0, plan.k_tile), "kk")

        def accumulate(*at: Any) -> Any:
            *b, ys, xs, yi, xi = at
            ks = (kb.var, kk.var)
            term = y(b, *plan.y.panel(ys, yi), *ks) * x(b, *plan.x.panel(xs, xi), *ks)
            return te.sum(term, axis=[kb, kk])

        shape = [*batch, plan.y.spans, plan.x.spans, plan.y.span, plan.x.span]
        z = te.compute(shape, accumulate, name=f"{name}_acc")

        def flat(*at: Any) -> Any:
            *b, yq, xq = at
            (ys, yi), (xs, xi) = plan.y.locate(yq), plan.x.locate(xq)
            return z(*b, ys, xs, yi, xi)

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

    def _element(self, plan: Plan, which: str, tensors: Tensors) -> Callable[..., Any]:
        """(batch, block, element, block of k, k) -> a side's operand, from its panel if staged."""
        side, tile = self.sides[which], {"y": plan.y, "x": plan.x}[which]
        own = [p for p, b in enumerate(self.found.batch) if b in side.own_batch]

        def value(b: Sequence[Any], o: Any, i: Any, kb: Any, k: Any, guard: bool) -> Any:
            q, kq = o * tile.block + i, kb * plan.k_tile + k
            inside = []
            if tile.padded != tile.extent:
                inside.append(q < tile.extent)
                q = q if guard else tirx.min(q, tile.extent - 1)
            if plan.k_blocks * plan.k_tile != plan.k_extent:
                inside.append(kq < plan.k_extent)
            ks = unflatten(kq, [i.extent for i in self.found.k])
            at = {i.var: v for i, v in zip(self.found.k, ks, strict=True)}
            values = unflatten(q, [i.extent for i in side.iterators])
            at |= {i.var: v for i, v in zip(side.iterators, values, strict=True)}
            at |= {self.found.batch[p].var: v for p, v in zip(own, b, strict=True)}
            found = rewrite(side.operand.value, at, tensors.load)
            return guarded(inside, found) if guard else found

        if which not in plan.staged:
            return lambda b, o, i, kb, k: value([b[p] for p in own], o, i, kb, k, False)
        shape = [self.found.batch[p].extent for p in own]
        shape += [tile.blocks, plan.k_blocks, plan.k_tile, tile.block]

        def body(*at: Any) -> Any:
            *b, o, kb, k, i = at
            return value(b, o, i, kb, k, True)

        panel = te.compute(shape, body, name=f"{self.stage.name}_{which}")
        return lambda b, o, i, kb, k: panel(*(b[p] for p in own), o, kb, k, i)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Blocks and threads over the output, panels shared, sums in registers."""
        plan, name = self.plan(config), self.stage.name
        flat, acc = sch.get_sblock(f"{name}_flat"), sch.get_sblock(f"{name}_acc")
        out = sch.get_sblock(f"{name}_out")
        gpu_loops.relayout(sch, out, lambda *at: self._coordinates(at), len(self.stage.shape))
        *batch, y, x = sch.get_loops(flat)
        yb, yv, yt, yi = sch.split(y, plan.y.factors)
        xb, xv, xt, xi = sch.split(x, plan.x.factors)
        sch.reorder(*batch, yb, xb, yv, xv, yt, xt, yi, xi)
        if batch:
            sch.bind(sch.fuse(*batch), "blockIdx.z")
        sch.bind(yb, "blockIdx.y")
        sch.bind(xb, "blockIdx.x")
        sch.bind(yv, "vthread.y")
        sch.bind(xv, "vthread.x")
        sch.bind(yt, "threadIdx.y")
        sch.bind(xt, "threadIdx.x")
        sch.reverse_compute_at(out, xt, preserve_unit_loops=True)
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, xt, preserve_unit_loops=True)
        sch.compute_inline(flat)
        *units, yi, xi, kb, kk = sch.get_loops(acc)[-(len(self.found.batch) + 6) :]
        ko, ku = sch.split(kk, [None, plan.k_unroll])
        sch.reorder(kb, ko, ku, *units, yi, xi)
        for loop in (ku, yi, xi):
            sch.unroll(loop)
        for side in plan.staged:
            self._copy(plan, side, kb, int(config["vector"]), sch)
        *_, row, column = sch.get_loops(out)
        if (width := int(config["out_vector"])) > 1:
            column, vector = sch.split(column, [None, width])
            sch.vectorize(vector)
        sch.unroll(row)
        sch.unroll(column)
        sch.decompose_reduction(acc, kb)
        if plan.prefetch:
            gpu_loops.pipeline(sch, kb, len(plan.staged))

    def _copy(self, plan: Plan, side: str, kb: Any, width: int, sch: Any) -> None:
        """A panel in shared memory, copied by all threads of the block at every step of `kb`."""
        panel = sch.get_sblock(f"{self.stage.name}_{side}")
        # first the scope: what is shared is computed for all threads, and not for one
        sch.set_scope(panel, 0, "shared")
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
