"""Every scheduler on awkward sizes: whatever a space calls legal computes the right result."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from sample_programs import bits, nibbles, rms_norm, softmax
from tvm import te

from flextensor.errors import IllegalConfigError
from flextensor.operators import FunctionOperator, parse
from flextensor.operators.base import Operator
from flextensor.operators.workload import Workload
from flextensor.schedulers import schedule, space
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import SCHEDULERS, Composition
from flextensor.schedulers.program import read
from flextensor.schedulers.space import Point
from flextensor.targets import lookup
from flextensor.testing import SchedulerCase

TARGET = lookup("llvm", 2)


def correlation(channels: int = 6, size: int = 9, reach: int = 3) -> list[Any]:
    a = te.placeholder((channels, size, size), name="a")
    b = te.placeholder((channels, size + reach - 1, size + reach - 1), name="b")
    c = te.reduce_axis((0, channels), "c")
    shape = (reach, reach, size, size)
    out = te.compute(
        shape, lambda dy, dx, y, x: te.sum(a[c, y, x] * b[c, y + dy, x + dx], axis=c), name="corr"
    )
    return [a, b, out]


def pool(channels: int = 3, size: int = 11) -> list[Any]:
    a = te.placeholder((channels, size, size), name="a")
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")
    n = (size - 3) // 2 + 1
    out = te.compute(
        (channels, n, n), lambda c, y, x: te.max(a[c, y * 2 + r, x * 2 + s], axis=[r, s]), name="p"
    )
    return [a, out]


def sobel(size: int = 19) -> list[Any]:
    """Two windows over one padded image."""
    a = te.placeholder((size, size), name="a")
    w = te.placeholder((2, 3, 3), name="w")
    inside = te.compute(
        (size + 2, size + 2),
        lambda y, x: te.if_then_else(
            te.all(y >= 1, y <= size, x >= 1, x <= size), a[y - 1, x - 1], 0.0
        ),
        name="inside",
    )

    def gradient(which: int) -> Any:
        r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")
        return te.compute(
            (size, size),
            lambda y, x: te.sum(inside[y + r, x + s] * w[which, r, s], axis=[r, s]),
            name=f"g{which}",
        )

    gy, gx = gradient(0), gradient(1)
    out = te.compute((size, size), lambda y, x: gy[y, x] * gy[y, x] + gx[y, x] * gx[y, x], "edges")
    return [a, w, out]


def contrast(height: int = 17, width: int = 19) -> list[Any]:
    """A window that also reads its own middle."""
    a = te.placeholder((height + 2, width + 2), name="a")
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")

    def value(y: Any, x: Any) -> Any:
        gap = a[y + r, x + s] - a[y + 1, x + 1]
        return te.sum(gap * gap, axis=[r, s])

    return [a, te.compute((height, width), value, name="contrast")]


def guided(height: int = 17, width: int = 19) -> list[Any]:
    """A window weighted by another image, which must not be read beyond its end."""
    a = te.placeholder((height + 2, width + 2), name="a")
    g = te.placeholder((height, width), name="g")
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")
    out = te.compute(
        (height, width), lambda y, x: te.sum(a[y + r, x + s] * g[y, x], axis=[r, s]), "guided"
    )
    return [a, g, out]


def flipped(size: int = 13) -> list[Any]:
    """A true convolution: the rows of the window run backwards."""
    a = te.placeholder((size + 2, size + 2), name="a")
    w = te.placeholder((3, 3), name="w")
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")
    out = te.compute(
        (size, size), lambda y, x: te.sum(a[y - r + 2, x + s] * w[r, s], axis=[r, s]), "flipped"
    )
    return [a, w, out]


def fir(length: int = 997, taps: int = 7) -> list[Any]:
    """One row, which has to be cut for all cores."""
    a, w = te.placeholder((length + taps - 1,), name="a"), te.placeholder((taps,), name="w")
    s = te.reduce_axis((0, taps), "s")
    return [a, w, te.compute((length,), lambda x: te.sum(a[x + s] * w[s], axis=s), name="fir")]


def centred(length: int = 61, taps: int = 5) -> list[Any]:
    """A window around its middle: taps are counted from a negative number on."""
    reach = taps // 2
    a, w = te.placeholder((length + 2 * reach,), name="a"), te.placeholder((taps,), name="w")
    r = te.reduce_axis((-reach, reach + 1), "r")
    value = te.compute((length,), lambda i: te.sum(a[i + r + reach] * w[r + reach], axis=r), "mid")
    return [a, w, value]


def late(rows: int = 13, columns: int = 24, depth: int = 29) -> list[Any]:
    """A product of matrices that leaves out the first of what it sums over."""
    a, b = te.placeholder((rows, depth), name="a"), te.placeholder((depth, columns), name="b")
    k = te.reduce_axis((3, depth), "k")
    shape = (rows, columns)
    return [a, b, te.compute(shape, lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="late")]


def cosines(rows: int = 19, points: int = 24) -> list[Any]:
    """A product of matrices, one of which is computed from its indices alone."""
    a = te.placeholder((rows, points), name="a")
    k = te.reduce_axis((0, points), "k")

    def value(i: Any, j: Any) -> Any:
        angle = (j * k).astype("float32") * 0.25
        return te.sum(a[i, k] * te.cos(angle), axis=k)

    return [a, te.compute((rows, points), value, name="cosines")]


def negative_pool(channels: int = 3, height: int = 13, width: int = 37) -> list[Any]:
    """The largest of values below -1: a zero from padding would win."""
    a = te.placeholder((channels, height, width), name="a")
    below = te.compute(a.shape, lambda c, y, x: -1.0 - a[c, y, x] * a[c, y, x], name="below")
    r, s = te.reduce_axis((0, 3), "r"), te.reduce_axis((0, 3), "s")
    shape = (channels, (height - 3) // 2 + 1, (width - 3) // 2 + 1)
    out = te.compute(
        shape, lambda c, y, x: te.max(below[c, y * 2 + r, x * 2 + s], axis=[r, s]), name="pool"
    )
    return [a, out]


def haar_relu(rows: int = 48, pairs: int = 7) -> list[Any]:
    """A transform with an elementwise consumer."""
    a, low = haar(rows, pairs)
    zero = te.compute(low.shape, lambda j, i, p: te.max(low[j, i, p], 0.0), name="relu")
    return [a, zero]


def butterfly() -> list[Any]:
    """A transform of nothing but rows."""
    a = te.placeholder((2,), name="a")
    out = te.compute(
        (2,), lambda j: te.if_then_else(j == 0, a[0] + a[1], a[0] - a[1]), name="butterfly"
    )
    return [a, out]


def haar(rows: int = 48, pairs: int = 7) -> list[Any]:
    """Sums and differences of neighbours: a transform that is the program's output."""
    a = te.placeholder((rows, 2 * pairs), name="a")

    def value(j: Any, i: Any, p: Any) -> Any:
        low, high = a[i, 2 * p], a[i, 2 * p + 1]
        return te.if_then_else(j == 0, low + high, low - high)

    return [a, te.compute((2, rows, pairs), value, name="haar")]


