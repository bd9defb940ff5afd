"""Loop transformations shared by the schedulers of CPU-like targets."""

from __future__ import annotations

import math
from typing import Any

from flextensor.schedulers.expression import variables
from flextensor.schedulers.program import Iterator
from flextensor.targets.base import Target
from flextensor.targets.launches import item_bytes

LINE = 64
"""Bytes of a cache line."""
WAY = 4096
"""Bytes of a way of the first cache: lines that far apart share a place in it."""
AT_ONCE = 8
"""Rows of a matrix that are transposed at a time, of those whose lines share a place."""


def extent(sch: Any, loop: Any) -> int:
    """Constant extent of a loop."""
    return int(sch.get(loop).extent)


def fuse(sch: Any, loops: list[Any]) -> Any:
    """One loop of several; a single one stays as it is."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def vectorize_inner(sch: Any, loops: list[Any], target: Target, dtype: str = "float32") -> None:
    """Vectorise the innermost loop where whole vectors fill it; else leave it to LLVM.

    for x in 48  ->  for xo in 3: vectorized(16)
    """
    if not loops:
        return
    inner, lanes = loops[-1], target.lanes(dtype)
    length = extent(sch, inner)
    if length % lanes == 0:
        sch.vectorize(sch.split(inner, [None, lanes])[1])


def copy(sch: Any, block: Any, target: Target) -> None:
    """A block that only moves or maps elements: outer loops fused and parallel, inner vectors."""
    loops = sch.get_loops(block)
    if len(loops) > 1:
        sch.parallel(fuse(sch, loops[:-1]))
        vectorize_inner(sch, sch.get_loops(block), target)
    elif loops:
        outer, _ = sch.split(loops[0], [target.cores, None])
        sch.parallel(outer)


def stagger(sch: Any, block: Any, axis: int) -> None:
    """Steps along an axis of what a block writes, an odd number of cache lines long, lest all of
    them share a few places in a cache: 36 rows of 84 KiB -> of 84 KiB and a line."""
    written = sch.get(block).writes[0].source
    line = LINE // item_bytes(written)
    sch.storage_align(block, 0, axis, 2 * line, line)


def transpose(sch: Any, block: Any, target: Target) -> bool:
    """A block whose last two loops copy a matrix by columns. Where its rows lie so far apart that
    more of them share a place in the first cache than it has, a few at a time, or every line would
    be fetched anew for each of its elements; whether it is so.

    for x in 224, c in 32  ->  for co in 4, x in 224: unrolled(8)
    """
    copied = sch.get(block)
    (read,), row = copied.reads, copied.iter_vars[-1].var
    found = (d for d, index in enumerate(read.region) if row in variables(index.min))
    pitch = math.prod(int(n) for n in read.source.shape[next(found, -1) + 1 :])
    x, c = sch.get_loops(block)[-2:]
    rows = extent(sch, c)
    shared = rows * math.gcd(pitch * item_bytes(read.source), WAY)
    if shared <= target.l1_bytes or rows % AT_ONCE:
        return False
    outer, inner = sch.split(c, [None, AT_ONCE])
    sch.reorder(outer, x, inner)
    sch.unroll(inner)
    return True


def pack(sch: Any, block: Any) -> None:
    """A packing block on its own: all loops but the innermost in parallel."""
    loops = sch.get_loops(block)
    outer = loops[:-1] if len(loops) > 1 else loops
    sch.parallel(fuse(sch, outer))


def by_iterator(
    sch: Any, block: Any, outputs: tuple[tuple[Iterator, ...], ...]
) -> tuple[dict[Any, Any], list[Any]]:
    """The loops of a block by the variables of the iterators that make up its dimensions, split
    where a dimension has two; and the loops of unit dimensions."""
    found: dict[Any, Any] = {}
    units = []
    for loop, parts in zip(sch.get_loops(block), outputs, strict=True):
        if not parts:
            units.append(loop)
            continue
        pieces = [loop] if len(parts) == 1 else sch.split(loop, [None, parts[1].extent])
        found |= {i.var: piece for i, piece in zip(parts, pieces, strict=True)}
    return found, units
