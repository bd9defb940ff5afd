"""Convolutions in one, two and three dimensions, grouped and dilated, written once.

Input [batch, in_channels, spatial..], weight [out_channels, in_channels/groups, kernel..],
bias [out_channels], output [batch, out_channels, spatial..]; cross-correlation as in PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import InputError
from flextensor.operators import minimal_filtering, polyphase, winograd
from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.stages import (
    convolve,
    convolve_torch_int8,
    epilogue,
    epilogue_flops,
    epilogue_torch,
    pad,
    result_dtype,
)

if TYPE_CHECKING:
    import torch

AXES = ("length", "depth", "height", "width")
"""Field names of spatial extents; a member has one, two or three of them."""


class Convolution(Operator):
    """What every convolution does; subclasses declare the fields that they have."""

    weights: ClassVar[tuple[str, ...]] = ("weight",)

    if TYPE_CHECKING:  # the fields, so that help and keys list them in each member's own order

        @property
        def batch(self) -> int: ...
        @property
        def in_channels(self) -> int: ...
        @property
        def out_channels(self) -> int: ...
        @property
        def kernel(self) -> int: ...
        @property
        def stride(self) -> int: ...
        @property
        def padding(self) -> int: ...
        @property
        def dilation(self) -> int: ...
        @property
        def groups(self) -> int: ...
        @property
        def bias(self) -> bool: ...
        @property
        def relu(self) -> bool: ...
        @property
        def dtype(self) -> str: ...
    else:
        dtype = "float32"  # of those that have no such field

    @property
    def size(self) -> tuple[int, ...]:
        """Input extents along the spatial axes."""
        return tuple(getattr(self, axis) for axis in AXES if hasattr(self, axis))

    @property
    def out_size(self) -> tuple[int, ...]:
        """Output extents along the spatial axes."""
        span = self.dilation * (self.kernel - 1)
        return tuple((n + 2 * self.padding - span - 1) // self.stride + 1 for n in self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        window = (self.kernel,) * len(self.size)
        return (self.out_channels, self.in_channels // self.groups, *window)

    def check(self) -> None:
        check_groups(self.name, self.groups, self.in_channels, self.out_channels)
        check_window(self.name, self.size, self.kernel, self.dilation, self.padding)

    @property
    def window_stride(self) -> int:
        """Steps of the window over what `padded` gives."""
        return self.stride

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """``direct``; where a window slides over enough channels, also those by minimal
        filtering (`minimal_filtering.tilings`), by the outputs of a tile: ``winograd2`` and
        ``winograd4`` are F(2, 3) and F(4, 3) of a window of three along the last one or two axes,
        ``winograd4x4x4`` is F(4, 3) along all three. A longer
        stride slides over its phases, see `flextensor.operators.polyphase`. In float32 only, for
        what they transform would overflow and cancel in half of the bits."""
        found: dict[str, Callable[[], Tensors]] = {"direct": self.compute}
        channels = min(self.phase_channels) // self.groups
        slides = self.kernel >= 3 and (self.stride == 1 or self.dilation == 1)
        if slides and channels >= 8 and self.dtype == "float32":
            tilings = minimal_filtering.tilings(self.kernel, self.stride, len(self.size))
            for name, tiling in tilings.items():
                found[f"winograd{name}"] = functools.partial(self.compute_winograd, tiling)
        return found

    @property
    def phase_channels(self) -> tuple[int, int]:
        """Input and output channels where the phases of a stride are channels of their own."""
        return self.in_channels * self.stride ** len(self.size), self.out_channels

    def compute(self) -> Tensors:
        data, weight, *bias = self.placeholders()
        out = convolve(
            self.padded(data),
            self.filters(weight),
            stride=self.window_stride,
            dilation=self.dilation,
            groups=self.groups,
            name=self.name,
        )
        return self.finish(out, data, weight, *bias)

    def compute_winograd(self, tiling: minimal_filtering.Tiling) -> Tensors:
        """The convolution by minimal filtering, see `flextensor.operators.winograd`."""
        data, weight, *bias = self.placeholders()
        images, filters = self.padded(data), self.filters(weight)
        if self.stride > 1:
            window = -(-self.kernel // self.stride)
            size = [n + window - 1 for n in self.out_size]
            images = polyphase.split_data(images, self.stride, size)
            filters = polyphase.split_weight(filters, self.stride)
        out = winograd.convolve(
            images,
            filters,
            tiling=tiling,
            dilation=self.dilation,
            groups=self.groups,
            name=self.name,
        )
        return self.finish(out, data, weight, *bias)

    def finish(self, out: Any, data: Any, weight: Any, *bias: Any) -> Tensors:
        """The placeholders, and `out` with bias and relu where there are any."""
        first = bias[0] if bias else None
        return [data, weight, *bias, epilogue(out, 1, first, self.relu, self.dtype)]

    def padded(self, data: Any) -> Any:
        """The input with zeros around it."""
        around = [0, 0] + [self.padding] * len(self.size)
        return pad(data, around, around)

    def filters(self, weight: Any) -> Any:
        """The weight as [out_channels, in_channels/groups, kernel..]."""
        return weight

    def placeholders(self) -> Tensors:
        """Data, weight and, where there is one, bias."""
        from tvm import te

        data = te.placeholder(
            (self.batch, self.in_channels, *self.size), name="data", dtype=self.dtype
        )
        weight = te.placeholder(self.weight_shape, name="weight", dtype=self.dtype)
        bias = (
            [te.placeholder((self.out_channels,), name="bias", dtype=result_dtype(self.dtype))]
            if self.bias
            else []
        )
        return [data, weight, *bias]

    def flops(self) -> int:
        out = (self.batch, self.out_channels, *self.out_size)
        taps = self.in_channels // self.groups * math.prod(self.weight_shape[2:])
        return 2 * math.prod(out) * taps + epilogue_flops(out, self.bias, self.relu)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        data, weight, *bias = inputs
        window = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        first = bias[0] if bias else None
        if data.dtype == torch.int8:
            sums: torch.Tensor = epilogue_torch(
                convolve_torch_int8(data, weight, **window), 1, first, self.relu
            )
            return sums
        run = getattr(functional, f"conv{len(self.size)}d")
        out: torch.Tensor = run(data, weight, first, **window)
        return out.relu() if self.relu else out


def check_groups(name: str, groups: int, *channels: int) -> None:
    """Raise `InputError` unless `groups` divides all `channels` (in, out)."""
    for side, count in zip(("in_channels", "out_channels"), channels, strict=True):
        if count % groups:
            raise InputError(f"{name}: {side}={count} is not divisible by groups={groups}")


def check_window(
    name: str, size: tuple[int, ...], kernel: int, dilation: int, padding: int
) -> None:
    """Raise `InputError` when the window is larger than the padded input."""
    window = dilation * (kernel - 1) + 1
    if window > min(size) + 2 * padding:
        raise InputError(
            f"{name}: the window spans {window} (kernel={kernel}, dilation={dilation}) but the "
            f"padded input only {min(size) + 2 * padding}"
        )


@register
@dataclasses.dataclass(frozen=True)
class Conv1d(Convolution):
    """1-D convolution, NCL: ``out[n,k,x] = sum_{c,r} data[n,c,x*stride+r*dilation] * w[k,c,r]``."""

    name: ClassVar[str] = "conv1d"

    batch: int = 1
    in_channels: int = 64
    length: int = 784
    out_channels: int = 64
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False
    dtype: str = "float32"


@register
@dataclasses.dataclass(frozen=True)
class Conv2d(Convolution):
    """2-D convolution, NCHW; by default the 3x3 layer of ResNet's first stage, not padded."""

    name: ClassVar[str] = "conv2d"

    batch: int = 1
    in_channels: int = 64
    height: int = 56
    width: int = 56
    out_channels: int = 64
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False
    dtype: str = "float32"


@register
@dataclasses.dataclass(frozen=True)
class GroupConv2d(Conv2d):
    """`Conv2d` in four groups by default."""

    name: ClassVar[str] = "group_conv2d"

    groups: int = 4


@register
@dataclasses.dataclass(frozen=True)
class DilatedConv2d(Conv2d):
    """`Conv2d` with dilation 2 by default; padding is as given, so that the output may shrink."""

    name: ClassVar[str] = "dilated_conv2d"

    dilation: int = 2


@register
@dataclasses.dataclass(frozen=True)
class Conv3d(Convolution):
    """3-D convolution, NCDHW."""

    name: ClassVar[str] = "conv3d"

    batch: int = 1
    in_channels: int = 32
    depth: int = 16
    height: int = 28
    width: int = 28
    out_channels: int = 32
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False
    dtype: str = "float32"
