"""Transposed convolutions as one product of matrices, whose taps are summed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flextensor.operators import Workload, parse

LAYERS: dict[str, tuple[str, dict[str, int]]] = {
    "all taps": ("conv_transpose1d", {"length": 11, "kernel": 4}),
    "padding": ("conv_transpose2d", {"height": 5, "width": 3, "kernel": 3, "padding": 2}),
    "stride": ("conv_transpose2d", {"height": 3, "width": 5, "kernel": 3, "stride": 2}),
    "stride of two taps more": (
        "conv_transpose2d",
        {"height": 4, "width": 3, "kernel": 5, "stride": 3, "padding": 1, "output_padding": 2},
    ),
    "stride beyond the kernel": (
        "conv_transpose1d", {"length": 9, "kernel": 2, "stride": 3, "output_padding": 1},
    ),
    "dilation": ("conv_transpose2d", {"height": 4, "width": 4, "kernel": 3, "dilation": 2}),
    "groups": ("conv_transpose2d", {"height": 2, "width": 4, "kernel": 3, "groups": 2}),
    "three axes": (
        "conv_transpose3d",
        {"depth": 2, "height": 3, "width": 2, "kernel": 3, "stride": 2, "padding": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_what_it_sums_is_the_layer(name: str, error_of: Callable[[Workload, str], float]) -> None:
    operator, fields = LAYERS[name]
    channels = {"batch": 1, "in_channels": 24, "out_channels": 6, "bias": "true", "relu": "true"}
    workload = Workload(parse(operator, {k: str(v) for k, v in (channels | fields).items()}))
    assert error_of(workload, "col2im") < 1e-6


def test_it_is_offered_where_it_keeps_no_more_than_the_weight() -> None:
    def offered(**fields: int) -> bool:
        size = {"in_channels": 49, "height": 7, "width": 7, "kernel": 3}
        given = {k: str(v) for k, v in (size | fields).items()}
        return "col2im" in Workload(parse("conv_transpose2d", given)).formulations

    assert offered() and offered(stride=2) and offered(dilation=2)
    assert not offered(batch=2) and not offered(in_channels=48) and not offered(width=8)
    assert not offered(kernel=1)  # a product of matrices already
    assert not offered(stride=2, dilation=2)  # taps of no phase
