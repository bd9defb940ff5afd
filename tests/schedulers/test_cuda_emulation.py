"""Every operator as CUDA C, run in emulation at small and awkward sizes against its reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card
from sample_programs import rms_norm

from flextensor.buffers import relative_error
from flextensor.operators import FunctionOperator, Workload, parse, registry
from flextensor.schedulers import schedule, space
from flextensor.targets import Target, launches
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled

IMAGE = {"in_channels": "4", "out_channels": "6", "height": "7", "width": "9", "padding": "1"}
LINE = {"in_channels": "5", "out_channels": "7", "length": "19", "padding": "1"}
CUBE = {**IMAGE, "depth": "4", "height": "5", "width": "6"}
FIELDS: dict[str, dict[str, str]] = {
    "batch_gemm": {"batch": "3", "m": "11", "n": "19", "k": "13"},
    "bilinear": {"n": "7", "m": "11", "k1": "13", "k2": "9"},
    "block_circulant_matrix": {"rows": "24", "cols": "16", "block": "8"},
    "conv1d": LINE,
    "conv2d": {**IMAGE, "bias": "true", "relu": "true"},
    "conv3d": CUBE,
    "conv_transpose1d": {**LINE, "stride": "2"},
    "conv_transpose2d": {**IMAGE, "stride": "2"},
    "conv_transpose3d": {**CUBE, "stride": "2"},
    "depthwise_conv2d": {"channels": "5", "height": "9", "width": "11", "padding": "1"},
    "dilated_conv2d": {**IMAGE, "dilation": "2"},
    "einsum": {"equation": "abc,cd->adb", "a": "3", "b": "5", "c": "9", "d": "18"},
    "gemm": {"m": "37", "n": "29", "k": "23", "bias": "true", "relu": "true"},
    "gemv": {"m": "13", "k": "71"},
    "group_conv2d": {**IMAGE, "groups": "2"},
    "mttkrp": {"n": "7", "m": "9", "k1": "5", "k2": "6"},
    "shift_conv2d": {"channels": "9", "height": "5", "width": "6"},
}
CASES = {name: (name, fields) for name, fields in FIELDS.items()} | {
    "phases": (
        "conv2d",
        {
            "in_channels": "3", "out_channels": "16", "height": "12", "width": "9",
            "kernel": "7", "stride": "2", "padding": "3",
        },
    ),
    "deep": (
        "conv_transpose2d",
        {
            "in_channels": "24", "out_channels": "8", "height": "4", "width": "5",
            "kernel": "4", "stride": "2", "padding": "1", "relu": "true",
        },
    ),
    "nested": (
        "conv1d", {"in_channels": "9", "out_channels": "16", "length": "40", "kernel": "9"}
    ),
}  # fmt: skip
"""One of every operator, and layers that have formulations which the small ones have not."""


@pytest.fixture(scope="module")
def target() -> Target:
    return card("sm_80", emulated=True)


def configs(func: Any, target: Target) -> list[dict[str, Any]]:
    """A seed with panels in shared memory where there is one, and any legal point."""
    found = space(func, target)
    staged = [s for s in found.seeds if "both" in s.values()] or list(found.seeds)
    return [staged[0], *(found.config(p) for p in found.sample(np.random.default_rng(0), 1))]


def test_every_operator_has_a_case() -> None:
    assert set(FIELDS) == set(registry())


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_formulation_computes_the_reference(
    name: str, target: Target, tmp_path: Path
) -> None:
    operator, fields = CASES[name]
    workload = Workload(parse(operator, fields))
    inputs = workload.inputs(0)
    want, path, runtime = workload.reference(inputs), tmp_path / "kernel.so", target.runtime()
    for formulation in workload.formulations:
        func = workload.prim_func(formulation)
        for config in configs(func, target):
            target.build(schedule(func, target, config), path)
            got = np.full(want.shape, np.nan, "float32")
            runtime.load(path)["main"](*inputs, got)
            assert relative_error(got, want) < 1e-4, (formulation, config)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "batch_gemm"])
def test_without_its_barriers_no_family_passes(name: str, target: Target) -> None:
    workload = Workload(parse(name, FIELDS[name]))
    func, inputs = workload.prim_func(), workload.inputs(0)
    module = schedule(func, target, configs(func, target)[0])
    program = launches.lower(module, target.tvm_target())
    source, dropped = re.subn(r"__syncthreads\(\);", "", program.source)
    assert dropped
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    EmulatedFunction(compiled(source), program.functions["main"])(*inputs, got)
    assert not relative_error(got, want) < 1e-2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_batch_may_be_longer_than_a_grid_is_deep(dtype: str, target: Target) -> None:
    sizes = {"batch": "65537", "m": "2", "n": "4", "k": "5"}
    workload = Workload(parse("batch_gemm", {**sizes, "dtype": dtype}))
    func, inputs = workload.prim_func(), workload.inputs(0)
    config = space(func, target).seeds[-1]  # nothing is laid out first
    program = launches.lower(schedule(func, target, config), target.tvm_target())
    (launch,) = program.functions["main"].launches
    assert launch.grid[0] % 65537 == 0 and launch.grid[2] == 1
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, dtype)
    EmulatedFunction(compiled(program.source), program.functions["main"])(*inputs, got)
    assert relative_error(got, want) < workload.tolerance(1e-4)


def test_a_norm_is_a_sum_a_scalar_and_a_map(target: Target, tmp_path: Path) -> None:
    workload = Workload(FunctionOperator(rms_norm, {}))
    func, inputs, path = workload.prim_func(), workload.inputs(0), tmp_path / "kernel.so"
    target.build(schedule(func, target, space(func, target).seeds[0]), path)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    target.runtime().load(path)["main"](*inputs, got)
    assert relative_error(got, want) < 1e-5
