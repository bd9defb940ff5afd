"""Sums of a contraction in parts, each left by blocks of its own, and the kernel that adds them.

parts[part, batch, y, x]            written by the blocks of a part, in float32
sum[q] = sum over part of parts     always in the same order, then fused consumers and output
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from flextensor.schedulers import gpu_loops
from flextensor.schedulers.layouts import unflatten
from flextensor.targets.base import Target

SUM_THREADS = 128
"""Of a block that adds parts of reductions."""


def total(flat: Any, count: int, shape: Sequence[int], name: str) -> Callable[..., Any]:
    """The sum of all parts of the reduction, which are written out for it. It has one index,
    so that threads may add whatever lies together."""
    part = te.reduce_axis((0, count), "part")
    parts = te.compute([count, *shape], lambda *at: flat(*at), name=f"{name}_part")

    def add(q: Any) -> Any:
        return te.sum(parts(part.var, *unflatten(q, shape)), axis=part)

    found = te.compute([math.prod(shape)], add, name=f"{name}_sum")
    return lambda *at: found(gpu_loops.flatten(at, shape))


def arrange(
    sch: Any,
    name: str,
    place: Callable[..., Sequence[Any]],
    shape: Sequence[int],
    dimensions: int,
    width: int,
    target: Target,
) -> None:
    """A kernel that adds the parts of every output, neighbours by neighbouring threads; `place`
    gives, for indices of the output, those of its sum."""
    sum_, out = sch.get_sblock(f"{name}_sum"), sch.get_sblock(f"{name}_out")
    gpu_loops.relayout(sch, out, lambda *at: [gpu_loops.flatten(place(at), shape)], dimensions)
    threads = min(SUM_THREADS, target.threads_per_block)
    block, thread, vector = sch.split(*sch.get_loops(out), [None, threads, width])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.set_scope(sum_, 0, "local")
    sch.compute_at(sum_, thread, preserve_unit_loops=True)
    own, part = sch.get_loops(sum_)[-2:]
    sch.reorder(part, own)
    sch.unroll(part)
    for loop in (vector, own):
        sch.vectorize(loop)
    sch.decompose_reduction(sum_, part)
