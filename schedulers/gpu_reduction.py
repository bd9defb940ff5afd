"""Long reductions on devices with thread blocks: the threads of a block share each of them.

    for block, for output of the block:
        for thread of the output:
            for step:  acc = combine(acc, value[step, thread, vector])     # neighbours in memory
        out = combine over its threads                                     # shuffles, or shared

Where outputs are too few for the device, blocks reduce parts, which a second kernel combines in
order. Which index neighbouring threads run over, the reduction's or the outputs', is a knob:
values of a row-major matrix lie along the one or the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Iterator as Items
from typing import Any

from tvm import te, tirx
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.analysis import neutral, points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import linear, rewrite
from flextensor.schedulers.layouts import unflatten
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, reduce
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div, round_up

SHORTEST = 64
"""Elements of a reduction that are worth several threads."""
OUTPUTS = 1024
"""Outputs of a core from which each has a thread of its own, unless its values lie in a row."""
COMBINED = 32
"""Parts of an output that threads combine at a time."""
TURNS = 64
"""Cycles for every other thread of a reduction, where threads take turns: it is left and entered
again, and what it holds goes to memory."""
SEEDS = (
    # threads of a reduction, outputs of a block, vector, steps unrolled, which the neighbours are
    (32, 8, 4, 2, "k"), (64, 4, 4, 4, "k"), (128, 1, 4, 4, "k"), (256, 1, 4, 4, "k"),
    (32, 4, 4, 4, "k"), (32, 8, 1, 4, "k"), (8, 32, 1, 4, "q"), (16, 32, 1, 4, "q"),
    (4, 64, 1, 4, "q"), (1, 64, 1, 4, "q"), (1, 1, 1, 1, "k"),
)  # fmt: skip


class GpuReductionScheduler(Scheduler):
    """Takes long reductions of few outputs, and those whose values lie in a row."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, on a device with thread blocks, when threads may share a reduction."""
        length = points(stage.reduction)
        blocks = target.threads_per_block and stage.spatial
        if not blocks or not stage.combiner or length < SHORTEST:
            return None
        few = points(stage.spatial) < OUTPUTS * target.cores
        if not few and not any(_in_a_row(load, stage.reduction[-1]) for load in stage.loads):
            return None
        return GpuReductionSchedule(stage, target)


