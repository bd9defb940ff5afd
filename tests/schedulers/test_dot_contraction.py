"""Contractions of int8 and bfloat16 by dot products of groups, at awkward sizes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor.buffers import aligned, empty, poison, relative_error
from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.dot_contraction import DotContractionScheduler
from flextensor.targets import LLVM, OpenCL, Target, lookup
from flextensor.testing import SchedulerCase

NUMBERS: dict[str, Any] = {
    "cores": 4, "vector_bits": 512, "vector_registers": 32, "l1_bytes": 32 << 10,
    "l2_bytes": 1 << 20, "l3_bytes": 32 << 20, "max_unroll": 512,
}  # fmt: skip
FEATURES = ("avx512bf16", "avx512vnni")
CHIP = LLVM(**NUMBERS, mcpu="sapphirerapids", features=FEATURES)
"""A fixed CPU to compile for, and not to run on."""
NEEDS = {"int8": ("avx512vnni", "AVX512-VNNI"), "bfloat16": ("avx512bf16", "AVX512-BF16")}
SMALL = {"in_channels": "10", "out_channels": "18", "height": "9", "width": "11", "padding": "1"}
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "gemm": ("gemm", {"m": "61", "n": "97", "k": "131"}),
    "gemm_epilogue": ("gemm", {"m": "16", "n": "33", "k": "64", "bias": "true", "relu": "true"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "17", "n": "20", "k": "9", "bias": "true"}),
    "conv2d": ("conv2d", {**SMALL, "bias": "true", "relu": "true"}),
    "conv2d_stride": ("conv2d", {**SMALL, "batch": "2", "stride": "2"}),
    "conv2d_thin": ("conv2d", {**SMALL, "in_channels": "1", "kernel": "3"}),
    "group_conv2d": ("group_conv2d", {**SMALL, "in_channels": "20", "out_channels": "40"}),
    "conv1d": ("conv1d", {"in_channels": "7", "out_channels": "19", "length": "45"}),
}


def host(dtype: str) -> Target:
    """The CPU of this machine, its tile registers left alone; the test is skipped where it lacks
    the instruction."""
    target = lookup("llvm")
    if not isinstance(target, LLVM) or not target.dot_group(dtype):
        pytest.skip(f"this CPU has no {NEEDS[dtype][1]}")
    features = tuple(f for f in target.features if not f.startswith("amx"))
    return dataclasses.replace(target, features=features)


@pytest.fixture(params=["int8", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
class TestDotContraction(SchedulerCase):
    @pytest.fixture
    def target(self, dtype: str) -> Target:
        return host(dtype)

    @pytest.fixture
    def workload(self, case: str, dtype: str) -> Workload:
        name, fields = CASES[case]
        return Workload(parse(name, {**fields, "dtype": dtype}))

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return DotContractionScheduler()


def takers(target: Target, dtype: str, name: str = "gemm") -> list[str]:
    func = Workload(parse(name, {"dtype": dtype})).prim_func()
    return [type(part).__name__ for part, _ in Composition.of(func, target).parts]


def test_who_takes_narrow_dtypes() -> None:
    plain = dataclasses.replace(CHIP, features=("avx512vnni",))
    assert takers(CHIP, "int8") == takers(plain, "int8") == ["DotContractionSchedule"]
    assert takers(CHIP, "bfloat16", "conv2d") == ["DotContractionSchedule"]
    assert takers(plain, "bfloat16") == ["ContractionSchedule"]
    assert takers(CHIP, "float16") == takers(CHIP, "float32") == ["ContractionSchedule"]
    card = OpenCL(**NUMBERS, threads_per_block=64)
    assert "DotContractionSchedule" not in takers(card, "int8")


def test_a_cpu_without_the_instructions_is_right_all_the_same(dtype: str, tmp_path: Path) -> None:
    target = dataclasses.replace(LLVM.from_spec(), features=())
    for case in ("gemm_epilogue", "conv2d"):
        name, fields = CASES[case]
        workload = Workload(parse(name, {**fields, "dtype": dtype}))
        config = space(workload.prim_func(), target).seeds[0]
        module = schedule(workload.prim_func(), target, config)
        assert error(workload, module, target, tmp_path / f"{case}.so") <= workload.tolerance(1e-4)


def test_weights_are_packed_ahead_with_their_sums(dtype: str) -> None:
    target = dataclasses.replace(CHIP, features=FEATURES)
    func = Workload(parse("gemm", {"dtype": dtype}), prepacked=True).prim_func()
    module = schedule(func, target, space(func, target).seeds[0])
    assert {v.name_hint for v in module.functions} == {"main", "pack"}
    shapes = [[int(n) for n in p.shape] for p in module["main"].params]
    assert len(shapes) == (5 if dtype == "int8" else 4)
    assert ("gemm_extra" in module["pack"].script()) == (dtype == "int8")


def test_sums_stay_in_registers(dtype: str) -> None:
    """Between two rounds of the innermost loop nothing is stored."""
    import tvm

    func = Workload(parse("gemm", {"m": "96", "n": "96", "k": "96", "dtype": dtype})).prim_func()
    wanted = space(func, CHIP)
    config = next(c for c in wanted.seeds if c["gemm.k_parts"] == 1)
    module = schedule(func, CHIP, config)
    text = tvm.compile(module, target=CHIP.tvm_target()).mod.inspect_source("s")
    name = {"int8": "vpdpbusd", "bfloat16": "vdpbf16ps"}[dtype]
    blocks = [b for b in re.split(r"^\.L\w+:", text, flags=re.M) if name in b]
    assert blocks
    inner = max(blocks, key=lambda b: b.count(name))
    body = inner[: inner.rindex(name)]
    tile = int(config["gemm.rows"]) * int(config["gemm.vectors"]) * int(config["gemm.k_unroll"])
    assert body.count(name) + 1 == tile
    assert not re.search(r"^\s+vmov\w+\s+%zmm\d+, .*\(", body, flags=re.M)


def error(workload: Workload, module: Any, target: Target, path: Path) -> float:
    inputs = workload.inputs(3)
    out = empty(workload.buffers[-1].shape, workload.buffers[-1].dtype)
    poison(out)
    target.build(module, path)
    runtime = target.runtime()
    runtime.load(path)["main"](*map(runtime.passed, (*inputs, out)))
    return relative_error(out, workload.reference(inputs))


@pytest.mark.parametrize("value", [-128, 127])
def test_the_ends_of_int8_do_not_saturate(value: int, tmp_path: Path) -> None:
    target = host("int8")
    workload = Workload(parse("gemm", {"m": "3", "n": "17", "k": "7", "dtype": "int8"}))
    func = workload.prim_func()
    target.build(schedule(func, target, space(func, target).seeds[0]), tmp_path / "k.so")
    a, b = (np.full(spec.shape, value, "int8") for spec in workload.buffers[:2])
    for other in (b, ~b):
        out = empty((3, 17), "int32")
        target.runtime().load(tmp_path / "k.so")["main"](aligned(a), aligned(other), out)
        assert (out == a.astype("int32") @ other.astype("int32")).all()
