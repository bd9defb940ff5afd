"""Winograd's filtering: exact in rationals for every size, bounded in float32."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flextensor.operators import Workload, parse
from flextensor.operators.minimal_filtering import (
    GAIN,
    MOST_POINTS,
    Matrix,
    matrices,
    schemes,
    tilings,
)
from flextensor.operators.winograd import combine

NUMBERS = st.integers(-9, 9)


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((c * v for c, v in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


SIZES = [(m, r) for m in range(1, 7) for r in range(1, 5) if m + r < 10]


@pytest.mark.parametrize(("outputs", "window"), SIZES)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_tile_is_the_correlation_exactly(outputs: int, window: int, data: st.DataObject) -> None:
    a, g, b = matrices(outputs, window)
    size = outputs + window - 1
    pixels = [Fraction(data.draw(NUMBERS)) for _ in range(size)]
    filters = [Fraction(data.draw(NUMBERS)) for _ in range(window)]
    products = [u * v for u, v in zip(times(g, filters), times(b, pixels), strict=True)]
    wanted = [sum(f * pixels[i + r] for r, f in enumerate(filters)) for i in range(outputs)]
    assert times(a, products) == wanted


def dimensions(name: str) -> int:
    """Spatial axes of an operator."""
    return int(name[-2])


@pytest.mark.parametrize(("outputs", "window"), SIZES)
def test_a_row_of_a_matrix_is_what_it_says(outputs: int, window: int) -> None:
    """Whichever terms are written together: of one element that is one, and the others zero."""
    from tvm import sym, tirx

    for matrix in matrices(outputs, window):
        for number, row in enumerate(matrix):
            for one, coefficient in enumerate(row):
                elements = [tirx.const(float(j == one), "float64") for j in range(len(row))]
                at = tirx.const(number, "int32")
                value = combine(matrix, at, elements.__getitem__, "float64")
                assert float(sym.Analyzer().simplify(value).value) == float(coefficient)


def test_what_rows_of_symmetric_points_share_is_written_alike() -> None:
    from tvm import tirx
    from tvm.ir import assert_structural_equal

    a, g, b = matrices(4, 3)
    elements = [tirx.Var(f"d{j}", "float32") for j in range(6)]
    for matrix in (g, b):
        first, second = (
            combine(matrix[n : n + 1], tirx.const(0, "int32"), lambda j: elements[j], "float32")
            for n in (1, 2)
        )
        assert {type(first), type(second)} == {tirx.Add, tirx.Sub}
        assert_structural_equal(first.a, second.a)
        assert_structural_equal(first.b, second.b)
    rows = [combine(a, tirx.const(n, "int32"), lambda j: elements[j], "float32") for n in range(4)]
    for number, row in enumerate(rows):
        sign = "-" if number % 2 else "+"
        assert f"d1 {sign} d2" in str(row) and f"d3 {sign} d4" in str(row)


LAYERS = {
    "conv1d": {"length": "23"},
    "conv2d": {"height": "13", "width": "10"},
    "conv3d": {"depth": "4", "height": "7", "width": "9"},
    "conv_transpose2d": {"height": "11", "width": "6", "kernel": "3"},
    "dilated_conv2d": {"height": "15", "width": "12"},
    "group_conv2d": {"height": "9", "width": "9", "groups": "2"},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("formulation", "bound"), [("winograd2", 2e-6), ("winograd4", 5e-6)])
def test_the_error_is_bounded(
    name: str, formulation: str, bound: float, error_of: Callable[[Workload, str], float]
) -> None:
    channels = {"in_channels": "32", "out_channels": "16", "padding": "1"}
    workload = Workload(parse(name, {**channels, **LAYERS[name]}))
    error = error_of(workload, formulation)
    assert np.isfinite(error) and error < bound


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("window", range(3, 15))
def test_every_tile_saves_products(window: int, axes: int) -> None:
    """Of a window in one part, in parts as long as the tile, or in tiles of such tiles."""
    least = Fraction(window)
    for tile, scheme in schemes(window, axes).items():
        assert scheme.tile == tile and scheme.taps * scheme.parts >= window
        assert all(m + r - 1 <= MOST_POINTS for m, r in scheme.levels)
        assert len(scheme.levels) <= 3 - axes
        m, r = scheme.levels[-1]
        assert r in (m, window)
        assert scheme.products == Fraction(scheme.points * scheme.parts, tile)
        assert scheme.products * GAIN <= least
        least = scheme.products
    assert least < window


def test_a_window_along_one_axis_is_nested() -> None:
    def found(window: int, axes: int) -> list[tuple[tuple[tuple[int, int], ...], int]]:
        return [(s.levels, s.parts) for s in schemes(window, axes).values()]

    assert found(3, 1) == found(3, 2) == [(((2, 3),), 1), (((4, 3),), 1)]
    assert found(4, 2) == [(((2, 4),), 1), (((4, 4),), 1)]
    assert found(5, 2) == [(((2, 5),), 1), (((3, 5),), 1)]  # not F(3, 3) in two parts
    parts = [(((2, 2),), 5), (((3, 3),), 3)]
    assert found(9, 2) == parts
    assert found(9, 1) == [*parts, (((2, 3), (3, 3)), 1), (((4, 3), (3, 3)), 1)]
    assert schemes(9, 1)[12].products == Fraction(5, 2)


WIDE = {
    "conv1d": {"length": "41", "kernel": "9"},
    "conv2d": {"height": "15", "width": "13", "kernel": "7"},
    "conv3d": {"depth": "6", "height": "8", "width": "9", "kernel": "4"},
    "conv_transpose1d": {"length": "37", "kernel": "9", "stride": "1"},
    "dilated_conv2d": {"height": "19", "width": "21", "kernel": "5"},
    "group_conv2d": {"height": "14", "width": "11", "groups": "2", "kernel": "7"},
}
"""Kernels in parts: nine taps are three parts, seven are two, of which one has a tap of zero; along
one axis also nested."""


DEEP = {
    "cube": ("conv3d", {"depth": "8", "height": "8", "width": "4"}),
    "odd": ("conv3d", {"depth": "5", "height": "7", "width": "9", "bias": "true", "relu": "true"}),
    "shallow": ("conv3d", {"depth": "1", "height": "6", "width": "5"}),
    "gaps": ("conv3d", {"depth": "9", "height": "8", "width": "7", "dilation": "2"}),
    "groups": ("conv3d", {"depth": "4", "height": "5", "width": "6", "groups": "2"}),
    "batch": ("conv3d", {"depth": "6", "height": "5", "width": "4", "batch": "2"}),
    "transposed": ("conv_transpose3d", {"depth": "5", "height": "6", "width": "7", "stride": "1"}),
    "five": ("conv3d", {"depth": "6", "height": "7", "width": "8", "kernel": "5"}),
}
"""Tiles along three axes, that fit, do not fit, are one."""


@pytest.mark.parametrize("layer", DEEP)
def test_the_error_along_three_axes_is_bounded(
    layer: str, error_of: Callable[[Workload, str], float]
) -> None:
    name, more = DEEP[layer]
    fields = {"in_channels": "48", "out_channels": "18", "padding": "1", "kernel": "3", **more}
    workload = Workload(parse(name, fields))
    cubes = [f for f in workload.formulations if f.startswith("winograd") and "x" in f]
    assert cubes
    for formulation in cubes:
        error = error_of(workload, formulation)
        assert np.isfinite(error) and error < 3e-5, formulation


@pytest.mark.parametrize("name", WIDE)
def test_the_error_of_a_window_in_parts_is_bounded(
    name: str, error_of: Callable[[Workload, str], float]
) -> None:
    channels = {"in_channels": "32", "out_channels": "16", "padding": "1"}
    workload = Workload(parse(name, {**channels, **WIDE[name]}))
    fast = [f for f in workload.formulations if f.startswith("winograd")]
    found = tilings(int(WIDE[name]["kernel"]), 1, dimensions(name))
    assert fast == [f"winograd{tiling}" for tiling in found]
    for formulation in fast:
        error = error_of(workload, formulation)
        assert np.isfinite(error) and error < 5e-5, formulation


@pytest.mark.parametrize("kernel", [*range(6, 15), 20, 31])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("conv1d", {}),
        ("conv1d", {"dilation": "2", "batch": "2"}),
        ("conv1d", {"groups": "2", "out_channels": "18", "relu": "true"}),
        ("conv_transpose1d", {}),
    ],
    ids=["plain", "gaps", "groups", "transposed"],
)
def test_the_error_of_a_nested_window_is_bounded(
    name: str, more: dict[str, str], kernel: int, error_of: Callable[[Workload, str], float]
) -> None:
    fields = {"in_channels": "24", "out_channels": "17", "length": "83", "padding": "2", **more}
    workload = Workload(parse(name, {**fields, "kernel": str(kernel), "stride": "1"}))
    nested = [tile for tile, s in schemes(kernel, 1).items() if len(s.levels) == 2]
    assert nested
    for tile in nested:
        error = error_of(workload, f"winograd{tile}")
        assert np.isfinite(error) and error < 5e-5, tile


STRIDED = {
    "conv1d": {"length": "41", "kernel": "8", "stride": "3"},
    "conv2d": {"height": "17", "width": "22", "kernel": "7", "stride": "2", "in_channels": "3"},
    "conv3d": {"depth": "9", "height": "8", "width": "11", "kernel": "7", "stride": "2"},
    "conv_transpose1d": {"length": "19", "kernel": "4", "stride": "2"},
    "conv_transpose2d": {"height": "7", "width": "6", "kernel": "5", "stride": "2"},
    "conv_transpose3d": {
        "depth": "3", "height": "5", "width": "4", "kernel": "7", "stride": "2",
        "output_padding": "1", "out_channels": "2",
    },
    "group_conv2d": {"height": "14", "width": "11", "kernel": "3", "stride": "2", "groups": "2"},
}  # fmt: skip
"""Strides that divide the kernel, the input, or neither; three channels are enough where their
phases are more."""


@pytest.mark.parametrize("name", STRIDED)
def test_the_error_over_phases_is_bounded(
    name: str, error_of: Callable[[Workload, str], float]
) -> None:
    channels = {"in_channels": "16", "out_channels": "16", "padding": "1", "relu": "true"}
    fields = {**channels, **STRIDED[name]}
    workload = Workload(parse(name, fields))
    fast = [f for f in workload.formulations if f.startswith("winograd")]
    found = tilings(int(fields["kernel"]), int(fields["stride"]), dimensions(name))
    assert fast and fast == [f"winograd{tiling}" for tiling in found]
    for formulation in fast:
        error = error_of(workload, formulation)
        assert np.isfinite(error) and error < 5e-5, formulation


def test_phases_need_fewer_products_than_the_stride_leaves_out() -> None:
    assert list(tilings(3, 1, 2)) == ["2", "4"]
    assert list(tilings(3, 2, 2)) == ["4"]  # 4 phases of 2 x 2 taps: 6.3 products, not 9
    assert "4" not in tilings(3, 2, 3)  # 8 phases of 2 taps more: 25, not 27
    assert list(tilings(7, 2, 2)) == ["2", "4"]
    assert tilings(4, 4, 2) == {}  # one tap in every phase


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", range(3, 12))
def test_the_third_axis_is_tiled_where_that_saves_products(kernel: int, stride: int) -> None:
    found = tilings(kernel, stride, 3)
    assert any(len(tiling) == 3 for tiling in found.values())
    window, least = -(-kernel // stride), Fraction(kernel**3)
    for name, tiling in found.items():
        *deep, plane = tiling
        assert name == (
            str(plane.tile) if len(tiling) == 2 else "x".join(str(s.tile) for s in tiling)
        )
        assert all(s.tile <= plane.tile for s in deep)
        needed = Fraction((window if len(tiling) == 2 else 1) * stride**3)
        for scheme in tiling:
            needed *= scheme.products
        assert needed * GAIN <= least
        least = needed


def test_three_axes_of_a_window_of_three() -> None:
    found = tilings(3, 1, 3)
    assert list(found) == ["2", "4", "2x4x4", "4x4x4"]
    assert [s.points for s in found["2x4x4"]] == [4, 6, 6]


def test_only_a_window_that_slides_over_channels_without_gaps_is_computed_so() -> None:
    def names(**fields: str) -> tuple[str, ...]:
        return Workload(parse("conv2d", fields)).formulations

    assert names() == ("direct", "winograd2", "winograd4")
    assert names(kernel="9") == ("direct", "winograd2", "winograd3")
    assert names(stride="2") == ("direct", "winograd4")
    assert names(kernel="1") == names(in_channels="3") == names(kernel="2", stride="2")
    assert names(kernel="1") == names(stride="2", dilation="2") == ("direct",)
    assert Workload(parse("depthwise_conv2d", {})).formulations == ("direct",)
