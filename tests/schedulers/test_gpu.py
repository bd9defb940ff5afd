"""Schedulers of devices with thread blocks, on awkward sizes, run by PoCL."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from sample_programs import bits, nibbles, rms_norm, softmax
from tvm import te

from flextensor.errors import IllegalConfigError
from flextensor.operators import FunctionOperator, Operator, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import SCHEDULERS, Composition
from flextensor.schedulers.program import read
from flextensor.targets import OpenCL, Target, launches, lookup
from flextensor.testing import SchedulerCase

SMALL = {"in_channels": "6", "out_channels": "10", "height": "9", "width": "7", "padding": "1"}
TINY = OpenCL(
    cores=4, vector_bits=128, vector_registers=16, l1_bytes=2048, l2_bytes=1 << 20,
    l3_bytes=1 << 20, max_unroll=64, threads_per_block=64, shared_bytes=2048, thread_registers=64,
)  # fmt: skip
"""Limits that bind."""


def total(length: int = 997) -> list[Any]:
    """One output: nothing to deal to threads."""
    a = te.placeholder((length,), name="a")
    k = te.reduce_axis((0, length), "k")
    return [a, te.compute((1,), lambda i: te.sum(a[k], axis=k), name="total")]


CASES: list[tuple[Operator, str]] = [
    (parse("gemm", {"m": "13", "n": "37", "k": "11", "bias": "true", "relu": "true"}), "direct"),
    (parse("batch_gemm", {"batch": "3", "m": "7", "n": "19", "k": "5"}), "direct"),
    (parse("gemv", {"m": "13", "k": "71"}), "direct"),
    (parse("conv2d", {**SMALL, "stride": "2", "groups": "2", "bias": "true"}), "direct"),
    (parse("conv2d", {**SMALL, "batch": "2"}), "direct"),
    (parse("conv_transpose2d", {**SMALL, "stride": "2"}), "subpixel"),
    (parse("conv1d", {"in_channels": "16", "out_channels": "24", "length": "37"}), "winograd4"),
    (parse("conv1d", {"in_channels": "16", "out_channels": "24", "length": "37", "kernel": "9"}),
     "winograd6"),
    (parse("conv3d", {"in_channels": "8", "out_channels": "10", "depth": "3", "height": "5",
                      "width": "4"}), "winograd4x4x4"),
    (parse("depthwise_conv2d", {"channels": "5", "height": "9", "width": "11"}), "direct"),
    (parse("einsum", {"equation": "abc,cd->adb", "a": "3", "b": "5", "c": "9", "d": "18"}),
     "direct"),
    (FunctionOperator(softmax, {}), "direct"),
    (FunctionOperator(rms_norm, {}), "direct"),
    (FunctionOperator(nibbles, {}), "direct"),
    (FunctionOperator(bits, {}), "direct"),
    (FunctionOperator(total, {}), "direct"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "formulation"), CASES, ids=[f"{i}-{o.name}" for i, (o, _) in enumerate(CASES)]
)
class TestGpuSchedulers(SchedulerCase):
    @pytest.fixture
    def target(self) -> Target:
        return lookup("opencl")

    @pytest.fixture
    def workload(self, operator: Operator) -> Workload:
        return Workload(operator)

    @pytest.fixture
    def scheduler(self, func: Any, target: Target) -> Scheduler:
        program = read(func)
        assert program is not None
        stage = max(program.stages, key=lambda s: s.points)
        return next(s for s in SCHEDULERS if s.take(program, stage, target))


def takers(operator: Operator, formulation: str = "direct") -> list[str]:
    parts = Composition.of(Workload(operator).prim_func(formulation), TINY).parts
    return [type(p).__name__.removesuffix("Schedule") for p, _ in parts]


def test_stages_go_to_the_schedulers_of_devices_with_blocks() -> None:
    assert takers(parse("conv2d", {"padding": "1", "relu": "true"})) == ["GpuContraction"]
    assert takers(parse("depthwise_conv2d", {"padding": "1"})) == ["GpuSpatial"]
    assert takers(FunctionOperator(softmax, {})) == ["GpuSpatial"] * 4


GEMM = Workload(parse("gemm", {"m": "61", "n": "67", "k": "33"}))
CONV = Workload(parse("conv2d", SMALL))


@pytest.mark.parametrize("workload", [GEMM, CONV], ids=["gemm", "conv2d"])
def test_a_legal_program_keeps_the_limits_of_the_device(workload: Workload) -> None:
    func = workload.prim_func()
    found = space(func, TINY)
    assert found.seeds
    for point in found.sample(np.random.default_rng(0), 12):
        config = found.config(point)
        program = launches.lower(schedule(func, TINY, config), TINY.tvm_target())
        (launch,) = program.functions["main"].launches
        assert math.prod(launch.block) <= TINY.threads_per_block
        shared = re.findall(r"__local float \w+\[(\d+)\]", program.source)
        assert 4 * sum(map(int, shared)) <= TINY.shared_bytes
        staged = {"both": 2, "none": 0}.get(str(config[f"{workload.operator.name}.staged"]), 1)
        assert len(shared) == staged
        held = re.findall(r"float \w+_local_ptr\[(\d+)\]", program.source)
        lanes = int(config[f"{workload.operator.name}.x_lanes"])
        assert sum(map(int, held)) // lanes < TINY.thread_registers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"y_threads": 64, "x_threads": 2}, "128 threads a block, limit 64"),
        ({"y_inner": 8, "x_inner": 8}, "a thread needs 96 registers, has 64"),
        ({"k_tile": 32, "x_threads": 16}, "bytes of shared memory, limit 2048"),
        ({"k_unroll": 16, "k_tile": 16}, "unrolled body has 256 operations, limit 64"),
        ({"k_unroll": 2, "k_tile": 1}, "no whole number of unrolled steps"),
        ({"staged": "none"}, "a padded reduction needs both panels"),
        ({"y_threads": 32, "y_inner": 6, "x_threads": 2, "k_tile": 1}, "twice as long"),
    ],
)
def test_an_illegal_config_never_reaches_the_compiler(
    change: dict[str, int | str], reason: str
) -> None:
    config: dict[str, int | str] = {
        "y_virtual": 1, "y_threads": 4, "y_inner": 4, "x_virtual": 1, "x_threads": 4, "x_inner": 4,
        "k_tile": 8, "k_unroll": 1, "staged": "both", "vector": 1,
        "pad": 0, "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0, "x_lanes": 1,
    }  # fmt: skip
    func = GEMM.prim_func()
    schedule(func, TINY, {f"gemm.{k}": v for k, v in config.items()})
    with pytest.raises(IllegalConfigError, match=reason):
        schedule(func, TINY, {f"gemm.{k}": v for k, v in (config | change).items()})


def test_only_copies_and_writes_are_guarded() -> None:
    """No size divides, and still the inner product is full."""
    config: dict[str, int | str] = {
        "y_virtual": 2, "y_threads": 4, "y_inner": 2, "x_virtual": 1, "x_threads": 8, "x_inner": 3,
        "k_tile": 8, "k_unroll": 2, "staged": "both", "vector": 1,
        "pad": 0, "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0, "x_lanes": 1,
    }  # fmt: skip
    module = schedule(GEMM.prim_func(), TINY, {f"gemm.{k}": v for k, v in config.items()})
    source = launches.lower(module, TINY.tvm_target()).source
    products = [line for line in source.splitlines() if "acc_local_ptr" in line and "*" in line]
    inner = [line for line in products if "shared_ptr" in line]
    assert len(inner) == 2 * 2 * 3 * 2
    assert not any("?" in line or "if" in line for line in inner)
