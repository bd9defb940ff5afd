"""What the schedulers of devices with thread blocks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import sym, tirx

from flextensor.schedulers.expression import loads, rewrite

MOST_BLOCKS = 65535
"""Along the second and third side of a grid; the first may be longer."""


def flatten(values: Sequence[Any], extents: Sequence[int]) -> Any:
    """One index for several: (i, j) of extents (a, b) -> i * b + j; 0 for none."""
    index: Any = 0
    for value, extent in zip(values, extents, strict=True):
        index = index * extent + value
    return index


def bind_blocks(sch: Any, batch: Sequence[Any], y: Any, x: Any) -> None:
    """Lay loops over blocks along a grid, the batch along its third side, or, if it is longer than
    that may be, along the first, around X.

        for b in 70000, y in 3, x in 5:   ->   blockIdx.y = y,  blockIdx.x = b * 5 + x
    """
    if math.prod(int(sch.get(loop).extent) for loop in batch) > MOST_BLOCKS:
        sch.reorder(y, *batch, x)
        x = sch.fuse(*batch, x)
    elif batch:
        sch.bind(sch.fuse(*batch), "blockIdx.z")
    sch.bind(y, "blockIdx.y")
    sch.bind(x, "blockIdx.x")


def relayout(sch: Any, block: Any, indices: Callable[..., list[Any]], dimensions: int) -> None:
    """Let a block run over other indices, one to one with its own, and simplify what it addresses.

        out[i, j] = a[i * 4 + j]   by   (i, j) -> (i * 4 + j,)   ->   out[q // 4, q % 4] = a[q]

    TVM leaves a[q // 4 * 4 + q % 4], and then finds no range in which a thread's part of it lies.
    """
    layout = tirx.IndexMap.from_func(indices, dimensions, index_dtype="int32")
    sch.transform_block_layout(block, layout)
    old = sch.get(block)
    analyzer = sym.Analyzer()
    for iterator in old.iter_vars:
        analyzer.bind(iterator.var, iterator.dom)

    def load(source: Any, at: list[Any]) -> Any:
        return tirx.BufferLoad(source, [analyzer.simplify(index) for index in at])

    store = old.body
    value = rewrite(store.value, {}, load)
    body = tirx.BufferStore(store.buffer, value, [analyzer.simplify(i) for i in store.indices])
    reads = [_point(read.source, read.indices) for read in loads(value)]
    new = tvm.s_tir.SBlock(
        old.iter_vars, reads, [_point(store.buffer, body.indices)], old.name_hint, body
    )
    sch.state.replace(sch.get_sref(block), new, {old: new})


def pipeline(sch: Any, loop: Any, copies: int) -> None:
    """Fetch what the next iteration needs before this one is computed, and store it after.

        for k:                            fetch 0, store 0
            fetch k     (to registers)    for k:
            store k     (to shared)   ->      fetch k + 1
            use k                             use k
                                              store k + 1
                                          use the last

    The loop has `copies` pairs of a fetch and a store, which TVM makes of copies that are marked
    so, and then one use. A fetch is not waited for before it is stored. There is one panel: the
    barrier before the store is the one that was there before the copy.
    """
    last = 2 * copies
    sch.annotate(loop, "software_pipeline_stage", [0] * last + [1])
    order = [position for c in range(copies) for position in (c, copies + 1 + c)]
    sch.annotate(loop, "software_pipeline_order", [*order, copies])


def copy_ahead(sch: Any, loop: Any, copies: int, panels: int) -> None:
    """Let copies to shared memory go on beside a loop, as many panels ahead as there is room for.

        for k:              copy 0, copy 1
            copy k          for k:
            use k    ->         copy k + 2, to the panel that was used before
                                wait for copy k
                                use k

    The loop has `copies` asynchronous ones and then one use.
    """
    sch.annotate(loop, "software_pipeline_stage", [0] * copies + [panels - 1])
    sch.annotate(loop, "software_pipeline_order", list(range(copies + 1)))
    sch.annotate(loop, "software_pipeline_async_stages", [0])


def _point(buffer: Any, indices: Any) -> Any:
    """One element of a buffer as a region."""
    return tirx.BufferRegion(buffer, [tvm.ir.Range.from_min_extent(i, 1) for i in indices])
