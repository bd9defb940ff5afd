"""Projection of a dense matrix on block-circulant form, as compressed networks store it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import InputError
from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.stages import guarded

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class BlockCirculant(Operator):
    """Every whole ``block x block`` tile becomes circulant: its wrapped diagonals, averaged.

    ``comp[i,j] = mean_k in[i*B + k, j//B*B + (j%B + k) % B]`` and
    ``out[i,j] = comp[i//B, j//B*B + (j%B - i%B) % B]``; out is 0 outside whole blocks, so that
    neither `rows` nor `cols` needs to be a multiple of `block`.
    """

    name: ClassVar[str] = "block_circulant_matrix"

    rows: int = 1024
    cols: int = 256
    block: int = 8

    def check(self) -> None:
        for field, value in (("rows", self.rows), ("cols", self.cols)):
            if self.block > value:
                raise InputError(f"{self.name}: block={self.block} is larger than {field}={value}")

    @property
    def _whole(self) -> tuple[int, int]:
        """Numbers of whole blocks down and across."""
        return self.rows // self.block, self.cols // self.block

    def compute(self) -> Tensors:
        from tvm import te, tirx

        size, (down, across) = self.block, self._whole
        data = te.placeholder((self.rows, self.cols), name="data")
        k = te.reduce_axis((0, size), "k")
        total = te.compute(
            (down, across * size),
            lambda i, j: te.sum(data[i * size + k, j // size * size + (j % size + k) % size], k),
            name="diagonal_sum",
        )

        def value(i: Any, j: Any) -> Any:
            # + size: both remainders are non-negative, and so is the dividend
            diagonal = (j % size + size - i % size) % size
            mean = total[i // size, j // size * size + diagonal] * tirx.const(1 / size, data.dtype)
            if (down * size, across * size) == (self.rows, self.cols):
                return mean
            return guarded([i < down * size, j < across * size], mean)

        return [data, te.compute((self.rows, self.cols), value, name="spread")]

    def flops(self) -> int:
        """One addition into its diagonal and one scaling for each element of a whole block."""
        down, across = self._whole
        return 2 * down * across * self.block**2

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        size, (down, across) = self.block, self._whole
        data = inputs[0]
        tiles = data[: down * size, : across * size].reshape(down, size, across, size)
        row = torch.arange(size, device=data.device)
        diagonal = (row[None, :] - row[:, None]) % size  # of the element (row, col) of a tile
        # wrapped[i, r, j, d] is the element of row r on diagonal d
        wrapped = tiles.gather(
            3,
            ((row[None, :] + row[:, None]) % size)[None, :, None].expand(down, size, across, size),
        )
        mean = wrapped.mean(1, keepdim=True).expand(down, size, across, size)
        spread = mean.gather(3, diagonal[None, :, None].expand(down, size, across, size))
        out = torch.zeros_like(data)
        out[: down * size, : across * size] = spread.reshape(down * size, across * size)
        return out
