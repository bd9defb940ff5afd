"""Operators in float16: keys, inputs, references, tolerance; float32 stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flextensor.errors import InputError, UnsupportedError
from flextensor.operators import Workload, parse, registry
from flextensor.schedulers import space
from flextensor.targets import LLVM, OpenCL

SMALL = {"in_channels": "16", "out_channels": "16", "height": "7", "width": "6", "padding": "1"}


def test_keys_of_float32_say_no_dtype() -> None:
    """Results that databases keep, and trials that are shipped, are found by these."""
    known = {
        "gemm": "gemm(m=512, n=512, k=512, bias=False, relu=False)",
        "batch_gemm": "batch_gemm(batch=8, m=256, n=256, k=256, bias=False, relu=False)",
        "conv1d": "conv1d(batch=1, in_channels=64, length=784, out_channels=64, kernel=3, stride=1,"
        " padding=0, dilation=1, groups=1, bias=False, relu=False)",
    }
    for name, key in known.items():
        assert parse(name, {}).key() == parse(name, {"dtype": "float32"}).key() == key
    for cls in registry().values():
        assert "dtype" not in cls().params()


def test_a_dtype_is_a_parameter_like_others() -> None:
    gemm = parse("gemm", {"m": "8", "dtype": "float16"})
    assert gemm.key() == "gemm(m=8, n=512, k=512, bias=False, relu=False, dtype=float16)"
    assert parse("gemm", {k: str(v) for k, v in gemm.params().items()}) == gemm
    with pytest.raises(InputError, match="unknown dtype of gemm 'float61'; did you mean float16"):
        parse("gemm", {"dtype": "float61"})
    with pytest.raises(InputError, match="unknown field of gemv 'dtype'"):
        parse("gemv", {"dtype": "float16"})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gemm", {"m": "7", "n": "19", "k": "301", "bias": "true", "relu": "true"}),
        ("batch_gemm", {"batch": "2", "m": "5", "n": "9", "k": "31", "bias": "true"}),
        ("conv2d", {**SMALL, "stride": "2", "bias": "true"}),
    ],
)
def test_sums_are_wide_and_rounded_once(
    name: str, fields: dict[str, str], error_of: Callable[[Workload, str], float]
) -> None:
    workload = Workload(parse(name, {**fields, "dtype": "float16"}))
    assert {b.dtype for b in workload.buffers} == {"float16"}
    assert workload.formulations == ("direct",)  # Winograd's sums would not survive it
    inputs = workload.inputs(0)
    assert all(x.dtype == np.float16 for x in inputs)
    want = workload.reference(inputs)
    rounded = want.astype(np.float16).astype(np.float64)
    allowed = workload.tolerance(1e-9)
    assert np.abs(rounded - want).max() / np.abs(want).max() < allowed / 2 + 1e-12
    assert error_of(workload, "direct") < allowed * 0.51
    assert workload.flops == Workload(parse(name, fields)).flops
    assert 2 * workload.bytes == Workload(parse(name, fields)).bytes
    peer = workload.operator.torch(*map(torch.from_numpy, inputs))
    assert peer.dtype == torch.float16


def test_no_output_is_nearer_than_its_dtype_allows() -> None:
    half = Workload(parse("gemm", {"dtype": "float16"}))
    assert (half.tolerance(1e-4), half.tolerance(1e-2)) == (2.0**-10, 1e-2)
    assert Workload(parse("gemm", {})).tolerance(1e-4) == 1e-4


def test_a_device_without_half_says_so() -> None:
    numbers: dict[str, Any] = {
        "cores": 4, "vector_bits": 128, "vector_registers": 16, "l1_bytes": 2048,
        "l2_bytes": 1 << 20, "l3_bytes": 1 << 20, "max_unroll": 64,
    }  # fmt: skip
    func = Workload(parse("gemm", {"m": "8", "dtype": "float16"})).prim_func()
    device = OpenCL(**numbers, threads_per_block=64, half=False, name="PoCL", platform="a CPU")
    with pytest.raises(UnsupportedError, match="PoCL, a CPU  has no float16; choose dtype=float32"):
        space(func, device)
    assert space(func, LLVM(**numbers)).seeds
