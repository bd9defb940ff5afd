"""Shift: every channel is moved by its own offset inside the window; no arithmetic at all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.conv import check_window
from flextensor.operators.stages import pad

if TYPE_CHECKING:
    import numpy as np
    import torch


@register
@dataclasses.dataclass(frozen=True)
class ShiftConv2d(Operator):
    """``out[n,y,x,c] = pad(data)[n, y*stride + dy*dilation, x*stride + dx*dilation, c]``.

    Data is NHWC; ``dy, dx = divmod(index[c], kernel)`` with `index` [channels] int32 in
    [0, kernel**2). Padding is ``dilation * (kernel - 1) // 2`` on each side.
    """

    name: ClassVar[str] = "shift_conv2d"

    batch: int = 1
    height: int = 64
    width: int = 64
    channels: int = 64
    kernel: int = 3
    stride: int = 1
    dilation: int = 1

    @property
    def padding(self) -> int:
        """Zeros on each side of height and width."""
        return self.dilation * (self.kernel - 1) // 2

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        grown = 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        return (self.height + grown) // self.stride + 1, (self.width + grown) // self.stride + 1

    def check(self) -> None:
        size = (self.height, self.width)
        check_window(self.name, size, self.kernel, self.dilation, self.padding)

    def compute(self) -> Tensors:
        from tvm import te

        data = te.placeholder((self.batch, self.height, self.width, self.channels), name="data")
        index = te.placeholder((self.channels,), name="index", dtype="int32")
        around = (0, self.padding, self.padding, 0)
        padded = pad(data, around, around)

        def value(n: Any, y: Any, x: Any, c: Any) -> Any:
            dy, dx = index[c] // self.kernel, index[c] % self.kernel
            row, col = y * self.stride + dy * self.dilation, x * self.stride + dx * self.dilation
            return padded[n, row, col, c]

        shape = (self.batch, *self.out_size, self.channels)
        return [data, index, te.compute(shape, value, name="shift")]

    def flops(self) -> int:
        return 0

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
        shape = (self.batch, self.height, self.width, self.channels)
        data = rng.standard_normal(shape, dtype="float32")
        return [data, rng.integers(0, self.kernel**2, self.channels, dtype="int32")]

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        data, index = inputs[0], inputs[1].long()
        p = self.padding
        padded = functional.pad(data, (0, 0, p, p, p, p))
        out_h, out_w = (torch.arange(n, device=data.device) * self.stride for n in self.out_size)
        rows = out_h[:, None, None] + index // self.kernel * self.dilation
        cols = out_w[None, :, None] + index % self.kernel * self.dilation
        return padded[:, rows, cols, torch.arange(self.channels, device=data.device)]
