"""The PyTorch references against NumPy loops written from the definitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flextensor.operators import (
    Bilinear,
    BlockCirculant,
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Einsum,
    Mttkrp,
    Operator,
    ShiftConv2d,
    Workload,
)

Array = np.ndarray[Any, Any]


def conv2d(op: Conv2d, data: Array, weight: Array) -> Array:
    out = np.zeros((op.batch, op.out_channels, *op.out_size))
    p = op.padding
    data = np.pad(data, ((0, 0), (0, 0), (p, p), (p, p)))
    each_in, each_out = op.in_channels // op.groups, op.out_channels // op.groups
    for n, k, y, x in np.ndindex(out.shape):
        for c, r, s in np.ndindex(weight.shape[1:]):
            row, col = y * op.stride + r * op.dilation, x * op.stride + s * op.dilation
            channel = k // each_out * each_in + c
            out[n, k, y, x] += data[n, channel, row, col] * weight[k, c, r, s]
    return out


def conv_transpose2d(op: ConvTranspose2d, data: Array, weight: Array) -> Array:
    """Scatter every input element, as the definition has it."""
    out = np.zeros((op.batch, op.out_channels, *op.out_size))
    each_in, each_out = op.in_channels // op.groups, op.out_channels // op.groups
    for n, c, h, w in np.ndindex(data.shape):
        for k, r, s in np.ndindex(weight.shape[1:]):
            y = h * op.stride + r * op.dilation - op.padding
            x = w * op.stride + s * op.dilation - op.padding
            if 0 <= y < out.shape[2] and 0 <= x < out.shape[3]:
                out[n, c // each_in * each_out + k, y, x] += data[n, c, h, w] * weight[c, k, r, s]
    return out


def depthwise(op: DepthwiseConv2d, data: Array, weight: Array) -> Array:
    out = np.zeros((op.batch, op.channels * op.multiplier, *op.out_size))
    p = op.padding
    data = np.pad(data, ((0, 0), (0, 0), (p, p), (p, p)))
    for n, k, y, x in np.ndindex(out.shape):
        c, m = divmod(k, op.multiplier)
        for r, s in itertools.product(range(op.kernel), repeat=2):
            row, col = y * op.stride + r * op.dilation, x * op.stride + s * op.dilation
            out[n, k, y, x] += data[n, c, row, col] * weight[c, m, r, s]
    return out


def block_circulant(op: BlockCirculant, data: Array) -> Array:
    b, (down, across) = op.block, (op.rows // op.block, op.cols // op.block)
    comp = np.zeros((down, across * b))
    for i, j in np.ndindex(comp.shape):
        comp[i, j] = np.mean([data[i * b + k, j // b * b + (j % b + k) % b] for k in range(b)])
    out = np.zeros(data.shape)
    for i, j in np.ndindex(down * b, across * b):
        out[i, j] = comp[i // b, j // b * b + (j % b + b - i % b) % b]
    return out


def shift(op: ShiftConv2d, data: Array, index: Array) -> Array:
    p = op.dilation * (op.kernel - 1) // 2
    data = np.pad(data, ((0, 0), (p, p), (p, p), (0, 0)))
    out = np.zeros((op.batch, *op.out_size, op.channels))
    for n, y, x, c in np.ndindex(out.shape):
        dy, dx = divmod(int(index[c]), op.kernel)
        row, col = y * op.stride + dy * op.dilation, x * op.stride + dx * op.dilation
        out[n, y, x, c] = data[n, row, col, c]
    return out


def einsum(op: Einsum, *operands: Array) -> Array:
    out = np.zeros([op.extents[i] for i in op.output])
    for point in itertools.product(*map(range, op.extents.values())):
        at = dict(zip(op.extents, point, strict=True))
        factors = [a[tuple(at[i] for i in t)] for a, t in zip(operands, op.terms, strict=True)]
        out[tuple(at[i] for i in op.output)] += np.prod(factors)
    return out


def bilinear(op: Bilinear, a: Array, w: Array, b: Array) -> Array:
    out = np.zeros((op.n, op.m))
    for n, m in np.ndindex(out.shape):
        out[n, m] = sum(a[n, i] * w[m, i, j] * b[n, j] for i in range(op.k1) for j in range(op.k2))
    return out


def mttkrp(op: Mttkrp, a: Array, b: Array, c: Array) -> Array:
    out = np.zeros((op.n, op.m))
    for n, m in np.ndindex(out.shape):
        out[n, m] = sum(a[n, i, j] * b[i, m] * c[j, m] for i in range(op.k1) for j in range(op.k2))
    return out


CASES: list[tuple[Operator, Callable[..., Array]]] = [
    (Conv2d(2, 4, 7, 6, 6, 3, 2, 1, 2, 2), conv2d),
    (ConvTranspose2d(2, 4, 3, 5, 6, 3, 2, 1, 1, 1, 2), conv_transpose2d),
    (ConvTranspose2d(1, 2, 4, 3, 2, 2, 3, 1, 2, 1, 1), conv_transpose2d),
    (ConvTranspose2d(1, 3, 4, 3, 3, 3, 2, 2, 2, 3, 3), conv_transpose2d),
    (ConvTranspose2d(1, 2, 4, 3, 2, 3, 1, 2, 0, 1, 1), conv_transpose2d),
    (DepthwiseConv2d(2, 3, 6, 7, 2, 3, 2, 1, 2), depthwise),
    (BlockCirculant(13, 11, 4), block_circulant),
    (BlockCirculant(8, 6, 2), block_circulant),
    (ShiftConv2d(2, 7, 6, 5, 3, 2, 2), shift),
    (ShiftConv2d(1, 6, 7, 16, 4, 1, 1), shift),
    (Einsum("bij,bjk->bik", "b=2,i=3,j=4,k=5"), einsum),
    (Einsum("ij,ij->", "i=3,j=4"), einsum),
    (Einsum("ij,jk", "i=3,j=4,k=2"), einsum),
    (Bilinear(3, 4, 5, 2), bilinear),
    (Mttkrp(3, 4, 5, 2), mttkrp),
]


@pytest.mark.parametrize(("operator", "loops"), CASES, ids=[Workload(o).key for o, _ in CASES])
def test_reference_follows_the_definition(operator: Operator, loops: Callable[..., Array]) -> None:
    workload = Workload(operator)
    inputs = workload.inputs(3)
    expected = loops(operator, *(x.astype("float64") for x in inputs))
    np.testing.assert_allclose(workload.reference(inputs), expected, rtol=1e-12, atol=1e-12)
