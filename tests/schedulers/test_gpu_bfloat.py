"""Contractions of bfloat16: on tensor cores since sm_80, before as float32; in emulation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card

import flextensor
from flextensor.buffers import relative_error
from flextensor.operators import Workload, parse
from flextensor.operators.workload import empty, numpy_dtype
from flextensor.schedulers import schedule, space
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.gpu_contraction import GpuContractionScheduler
from flextensor.schedulers.gpu_tensor_core import GpuTensorCoreScheduler
from flextensor.schedulers.space import Config
from flextensor.targets import Target, launches
from flextensor.targets.cuda_compiler import compile_cuda, ptx
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled
from flextensor.targets.launches import Launch
from flextensor.testing import SchedulerCase

IMAGE = {"in_channels": "12", "out_channels": "20", "height": "9", "width": "14", "padding": "1"}
CASES = {
    "gemm": ("gemm", {"m": "37", "n": "29", "k": "83", "bias": "true", "relu": "true"}),
    "gemm of vectors": ("gemm", {"m": "72", "n": "104", "k": "88", "bias": "true"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "33", "n": "18", "k": "34"}),
    "conv2d": ("conv2d", {**IMAGE, "stride": "2", "groups": "2", "bias": "true"}),
    "conv3d": ("conv3d", {**IMAGE, "depth": "3", "height": "4", "width": "5"}),
}
PRODUCT = "wmma.mma.sync.aligned.row.{}.m16n16k16.f32.bf16.bf16.f32"


def brain(name: str, fields: dict[str, str]) -> Workload:
    return Workload(parse(name, {**fields, "dtype": "bfloat16"}))


GEMM = brain("gemm", {"m": "96", "n": "104", "k": "152"})


@pytest.mark.parametrize("case", CASES)
class TestTensorCores(SchedulerCase):
    @pytest.fixture
    def target(self) -> Target:
        return card("sm_80", emulated=True)

    @pytest.fixture
    def workload(self, case: str) -> Workload:
        return brain(*CASES[case])

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return GpuTensorCoreScheduler()


@pytest.mark.parametrize("case", ["gemm", "conv2d"])
class TestWithoutThem(SchedulerCase):
    @pytest.fixture
    def target(self) -> Target:
        return card("sm_75", emulated=True)

    @pytest.fixture
    def workload(self, case: str) -> Workload:
        return brain(*CASES[case])

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return GpuContractionScheduler()


def test_architectures_differ_in_who_multiplies_and_how_fast() -> None:
    def taker(workload: Workload, arch: str) -> str:
        ((part, _),) = Composition.of(workload.prim_func(), card(arch)).parts
        return type(part).__name__.removesuffix("Schedule")

    assert [taker(GEMM, a) for a in ("sm_75", "sm_80")] == ["GpuContraction", "GpuTensorCore"]
    for arch in ("sm_75", "sm_80", "sm_90"):
        target = card(arch)
        other = "float32" if arch == "sm_75" else "float16"
        assert target.computes("bfloat16")
        assert target.peak_flops("bfloat16") == target.peak_flops(other)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", ["gemm of vectors", "conv2d"])
def test_products_are_instructions_of_matrix_units(case: str, arch: str) -> None:
    workload, target = brain(*CASES[case]), card(arch)
    func = workload.prim_func()
    name = workload.operator.name
    for config in space(func, target).seeds[:3]:
        config = {**config, f"{name}.unit": "wmma"}
        source = launches.lower(schedule(func, target, config), target.tvm_target()).source
        found = compile_cuda(source, arch).resources.values()
        assert not sum(kernel.spill_stores + kernel.spill_loads for kernel in found)
        text = ptx(source, arch)
        assert any(PRODUCT.format(layout) in text for layout in ("row", "col")), config


@pytest.fixture(scope="module")
def program() -> launches.Program:
    target, func = card("sm_80", True), GEMM.prim_func()
    tile: Config = {
        "y_warps": 2, "y_fragments": 2, "x_warps": 2, "x_fragments": 1, "k_steps": 2, "stages": 1,
        "unit": "wmma",
    }  # fmt: skip
    module = schedule(func, target, {f"gemm.{knob}": value for knob, value in tile.items()})
    return launches.lower(module, target.tvm_target())


def error(source: str, program: launches.Program) -> float:
    inputs = GEMM.inputs(0)
    want = GEMM.reference(inputs)
    got = empty(want.shape, "bfloat16")
    got[...] = np.nan
    EmulatedFunction(compiled(source), program.functions["main"])(*inputs, got)
    return relative_error(got, want)


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (r"matrix_b, 16, 16, 16, nv_bfloat16, nvcuda::wmma::row_major", None),
        (r"nv_bfloat16", "half"),  # the same bits are other numbers
        (r"nvcuda::wmma::mma_sync\([^;]*;", ";"),
    ],
    ids=["transposed", "half", "no product"],
)
def test_a_wrong_kernel_is_found_out(
    there: str, instead: str | None, program: launches.Program
) -> None:
    assert error(program.source, program) < GEMM.tolerance(1e-4)
    wrong = there.replace("row_major", "col_major") if instead is None else instead
    head, functions = program.source.split('extern "C"', 1)
    source, count = re.subn(there, wrong, 'extern "C"' + functions)
    assert count
    assert not error(head + source, program) < 10 * GEMM.tolerance(1e-4)


ROUNDING = """
extern "C" __global__ void to_nearest(float* __restrict__ from, nv_bfloat16* __restrict__ to) {
  to[blockIdx.x] = (nv_bfloat16)from[blockIdx.x];
}
"""


def test_the_emulation_rounds_as_numbers_do() -> None:
    """To the nearest, ties to even, with infinities and NaN, as ml_dtypes has it."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, np.uint32)
    ties = bits[:1024] & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    special = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F800001], np.uint32)
    values: Any = np.concatenate([bits, ties, special]).view(np.float32)
    with np.errstate(invalid="ignore"):
        want = values.astype(numpy_dtype("bfloat16"))
    got = empty(values.shape, "bfloat16")
    compiled(ROUNDING)["to_nearest"](
        Launch("to_nearest", (), (len(values), 1, 1), (1, 1, 1)), [values, got]
    )
    numbers = ~np.isnan(values)
    assert (got.view(np.uint16)[numbers] == want.view(np.uint16)[numbers]).all()
    assert np.isnan(got.astype("float32")[~numbers]).all()


def test_it_is_tuned_by_the_model_and_proven(tmp_path: Path) -> None:
    for arch in ("sm_75", "sm_90"):
        values = flextensor.tune(
            GEMM, target=card(arch), measure="model", trials=6, db=tmp_path / "t.db"
        ).json()
        assert values["verified"] and 0 < values["max_rel_error"] < GEMM.tolerance(1e-4)
        assert ("gemm.y_warps" in values["config"]) == (arch == "sm_90")