class GpuReductionSchedule(StageSchedule):
    """One stage whose reductions are shared by threads."""

    fuses = True

    def __init__(self, stage: Stage, target: Target) -> None:
        self.stage, self.target = stage, target
        self.length = points(stage.reduction)
        self.outputs = points(stage.spatial)
        row = stage.reduction[-1].extent
        # the dimension of the output whose neighbours are neighbouring threads
        self.cut = max((d for d, n in enumerate(stage.shape) if n > 1), default=0)
        most = min(self.length // SHORTEST, target.cores * OUTPUTS // self.outputs)
        space = Space(
            (
                sizes("k_threads", [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
                                    if t <= target.threads_per_block]),
                sizes("q_threads", [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256)
                                    if t <= stage.shape[self.cut]]),
                sizes("vector", [v for v in (1, 2, 4) if row % v == 0]),
                sizes("k_unroll", (1, 2, 4, 8)),
                choice("neighbours", ("k", "q")),
                sizes("k_split", [1, *(n for n in (2, 4, 8, 16, 32, 64, 128, 256) if n <= most)]),
            ),
            (self._illegal,),
        )  # fmt: skip
        seeds = space.starts(self._wanted())
        self.space = Space(space.knobs, space.constraints, seeds, self._features)

    def _wanted(self) -> Items[Config]:
        """Good configs, not all of which are of the space."""
        for k_threads, q_threads, vector, unroll, neighbours in SEEDS:
            blocks = ceil_div(self.outputs, q_threads)
            for split in (1, max(4 * self.target.cores // blocks, 1)):
                yield {
                    "k_threads": k_threads, "q_threads": q_threads, "vector": vector,
                    "k_unroll": unroll, "neighbours": neighbours, "k_split": split,
                }  # fmt: skip

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        threads = int(config["k_threads"]) * int(config["q_threads"])
        if threads > self.target.threads_per_block:
            return f"{threads} threads a block, limit {self.target.threads_per_block}"
        step = int(config["k_threads"]) * int(config["vector"])
        if step >= 2 * self.length:
            return "half of the threads have nothing to reduce"
        steps, parts = ceil_div(self.length, step), int(config["k_split"])
        if (parts - 1) * self._steps(config) >= steps:
            return "a part of the reduction is empty"
        if int(config["k_unroll"]) > self._steps(config):
            return "more steps are unrolled than there are"
        if COMBINED > self.target.threads_per_block and parts > 1:
            return "a block cannot combine parts"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """`estimate` is a guess in seconds on a device of 1 GHz: steps of the busiest core."""
        k, q, parts = (int(config[n]) for n in ("k_threads", "q_threads", "k_split"))
        blocks = ceil_div(self.outputs, q) * parts
        steps = self._steps(config)
        share = ceil_div(blocks, self.target.cores)
        beside = max(min(share, 2048 // (k * q)), 1)
        waits = ceil_div(steps, int(config["k_unroll"])) * 500 * share / beside
        work = self.length * self.outputs / (self.target.cores * self.target.lanes())
        if self.target.warp == 1:  # threads take turns: one alone has no partner to wait for
            cycles = (self.length / parts + TURNS * (k - 1)) * q * share
        else:
            cycles = waits + 2 * work + 40 * math.log2(2 * k) * share / beside
        cycles += 3000 if parts > 1 else 0
        seconds = cycles / 1e9
        return {
            "estimate": seconds, "log_estimate": math.log2(seconds), "blocks": math.log2(blocks),
            "steps": math.log2(steps), "threads": math.log2(k * q),
        }  # fmt: skip

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Values V[q..., part, step, thread, vector], what a thread has of them O[q..., part,
        thread], what a block has P[q..., part] where there are parts, the result R[q...], and the
        output. V is what vectors are loaded for. All but the output have whole blocks of q: TVM
        guards no write of what threads combine."""
        stage, name, rank = self.stage, self.stage.name, len(self.stage.shape)
        threads, parts, vector = (int(config[k]) for k in ("k_threads", "k_split", "vector"))
        steps, extents = self._steps(config), [i.extent for i in stage.reduction]
        padded = steps * threads * vector * parts != self.length
        shape = list(stage.shape)
        shape[self.cut] = round_up(shape[self.cut], int(config["q_threads"]))

        empty = neutral(str(stage.combiner), str(stage.buffer.dtype))

        def value(*at: Any) -> Any:
            (p, s, t, v), own = at[rank:], list(at[:rank])
            if shape != list(stage.shape):
                own[self.cut] = tirx.min(own[self.cut], stage.shape[self.cut] - 1)
            k = ((p * steps + s) * threads + t) * vector + v
            place = dict(zip((i.var for i in stage.spatial), own, strict=True))
            ks = unflatten(k, extents)
            place |= dict(zip((i.var for i in stage.reduction), ks, strict=True))
            found = rewrite(stage.value, place, tensors.load)
            return tirx.if_then_else(k < self.length, found, empty) if padded else found

        values = te.compute([*shape, parts, steps, threads, vector], value, name=f"{name}_value")
        own = self._reduced(
            [*shape, parts, threads], [steps, vector], f"{name}_own",
            lambda at, ks: values(*at[:-1], ks[0], at[-1], ks[1]),
        )  # fmt: skip
        if parts == 1:
            result = self._reduced(shape, [threads], name, lambda at, ks: own(*at, 0, *ks))
        else:
            part = self._reduced(
                [*shape, parts], [threads], f"{name}_part", lambda at, ks: own(*at, *ks)
            )
            result = self._reduced(list(stage.shape), [parts], name, lambda at, ks: part(*at, *ks))
        tensors.written(stage, lambda *at: result(*at), final)

    def _reduced(
        self, shape: list[int], extents: list[int], name: str, value: Callable[..., Any]
    ) -> Any:
        """The combination over `extents` of `value` (of the indices of `shape`, of theirs)."""
        axes = [te.reduce_axis((0, extent), f"k{i}") for i, extent in enumerate(extents)]

        def body(*at: Any) -> Any:
            term = value(at, [axis.var for axis in axes])
            return reduce(str(self.stage.combiner), term, axes)

        return te.compute(shape, body, name=name)

    def _steps(self, config: Mapping[str, Value]) -> int:
        """Vectors of a thread."""
        step = int(config["k_threads"]) * int(config["vector"])
        return ceil_div(ceil_div(self.length, step), int(config["k_split"]))

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Parts and outputs over blocks, threads over outputs and a reduction."""
        name, parts, rank = self.stage.name, int(config["k_split"]), len(self.stage.shape)
        across, along = "threadIdx.x", "threadIdx.y"
        if config["neighbours"] == "q":
            across, along = along, across
        values, own = (sch.get_sblock(f"{name}_{what}") for what in ("value", "own"))
        *outer, thread, step, vector = sch.get_loops(own)
        outer[self.cut], q = sch.split(outer[self.cut], [None, int(config["q_threads"])])
        sch.reorder(*outer, q, thread, step, vector)
        block = sch.fuse(*outer)
        sch.bind(block, "blockIdx.x")
        sch.bind(q, along)
        sch.bind(thread, across)
        step, unrolled = sch.split(step, [None, int(config["k_unroll"])])
        for each in (own, values):
            sch.set_scope(each, 0, "local")
        sch.compute_at(values, step, preserve_unit_loops=True)
        *_, ahead, _, wide = sch.get_loops(values)
        sch.vectorize(wide)
        for loop in (ahead, unrolled, vector):
            sch.unroll(loop)
        whole = sch.get_sblock(f"{name}_part" if parts > 1 else name)
        sch.reverse_compute_at(whole, block, preserve_unit_loops=True)
        *places, thread = sch.get_loops(whole)[-(rank + (parts > 1) + 1) :]
        sch.bind(places[self.cut], along)
        sch.bind(thread, across)
        sch.decompose_reduction(own, step)
        out = sch.get_sblock(f"{name}_out")
        if parts > 1:
            return self._combine(sch, out, parts)
        sch.set_scope(whole, 0, "local")
        sch.reverse_compute_at(out, block, preserve_unit_loops=True)
        sch.bind(sch.get_loops(out)[-rank:][self.cut], along)

    def _combine(self, sch: Any, out: Any, parts: int) -> None:
        """A kernel that combines the parts of every output, each in a block."""
        whole = sch.get_sblock(self.stage.name)
        *outputs, part = sch.get_loops(whole)
        block = sch.fuse(*outputs)
        sch.bind(block, "blockIdx.x")
        _, part = sch.split(part, [None, min(parts, COMBINED)])
        sch.bind(part, "threadIdx.x")
        sch.set_scope(whole, 0, "local")
        sch.reverse_compute_at(out, block, preserve_unit_loops=True)


def _in_a_row(load: TensorLoad, inner: Iterator) -> bool:
    """Whether steps of the innermost reduction are neighbours in memory."""
    form = linear(load.indices[-1])
    return form is not None and form.terms.get(inner.var) == 1
