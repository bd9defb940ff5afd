"""Stages that several operators are written with: padding, convolution, epilogue.

All take and return `tvm.te.Tensor`; block names are the `name` arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def guarded(inside: Sequence[Any], value: Any) -> Any:
    """`value` where all of `inside` hold, else zero."""
    from tvm import tirx

    if not inside:
        return value
    return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, value.ty.dtype))


def pad(data: Any, before: Sequence[int], after: Sequence[int]) -> Any:
    """`data` with zeros around it: axis i grows by ``before[i] + after[i]`` (stage ``pad``)."""
    from tvm import te

    if not any(before) and not any(after):
        return data
    size = [int(n) for n in data.shape]

    def value(*index: Any) -> Any:
        inside = []
        for i, n, low, high in zip(index, size, before, after, strict=True):
            inside += [i >= low] if low else []
            inside += [i < low + n] if high else []
        source = [i - low for i, low in zip(index, before, strict=True)]
        return guarded(inside, data(*source))

    shape = [low + n + high for n, low, high in zip(size, before, after, strict=True)]
    return te.compute(shape, value, name="pad")


def convolve(
    data: Any, weight: Any, *, stride: int = 1, dilation: int = 1, groups: int = 1, name: str
) -> Any:
    """``out[n,k,q..] = sum_{c,r..} data[n, C/groups*(k//(K/groups)) + c, q*stride + r*dilation..]
    * weight[k,c,r..]``.

    `data` is [N,C,spatial..] and padded already, `weight` is [K,C/groups,kernel..].
    """
    from tvm import te

    out_channels, in_group, *kernel = (int(n) for n in weight.shape)
    batch, _, *size = (int(n) for n in data.shape)
    out_size = [
        (n - dilation * (r - 1) - 1) // stride + 1 for n, r in zip(size, kernel, strict=True)
    ]
    per_group = out_channels // groups
    rc = te.reduce_axis((0, in_group), "rc")
    window = [te.reduce_axis((0, r), f"r{i}") for i, r in enumerate(kernel)]

    def value(n: Any, k: Any, *position: Any) -> Any:
        channel = rc if groups == 1 else k // per_group * in_group + rc
        place = [q * stride + r * dilation for q, r in zip(position, window, strict=True)]
        product = wide(data(n, channel, *place)) * wide(weight(k, rc, *window))
        return te.sum(product, axis=[rc, *window])

    return te.compute([batch, out_channels, *out_size], value, name=name)


def convolve_torch_int8(
    data: Any, weight: Any, *, stride: int, padding: int, dilation: int, groups: int
) -> Any:
    """`convolve` of int8 in int32 in PyTorch, which has no such convolution, but a product of
    matrices: of the weights and of the windows, gathered side by side. `data` is not padded yet."""
    import torch
    from torch.nn import functional

    out_channels, in_group, *kernel = weight.shape
    padded = functional.pad(data, (padding,) * (2 * len(kernel)))
    batch, channel, *space = padded.stride()
    out_size = [
        (n - dilation * (r - 1) - 1) // stride + 1
        for n, r in zip(padded.shape[2:], kernel, strict=True)
    ]
    windows = padded.as_strided(
        (groups, in_group, *kernel, data.shape[0], *out_size),
        (in_group * channel, channel, *(s * dilation for s in space), batch,
         *(s * stride for s in space)),
    ).reshape(groups, math.prod(weight.shape[1:]), -1)  # fmt: skip
    filters = weight.reshape(groups, out_channels // groups, -1)
    sums = torch.cat([torch._int_mm(f, w) for f, w in zip(filters, windows, strict=True)])
    return sums.reshape(out_channels, data.shape[0], *out_size).transpose(0, 1).contiguous()


WIDE = {"float16": "float32", "bfloat16": "float32", "int8": "int32"}


def wide(value: Any) -> Any:
    """A value of 16 bits as float32, in which products are exact and sums lose little; of int8 as
    int32, which is exact."""
    dtype = str(value.ty)
    return value.astype(WIDE[dtype]) if dtype in WIDE else value


def result_dtype(dtype: str) -> str:
    """The dtype of output and bias of an operator whose inputs are of `dtype`."""
    return "int32" if dtype == "int8" else dtype


def epilogue(out: Any, axis: int, bias: Any | None, relu: bool, dtype: str) -> Any:
    """`out` plus `bias` along `axis` (stage ``bias_add``), then its positive part (``relu``), in
    the dtype of `out`; at the end rounded to `result_dtype`, once (stage ``narrow``)."""
    from tvm import te, tirx

    if bias is not None:
        linear = out
        out = te.compute(linear.shape, lambda *i: linear(*i) + wide(bias(i[axis])), name="bias_add")
    if relu:
        signed = out
        zero = tirx.const(0, signed.dtype)
        out = te.compute(signed.shape, lambda *i: tirx.max(signed(*i), zero), name="relu")
    result = result_dtype(dtype)
    if str(out.dtype) != result:
        exact = out
        out = te.compute(exact.shape, lambda *i: exact(*i).astype(result), name="narrow")
    return out


def epilogue_flops(shape: Sequence[int], bias: bool, relu: bool) -> int:
    """Operations of `epilogue` on an output of `shape`."""
    return math.prod(shape) * (int(bias) + int(relu))


def epilogue_torch(out: Any, axis: int, bias: Any | None, relu: bool) -> Any:
    """`epilogue` in PyTorch."""
    if bias is not None:
        shape = [1] * out.ndim
        shape[axis] = -1
        out = out + bias.reshape(shape)
    return out.relu() if relu else out