def operators() -> list[Operator]:
    small = {"in_channels": "6", "out_channels": "10", "height": "9", "width": "7"}
    layer = {"in_channels": "16", "out_channels": "32", "height": "10", "width": "13"}
    first = {"in_channels": "3", "kernel": "7", "stride": "2", "padding": "3"}
    deep = {**layer, "height": "3", "width": "5", "kernel": "4", "stride": "2", "padding": "1"}
    return [
        parse("gemm", {"m": "13", "n": "37", "k": "11", "bias": "true", "relu": "true"}),
        parse("gemm", {"m": "33", "n": "16", "k": "29"}),
        parse("gemv", {"m": "13", "k": "71"}),
        parse("batch_gemm", {"batch": "3", "m": "7", "n": "19", "k": "5"}),
        parse("conv2d", {**small, "kernel": "3", "padding": "1"}),
        parse("conv2d", {**small, "kernel": "3", "stride": "2", "padding": "1", "groups": "2"}),
        parse("dilated_conv2d", {**small, "kernel": "3", "padding": "2"}),
        parse("conv_transpose2d", {**small, "kernel": "3", "stride": "2", "padding": "1"}),
        parse(
            "depthwise_conv2d",
            {
                "channels": "5",
                "height": "9",
                "width": "11",
                "kernel": "3",
                "multiplier": "2",
                "padding": "1",
            },
        ),  # fmt: skip
        parse(
            "depthwise_conv2d",
            {
                "channels": "3",
                "height": "19",
                "width": "34",
                "kernel": "3",
                "stride": "2",
                "padding": "1",
                "bias": "true",
                "relu": "true",
            },
        ),
        parse("bilinear", {"n": "5", "m": "7", "k1": "6", "k2": "9"}),
        parse("mttkrp", {"n": "5", "m": "17", "k1": "6", "k2": "7"}),
        parse("einsum", {"equation": "abc,cd->adb", "a": "3", "b": "5", "c": "9", "d": "18"}),
        parse("block_circulant_matrix", {"rows": "24", "cols": "20", "block": "8"}),
        parse("shift_conv2d", {"height": "7", "width": "9", "channels": "5"}),
        parse("conv2d", {**layer, "padding": "1", "bias": "true", "relu": "true"}),
        parse("conv2d", {**layer, "padding": "1", "groups": "2"}),
        parse("conv2d", {**layer, "in_channels": "13", "out_channels": "27", "relu": "true"}),
        parse("dilated_conv2d", {**layer, "padding": "2"}),
        parse("conv1d", {"in_channels": "16", "out_channels": "24", "length": "37"}),
        parse("conv1d", {"in_channels": "16", "out_channels": "24", "length": "39", "kernel": "9"}),
        parse("conv3d", {**layer, "depth": "5", "padding": "1"}),
        parse("conv2d", {**layer, "batch": "2", "padding": "1"}),
        parse("conv2d", {**layer, "width": "3"}),
        parse("conv2d", {**layer, **first, "bias": "true"}),
        parse("conv_transpose2d", {**deep, "bias": "true", "relu": "true"}),
        parse(
            "conv1d", {"in_channels": "32", "out_channels": "16", "groups": "16", "length": "21"}
        ),
        *(
            FunctionOperator(f, {})
            for f in (
                haar,
                haar_relu,
                butterfly,
                sobel,
                contrast,
                guided,
                flipped,
                fir,
                centred,
                late,
                negative_pool,
                cosines,
            )
        ),
        FunctionOperator(softmax, {}),
        FunctionOperator(rms_norm, {}),
        FunctionOperator(nibbles, {}),
        FunctionOperator(bits, {}),
        FunctionOperator(correlation, {}),
        FunctionOperator(pool, {}),
    ]


