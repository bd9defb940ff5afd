"""Shift: every channel is moved by its own offset inside the window; no arithmetic at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.conv import check_window
from flextensor.operators.stages import guarded

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

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """``direct`` finds the offsets of an element from its channel's number; ``offsets`` finds
        them once for each channel, which pays where a division costs more than another pass."""
        return {"direct": self.compute, "offsets": self.compute_offsets}

    def compute(self) -> Tensors:
        data, index = self._placeholders()
        return self._move(data, index, lambda c: (index[c] // self.kernel, index[c] % self.kernel))

    def compute_offsets(self) -> Tensors:
        """With the stages ``rows`` and ``cols`` [channels]."""
        from tvm import te

        data, index = self._placeholders()
        rows = te.compute(index.shape, lambda c: index[c] // self.kernel, name="rows")
        cols = te.compute(index.shape, lambda c: index[c] % self.kernel, name="cols")
        return self._move(data, index, lambda c: (rows[c], cols[c]))

    def _placeholders(self) -> tuple[Any, Any]:
        from tvm import te

        data = te.placeholder((self.batch, self.height, self.width, self.channels), name="data")
        return data, te.placeholder((self.channels,), name="index", dtype="int32")

    def _move(self, data: Any, index: Any, offsets: Callable[[Any], tuple[Any, Any]]) -> Tensors:
        """Where no offset leaves the data, which is nearly everywhere, no element asks for it."""
        from tvm import te, tirx

        extents, reach = (self.height, self.width), self.dilation * (self.kernel - 1)

        def value(n: Any, y: Any, x: Any, c: Any) -> Any:
            first = [i * self.stride - self.padding for i in (y, x)]
            place = [i + o * self.dilation for i, o in zip(first, offsets(c), strict=True)]
            inside = [i >= 0 for i in first]
            inside += [i + reach < extent for i, extent in zip(first, extents, strict=True)]
            within = [i >= 0 for i in place]
            within += [i < extent for i, extent in zip(place, extents, strict=True)]
            moved = data(n, *place, c)
            return tirx.if_then_else(tirx.all(*inside), moved, guarded(within, moved))

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
