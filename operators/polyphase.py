"""Strided convolutions as convolutions of stride 1, whose channels are the phases of the input.

Along an axis of stride s, input ``y*s + f`` is element ``y + f // s`` of phase ``f % s``, so that

    out[k, y] = sum_{c,f} data[c, y*s + f] * weight[k, c, f]
              = sum_{c,p,t} phases[c*s + p, y + t] * taps[k, c*s + p, t]

with ``ceil(kernel / s)`` taps, the last of which are zero where s does not divide the kernel. A
window that slides by one is what Winograd's filtering takes. Along several axes a phase number has
one digit in base s for each, the last axis' last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flextensor.operators.stages import guarded


def split_data(data: Any, stride: int, size: Sequence[int]) -> Any:
    """``[N, C, spatial..]`` -> ``[N, C * stride**ndim, size..]`` (stage ``phases``): as much of
    every phase as is asked for, zero beyond the input."""
    from tvm import te

    batch, channels, *extents = (int(n) for n in data.shape)
    ndim = len(extents)

    def value(n: Any, channel: Any, *at: Any) -> Any:
        c, phase = digits(channel, stride, ndim)
        place = [y * stride + p for y, p in zip(at, phase, strict=True)]
        inside = [
            x < extent
            for x, extent, wanted in zip(place, extents, size, strict=True)
            if wanted * stride > extent
        ]
        return guarded(inside, data(n, c, *place))

    return te.compute([batch, channels * stride**ndim, *size], value, name="phases")


def split_weight(weight: Any, stride: int) -> Any:
    """``[K, C, kernel..]`` -> ``[K, C * stride**ndim, taps..]`` (stage ``phase_weight``)."""
    from tvm import te

    out_channels, channels, *kernel = (int(n) for n in weight.shape)
    ndim = len(kernel)

    def value(k: Any, channel: Any, *at: Any) -> Any:
        c, phase = digits(channel, stride, ndim)
        taps = [t * stride + p for t, p in zip(at, phase, strict=True)]
        inside = [f < r for f, r in zip(taps, kernel, strict=True) if r % stride]
        return guarded(inside, weight(k, c, *taps))

    shape = [out_channels, channels * stride**ndim, *(-(-r // stride) for r in kernel)]
    return te.compute(shape, value, name="phase_weight")


def digits(channel: Any, stride: int, ndim: int) -> tuple[Any, list[Any]]:
    """What a number of phases stands for: channel (or image), and the phase along each axis."""
    found = [channel // stride ** (ndim - 1 - i) % stride for i in range(ndim)]
    return channel // stride**ndim, found
