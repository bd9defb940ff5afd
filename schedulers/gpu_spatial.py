"""Stages without much reuse on devices with thread blocks: every thread computes a few outputs.

    for block, for thread in the block:
        for a few outputs, neighbours or a block apart:
            for reduction:  acc = combine(acc, value)
            out = acc

Takes what nobody else takes: maps, copies, gathers, reductions of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flextensor.schedulers import gpu_estimate
from flextensor.schedulers.analysis import points
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Space, Value, choice, sizes
from flextensor.targets.base import Target

THREADS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class GpuSpatialScheduler(Scheduler):
    """Takes every stage of a device with thread blocks."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage as it stands, its outputs dealt to threads."""
        return GpuSpatialSchedule(stage, target) if target.threads_per_block else None


class GpuSpatialSchedule(StageSchedule):
    """One stage whose outputs are dealt to threads."""

    def __init__(self, stage: Stage, target: Target) -> None:
        self.stage, self.target = stage, target
        outputs = points(stage.spatial)
        small = bool(stage.reduction) and stage.reduction[-1].extent <= 16
        threads = [t for t in THREADS if t <= min(target.threads_per_block, 2 * outputs)]
        self.space = Space(
            (
                sizes("threads", threads),
                sizes("outputs", [n for n in (1, 2, 4, 8, 16) if n <= outputs]),
                choice("apart", ("block", "neighbour")),
                sizes("unroll_k", (0, 1) if small else (0,)),
            ),
            (self._illegal,),
            features=self._features,
            seeds=tuple(
                {"threads": min(t, threads[-1]), "outputs": n, "apart": apart, "unroll_k": 0}
                for t in (64, 256, 16)
                for n, apart in ((1, "block"), (4, "neighbour"))
                if n <= outputs
            ),
        )

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        """`estimate` is a guess in seconds on a device of 1 GHz."""
        stage = self.stage
        seconds = gpu_estimate.spatial_seconds(
            points(stage.spatial), points(stage.reduction),
            len(stage.loads), int(config["threads"]), self.target,
        )  # fmt: skip
        return {"estimate": seconds, "log_estimate": math.log2(seconds)}

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        if int(config["outputs"]) == 1 and config["apart"] != "block":
            return "one output has no neighbour"
        return None

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """The stage as it stands."""
        tensors.plain(self.stage)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """All spatial loops as one, cut into blocks, threads and the outputs of a thread."""
        block = sch.get_sblock(self.stage.name)
        if not self.stage.spatial:
            sch.bind(sch.add_unit_loop((sch.get_loops(block) or [block])[0]), "threadIdx.x")
            return
        # before loops are split: later TVM takes the threads that have nothing to do for outputs
        held = sch.cache_write(block, 0, "local") if self.stage.reduction else None
        nest = sch.get_loops(block)[: len(self.stage.spatial)]
        flat = sch.fuse(*nest) if len(nest) > 1 else nest[0]
        threads, outputs = int(config["threads"]), int(config["outputs"])
        if config["apart"] == "block":
            grid, own, thread = sch.split(flat, [None, outputs, threads])
            sch.reorder(grid, thread, own)
        else:
            grid, thread, own = sch.split(flat, [None, threads, outputs])
        sch.bind(grid, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        if held is None:
            return
        sch.reverse_compute_at(held, own)
        reduction = sch.get_loops(block)[-len(self.stage.reduction) :]
        if int(config["unroll_k"]):
            sch.unroll(reduction[-1])
        sch.decompose_reduction(block, reduction[0])
