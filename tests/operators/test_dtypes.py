"""Operators in narrow dtypes: keys, inputs, references, tolerance; float32 stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flextensor import torch_calls
from flextensor.buffers import aligned, load, numpy_dtype, poison
from flextensor.errors import InputError, UnsupportedError
from flextensor.operators import Workload, parse, registry
from flextensor.schedulers import space
from flextensor.targets import LLVM, OpenCL
from flextensor.targets.runtime import as_tensor

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gemm", {"m": "7", "n": "19", "k": "301", "bias": "true", "relu": "true"}),
        ("batch_gemm", {"batch": "2", "m": "5", "n": "9", "k": "31", "bias": "true"}),
        ("conv2d", {**SMALL, "stride": "2", "bias": "true"}),
    ],
)
def test_sums_are_wide_and_rounded_once(
    name: str, fields: dict[str, str], dtype: str, error_of: Callable[[Workload, str], float]
) -> None:
    workload = Workload(parse(name, {**fields, "dtype": dtype}))
    assert {b.dtype for b in workload.buffers} == {dtype}
    assert workload.formulations == ("direct",)  # Winograd's sums would not survive it
    inputs = workload.inputs(0)
    assert {x.dtype for x in inputs} == {numpy_dtype(dtype)}
    want = workload.reference(inputs)
    rounded = want.astype(numpy_dtype(dtype)).astype(np.float64)
    allowed = workload.tolerance(1e-9)
    assert np.abs(rounded - want).max() / np.abs(want).max() < allowed / 2 + 1e-12
    assert error_of(workload, "direct") < allowed * 0.51
    assert workload.flops == Workload(parse(name, fields)).flops
    assert 2 * workload.bytes == Workload(parse(name, fields)).bytes
    peer = workload.operator.torch(*map(torch_calls.tensor, inputs))
    assert peer.dtype == getattr(torch, dtype)


def test_no_output_is_nearer_than_its_dtype_allows() -> None:
    half = Workload(parse("gemm", {"dtype": "float16"}))
    assert (half.tolerance(1e-4), half.tolerance(1e-2)) == (2.0**-10, 1e-2)
    brain = Workload(parse("gemm", {"dtype": "bfloat16"}))
    assert (brain.tolerance(1e-4), brain.tolerance(1e-2)) == (2.0**-7, 1e-2)
    assert Workload(parse("gemm", {})).tolerance(1e-4) == 1e-4


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gemm", {"m": "7", "n": "19", "k": "301", "bias": "true", "relu": "true"}),
        ("batch_gemm", {"batch": "2", "m": "5", "n": "9", "k": "31", "bias": "true"}),
        ("conv2d", {**SMALL, "batch": "2", "stride": "2", "bias": "true", "relu": "true"}),
        ("conv1d", {"in_channels": "6", "out_channels": "4", "length": "23", "groups": "2"}),
        ("dilated_conv2d", {"in_channels": "3", "out_channels": "5", "height": "9", "width": "8"}),
    ],
)
def test_int8_is_summed_in_int32_exactly(
    name: str, fields: dict[str, str], error_of: Callable[[Workload, str], float]
) -> None:
    workload = Workload(parse(name, {**fields, "dtype": "int8"}))
    data, weight, *rest = (b.dtype for b in workload.buffers)
    assert (data, weight, set(rest)) == ("int8", "int8", {"int32"})
    assert workload.formulations == ("direct",)
    assert workload.tolerance(1e-4) == 0.0
    inputs = workload.inputs(0)
    assert inputs[0].min() < -100
    assert inputs[0].max() > 100
    assert error_of(workload, "direct") == 0.0
    peer = workload.operator.torch(*map(torch.from_numpy, inputs))
    assert peer.dtype == torch.int32
    assert np.array_equal(peer.numpy(), workload.reference(inputs))


def test_bfloat16_passes_between_libraries(tmp_path: Path) -> None:
    """NumPy's files and DLPack, and PyTorch's `numpy`, know nothing of it."""
    array = aligned(np.arange(6).reshape(2, 3) / 8, "bfloat16")
    np.save(tmp_path / "a.npy", array)
    assert load(tmp_path / "a.npy").dtype == array.dtype
    tensor = torch_calls.tensor(array)
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == array.astype(float).tolist()
    tensor[0, 0] = 7
    assert array[0, 0] == 7
    assert np.may_share_memory(torch_calls.array(tensor), array)
    assert str(as_tensor(array).dtype) == "bfloat16"
    poison(array)
    assert np.isnan(array.astype(float)).all()


def test_a_device_without_half_says_so() -> None:
    numbers: dict[str, Any] = {
        "cores": 4, "vector_bits": 128, "vector_registers": 16, "l1_bytes": 2048,
        "l2_bytes": 1 << 20, "l3_bytes": 1 << 20, "max_unroll": 64,
    }  # fmt: skip
    func = Workload(parse("gemm", {"m": "8", "dtype": "float16"})).prim_func()
    device = OpenCL(**numbers, threads_per_block=64, half=False, name="PoCL", platform="a CPU")
    with pytest.raises(UnsupportedError, match="PoCL, a CPU  has no float16; choose dtype=float32"):
        space(func, device)
    brain = Workload(parse("gemm", {"m": "8", "dtype": "bfloat16"})).prim_func()
    with pytest.raises(UnsupportedError, match="has no bfloat16; choose dtype=float32"):
        space(brain, device)
    assert space(func, LLVM(**numbers)).seeds
