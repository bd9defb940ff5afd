"""CUDA without a card: architectures, compilers, what ptxas says, and the emulation."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card

from flextensor import targets
from flextensor.buffers import relative_error
from flextensor.compiled import Library
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import schedule, space
from flextensor.targets import CUDA, cuda_compiler, cuda_driver, cuda_peaks, launches
from flextensor.targets.cuda_architectures import ARCHITECTURES
from flextensor.targets.cuda_compiler import CompileError, Resources, compile_cuda
from flextensor.targets.cuda_emulation import EmulatedFunction, EmulatedRuntime, compiled
from flextensor.targets.cuda_program import CudaProgram, check_launches

GEMM = Workload(Gemm(m=61, n=67, k=33))
KERNEL = 'extern "C" __global__ void __launch_bounds__(64) f(float* __restrict__ a) {{\n{}\n}}\n'


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on machines with a card."""
    monkeypatch.setattr(cuda_driver, "cards", lambda: [])


@pytest.fixture(scope="module")
def staged() -> launches.Program:
    """A GEMM with panels in shared memory: two barriers around them."""
    target = targets.lookup("cuda:sm_80")
    func = GEMM.prim_func()
    found = space(func, target)
    config = next(
        s for s in found.seeds if s["gemm.staged"] == "both" and s["gemm.prefetch"] == "none"
    )
    program = launches.lower(schedule(func, target, config), target.tvm_target())
    assert program.source.count("__syncthreads();") == 2
    return program


def test_an_architecture_is_found_by_its_name() -> None:
    for name, data in ARCHITECTURES.items():
        target = targets.lookup(f"cuda:{name}")
        assert isinstance(target, CUDA)
        assert target.cores == data.multiprocessors
        assert target.peak_flops("float32") == data.flops
        assert target.bandwidth() == data.bandwidth
        assert name in target.device and "no card here" in target.device


def test_data_sheets_agree_with_what_is_computed() -> None:
    """FLOP/s as published, in units of 1e12."""
    published = {"sm_75": 8.1, "sm_80": 19.5, "sm_89": 82.6, "sm_90": 66.9, "sm_120": 104.8}
    for name, value in published.items():
        assert ARCHITECTURES[name].flops / 1e12 == pytest.approx(value, rel=0.01)
    for data in ARCHITECTURES.values():
        assert data.tensor_flops > data.flops
        assert data.most_blocks * 32 <= data.most_threads


def test_what_is_no_architecture_is_one_line() -> None:
    with pytest.raises(InputError, match="sm_70 is gone from CUDA 13; the oldest is sm_75"):
        targets.lookup("cuda:sm_70")
    with pytest.raises(InputError, match="unknown CUDA architecture 'sm_91'; did you mean sm_90"):
        targets.lookup("cuda:sm_91")
    with pytest.raises(InputError, match="threads cannot be chosen"):
        targets.lookup("cuda:sm_90", threads=1)


def test_no_card_is_one_line_that_says_what_can_be_done() -> None:
    with pytest.raises(DeviceError, match="no CUDA device found: .*--measure model.*bundle"):
        targets.lookup("cuda")
    target = targets.lookup("cuda:sm_90")
    for missing in (target.check, target.runtime):
        with pytest.raises(DeviceError, match="no CUDA device of sm_90 found: .*--measure model"):
            missing()
    target.measured_by("model").check()


def test_a_card_is_found_by_number_and_by_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [
        cuda_driver.Card(0, "NVIDIA H100 PCIe", "sm_90", 114),
        cuda_driver.Card(1, "NVIDIA L4", "sm_89", 58),
    ]
    monkeypatch.setattr(cuda_driver, "cards", lambda: cards)
    assert list(targets.present())[:2] == ["cuda:0", "cuda:1"]
    first, other = targets.lookup("cuda"), targets.lookup("cuda:sm_89")
    assert isinstance(first, CUDA) and isinstance(other, CUDA)
    assert (first.index, first.cores, first.device) == (0, 114, "NVIDIA H100 PCIe (sm_90)")
    assert other == targets.lookup("cuda:1")
    assert isinstance(compute := targets.lookup("cuda:sm_80"), CUDA) and compute.index < 0
    with pytest.raises(InputError, match="no CUDA device 2; there is 0: NVIDIA H100 PCIe, 1: "):
        targets.lookup("cuda:2")


