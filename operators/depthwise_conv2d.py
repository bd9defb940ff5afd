"""Depthwise convolution: every input channel has its own `multiplier` filters."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.operators.base import Tensors, register
from flextensor.operators.conv import Convolution, check_window
from flextensor.operators.stages import pad

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class DepthwiseConv2d(Convolution):
    """``out[n,k,y,x] = sum_{r,s} data[n, k//multiplier, y.., x..] * w[k//mult, k%mult, r, s]``.

    Data is NCHW, the weight [channels, multiplier, kernel, kernel], the output
    [batch, channels*multiplier, height, width], the bias [channels*multiplier].
    """

    name: ClassVar[str] = "depthwise_conv2d"

    batch: int = 1
    channels: int = 64
    height: int = 56
    width: int = 56
    multiplier: int = 1
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    bias: bool = False
    relu: bool = False

    @property
    def in_channels(self) -> int:
        """Channels of the input, under the name that all convolutions have."""
        return self.channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels * self.multiplier

    @property
    def groups(self) -> int:
        """Every channel is a group."""
        return self.channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.channels, self.multiplier, self.kernel, self.kernel)

    def check(self) -> None:
        check_window(self.name, self.size, self.kernel, self.dilation, self.padding)

    def compute(self) -> Tensors:
        from tvm import te

        data, weight, *bias = self.placeholders()
        around = (0, 0, self.padding, self.padding)
        padded = pad(data, around, around)
        r, s = (te.reduce_axis((0, self.kernel), name) for name in ("r", "s"))

        def value(n: Any, k: Any, y: Any, x: Any) -> Any:
            row, col = y * self.stride + r * self.dilation, x * self.stride + s * self.dilation
            c, m = k // self.multiplier, k % self.multiplier
            return te.sum(padded[n, c, row, col] * weight[c, m, r, s], axis=[r, s])

        shape = (self.batch, self.out_channels, *self.out_size)
        out = te.compute(shape, value, name=self.name)
        return self.finish(out, data, weight, *bias)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        data, weight, *bias = inputs
        filters = weight.reshape(self.out_channels, 1, self.kernel, self.kernel)
        return super().torch(data, filters, *bias)
