"""Transposed convolutions in one, two and three dimensions, written once.

Input [batch, in_channels, spatial..], weight [in_channels, out_channels/groups, kernel..],
bias [out_channels], output [batch, out_channels, spatial..], as in PyTorch. Along each axis

    out[n,k,y] = sum_{c,x,f : x*stride + f*dilation = y + padding} data[n,c,x] * weight[c,k,f]
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import InputError
from flextensor.operators import polyphase, winograd
from flextensor.operators.base import Tensors, register
from flextensor.operators.conv import Convolution, check_groups
from flextensor.operators.minimal_filtering import Tiling
from flextensor.operators.stages import convolve, epilogue_flops, guarded

if TYPE_CHECKING:
    import torch


class ConvolutionTranspose(Convolution):
    """What every transposed convolution does; subclasses declare the fields that they have."""

    if TYPE_CHECKING:

        @property
        def output_padding(self) -> int: ...

    @property
    def out_size(self) -> tuple[int, ...]:
        """Output extents along the spatial axes."""
        span = self.dilation * (self.kernel - 1)
        grown = span + 1 + self.output_padding - 2 * self.padding
        return tuple((n - 1) * self.stride + grown for n in self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: input channels first."""
        window = (self.kernel,) * len(self.size)
        return (self.in_channels, self.out_channels // self.groups, *window)

    def check(self) -> None:
        check_groups(self.name, self.groups, self.in_channels, self.out_channels)
        if self.output_padding >= max(self.stride, self.dilation):
            raise InputError(
                f"{self.name}: output_padding={self.output_padding} must be smaller than "
                f"stride={self.stride} or dilation={self.dilation}"
            )
        if min(self.out_size) < 1:
            raise InputError(
                f"{self.name}: the output would be {list(self.out_size)}; reduce padding"
            )

    @property
    def window_stride(self) -> int:
        """1: the input has ``stride - 1`` zeros between its elements instead."""
        return 1

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """Those of a convolution; ``subpixel`` where there are phases to split the output, and
        ``col2im`` where what it keeps of every tap is no larger than the weight."""
        found = dict(super().formulations())
        if self.stride > 1 and self.dilation == 1:
            found["subpixel"] = self.compute_subpixel
        pixels, dense = self.batch * math.prod(self.size), self.stride == 1 or self.dilation == 1
        if self.kernel > 1 and dense and pixels <= self.in_channels // self.groups:
            found["col2im"] = self.compute_col2im
        return found

    @property
    def phase_channels(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels * self.stride ** len(self.size)

    def compute_winograd(self, tiling: Tiling) -> Tensors:
        if self.stride == 1:
            return super().compute_winograd(tiling)
        return self._by_phases(functools.partial(winograd.convolve, tiling=tiling, dilation=1))

    def compute_subpixel(self) -> Tensors:
        """A convolution of stride 1 over the input itself that computes no product with zero.

        With ``y + padding = stride*q + phase``, output y needs the taps ``phase + stride*t`` at
        the inputs ``q - t``. So the phases become ``stride**ndim`` times more output channels of
        a convolution with the window ``ceil(kernel / stride)``, and a pixel shuffle spreads them.
        """
        return self._by_phases(convolve)

    def _by_phases(self, run: Callable[..., Any]) -> Tensors:
        """`compute_subpixel` with `run` for the convolution."""
        data, weight, *bias = self.placeholders()
        phases = run(
            self._pad_phases(data), self._split(weight), groups=self.groups, name=self.name
        )
        return self.finish(self._shuffle(phases), data, weight, *bias)

    def compute_col2im(self) -> Tensors:
        """One product of matrices, of the weight as it lies and of the input itself, and its sums:

            columns[n,k,f,x] = sum_c data[n,c,x] * weight[c,k,f]
            out[n,k,y] = sum_{x,f : x*stride + f*dilation = y + padding} columns[n,k,f,x]

        No product is with zero, and a deep layer's weight, its largest operand, is read once.
        """
        data, weight, *bias = self.placeholders()
        out = self._sum_taps(self._columns(data, weight))
        return self.finish(out, data, weight, *bias)

    def _columns(self, data: Any, weight: Any) -> Any:
        """[N, out_channels, kernel.., size..]: what every input adds through every tap."""
        from tvm import te

        ndim = len(self.size)
        rc = te.reduce_axis((0, self.in_channels // self.groups), "rc")

        def value(n: Any, k: Any, *at: Any) -> Any:
            taps, place, channel = at[:ndim], at[ndim:], self._input(k, rc)
            product = data(n, channel, *place) * weight(channel, self._own(k), *taps)
            return te.sum(product, axis=rc)

        shape = [self.batch, self.out_channels, *self.weight_shape[2:], *self.size]
        return te.compute(shape, value, name=self.name)

    def _sum_taps(self, columns: Any) -> Any:
        """[N, out_channels, out_size..]: of the `_taps` that meet an output along each axis."""
        from tvm import te

        taps = [te.reduce_axis((0, self._taps), f"r{i}") for i in range(len(self.size))]

        def value(n: Any, k: Any, *position: Any) -> Any:
            tap, place, inside = [], [], []
            for y, t, extent in zip(position, taps, self.size, strict=True):
                q = y + self.padding
                tap.append(q % self.stride + self.stride * t if self.stride > 1 else t)
                place.append(q // self.stride - t * self.dilation)
                inside += [tap[-1] < self.kernel] if self.kernel % self.stride else []
                inside += [place[-1] >= 0, place[-1] < extent]
            return te.sum(guarded(inside, columns(n, k, *tap, *place)), axis=taps)

        shape = [self.batch, self.out_channels, *self.out_size]
        return te.compute(shape, value, name="col2im")

    def padded(self, data: Any) -> Any:
        """``out[j] = data[(j - start) / stride]``, zero where that is no element."""
        from tvm import te

        span = self.dilation * (self.kernel - 1)
        start = span - self.padding
        size = [n + span for n in self.out_size]
        if self.stride == 1 and start == 0 and tuple(size) == self.size:
            return data

        def value(n: Any, c: Any, *index: Any) -> Any:
            inside, source = [], []
            for j, extent in zip(index, self.size, strict=True):
                offset = j - start
                inside += [offset >= 0, offset <= (extent - 1) * self.stride]
                inside += [offset % self.stride == 0] if self.stride > 1 else []
                source.append(offset // self.stride)
            return guarded(inside, data(n, c, *source))

        shape = [self.batch, self.in_channels, *size]
        return te.compute(shape, value, name="insert_zeros" if self.stride > 1 else "pad")

    def filters(self, weight: Any) -> Any:
        """The weight as [out_channels, in_channels/groups, kernel..], each axis reversed."""
        from tvm import te

        in_group = self.in_channels // self.groups

        def value(k: Any, c: Any, *taps: Any) -> Any:
            return weight(self._input(k, c), self._own(k), *(self.kernel - 1 - r for r in taps))

        shape = [self.out_channels, in_group, *self.weight_shape[2:]]
        return te.compute(shape, value, name="flip_weight")

    def _input(self, k: Any, c: Any) -> Any:
        """Input channel number `c` of those that output channel `k` reads."""
        if self.groups == 1:
            return c
        return k // self.weight_shape[1] * (self.in_channels // self.groups) + c

    def _own(self, k: Any) -> Any:
        """The number of output channel `k` in its group, as the weight has it."""
        return k if self.groups == 1 else k % self.weight_shape[1]

    @property
    def _taps(self) -> int:
        """Taps of one phase, the last of which may be zero."""
        return -(-self.kernel // self.stride)

    @property
    def _first(self) -> int:
        """The q of the first output."""
        return self.padding // self.stride

    def _pad_phases(self, data: Any) -> Any:
        """``out[j] = data[j + first - (taps - 1)]``, zero outside: what the phases slide over."""
        from tvm import te

        shift = self._first - (self._taps - 1)
        last = [(n - 1 + self.padding) // self.stride for n in self.out_size]
        size = [q - self._first + self._taps for q in last]
        if shift == 0 and tuple(size) == self.size:
            return data

        def value(n: Any, c: Any, *index: Any) -> Any:
            source = [j + shift for j in index]
            inside = [x >= 0 for x in source]
            inside += [x < extent for x, extent in zip(source, self.size, strict=True)]
            return guarded(inside, data(n, c, *source))

        return te.compute([self.batch, self.in_channels, *size], value, name="pad")

    def _split(self, weight: Any) -> Any:
        """The weight as [out_channels * phases, in_channels/groups, taps..], in flipped order.

        Output channel ``k * phases + phase`` holds ``weight[c, k, phase + stride*t]`` at
        position ``taps - 1 - t``; a phase number has one digit in base `stride` for each axis.
        """
        from tvm import te

        in_group, ndim = self.in_channels // self.groups, len(self.size)
        phases = self.stride**ndim

        def value(channel: Any, c: Any, *position: Any) -> Any:
            k, phase = polyphase.digits(channel, self.stride, ndim)
            taps = [
                p + self.stride * (self._taps - 1 - t) for p, t in zip(phase, position, strict=True)
            ]
            inside = [f < self.kernel for f in taps if self.kernel % self.stride]
            return guarded(inside, weight(self._input(k, c), self._own(k), *taps))

        shape = [self.out_channels * phases, in_group, *[self._taps] * ndim]
        return te.compute(shape, value, name="phase_weight")

    def _shuffle(self, phases: Any) -> Any:
        """``out[n,k,y] = phases[n, k*stride + phase, (y + padding)//stride - first]`` in 1-D."""
        from tvm import te

        def value(n: Any, k: Any, *position: Any) -> Any:
            channel, place = k, []
            for y in position:
                channel = channel * self.stride + (y + self.padding) % self.stride
                place.append((y + self.padding) // self.stride - self._first)
            return phases(n, channel, *place)

        shape = [self.batch, self.out_channels, *self.out_size]
        return te.compute(shape, value, name="pixel_shuffle")

    def flops(self) -> int:
        """Along each axis one tap in `stride` meets an output, and a tap on padding counts.

        So stride 1 counts as the convolution that it is, which is also how the paper counts.
        """
        met = math.prod(-(-n // self.stride) for n in self.out_size)
        contraction = 2 * self.batch * math.prod(self.weight_shape) * met
        out = (self.batch, self.out_channels, *self.out_size)
        return contraction + epilogue_flops(out, self.bias, self.relu)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        run = getattr(functional, f"conv_transpose{len(self.size)}d")
        data, weight, *bias = inputs
        out: torch.Tensor = run(
            data,
            weight,
            bias[0] if bias else None,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
        )
        return out.relu() if self.relu else out


@register
@dataclasses.dataclass(frozen=True)
class ConvTranspose1d(ConvolutionTranspose):
    """1-D transposed convolution, NCL."""

    name: ClassVar[str] = "conv_transpose1d"

    batch: int = 1
    in_channels: int = 64
    length: int = 784
    out_channels: int = 64
    kernel: int = 4
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False


@register
@dataclasses.dataclass(frozen=True)
class ConvTranspose2d(ConvolutionTranspose):
    """2-D transposed convolution, NCHW."""

    name: ClassVar[str] = "conv_transpose2d"

    batch: int = 1
    in_channels: int = 64
    height: int = 28
    width: int = 28
    out_channels: int = 64
    kernel: int = 4
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False


@register
@dataclasses.dataclass(frozen=True)
class ConvTranspose3d(ConvolutionTranspose):
    """3-D transposed convolution, NCDHW."""

    name: ClassVar[str] = "conv_transpose3d"

    batch: int = 1
    in_channels: int = 32
    depth: int = 8
    height: int = 14
    width: int = 14
    out_channels: int = 32
    kernel: int = 4
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    relu: bool = False
