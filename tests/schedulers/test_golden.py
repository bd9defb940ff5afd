"""Golden schedules: the program that the first seed of each structure becomes, as text.

`pytest --update-golden` rewrites them; the diff then shows what a change did to every schedule.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.targets import CUDA, LLVM, OpenCL
from flextensor.targets.cuda_architectures import ARCHITECTURES

FOLDER = Path(__file__).parent / "golden"
TARGET = LLVM(
    cores=4,
    vector_bits=512,
    vector_registers=32,
    l1_bytes=32 << 10,
    l2_bytes=1 << 20,
    l3_bytes=32 << 20,
    max_unroll=512,
)
"""A fixed CPU, so that the text is the same on every machine."""
GPU = OpenCL(
    cores=16, vector_bits=128, vector_registers=63, l1_bytes=48 << 10, l2_bytes=4 << 20,
    l3_bytes=4 << 20, max_unroll=1024, threads_per_block=256, shared_bytes=48 << 10,
    thread_registers=255, warp=32,
)  # fmt: skip
"""A fixed device with thread blocks."""
TENSOR = CUDA._of(ARCHITECTURES["sm_80"])
"""A fixed device with matrix units."""
SMALL = {"in_channels": "32", "out_channels": "32", "height": "14", "width": "14"}
CASES = {
    "gemm": ("gemm", {"m": "64", "n": "96", "k": "128"}, "direct"),
    "gemm_bias_relu": ("gemm", {"m": "61", "n": "97", "bias": "true", "relu": "true"}, "direct"),
    "gemv": ("gemv", {"m": "64", "k": "256"}, "direct"),
    "conv2d": ("conv2d", {**SMALL, "padding": "1"}, "direct"),
    "winograd4": ("conv2d", {**SMALL, "padding": "1"}, "winograd4"),
    "conv2d_stride": ("conv2d", {**SMALL, "padding": "1", "stride": "2"}, "direct"),
    "group_conv2d": ("group_conv2d", {**SMALL, "padding": "1"}, "direct"),
    "depthwise": ("depthwise_conv2d", {"channels": "16", "padding": "1"}, "direct"),
    "conv_transpose2d": ("conv_transpose2d", {**SMALL, "stride": "2", "padding": "1"}, "subpixel"),
    "shift": ("shift_conv2d", {"channels": "9", "height": "14", "width": "14"}, "direct"),
}

GPU_CASES = {
    "gpu_gemm": ("gemm", {"m": "61", "n": "97", "bias": "true", "relu": "true"}, "direct"),
    "gpu_conv2d": ("conv2d", {**SMALL, "padding": "1"}, "direct"),
    "gpu_gemv": ("gemv", {"m": "64", "k": "256"}, "direct"),
}
TENSOR_CASES = {
    "tensor_gemm": (
        "gemm",
        {"m": "200", "n": "104", "k": "152", "bias": "true", "dtype": "float16"},
        "direct",
    ),
    "tensor_conv2d": ("conv2d", {**SMALL, "padding": "1", "dtype": "float16"}, "direct"),
}
FRAGMENTS = CUDA._of(ARCHITECTURES["sm_75"])
"""One whose units only multiply fragments (wmma), and without asynchronous copies."""
FRAGMENT_CASES = {"fragment_gemm": TENSOR_CASES["tensor_gemm"]}
DOT = dataclasses.replace(TARGET, features=("avx512bf16", "avx512vnni"))
"""A fixed CPU that sums groups of narrow products at a time."""
DOT_CASES = {
    "dot_gemm": (
        "gemm",
        {"m": "61", "n": "97", "k": "130", "bias": "true", "relu": "true", "dtype": "int8"},
        "direct",
    ),
    "dot_gemm_bfloat16": (
        "gemm",
        {"m": "64", "n": "96", "k": "128", "dtype": "bfloat16"},
        "direct",
    ),
    "dot_conv2d": ("conv2d", {**SMALL, "padding": "1", "dtype": "int8"}, "direct"),
}
TILE = dataclasses.replace(DOT, features=(*DOT.features, "amx-bf16", "amx-int8", "amx-tile"))
"""One that has tile registers too."""
TILE_CASES = {
    "tile_gemm": ("gemm", {"m": "61", "n": "97", "k": "130", "bias": "true"}, "direct_bf16x2"),
    "tile_conv2d": ("conv2d", {**SMALL, "padding": "1", "dtype": "int8"}, "direct"),
}
TARGETS = [
    (CASES, TARGET), (GPU_CASES, GPU), (TENSOR_CASES, TENSOR), (FRAGMENT_CASES, FRAGMENTS),
    (DOT_CASES, DOT), (TILE_CASES, TILE),
]  # fmt: skip


@pytest.mark.parametrize("name", [name for cases, _ in TARGETS for name in cases])
def test_the_first_seed_gives_the_golden_program(name: str, request: pytest.FixtureRequest) -> None:
    cases, target = next((cases, target) for cases, target in TARGETS if name in cases)
    operator, fields, formulation = cases[name]
    func = Workload(parse(operator, fields)).prim_func(formulation)
    config = space(func, target).seeds[0]
    text = f"# {json.dumps(config)}\n{schedule(func, target, config).script()}\n"
    path = FOLDER / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} changed; see --update-golden"