def scheduler_of(operator: Operator) -> Scheduler:
    """The scheduler that takes the operator's heaviest stage."""
    program = read(Workload(operator).prim_func())
    assert program is not None
    stage = max(program.stages, key=lambda s: s.points)
    return next(s for s in SCHEDULERS if s.take(program, stage, TARGET))


CASES = [(op, f) for op in operators() for f in Workload(op).formulations]


@pytest.mark.parametrize(
    ("operator", "formulation"), CASES, ids=[f"{i}-{o.name}-{f}" for i, (o, f) in enumerate(CASES)]
)
class TestSchedulers(SchedulerCase):
    @pytest.fixture
    def workload(self, operator: Operator) -> Workload:
        return Workload(operator)

    @pytest.fixture
    def scheduler(self, operator: Operator) -> Scheduler:
        return scheduler_of(operator)


def takers(operator: Operator, formulation: str = "direct") -> list[str]:
    parts = Composition.of(Workload(operator).prim_func(formulation), TARGET).parts
    return [f"{p.stage.name}:{type(p).__name__.removesuffix('Schedule')}" for p, _ in parts]


def test_stages_go_to_the_scheduler_of_their_structure() -> None:
    assert takers(parse("conv2d", {"padding": "1"})) == ["conv2d:Contraction"]
    assert takers(parse("conv2d", {"padding": "1"}), "winograd4") == [
        "conv2d_data0:Transform",
        "conv2d_weight0:Transform",
        "conv2d:Contraction",
        "conv2d_out0:Transform",
    ]
    assert takers(parse("conv3d", {"padding": "1"}), "winograd4x4x4") == [
        "conv3d_data0:Transform",
        "conv3d_weight0:Transform",
        "conv3d:Contraction",
        "conv3d_out0:Transform",
    ]
    assert takers(parse("gemm", {"bias": "true", "relu": "true"})) == ["gemm:Contraction"]
    assert takers(parse("gemv", {})) == ["gemv:Reduction"]
    assert takers(FunctionOperator(pool, {})) == ["p:Window"]
    assert takers(parse("depthwise_conv2d", {"padding": "1"})) == ["depthwise_conv2d:Window"]
    shift = parse("shift_conv2d", {})
    assert takers(shift) == ["shift:Spatial"]
    stages = ["rows:Spatial", "cols:Spatial", "shift:Spatial"]
    assert takers(shift, "offsets") == stages  # what divides an input is computed once
    assert takers(FunctionOperator(softmax, {}))[0] == "top:Reduction"


