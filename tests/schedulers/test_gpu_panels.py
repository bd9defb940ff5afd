"""How panels come to shared memory and outputs leave it, on awkward sizes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
from emulated_programs import card, error

from flextensor.buffers import relative_error
from flextensor.errors import IllegalConfigError
from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.targets import OpenCL, Target, launches, lookup
from flextensor.targets.cuda_compiler import compile_cuda

IMAGE = {"in_channels": "5", "out_channels": "6", "height": "8", "width": "9", "padding": "1"}
WORKLOADS = {
    "gemm": Workload(parse("gemm", {"m": "61", "n": "68", "k": "37", "bias": "true"})),
    "conv2d": Workload(parse("conv2d", {**IMAGE, "batch": "2", "relu": "true"})),
    "batch_gemm": Workload(parse("batch_gemm", {"batch": "3", "m": "11", "n": "20", "k": "13"})),
}
TILE: dict[str, Any] = {
    "y_virtual": 1, "y_threads": 4, "y_inner": 2, "x_virtual": 2, "x_threads": 4, "x_inner": 4,
    "k_tile": 4, "k_unroll": 1, "staged": "both", "vector": 4,
    "pad": 0, "prefetch": "none", "out_vector": 1, "k_split": 1, "k_turn": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def target() -> Target:
    return card("sm_80", emulated=True)


def config(workload: Workload, **changes: Any) -> dict[str, Any]:
    name = workload.operator.name
    return {f"{name}.{knob}": value for knob, value in (TILE | changes).items()}


def lowered(workload: Workload, target: Target, **changes: int | str) -> launches.Program:
    module = schedule(workload.prim_func(), target, config(workload, **changes))
    return launches.lower(module, target.tvm_target())


CHANGES = [
    {"staged": staged, "k_tile": 4 if staged == "both" else 1, "vector": vector, "pad": pad,
     "prefetch": prefetch, "out_vector": out_vector}
    for (staged, vector), (pad, prefetch, out_vector) in zip(
        itertools.cycle(itertools.product(("both", "y", "x"), (4, 1))),
        itertools.product((4, 0), ("register", "none"), (4, 2, 1)),
    )
]  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: "-".join(map(str, c.values())))
def test_every_way_to_copy_is_right(name: str, changes: dict[str, Any], target: Target) -> None:
    workload = WORKLOADS[name]
    found = space(workload.prim_func(), target)
    wanted = config(workload, **changes)
    if wanted[f"{name}.out_vector"] not in next(
        k.values for k in found.knobs if k.name == f"{name}.out_vector"
    ):
        changes = changes | {"out_vector": 1}
    if found.reason(config(workload, **changes)):
        changes = changes | {"vector": 1}  # a panel of one row of 6
    assert error(workload, lowered(workload, target, **changes)) < 1e-6


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("k_tile", [1, 8])
def test_the_reduction_may_begin_anywhere(turn: int, k_tile: int, target: Target) -> None:
    """Five channels of a 3 x 3 window: a panel lies at one place of it, or at two."""
    conv = WORKLOADS["conv2d"]
    changes: dict[str, Any] = {"k_turn": turn, "k_tile": k_tile, "vector": 1}
    assert error(conv, lowered(conv, target, prefetch="register", **changes)) < 1e-6


@pytest.mark.parametrize("barrier", [0, 1, 2])
def test_no_barrier_of_a_pipeline_can_go(barrier: int, target: Target) -> None:
    gemm = WORKLOADS["gemm"]
    program = lowered(gemm, target, prefetch="register")
    places = [m.span() for m in re.finditer(r"__syncthreads\(\);", program.source)]
    assert len(places) == 3
    start, end = places[barrier]
    source = program.source[:start] + program.source[end:]
    assert error(gemm, program) < 1e-6
    assert not error(gemm, dataclasses.replace(program, source=source)) < 1e-2


def test_the_next_panel_is_asked_for_before_this_one_is_used(target: Target) -> None:
    source = lowered(WORKLOADS["gemm"], target, prefetch="register").source
    loop = source[source.index("for (int ax4") :]
    fetch, wait, use = (
        loop.index(w) for w in ("y_shared_local_ptr[", "__syncthreads", "acc_local")
    )
    assert fetch < wait < use < loop.index("gemm_y_shared_ptr[", loop.rindex("acc_local_ptr[0] ="))


def test_a_row_that_divides_is_written_in_vectors(target: Target) -> None:
    assert "*(float4*)(gemm_out_ptr" in lowered(WORKLOADS["gemm"], target, out_vector=4).source
    odd = Workload(parse("gemm", {"m": "64", "n": "67", "k": "32"}))
    with pytest.raises(IllegalConfigError, match=r"out_vector=2 is not in \(1,\)"):
        lowered(odd, target, out_vector=2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"staged": "none", "k_tile": 1, "vector": 1, "pad": 4}, "only panels are padded"),
        ({"staged": "none", "k_tile": 1, "vector": 1, "prefetch": "register"}, "fetched ahead"),
        ({"x_threads": 1, "x_virtual": 1, "pad": 4}, "no longer than what lies between"),
        ({"k_tile": 64, "prefetch": "register"}, "one panel has no next"),
        ({"x_inner": 2, "out_vector": 4}, "no whole number of vectors"),
        ({"k_tile": 2}, "copied along memory is no whole number of vectors"),
        (
            {"y_threads": 32, "x_threads": 32, "y_inner": 8, "x_inner": 8, "vector": 1},
            "a block has 65536 registers",
        ),
    ],
)
def test_what_makes_no_sense_is_illegal(
    changes: dict[str, Any], reason: str, target: Target
) -> None:
    with pytest.raises(IllegalConfigError, match=reason):
        lowered(WORKLOADS["gemm"], target, **changes)


def test_what_is_legal_can_be_lowered(target: Target) -> None:
    """Vectors that leave a row, of which TVM lowers only some, are not legal."""
    func = Workload(parse("bilinear", {"n": "32", "m": "32", "k1": "24", "k2": "24"})).prim_func()
    found = space(func, target)
    configs = map(found.config, found.sample(np.random.default_rng(1), 200))
    vectors = [c for c in configs if int(c["bilinear.vector"]) > 1 and c["bilinear.k_tile"] != 1]
    assert len(vectors) > 30
    for config in vectors[:30]:
        launches.lower(schedule(func, target, config), target.tvm_target())


def test_threads_that_need_more_registers_than_a_block_has_are_illegal(target: Target) -> None:
    """The limit is the target's: without one, as OpenCL has none, the same is legal."""
    workload = Workload(parse("gemm", {"m": "512", "n": "512", "k": "32"}))
    wide = config(workload, y_threads=32, x_threads=32, y_inner=8, x_inner=8, vector=1)
    func, unlimited = workload.prim_func(), dataclasses.replace(target, block_registers=0)
    assert space(func, target).reason(wide) == "a block has 65536 registers, its threads need more"
    assert space(func, unlimited).reason(wide) is None
    source = launches.lower(schedule(func, unlimited, wide), target.tvm_target()).source
    found = compile_cuda(source, "sm_80").resources["main_kernel"]
    assert found.spill_stores + found.spill_loads  # so much for what it would be
    small = config(workload, y_threads=32, x_threads=32, y_inner=4, x_inner=4, vector=1)
    assert space(func, target).reason(small) is None


