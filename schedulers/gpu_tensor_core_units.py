"""The two ways to make matrix units multiply what a warp holds, and what each makes of a schedule.

    `Tiles`   (wmma)   fragments whose insides are unknown: sums are staged in shared memory
    `Lanes`   (mma)    registers of lanes whose elements are known: sums are written from there

Both multiply tiles of 16 x 16 x 16 at a time, from the same panels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from flextensor.schedulers.gpu_tensor_core_plan import SKEW, TILE, WARP, Band

SIDES = ("y", "x")


class Unit(ABC):
    """How one kind of instruction is scheduled; `name` begins the names of a stage's blocks."""

    scopes: ClassVar[dict[str, str]]
    """Where operands are held, by side, and the ``sums``."""

    def __init__(self, sch: Any, name: str, dtype: str) -> None:
        self.sch, self.name, self.dtype = sch, name, dtype

    @staticmethod
    @abstractmethod
    def rows(band: Band) -> list[int]:
        """The dimensions of the sums that are Y."""

    @abstractmethod
    def split(self, loop: Any, band: Band) -> tuple[Any, Any, Any, Any]:
        """A loop over Y by blocks, warps, fragments, and rows of one."""

    @abstractmethod
    def spread(self, out: Any, width: int) -> None:
        """The last two loops of a block that writes a warp's part, by the lanes of the warp, in
        vectors of up to `width`."""

    @abstractmethod
    def bare(self, acc: Any) -> None:
        """Before tiles are made blocks of their own: whatever is only there to shape loops goes."""

    @abstractmethod
    def read(self, side: str, transposed: bool) -> None:
        """The loads of a side's tiles, from a panel that has its rows as columns or not."""

    @abstractmethod
    def multiply(self, tile: Any, first: Any) -> None:
        """The products of `tile`, and the zeros of `first` before them."""

    def tiles(self, block: Any) -> Any:
        """The innermost loops by tiles; the outer loop of a tile."""
        y, x = self.sch.get_loops(block)[-2:]
        yo, yi = self.sch.split(y, [None, TILE])
        xo, xi = self.sch.split(x, [None, TILE])
        self.sch.reorder(yo, xo, yi, xi)
        self.sch.unroll(yo)
        self.sch.unroll(xo)
        return yi

    def block(self, part: str) -> Any:
        """One of the stage's blocks."""
        return self.sch.get_sblock(f"{self.name}_{part}")

    def inner(self, block: Any) -> Any:
        """The outermost loop inside of a block of tiles."""
        return self.sch.get_loops(self.sch.get_child_blocks(block)[0])[0]


class Tiles(Unit):
    """wmma: a fragment is the warp's, and no lane knows its part of it.

    The fragments of a warp lie apart in Y, so that one of every warp is dense in what is staged.
    """

    scopes: ClassVar[dict[str, str]] = {
        "y": "wmma.matrix_a", "x": "wmma.matrix_b", "sums": "wmma.accumulator"
    }  # fmt: skip

    @staticmethod
    def rows(band: Band) -> list[int]:
        """Fragment, warp, row."""
        return [band.blocks * band.fragments, band.warps, TILE]

    def split(self, loop: Any, band: Band) -> tuple[Any, Any, Any, Any]:
        """Fragments are further out than warps."""
        parts = [band.blocks, band.fragments, band.warps, TILE]
        block, fragment, warp, row = self.sch.split(loop, parts)
        return block, warp, fragment, row

    def spread(self, out: Any, width: int) -> None:
        """Neighbouring lanes write neighbouring vectors of a row."""
        fused = self.sch.fuse(*self.sch.get_loops(out)[-2:])
        _, lane, vector = self.sch.split(fused, [None, WARP, width])
        self.sch.bind(lane, "threadIdx.x")
        self.sch.vectorize(vector)

    def bare(self, acc: Any) -> None:
        """Sums are written from where they are staged."""
        self.sch.compute_inline(self.block("flat"))

    def read(self, side: str, transposed: bool) -> None:
        """One instruction."""
        from flextensor.schedulers import matrix_intrinsics as intrinsics

        load = intrinsics.load(side, transposed, self.dtype)
        self.sch.tensorize(self.tiles(self.block(f"{side}_tile")), load)

    def multiply(self, tile: Any, first: Any) -> None:
        """And the sums to shared memory, now that no other block asks whose they are: what is
        shared counts as wanted by all threads, and a warp wants its own sums."""
        from flextensor.schedulers import matrix_intrinsics as intrinsics

        sch = self.sch
        sch.tensorize(self.inner(first), intrinsics.zero())
        sch.tensorize(self.inner(tile), intrinsics.multiply(self.dtype))
        staged = self.block("staged")
        sch.set_scope(staged, 0, "shared.dyn")
        sch.tensorize(self.tiles(staged), intrinsics.store())
        sch.storage_align(self.block("staged_o"), 0, axis=-2, factor=TILE, offset=SKEW)


