"""Loop transformations shared by the schedulers of CPU-like targets."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from flextensor.schedulers import transposition
from flextensor.schedulers.expression import variables
from flextensor.schedulers.program import Iterator
from flextensor.targets.base import Target
from flextensor.targets.launches import item_bytes

LINE = 64
"""Bytes of a cache line."""
PAGE = 4096
"""Bytes of a page, within which hardware fetches ahead, and of a way of the first cache: lines that
far apart share a place in it."""
HOLDS = "flextensor.holds"
"""Marks a loop inside a parallel one whose turns have their own producers, as tasks do."""
AT_ONCE = 8
"""Rows of a matrix that are copied side by side, where more would be in each other's way."""


def extent(sch: Any, loop: Any) -> int:
    """Constant extent of a loop."""
    return int(sch.get(loop).extent)


def fuse(sch: Any, loops: list[Any]) -> Any:
    """One loop of several; a single one stays as it is."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def vectorize_inner(sch: Any, loops: list[Any], target: Target) -> None:
    """Vectorise the innermost loop where whole vectors fill it; else leave it to LLVM.

    for x in 48  ->  for xo in 3: vectorized(16)
    """
    if not loops:
        return
    inner, lanes = loops[-1], target.lanes()
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


def shared_places(pitch: int) -> int:
    """Places of the first cache, of those of a page, that lines so many bytes apart share."""
    return PAGE // max(math.gcd(pitch, PAGE), LINE)


def transpose(sch: Any, block: Any, columns: int, target: Target) -> bool:
    """Order the last loops of a block, over `columns` and a row, which copy a matrix by columns: in
    vector registers, if that can be (`transposition.mark`). Else, where its rows lie so far apart
    that more of them share a place in the first cache than it has, a few at a time, or every line
    would be fetched anew for each of its elements. True if so.

    for x in 224, c in 32  ->  for co in 4, x in 224: unrolled(8)
    """
    if transposition.mark(sch, block, target):
        return True
    *between, c = sch.get_loops(block)[-1 - columns :]
    rows, apart = sch.get(c).extent, _pitch(sch.get(block), -1)
    if not columns or not apart or not isinstance(rows, tirx.IntImm) or int(rows) % AT_ONCE:
        return False
    if int(rows) <= target.l1_bytes // PAGE * shared_places(apart):
        return False
    outer, inner = sch.split(c, [None, AT_ONCE])
    sch.reorder(outer, *between, inner)
    sch.unroll(inner)
    return True


def interleave(sch: Any, block: Any, columns: int) -> None:
    """Order the last loops of a block, over tiles, `columns` and lanes, which copy short rows that
    lie pages apart: a few rows side by side, so that hardware fetches ahead along each.

    for tile in 24, k in 1024, lane in 24  ->  for ko in 128, tile in 24, ki in 8, lane in 24
    """
    copied = sch.get(block)
    tile, *ks, lane = sch.get_loops(block)[-2 - columns :]
    apart = [_pitch(copied, p - 1 - columns) for p in range(columns)]
    k = ks[apart.index(max(apart))]
    if max(apart) < PAGE or extent(sch, tile) == 1 or extent(sch, k) % AT_ONCE:
        return
    outer, inner = sch.split(k, [None, AT_ONCE])
    sch.reorder(outer, tile, *(inner if loop is k else loop for loop in ks), lane)


def _pitch(copied: Any, position: int) -> int:
    """Bytes between elements of the one tensor that a block reads, of neighbours in the outermost
    dimension that an iterator moves through; 0 where it moves through the last one, or several
    tensors are read, or none."""
    if len(copied.reads) != 1:
        return 0
    (read,), var = copied.reads, copied.iter_vars[position].var
    found = [d for d, index in enumerate(read.region) if var in variables(index.min)]
    if not found or found[-1] + 1 == len(read.region):
        return 0
    return item_bytes(read.source) * math.prod(int(n) for n in read.source.shape[found[0] + 1 :])


def pack(sch: Any, block: Any, columns: int, target: Target) -> None:
    """A packing block on its own: all loops but the innermost in parallel, or but those over
    `columns` and the innermost where they `transpose` and leave enough."""
    if transposition.mark(sch, block, target, parallel=True):
        return
    outer = [extent(sch, loop) for loop in sch.get_loops(block)]
    enough = math.prod(outer[: -1 - columns]) * outer[-1] >= target.cores * AT_ONCE
    inner = 1 + columns if enough and transpose(sch, block, columns, target) else 1
    nest = sch.get_loops(block)
    sch.parallel(fuse(sch, nest[:-inner] or nest))


def by_rows(sch: Any, block: Any, row: int) -> None:
    """Split the innermost loop of a block into rows, within which TVM and LLVM see where an element
    is read, and whether at all, without dividing its index.

    for q in 51302  ->  for y in 226, x in 227
    """
    if row > 1:
        sch.split(sch.get_loops(block)[-1], [None, row])


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
