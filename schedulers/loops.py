"""Loop transformations shared by the schedulers of CPU-like targets."""

from __future__ import annotations

from typing import Any

from flextensor.schedulers.program import Iterator
from flextensor.targets.base import Target
from flextensor.targets.launches import item_bytes

LINE = 64
"""Bytes of a cache line."""


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
