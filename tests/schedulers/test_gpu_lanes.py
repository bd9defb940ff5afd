"""Matrix units by mma.sync: tiles in the registers of lanes, in emulation and as machine code."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from emulated_programs import card

from flextensor.buffers import relative_error
from flextensor.cost_models import gpu_work
from flextensor.errors import DeviceError
from flextensor.operators import Workload, parse
from flextensor.operators.workload import empty
from flextensor.schedulers import schedule, space
from flextensor.schedulers.gpu_tensor_core_plan import WAYS
from flextensor.schedulers.gpu_tensor_core_units import UNITS
from flextensor.schedulers.lane_intrinsics import PLACES
from flextensor.schedulers.space import Config
from flextensor.targets import launches
from flextensor.targets.cuda_architectures import Architecture
from flextensor.targets.cuda_compiler import compile_cuda
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled

IMAGE = {"in_channels": "12", "out_channels": "20", "height": "9", "width": "14", "padding": "1"}
WINDOW = {**IMAGE, "in_channels": "64", "stride": "2"}
CASES = {
    "gemm": ("gemm", {"m": "37", "n": "29", "k": "83", "bias": "true", "relu": "true"}),
    "gemm of vectors": ("gemm", {"m": "72", "n": "104", "k": "88", "bias": "true"}),
    "gemm in parts": ("gemm", {"m": "40", "n": "56", "k": "530"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "33", "n": "18", "k": "266"}),
    "conv2d": ("conv2d", {**IMAGE, "stride": "2", "groups": "2", "bias": "true"}),
    "conv2d, laid": ("conv2d", {**WINDOW, "groups": "2", "bias": "true", "relu": "true"}),
    "conv2d of odd channels": ("conv2d", {**IMAGE, "in_channels": "35", "batch": "2"}),
    "conv3d": ("conv3d", {**IMAGE, "depth": "3", "height": "4", "width": "5"}),
}
TILE: Config = {
    "y_warps": 2, "y_fragments": 2, "x_warps": 2, "x_fragments": 1, "k_steps": 2, "unit": "mma",
}  # fmt: skip


def work(name: str, fields: dict[str, str], dtype: str = "float16") -> Workload:
    return Workload(parse(name, {**fields, "dtype": dtype}))


def error(source: str, program: launches.Program, workload: Workload) -> float:
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = empty(want.shape, str(inputs[0].dtype))
    got[...] = np.nan
    EmulatedFunction(compiled(source), program.functions["main"])(*inputs, got)
    return relative_error(got, want)


def test_elements_are_where_the_instruction_has_them() -> None:
    """PTX ISA, mma.m16n8k16, A and C: row = lane / 4, + 8 for every second pair of registers."""
    for lane in range(32):
        group, thread = divmod(lane, 4)
        for i in range(8):  # A: a0 .. a7
            row, column = group + 8 * (i // 2 % 2), thread * 2 + i % 2 + 8 * (i // 4)
            assert PLACES["y"](row, column) == (i, lane)
        for i in range(4):  # B: b0 .. b3 of columns 0 to 7, then the same of 8 to 15
            row = thread * 2 + i % 2 + 8 * (i // 2)
            assert PLACES["x"](row, group) == (i, lane)
            assert PLACES["x"](row, group + 8) == (4 + i, lane)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_the_reference(case: str, dtype: str) -> None:
    """A seed, and other points: panels of either order, packed and gathered, in parts or not."""
    workload, target = work(*CASES[case], dtype), card("sm_80")
    func = workload.prim_func()
    found, name = space(func, target), workload.operator.name
    rng = np.random.default_rng(len(case))
    drawn = [found.config(point) for point in found.sample(rng, 1)]
    configs = [{**c, f"{name}.unit": "mma"} for c in (found.seeds[0], *drawn)]
    for config in configs:
        assert found.has(config), config
        program = launches.lower(schedule(func, target, config), target.tvm_target())
        assert "mma.sync.aligned.m16n8k16" in program.source and "wmma::mma" not in program.source
        assert error(program.source, program, workload) < workload.tolerance(1e-4), config


GEMM = work("gemm", {"m": "200", "n": "104", "k": "152"})


@pytest.fixture(scope="module", params=[1, 3])
def program(request: pytest.FixtureRequest) -> launches.Program:
    target = card("sm_80")
    config = {f"gemm.{k}": v for k, v in {**TILE, "stages": request.param}.items()}
    found = launches.lower(schedule(GEMM.prim_func(), target, config), target.tvm_target())
    assert error(found.source, found, GEMM) < GEMM.tolerance(1e-4)
    return found


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (".x4.shared", r"\.x4\.trans\.shared"),  # a panel that lies by columns, read by rows
        (".x4.trans.shared", r"\.x4\.shared"),
        ("threadIdx.x) & 7)", r"threadIdx\.x\) & 15\)"),  # lanes that name the rows of others
        ("(float *)(gemm_acc_warp_ptr + 0)", r"\(float \*\)\(gemm_acc_warp_ptr \+ 4\)"),
    ],
)
def test_what_is_wrong_is_caught(wrong: str, right: str, program: launches.Program) -> None:
    source, count = re.subn(right, wrong, program.source)
    assert count
    assert not error(source, program, GEMM) < 1e-2


def test_every_barrier_and_wait_is_needed(program: launches.Program) -> None:
    """One at a time: no warp waits for another but at these."""
    source = program.source
    places = list(re.finditer(r"__syncthreads\(\);|\btvm_\w+wait_group_\d\(\);", source))
    assert len(places) == (7 if "wait_group" in source else 2)
    for place in places:
        without = source[: place.start()] + source[place.end() :]
        line = source[: place.start()].count("\n")
        assert not error(without, program, GEMM) < 1e-2, f"line {line}: {place[0]}"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("& 15) * 36)", r"& 15\) \* 40\)"),  # rows of ldmatrix, as with half of the skew
        (r"A_ptr\1 (4 + ", r"A_ptr(,| \+) \("),  # from where a vector is loaded or copied
        (r"buf_dyn_shmem_ptr\1(4 + ", r"buf_dyn_shmem_ptr(, |\)\[)\("),  # and to where
        (r"gemm_out_ptr + (1 + ", r"gemm_out_ptr \+ \("),
    ],
)
def test_what_is_not_aligned_is_refused(wrong: str, right: str, program: launches.Program) -> None:
    source, count = re.subn(right, wrong, program.source)
    assert count
    with pytest.raises(DeviceError, match="main_kernel: what .* is not aligned to its size"):
        error(source, program, GEMM)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_machine_code_needs_fewer_registers_and_spills_none(arch: str, dtype: str) -> None:
    target = card(arch)
    workload = work("gemm", {"m": "1024", "n": "1024", "k": "1024"}, dtype)
    func, registers = workload.prim_func(), {}
    config = space(func, target).seeds[0]
    for unit in ("wmma", "mma"):
        module = schedule(func, target, {**config, "gemm.unit": unit})
        source = launches.lower(module, target.tvm_target()).source
        binary = compile_cuda(source, arch)
        assert not sum(r.spill_stores + r.spill_loads for r in binary.resources.values())
        registers[unit] = max(r.registers for r in binary.resources.values())
        assert ("mma.sync.aligned.m16n8k16" in source) == (unit == "mma")
        words = np.frombuffer(binary.cubin, np.uint8)
        products = np.flatnonzero((words[:-1] == 0x3C) & (words[1:] == 0x72))  # HMMA
        assert len(products[products % 16 == 0]) >= 64
    assert registers["mma"] < registers["wmma"]


def test_only_architectures_that_have_it_are_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    func = work("gemm", {"m": "256", "n": "256", "k": "256"}).prim_func()
    assert WAYS.keys() == UNITS.keys()

    def units(arch: str) -> Any:
        knobs = {k.name: k.values for k in space(func, card(arch)).knobs}
        return knobs.get("gemm.unit")

    assert units("sm_75") is None
    assert units("sm_80") == units("sm_120") == ("wmma", "mma")
    monkeypatch.setattr(Architecture, "lane_products", False)
    assert units("sm_80") is None and card("sm_80").copies_ahead


def test_lowering_looks_for_lanes_only_where_a_warp_holds_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, by_lanes = card("sm_80"), launches._by_lanes
    asked: list[Any] = []

    def counted(module: Any) -> Any:
        asked.append(module)
        return by_lanes(module)

    monkeypatch.setattr(launches, "_by_lanes", counted)
    for unit, times in (("wmma", 0), ("mma", 1)):
        config = {f"gemm.{k}": v for k, v in {**TILE, "unit": unit, "stages": 1}.items()}
        launches.lower(schedule(GEMM.prim_func(), target, config), target.tvm_target())
        assert len(asked) == times


def test_sums_never_go_to_shared_memory_and_the_model_knows() -> None:
    target, func = card("sm_80"), GEMM.prim_func()
    works = {}
    for unit in ("wmma", "mma"):
        config = {f"gemm.{k}": v for k, v in {**TILE, "unit": unit, "stages": 1}.items()}
        program, kernels = launches.lowered(schedule(func, target, config), target.tvm_target())
        (launch,) = program.functions["main"].launches
        works[unit] = gpu_work.of_block(kernels[launch.kernel], launch.grid, launch.block)
    mma, wmma = works["mma"], works["wmma"]
    assert mma.tiles == wmma.tiles > 0
    panels = 2 * 32 * (2 * 32 + 2 * 16) // 128  # bytes of both, once; read twice, over 128 a cycle
    assert 0 < mma.shared_cycles < wmma.shared_cycles
    assert mma.shared_cycles >= panels
    assert mma.stored == (64 * 32 // 2 // 32) * 8  # pairs of elements by warps, in 8 rows each
    loaded = mma.asked - mma.stored  # sectors of panels, rows of which may begin within one
    assert 5 * (64 + 32) * 2 < loaded == wmma.asked - wmma.stored < 5 * (64 + 32) * 3
