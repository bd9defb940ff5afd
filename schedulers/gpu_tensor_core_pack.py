"""Kernels that lay operands out for matrix units, each turned about in shared memory.

    block:   tile <- operand, neighbouring threads read neighbours
             copy <- tile, in vectors

What a window reads nine times is so gathered once, and panels are then plain copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from flextensor.operators.stages import guarded
from flextensor.schedulers.gpu_tensor_core_operands import WIDTHS, Laid
from flextensor.schedulers.gpu_tensor_core_plan import SKEW, TILE
from flextensor.schedulers.layouts import unflatten
from flextensor.schedulers.program import Tensors
from flextensor.targets.rounding import round_up

THREADS = 256
"""Of a block that packs."""
SHARES = (1, 2, 4, 8, TILE)
"""Rows of weights of a block."""
ROWS, CHUNK = 64, 32
"""Rows of a copy that a block turns about, and the most elements of each."""
WEIGHTS, MOST_WEIGHTS = 1024, 8192
"""Weights that are worth a block, and those that its shared memory holds."""


def chunk(row: int, most: int) -> int:
    """The longest part of a row that is a whole number of vectors, and divides it."""
    parts = range(WIDTHS[0], most + 1, WIDTHS[0])
    return max((part for part in parts if row % part == 0), default=0)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The kernel that makes a `Laid` copy."""

    laid: Laid
    name: str

    def write(self, tensors: Tensors) -> Any:
        """copy[leading, row, element]."""
        laid = self.laid
        extents = [i.extent for i in laid.leading]
        shape = [*extents, round_up(laid.rows, ROWS), laid.row]

        def value(*at: Any) -> Any:
            *b, row, along = at
            batch = {i.var: v for i, v in zip(laid.leading, b, strict=True)}
            inside, found = laid.value(batch, row, along, tensors.load)
            if shape[-2] != laid.rows:
                inside = [*inside, row < laid.rows]
            return guarded(inside, found)

        tile = te.compute(shape, value, name=f"{self.name}_tile")
        return te.compute(shape, lambda *at: tile(*at), name=self.name)

    def arrange(self, sch: Any) -> None:
        """Blocks of rows, whose elements are read row by row and written as vectors."""
        copy, tile = sch.get_sblock(self.name), sch.get_sblock(f"{self.name}_tile")
        part = chunk(self.laid.row, CHUNK)
        *batch, row, along = sch.get_loops(copy)
        row, ri = sch.split(row, [None, ROWS])
        along, ai = sch.split(along, [None, part])
        sch.reorder(*batch, row, along, ri, ai)
        block = sch.fuse(*batch, row, along)
        sch.bind(block, "blockIdx.x")
        sch.set_scope(tile, 0, "shared")
        sch.compute_at(tile, block, preserve_unit_loops=True)
        threads = ROWS * part // WIDTHS[0]
        _, thread, vector = sch.split(sch.fuse(ri, ai), [None, threads, WIDTHS[0]])
        sch.bind(thread, "threadIdx.x")
        sch.vectorize(vector)
        ri, ai = sch.get_loops(tile)[-2:]
        sch.reorder(ai, ri)
        turns, thread = sch.split(sch.fuse(ai, ri), [None, threads])
        sch.bind(thread, "threadIdx.x")
        sch.unroll(turns)
        sch.storage_align(tile, 0, axis=-2, factor=TILE, offset=SKEW)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The kernel that lays `padded` rows [q, (element, tap)] out as [q, (tap, element)]."""

    name: str
    padded: int
    row: int
    taps: int
    length: int
    """Elements of a row of the copy."""
    width: int
    """Elements that lie together where they are read."""

    @property
    def part(self) -> int:
        """Elements of a block, of every tap; 0 where no tile is turned about."""
        most = min(4 * CHUNK, MOST_WEIGHTS // self.taps)
        return chunk(self.row, most) if self.taps > 1 else 0

    def write(
        self, extents: Sequence[int], plain: Callable[..., Any], turned: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The copy: of `plain`, rows as they lie, by way of a tile, or each element `turned`."""
        shape = [*extents, self.padded]
        if not self.part:
            copy = te.compute([*shape, self.length], turned, name=self.name)
            return lambda *at: copy(*at)
        tile = te.compute([*shape, self.length], plain, name=f"{self.name}_tile")

        def value(*at: Any) -> Any:
            *row, tap, along = at
            return tile(*row, along * self.taps + tap)

        found = te.compute([*shape, self.taps, self.row], value, name=self.name)
        return lambda *at: found(*at[:-1], *unflatten(at[-1], [self.taps, self.row]))

    def arrange(self, sch: Any) -> None:
        """Neighbouring threads write neighbours, and read them."""
        copy = sch.get_sblock(self.name)
        if not self.part:
            block, thread = sch.split(sch.fuse(*sch.get_loops(copy)), [None, THREADS])
            sch.bind(block, "blockIdx.x")
            sch.bind(thread, "threadIdx.x")
            return
        tile = sch.get_sblock(f"{self.name}_tile")
        *batch, q, tap, along = sch.get_loops(copy)
        some = self.part * self.taps
        q, qi = sch.split(q, [None, next(r for r in SHARES if r == TILE or r * some >= WEIGHTS)])
        along, ai = sch.split(along, [None, self.part])
        sch.reorder(*batch, q, along, qi, tap, ai)
        block = sch.fuse(*batch, q, along)
        sch.bind(block, "blockIdx.x")
        sch.set_scope(tile, 0, "shared")
        sch.compute_at(tile, block, preserve_unit_loops=True)
        for loops, width in (((qi, tap, ai), WIDTHS[1]), (sch.get_loops(tile)[-2:], self.width)):
            _, thread, vector = sch.split(sch.fuse(*loops), [None, THREADS // 2, width])
            sch.bind(thread, "threadIdx.x")
            sch.vectorize(vector)
