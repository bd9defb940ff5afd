"""Programs that several tests schedule, and what they ask of the result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tvm import te, tirx

from flextensor.buffers import relative_error
from flextensor.operators import Workload
from flextensor.schedulers import Config, Value, schedule, space
from flextensor.targets import Target, lookup


def softmax(rows: int = 5, cols: int = 37) -> list[Any]:
    a = te.placeholder((rows, cols), name="a")
    k, j = te.reduce_axis((0, cols), "k"), te.reduce_axis((0, cols), "j")
    top = te.compute((rows,), lambda i: te.max(a[i, k], axis=k), name="top")
    e = te.compute((rows, cols), lambda i, c: te.exp(a[i, c] - top[i]), name="e")
    s = te.compute((rows,), lambda i: te.sum(e[i, j], axis=j), name="s")
    return [a, te.compute((rows, cols), lambda i, c: e[i, c] / s[i], name="softmax")]


def rms_norm(rows: int = 7, cols: int = 40) -> list[Any]:
    """RMS norm of a whole matrix: a scalar stage between a sum and a map."""
    a = te.placeholder((rows, cols), name="a")
    i, k = te.reduce_axis((0, rows), name="i"), te.reduce_axis((0, cols), name="k")
    total = te.compute((), lambda: te.sum(a[i, k] * a[i, k], axis=[i, k]), name="total")
    scale = te.compute((), lambda: te.rsqrt(total() / (rows * cols)), name="scale")
    return [a, te.compute((rows, cols), lambda i, k: a[i, k] * scale(), name="scaled")]


def nibbles(rows: int = 13, cols: int = 40, depth: int = 24) -> list[Any]:
    """A product with weights of four bits, eight to a word, and a scale for each row of them."""
    a = te.placeholder((rows, depth), name="a")
    w = te.placeholder((cols, depth // 8), "int32", name="w")
    s = te.placeholder((cols,), name="s")

    def weight(j: Any, k: Any) -> Any:
        return ((w[j, k // 8] >> (k % 8 * 4)) & 15).astype("float32") * s[j]

    b = te.compute((cols, depth), weight, name="b")
    k = te.reduce_axis((0, depth), name="k")
    out = te.compute((rows, cols), lambda i, j: te.sum(a[i, k] * b[j, k], axis=k), name="product")
    return [a, w, s, out]


def bits(length: int = 45) -> list[Any]:
    """Every operation on the bits of integers."""
    a, b = (te.placeholder((length,), "int32", name=name) for name in "ab")

    def value(i: Any) -> Any:
        low = tirx.Var("low", "int32")
        mixed = (a[i] << 3) | (b[i] ^ 5)
        return tirx.Let(low, mixed & ~(b[i] >> 1), low * low - low)

    return [a, b, te.compute((length,), value, name="bits")]


def extents(module: Any, block: str) -> list[Any]:
    """Extents of the loops around a block."""
    from tvm.s_tir import Schedule

    sch = Schedule(module)
    return [sch.get(loop).extent for loop in sch.get_loops(sch.get_sblock(block))]


def loops_of(workload: Workload, target: Target, config: Mapping[str, Value]) -> list[str]:
    """The kinds and extents of the loops of a program, in the order of its text."""
    text = schedule(workload.prim_func(), target, config).script()
    return re.findall(r"for .* in (?:T\.)?(\w+\([\d, ]+)", text)


def every_config(workload: Workload, target: Target) -> list[Config]:
    """All legal configs of a small space, in an order of chance."""
    found = space(workload.prim_func(), target)
    points = found.sample(np.random.default_rng(0), found.size)
    return [found.config(point) for point in points]


def check(workload: Workload, target: Target, config: Mapping[str, Value]) -> None:
    """That a program for a target, compiled for this machine, computes the reference."""
    import tvm

    module = schedule(workload.prim_func(), target, config)
    kernel = tvm.compile(module, target=lookup("llvm").tvm_target())
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    tensors = [tvm.runtime.tensor(a) for a in (*inputs, np.full_like(expected, np.nan, "float32"))]
    kernel(*tensors)
    assert relative_error(tensors[-1].numpy(), expected) < 1e-5, config