def test_measured_and_modelled_are_kept_apart() -> None:
    target = targets.lookup("cuda:sm_90")
    assert target.measured == "run"
    modelled = target.measured_by("model")
    measured = target.fingerprint.removesuffix("/cold")
    assert modelled.fingerprint == f"{measured}/model2" != target.fingerprint


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gets_machine_code(staged: launches.Program, arch: str) -> None:
    binary = compile_cuda(staged.source, arch)
    assert binary.cubin[:4] == b"\x7fELF"
    (kernel,) = binary.resources
    assert kernel == "main_kernel"
    found = binary.resources[kernel]
    assert 24 <= found.registers <= 255
    assert found.shared > 0 and not found.spill_stores + found.spill_loads


@pytest.mark.parametrize(
    ("grid", "block", "reason"),
    [
        ((70000, 65535, 65535), (1024, 1, 1), None),
        ((1, 65536, 1), (32, 1, 1), "f: 65536 blocks along y, limit 65535"),
        ((1, 1, 70000), (32, 1, 1), "f: 70000 blocks along z, limit 65535"),
        ((1, 1, 1), (64, 32, 1), "f: 2048 threads a block, limit 1024"),
        ((1, 1, 1), (1, 1, 65), "f: 65 threads along z, limit 64"),
    ],
)
def test_a_launch_that_no_card_takes_is_refused(
    grid: tuple[int, int, int], block: tuple[int, int, int], reason: str | None
) -> None:
    launch = launches.Launch("f", (0,), grid, block)
    function = launches.Function(1, (4,), (0,), (launch,))
    program = launches.Program("", {"main": function})
    if reason is None:
        return check_launches(program)
    with pytest.raises(DeviceError, match=f"^{reason}$"):
        check_launches(program)


def test_lowering_leaves_the_compiler_of_tvm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm_ffi

    build = importlib.import_module("tvm.tirx.build")  # its package has a function of that name
    name, seen = "tvm_callback_cuda_compile", []
    own = tvm_ffi.get_global_func(name)
    generate = build.codegen_build

    def with_a_card(module: Any, target: Any) -> Any:
        seen.append(bytes(tvm_ffi.get_global_func(name)("code")))
        return generate(module, target)

    monkeypatch.setattr(build, "codegen_build", with_a_card)
    tvm_ffi.register_global_func(name, lambda code: b"its own", override=True)
    try:
        target = targets.lookup("cuda:sm_90")
        func = GEMM.prim_func()
        launches.lower(schedule(func, target, space(func, target).seeds[0]), target.tvm_target())
        assert bytes(tvm_ffi.get_global_func(name)("code")) == b"its own"
    finally:
        tvm_ffi.register_global_func(name, own, override=True)
    assert seen == [b"code"]  # not compiled


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_measures_a_peak_compiles(dtype: str, arch: str) -> None:
    if (dtype, arch) == ("bfloat16", "sm_75"):
        return  # Turing has none
    source, flops = cuda_peaks.source_of(dtype, arch)
    (kernel,) = cuda_compiler.compile_cuda(source, arch).resources.values()
    assert flops and kernel.registers <= 128 and not kernel.spill_stores


def test_registers_that_do_not_suffice_are_told() -> None:
    loop = '_Pragma("unroll") for (int i = 0; i < 400; ++i)'
    many = f"float v[400]; {loop} v[i] = a[i * 64 + threadIdx.x]; __syncthreads();"
    many += f"{loop} a[threadIdx.x * 400 + i] = v[399 - i];"
    found = compile_cuda(KERNEL.format(many), "sm_80").resources["f"]
    assert found.spill_stores > 100 and found.spill_loads > 100


def test_a_built_file_gives_back_what_was_written(tmp_path: Path) -> None:
    target, func = targets.lookup("cuda:sm_90"), GEMM.prim_func()
    module = schedule(func, target, space(func, target).seeds[0])
    target.build(module, tmp_path / "kernel.so")
    built = CudaProgram.loads((tmp_path / "kernel.so").read_text())
    assert built.binary is not None and built.binary.cubin[:4] == b"\x7fELF"
    assert CudaProgram.loads(built.dumps()) == built
    assert "__global__" in target.source(module)


def test_what_the_compiler_refuses_is_one_line() -> None:
    with pytest.raises(CompileError, match="kernel.cu.*error: identifier .nonsense. is undefined"):
        compile_cuda(KERNEL.format("a[0] = nonsense;"), "sm_80")


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compiler, "_nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for attempt in (cuda_compiler.check, lambda: compile_cuda("", "sm_80")):
        with pytest.raises(
            DeviceError, match="no CUDA compiler found: pip install nvidia-cuda-nvrtc"
        ):
            attempt()
    target = card("sm_80", emulated=True)
    with pytest.raises(DeviceError, match=r"emulating CUDA needs g\+\+"):
        target.check()


def product(program: launches.Program) -> float:
    """The relative error of a GEMM's program in emulation."""
    inputs = GEMM.inputs(0)
    out = np.full((61, 67), np.nan, "float32")
    EmulatedFunction(compiled(program.source), program.functions["main"])(*inputs, out)
    return relative_error(out, GEMM.reference(inputs))