def test_an_illegal_config_never_reaches_the_compiler() -> None:
    func = Workload(parse("gemm", {"m": "64", "n": "64", "k": "64"})).prim_func()
    found = space(func, TARGET)
    config = {**found.seeds[0], "gemm.rows": 28, "gemm.vectors": 6}
    with pytest.raises(IllegalConfigError, match="vector registers"):
        schedule(func, TARGET, config)


def test_a_window_is_not_padded_where_it_slides() -> None:
    """With two channels the longest reduction is the window's: taps beyond its end would read
    beyond the copy that it slides in."""
    layer = {"in_channels": "2", "out_channels": "16", "height": "12", "width": "40", "kernel": "3"}
    func = Workload(parse("conv2d", layer)).prim_func()
    found = space(func, TARGET)
    seed = {**found.seeds[0], "conv2d.m_layout": "flat", "conv2d.n_layout": "panel"}
    whole = found.config(found.project({**seed, "conv2d.k_unroll": 1, "conv2d.k_parts": 1}))
    padded = {**whole, "conv2d.k_unroll": 8}
    assert found.reason(whole) is None
    assert found.reason(padded) == "a window that slides cannot be padded"
    assert found.reason({**padded, "conv2d.m_layout": "panel"}) is None


def test_points_of_one_representative_compile_to_the_same_code() -> None:
    """And neighbours, which skip what changes nothing, to different code."""
    import tvm

    func = Workload(parse("gemm", {"m": "24", "n": "64", "k": "16"})).prim_func()
    found = space(func, TARGET)

    def code(point: Point) -> str:
        module = schedule(func, TARGET, found.config(point))
        text = tvm.compile(module, target=TARGET.tvm_target()).mod.inspect_source("ll")
        # addresses in the names of aliases, and the order in the name of a fused loop
        return re.sub(r"0x[0-9a-f]+|i\d_i\d_fused", "", text)

    rng = np.random.default_rng(0)
    drawn = [p for p in zip(*(rng.integers(len(k.values), size=4000).tolist()
             for k in found.knobs), strict=True) if found.legal(p)]  # fmt: skip
    others = [p for p in drawn if found.representative(p) != p]
    assert len(others) > len(drawn) // 2
    for point in others[:6]:
        representative = found.representative(point)
        assert found.legal(representative)
        assert found.representative(representative) == representative
        assert code(representative) == code(point)
    start = found.representative(found.point(found.seeds[0]))
    around = [start, *found.neighbours(start)]
    assert len(set(map(code, around))) == len(around)