class Lanes(Unit):
    """mma.sync: a lane has eight elements of every tile, and `lane_intrinsics` says which."""

    scopes: ClassVar[dict[str, str]] = {"y": "warp", "x": "warp", "sums": "warp"}

    @staticmethod
    def rows(band: Band) -> list[int]:
        """Rows in their order: nothing is staged."""
        return [band.padded]

    def split(self, loop: Any, band: Band) -> tuple[Any, Any, Any, Any]:
        """The fragments of a warp lie together."""
        parts = [band.blocks, band.warps, band.fragments, TILE]
        block, warp, fragment, row = self.sch.split(loop, parts)
        return block, warp, fragment, row

    def spread(self, out: Any, width: int) -> None:
        """Each lane its own elements of every tile, of which two are neighbours."""
        own = self._own(out, width)
        self.sch.compute_inline(self.block("flat"))
        staged = self.block("staged")
        self.sch.set_scope(staged, 0, "local")
        self.sch.compute_at(staged, own)
        self.sch.unroll(self.sch.get_loops(staged)[-1])

    def _own(self, block: Any, width: int) -> Any:
        """The last two loops of a block by lanes; the loop outside of two neighbours."""
        sch = self.sch
        i, j = sch.get_loops(block)[-2:]
        i0, i1 = sch.split(i, [2, 8])
        j0, j1, j2, j3 = sch.split(j, [None, 2, 4, 2])
        sch.reorder(i1, j2, j0, i0, j1, j3)
        sch.bind(sch.fuse(i1, j2), "threadIdx.x")
        for loop in (j0, i0, j1):
            sch.unroll(loop)
        (sch.vectorize if width > 1 else sch.unroll)(j3)
        return j1

    def bare(self, acc: Any) -> None:
        """Consumers read the sums themselves, and every tile is held as its instructions want."""
        from flextensor.schedulers import lane_intrinsics as intrinsics

        for side in SIDES:
            layout = intrinsics.layout(side)
            self.sch.transform_layout(self.block(f"{side}_tile"), ("write", 0), layout)
        self.sch.transform_layout(acc, ("write", 0), intrinsics.layout(None))

    def read(self, side: str, transposed: bool) -> None:
        """ldmatrix, four tiles of 8 x 8 at a time."""
        from flextensor.schedulers import lane_intrinsics as intrinsics

        load = intrinsics.load(side, transposed, self.dtype)
        self.sch.tensorize(self.tiles(self.block(f"{side}_tile")), load)

    def multiply(self, tile: Any, first: Any) -> None:
        """Two instructions; a lane's own sums are zero before."""
        from flextensor.schedulers import lane_intrinsics as intrinsics

        self._own(self.sch.get_child_blocks(first)[0], 1)
        self.sch.tensorize(self.inner(tile), intrinsics.multiply(self.dtype))


UNITS: dict[str, type[Unit]] = {"wmma": Tiles, "mma": Lanes}
"""By the value of the knob `unit`."""