def test_loads_that_are_computed_are_not_unrolled_by_the_hundred(target: Target) -> None:
    """TVM takes a minute for the guards of a transposed convolution that stages nothing."""
    fields = {"in_channels": "8", "out_channels": "3", "height": "20", "width": "20", "kernel": "4"}
    workload = Workload(parse("conv_transpose2d", {**fields, "stride": "2"}))
    found = space(workload.prim_func("direct"), target)
    wide = config(workload, staged="y", vector=1, y_threads=1, y_inner=1, y_virtual=2, x_threads=16,
                  x_virtual=4, k_tile=8)  # fmt: skip
    limit = "unrolled body computes more than 64 loads of what is not staged"
    assert found.reason({**wide, "conv_transpose2d.k_unroll": 8}) == limit
    assert found.reason({**wide, "conv_transpose2d.k_unroll": 4}) is None
    both = {**wide, "conv_transpose2d.k_unroll": 8, "conv_transpose2d.staged": "both"}
    assert found.reason(both) is None


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_seeds_fit_the_registers(arch: str) -> None:
    """Those that are copied ahead hold most; two blocks of 128 x 128 fit a multiprocessor."""
    target = lookup(f"cuda:{arch}")
    func = Workload(parse("gemm", {"m": "1024", "n": "1024", "k": "512"})).prim_func()
    seeds = [s for s in space(func, target).seeds if s["gemm.prefetch"] == "register"]
    assert len(seeds) >= 8
    for place, seed in enumerate(seeds):
        program = launches.lower(schedule(func, target, seed), target.tvm_target())
        found = compile_cuda(program.source, arch).resources["main_kernel"]
        assert not found.spill_stores + found.spill_loads, seed
        assert place or found.registers <= 128


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_device_of_opencl_runs_them(name: str, tmp_path: Any) -> None:
    target, workload = lookup("opencl"), WORKLOADS[name]
    assert isinstance(target, OpenCL)
    changes: dict[str, Any] = {
        "prefetch": "register",
        "pad": 4,
        "out_vector": 4 if name != "conv2d" else 1,
        "x_lanes": 1,
    }
    module = schedule(workload.prim_func(), target, config(workload, **changes))
    path, runtime = tmp_path / "kernel", target.runtime()
    target.build(module, path)
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    runtime.load(path)["main"](*inputs, got)
    runtime.sync()
    assert relative_error(got, want) < 1e-6
