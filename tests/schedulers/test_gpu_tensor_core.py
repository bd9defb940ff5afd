"""Contractions of float16 on matrix units: in emulation at awkward sizes, and by NVRTC."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card

from flextensor.buffers import relative_error
from flextensor.cost_models import gpu
from flextensor.errors import DeviceError, IllegalConfigError
from flextensor.operators import Operator, Workload, parse
from flextensor.schedulers import gpu_tensor_core_operands as operands
from flextensor.schedulers import schedule, space
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.gpu_tensor_core import GpuTensorCoreSchedule, GpuTensorCoreScheduler
from flextensor.schedulers.space import Config
from flextensor.targets import CUDA, Target, launches
from flextensor.targets.cuda_compiler import body, compile_cuda
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled
from flextensor.testing import SchedulerCase

IMAGE = {"in_channels": "12", "out_channels": "20", "height": "9", "width": "14", "padding": "1"}
CASES = {
    "gemm": ("gemm", {"m": "37", "n": "29", "k": "83", "bias": "true", "relu": "true"}),
    "gemm of vectors": ("gemm", {"m": "72", "n": "104", "k": "88", "bias": "true"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "33", "n": "18", "k": "34"}),
    "conv2d": ("conv2d", {**IMAGE, "stride": "2", "groups": "2", "bias": "true"}),
    "conv3d": ("conv3d", {**IMAGE, "depth": "3", "height": "4", "width": "5"}),
}


def half(name: str, fields: dict[str, str]) -> Operator:
    return parse(name, {**fields, "dtype": "float16"})


@pytest.mark.parametrize("case", CASES)
class TestTensorCores(SchedulerCase):
    @pytest.fixture
    def target(self) -> Target:
        return card("sm_80", emulated=True)

    @pytest.fixture
    def workload(self, case: str) -> Workload:
        return Workload(half(*CASES[case]))

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return GpuTensorCoreScheduler()


GEMM = Workload(half("gemm", {"m": "200", "n": "104", "k": "152"}))
CONV = Workload(half("conv2d", IMAGE))
DEEP = Workload(half("conv2d", {**IMAGE, "in_channels": "64"}))


def seeds(workload: Workload, target: Target) -> Sequence[Config]:
    return space(workload.prim_func(), target).seeds


def test_who_takes_float16(tmp_path: Path) -> None:
    """Matrix units where there are any, for products of half; all others go where they went."""

    def takers(operator: Operator, target: Target) -> list[str]:
        parts = Composition.of(Workload(operator).prim_func(), target).parts
        return [type(p).__name__.removesuffix("Schedule") for p, _ in parts]

    conv = half("conv2d", {**IMAGE, "bias": "true", "relu": "true"})
    assert takers(conv, card("sm_75")) == ["GpuTensorCore"]
    assert takers(parse("conv2d", IMAGE), card("sm_75")) == ["GpuContraction"]
    assert takers(half("gemm", {"n": "1"}), card("sm_80")) == ["GpuReduction"]


@pytest.mark.parametrize("workload", [GEMM, CONV], ids=["gemm", "conv2d"])
def test_without_matrix_units_half_is_computed_in_float(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CUDA, "matrix_tile", lambda self, dtype: 0)
    target, func, inputs = card("sm_80", True), workload.prim_func(), workload.inputs(0)
    target.build(schedule(func, target, seeds(workload, target)[0]), tmp_path / "kernel.so")
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float16")
    target.runtime().load(tmp_path / "kernel.so")["main"](*inputs, got)
    assert relative_error(got, want) < workload.tolerance(1e-4)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("workload", [GEMM, DEEP], ids=["gemm", "conv2d"])
def test_seeds_become_machine_code_without_spills(workload: Workload, arch: str) -> None:
    target, func = card(arch), workload.prim_func()
    for config in seeds(workload, target)[:2]:  # of each kind of instruction
        program = launches.lower(schedule(func, target, config), target.tvm_target())
        found = compile_cuda(program.source, arch).resources.values()
        assert not sum(kernel.spill_stores + kernel.spill_loads for kernel in found), config
        (launch,) = (x for x in program.functions["main"].launches if x.shared)
        (part,) = (p for p, _ in Composition.of(func, target).parts)
        assert isinstance(part, GpuTensorCoreSchedule)
        own = {k.partition(".")[2]: v for k, v in config.items()}
        assert launch.shared <= part.decides.plan(own).shared_bytes <= target.launch_shared_bytes


def test_products_are_instructions_of_matrix_units() -> None:
    """The machine code has them: HMMA has the opcode 0x23c on every architecture since sm_75."""
    target = card("sm_80")
    config = {**seeds(GEMM, target)[0], "gemm.unit": "wmma"}
    module = schedule(GEMM.prim_func(), target, config)
    source = launches.lower(module, target.tvm_target()).source
    assert "wmma::mma_sync" in source and "cp.async.cg" in source
    words = np.frombuffer(compile_cuda(source, "sm_80").cubin, np.uint8)
    found = np.flatnonzero((words[:-1] == 0x3C) & (words[1:] == 0x72))
    assert len(found[found % 16 == 0]) >= 2 * source.count("wmma::mma_sync") // 4


def run(source: str, program: launches.Program, workload: Workload) -> float:
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float16")
    EmulatedFunction(compiled(source), program.functions["main"])(*inputs, got)
    return relative_error(got, want)


@pytest.fixture(scope="module", params=[1, 3])
def staged(request: pytest.FixtureRequest) -> launches.Program:
    target = card("sm_80", True)
    config: Config = {
        "y_warps": 2, "y_fragments": 2, "x_warps": 2, "x_fragments": 1, "k_steps": 2,
        "stages": request.param, "unit": "wmma",
    }  # fmt: skip
    module = schedule(GEMM.prim_func(), target, {f"gemm.{k}": v for k, v in config.items()})
    program = launches.lower(module, target.tvm_target())
    assert run(program.source, program, GEMM) < GEMM.tolerance(1e-4)
    return program


@pytest.mark.parametrize("barrier", [0, 1, -2])  # the last stands between lanes of one warp
def test_a_dropped_barrier_is_caught(staged: launches.Program, barrier: int) -> None:
    places = [m.start() for m in re.finditer(r"__syncthreads\(\);", staged.source)]
    start = places[barrier]
    source = staged.source[:start] + staged.source[start + len("__syncthreads();") :]
    assert not run(source, staged, GEMM) < 1e-2


@pytest.mark.parametrize("staged", [3], indirect=True)
def test_a_wait_that_is_too_short_is_caught(staged: launches.Program) -> None:
    source, count = re.subn(r"(\s)tvm_\w+wait_group_2\(\);", r"\1", body(staged.source))
    assert count
    assert not run(source, staged, GEMM) < 1e-2


@pytest.mark.parametrize("where", [r"\1 + 8, \2);", r"\1, 36);"])  # begins, rows lie apart
def test_a_tile_that_is_not_aligned_is_refused(staged: launches.Program, where: str) -> None:
    source, count = re.subn(r"(wmma::load_matrix_sync\(.*), (\d+)\);", where, staged.source)
    assert count
    with pytest.raises(DeviceError, match="main_kernel: what .* is not aligned to its size"):
        run(source, staged, GEMM)


def test_less_shared_memory_than_needed_is_caught(staged: launches.Program) -> None:
    function = staged.functions["main"]
    (launch,) = function.launches
    less = dataclasses.replace(launch, shared=launch.shared - 4096)
    short = dataclasses.replace(function, launches=(less,))
    program = dataclasses.replace(staged, functions={"main": short})
    with pytest.raises(Exception, match="a block writes outside of its shared memory"):
        run(staged.source, program, GEMM)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"y_warps": 8, "x_warps": 8}, "2048 threads a block, limit 1024"),
        ({"y_fragments": 8, "x_fragments": 4}, "a thread needs 384 registers, has 255"),
        ({"y_warps": 8, "y_fragments": 1, "x_warps": 4, "x_fragments": 8}, "has 65536 registers"),
        ({"y_warps": 4, "y_fragments": 4, "stages": 4, "k_steps": 8}, "bytes of shared memory"),
        ({"stages": 4, "k_steps": 32}, "is not in"),
        ({"y_warps": 8, "y_fragments": 4, "x_warps": 1}, "twice as long as the side"),
        (
            {"k_steps": 1, "y_warps": 8, "y_fragments": 1, "x_fragments": 1},
            "whole number of copies",
        ),
        ({"k_split": 6, "k_steps": 8}, "a part of the reduction is empty"),
    ],
)
def test_an_illegal_config_never_reaches_the_compiler(change: dict[str, int], reason: str) -> None:
    config: Config = {
        "y_warps": 2, "y_fragments": 2, "x_warps": 2, "x_fragments": 2, "k_steps": 2, "stages": 1,
        "k_split": 1, "unit": "wmma",
    }  # fmt: skip
    workload = Workload(half("gemm", {"m": "250", "n": "1024", "k": "1024"}))
    target, func = card("sm_80"), workload.prim_func()
    schedule(func, target, {f"gemm.{k}": v for k, v in config.items()})
    with pytest.raises(IllegalConfigError, match=reason):
        schedule(func, target, {f"gemm.{k}": v for k, v in (config | change).items()})


def test_panels_are_copied_in_vectors_where_memory_allows() -> None:
    def widths(name: str, **fields: str) -> dict[str, int]:
        (part, _), *_ = Composition.of(
            Workload(half(name, fields)).prim_func(), card("sm_80")
        ).parts
        assert isinstance(part, GpuTensorCoreSchedule)
        return part.decides.widths | {"out": operands.written(part.found, part.sides["x"])}

    assert widths("gemm", m="64", n="64", k="64") == {"y": 8, "x": 8, "out": 4}
    assert widths("gemm", m="64", n="63", k="36") == {"y": 4, "x": 1, "out": 1}
    conv = {"in_channels": "16", "out_channels": "64", "height": "14", "width": "10"}
    assert widths("conv2d", **conv, padding="1") == {"y": 8, "x": 1, "out": 4}
    assert widths("conv2d", **conv, kernel="1") == {"y": 8, "x": 4, "out": 4}


def test_the_model_knows_matrix_units() -> None:
    """It takes them for faster than float32, and never for faster than they are."""
    target = card("sm_80")
    wide = Workload(half("gemm", {"m": "2048", "n": "2048", "k": "2048"}))
    config = seeds(wide, target)[0]
    seconds = gpu.judge(target, schedule(wide.prim_func(), target, config)).prediction.seconds
    assert target.peak_flops("float32") < wide.flops / seconds < target.peak_flops("float16")


def test_tiles_in_shared_memory_cost_cycles() -> None:
    from flextensor.cost_models.gpu_memory import bank_cycles, tile_accesses

    def cycles(pitch: int, size: int) -> float:
        return sum(bank_cycles(a, w) for a, w in tile_accesses(32, pitch, size))

    assert cycles(80, 2) == 4  # 512 bytes, 128 a cycle
    assert cycles(64, 2) == 16  # rows in the same banks
    assert cycles(136 * 4, 4) == 8
    assert cycles(128 * 4, 4) == 32


def test_what_a_source_is_left_with() -> None:
    found: dict[str, Any] = {}
    target = card("sm_90")
    for workload in (GEMM, CONV):
        module = schedule(workload.prim_func(), target, seeds(workload, target)[0])
        found[workload.key] = launches.lower(module, target.tvm_target())
    assert all(p.functions["main"].launches[-1].shared for p in found.values())
    again = launches.Program.loads(found[GEMM.key].dumps())
    assert again == found[GEMM.key]


WINDOW = {**IMAGE, "in_channels": "64", "stride": "2"}
WAYS = {
    "groups": ("conv2d", {**WINDOW, "groups": "2", "bias": "true", "relu": "true"}),
    "odd channels": ("conv2d", {**IMAGE, "in_channels": "35", "batch": "2"}),
    "few channels": ("conv2d", {**IMAGE, "in_channels": "3", "kernel": "5", "height": "30"}),
    "pixels": ("conv2d", {**WINDOW, "kernel": "1", "padding": "0", "in_channels": "264"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "33", "n": "18", "k": "266"}),
}


@pytest.mark.parametrize("case", WAYS)
def test_what_is_laid_out_first_and_summed_in_parts_is_right(case: str, tmp_path: Path) -> None:
    workload, target = Workload(half(*WAYS[case])), card("sm_80", emulated=True)
    func = workload.prim_func()
    found, name = space(func, target), workload.operator.name
    tile = {
        "y_warps": 1, "y_fragments": 1, "x_warps": 2, "x_fragments": 1, "k_steps": 2, "stages": 2,
        "packed": "both", "k_split": 2,
    }  # fmt: skip
    config = found.config(found.project({f"{name}.{k}": v for k, v in tile.items()}))
    assert config[f"{name}.packed"] == "both" and found.reason(config) is None
    module, path = schedule(func, target, config), tmp_path / "kernel"
    target.build(module, path)
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float16")
    target.runtime().load(path)["main"](*inputs, got)
    assert relative_error(got, want) < workload.tolerance(1e-4)


def test_a_convolution_is_copies_of_vectors_where_its_channels_lie_together() -> None:
    """Panels of pixels come as those of weights do: 16 bytes each, asynchronously."""
    target, func = card("sm_80"), DEEP.prim_func()
    config = space(func, target).seeds[0]
    assert config["conv2d.packed"] == "both" and int(config["conv2d.k_split"]) > 1
    program = launches.lower(schedule(func, target, config), target.tvm_target())
    assert len(program.functions["main"].launches) == 4  # weights, pixels, products, their sums
    product = program.source.split("__launch_bounds__")[-2]
    copies = re.findall(r"cp_async_\w*cg_16\w*\(buf_dyn_shmem_ptr.*(x_copy|y_packed)_ptr", product)
    assert set(copies) == {"x_copy", "y_packed"}
    assert "if_then_else" not in product and "condval" not in product