def test_the_emulation_computes_what_the_kernel_does(staged: launches.Program) -> None:
    assert product(staged) < 1e-6


def test_the_emulation_takes_no_other_array_than_a_card_would() -> None:
    placed = EmulatedRuntime().place(np.zeros((2, 3), "float32"))
    for other in (np.ones((2, 3)), np.ones(3, "float32")):
        with pytest.raises(ValueError, match="cannot copy"):
            placed.copyfrom(other)
    placed.copyfrom(np.ones((3, 2), "float32").T)
    assert (placed.numpy() == 1).all()


@pytest.mark.parametrize("barrier", [0, 1])
def test_a_dropped_barrier_is_caught(staged: launches.Program, barrier: int) -> None:
    places = [m.start() for m in re.finditer(r"__syncthreads\(\);", staged.source)]
    start = places[barrier]
    source = staged.source[:start] + staged.source[start + len("__syncthreads();") :]
    assert not product(dataclasses.replace(staged, source=source)) < 1e-2


def test_a_wrong_stride_or_launch_is_caught(staged: launches.Program) -> None:
    wrong = staged.source.replace("* 67", "* 66")
    assert wrong != staged.source
    assert not product(dataclasses.replace(staged, source=wrong)) < 1e-2
    function = staged.functions["main"]
    (launch,) = function.launches
    fewer = dataclasses.replace(launch, grid=(launch.grid[0] - 1, *launch.grid[1:]))
    short = dataclasses.replace(function, launches=(fewer,))
    assert product(dataclasses.replace(staged, functions={"main": short})) == math.inf


@pytest.mark.parametrize(
    ("call", "want"),
    [
        ("__shfl_down_sync(m, v, 2, 8)", lambda t: t + 2 if t % 8 < 6 else t),
        ("__shfl_up_sync(m, v, 3, 32)", lambda t: t - 3 if t % 32 >= 3 else t),
        ("__shfl_xor_sync(m, v, 5, 32)", lambda t: t ^ 5),
        ("__shfl_sync(m, v, t + 33, 16)", lambda t: t // 16 * 16 + (t + 33) % 16),
    ],
)
def test_lanes_of_a_warp_exchange_values(call: str, want: Any) -> None:
    """Twice in turn, so that none reads what another gives to the next."""
    body = f"int t = threadIdx.x; unsigned m = __activemask(); float v = t; float w = {call};"
    run = compiled(KERNEL.format(f"{body} v = 100 + t; a[t] = w; a[64 + t] = {call};"))["f"]
    a = np.zeros(128, "float32")
    run(launches.Launch("f", (0,), (1, 1, 1), (64, 1, 1)), [a])
    assert a[:64].tolist() == [want(t) for t in range(64)]
    assert a[64:].tolist() == [want(t) + 100 for t in range(64)]


def test_a_warp_that_shuffles_holds_nobody_at_a_barrier() -> None:
    """One warp exchanges values before a barrier at which the other waits."""
    body = "int t = threadIdx.x; if (t < 32) a[t] = __shfl_xor_sync(~0u, float(t), 1, 32);"
    run = compiled(KERNEL.format(f"{body} __syncthreads(); if (t >= 32) a[t] = a[t - 32];"))["f"]
    a = np.zeros(64, "float32")
    run(launches.Launch("f", (0,), (1, 1, 1), (64, 1, 1)), [a])
    assert a.tolist() == [t % 32 ^ 1 for t in range(64)]


def test_threads_that_disagree_about_a_barrier_are_told() -> None:
    run = compiled(KERNEL.format("if (threadIdx.x < 3) __syncthreads(); a[threadIdx.x] = 1;"))["f"]
    a = np.zeros(64, "float32")
    with pytest.raises(DeviceError, match="threads of a block disagree about its barriers"):
        run(launches.Launch("f", (0,), (1, 1, 1), (64, 1, 1)), [a])


def test_what_gcc_refuses_is_one_line() -> None:
    with pytest.raises(DeviceError, match="emulation: .*nonsense"):
        compiled(KERNEL.format("nonsense;"))


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    for text in ("no program", "{}"):
        (tmp_path / "kernel.so").write_text(text)
        with pytest.raises(DeviceError, match="cannot load"):
            Library(tmp_path / "kernel.so", EmulatedRuntime())


def test_resources_are_read_from_the_log_of_ptxas() -> None:
    log = """ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""
    two: dict[str, Any] = {"one": Resources(255, 4096, 24, 32), "two": Resources(8, 0)}
    assert cuda_compiler.resources(log) == two
