"""Threads that take turns, a CPU's, hold sums as vectors: what PoCL makes of them is right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor.buffers import empty, poison, relative_error
from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.space import Point, Space
from flextensor.targets import OpenCL, launches, lookup

IMAGE = {"in_channels": "6", "out_channels": "10", "height": "9", "width": "16", "padding": "1"}
WORKLOADS = {
    "gemm": Workload(parse("gemm", {"m": "29", "n": "40", "k": "21", "bias": "true"})),
    "conv2d": Workload(parse("conv2d", {**IMAGE, "batch": "2", "relu": "true"})),
    "strided": Workload(parse("conv2d", {**IMAGE, "stride": "2", "groups": "2"})),
    "batch_gemm": Workload(parse("batch_gemm", {"batch": "3", "m": "11", "n": "16", "k": "13"})),
    "bilinear": Workload(parse("bilinear", {"n": "5", "m": "7", "k1": "9", "k2": "16"})),
}


@pytest.fixture(scope="module")
def target() -> OpenCL:
    found = lookup("opencl")
    assert isinstance(found, OpenCL) and found.warp == 1
    return found


def lanes(config: dict[str, Any]) -> int:
    return max(int(v) for k, v in config.items() if k.endswith(".x_lanes"))


def widths(found: Space) -> list[Any]:
    return [k.values for k in found.knobs if k.name.endswith(".x_lanes")]


def in_vectors(found: Space) -> list[Point]:
    """Seeds and other points, all of which compute with vectors."""
    sample = found.sample(np.random.default_rng(0), 30)
    seeds = [found.point(s) for s in found.seeds[:: max(len(found.seeds) // 10, 1)]]
    some = [p for points in (seeds, sample) for p in points if lanes(found.config(p)) > 1]
    return some[:9]


@pytest.mark.parametrize("name", WORKLOADS)
def test_vectors_compute_the_reference(name: str, target: OpenCL, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    func = workload.prim_func()
    found = space(func, target)
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    runtime = target.runtime()
    points = in_vectors(found)
    assert len(points) > 4
    for number, point in enumerate(points):
        path = tmp_path / f"kernel{number}.so"
        target.build(schedule(func, target, found.config(point)), path)
        got = empty(want.shape, workload.buffers[-1].dtype)
        poison(got)
        runtime.load(path)["main"](*map(runtime.passed, (*inputs, got)))
        assert relative_error(got, want) <= workload.tolerance(1e-4), found.config(point)


@pytest.mark.parametrize(
    "changes",
    [
        {"k_split": 2}, {"out_vector": 4}, {"staged": "both", "prefetch": "register"},
        {"staged": "both", "vector": 4, "pad": 4}, {"k_unroll": 4}, {"staged": "y"},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)  # fmt: skip
def test_vectors_go_with_every_other_knob(
    changes: dict[str, Any], target: OpenCL, tmp_path: Path
) -> None:
    workload = Workload(parse("gemm", {"m": "13", "n": "40", "k": "128"}))
    target = dataclasses.replace(target, cores=64)  # which few tiles keep busy in parts alone
    config: dict[str, int | str] = {
        "y_virtual": 1, "y_threads": 1, "y_inner": 6, "x_virtual": 1, "x_threads": 1,
        "x_inner": 8, "k_tile": 8, "k_unroll": 1, "staged": "x", "vector": 1, "pad": 0,
        "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0, "x_lanes": 4,
    }  # fmt: skip
    own = {f"gemm.{knob}": value for knob, value in (config | changes).items()}
    target.build(schedule(workload.prim_func(), target, own), tmp_path / "kernel.so")
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = empty(want.shape, "float32")
    poison(got)
    runtime = target.runtime()
    runtime.load(tmp_path / "kernel.so")["main"](*map(runtime.passed, (*inputs, got)))
    assert relative_error(got, want) < 1e-5


def test_a_thread_of_a_cpu_multiplies_and_adds_vectors(target: OpenCL) -> None:
    """4 x 16 sums: an element of Y and two vectors of eight of X, from where they lie."""
    target = dataclasses.replace(target, vector_bits=256)
    config: dict[str, int | str] = {
        "y_virtual": 1, "y_threads": 1, "y_inner": 4, "x_virtual": 1, "x_threads": 1,
        "x_inner": 16, "k_tile": 1, "k_unroll": 1, "staged": "none", "vector": 1, "pad": 0,
        "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0, "x_lanes": 8,
    }  # fmt: skip
    gemm = Workload(parse("gemm", {"m": "32", "n": "64", "k": "32"}))
    module = schedule(gemm.prim_func(), target, {f"gemm.{k}": v for k, v in config.items()})
    source = launches.lower(module, target.tvm_target()).source
    products = [line for line in source.splitlines() if "acc_local_ptr" in line and "*" in line]
    sums = [line for line in products if re.match(r"\s*vstore8\(\(vload8\(0, gemm_acc_local", line)]
    assert len(sums) == 4 * 2
    assert all("vload8(0, b_ptr" in line.lower() for line in sums), sums[0]
    assert "barrier" not in source


def test_a_warp_is_a_gpus_vector(target: OpenCL) -> None:
    gpu = dataclasses.replace(target, warp=32)
    func = WORKLOADS["gemm"].prim_func()
    assert not widths(space(func, gpu))
    assert widths(space(func, target)) == [(1, *(n for n in (4, 8, 16) if n <= target.lanes()))]


def test_bytes_are_no_vectors(target: OpenCL) -> None:
    """TVM's OpenCL C of eight that do not lie together is CUDA's, and compiles nowhere."""
    narrow = Workload(parse("gemm", {"m": "29", "n": "37", "k": "20", "dtype": "int8"}))
    assert widths(space(narrow.prim_func(), target)) == [(1,)]


def test_panels_of_a_cpu_may_be_as_deep_as_a_divisor(target: OpenCL) -> None:
    """Three channels of a 7 x 7 window: 147 = 3 * 49, and panels that divide it."""
    first = Workload(parse("conv2d", {**IMAGE, "in_channels": "3", "kernel": "7", "padding": "3"}))
    found = space(first.prim_func(), target)
    (depths,) = (k.values for k in found.knobs if k.name == "conv2d.k_tile")
    assert {7, 21, 49, 147} < set(depths)
    assert any(s["conv2d.k_tile"] == 49 and s["conv2d.staged"] == "x" for s in found.seeds)
