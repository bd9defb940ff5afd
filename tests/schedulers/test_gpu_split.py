"""Reductions in parts, each computed by blocks of its own, on awkward sizes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card

from flextensor.buffers import relative_error
from flextensor.errors import IllegalConfigError
from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.targets import Target, launches, lookup

IMAGE = {"in_channels": "25", "out_channels": "6", "height": "7", "width": "8", "padding": "1"}
WORKLOADS = {
    "gemm": Workload(
        parse("gemm", {"m": "13", "n": "20", "k": "337", "bias": "true", "relu": "true"})
    ),
    "conv2d": Workload(parse("conv2d", {**IMAGE, "batch": "2", "bias": "true"})),
    "batch_gemm": Workload(parse("batch_gemm", {"batch": "3", "m": "11", "n": "20", "k": "130"})),
}
TILE: dict[str, Any] = {
    "y_virtual": 1, "y_threads": 4, "y_inner": 2, "x_virtual": 1, "x_threads": 4, "x_inner": 4,
    "k_tile": 4, "k_unroll": 1, "staged": "both", "vector": 4,
    "pad": 4, "prefetch": "register", "out_vector": 1, "k_split": 4, "k_turn": 0,
}  # fmt: skip


def emulated() -> Target:
    return card("sm_80", emulated=True)


def scheduled(workload: Workload, target: Target, **changes: int | str) -> Any:
    name = workload.operator.name
    own: dict[str, Any] = {"x_lanes": 1} if target.warp == 1 else {}
    config = {f"{name}.{knob}": value for knob, value in (TILE | own | changes).items()}
    return schedule(workload.prim_func(), target, config)


@pytest.mark.parametrize("device", ["cuda", "opencl"])
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(
    "changes",
    [
        {"k_split": 4},
        {"k_split": 2, "prefetch": "none", "out_vector": 4},
        {"k_split": 2, "x_inner": 3, "y_inner": 3, "y_threads": 2, "k_tile": 8, "vector": 1},
    ],
    ids=["four", "two", "odd"],
)
def test_the_parts_add_up(name: str, changes: Any, device: str, tmp_path: Path) -> None:
    target = emulated() if device == "cuda" else dataclasses.replace(lookup(device), cores=64)
    workload, path, runtime = WORKLOADS[name], tmp_path / "kernel", target.runtime()
    target.build(scheduled(workload, target, **changes), path)
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    runtime.load(path)["main"](*inputs, got)
    runtime.sync()
    assert relative_error(got, want) < 1e-6


def test_the_parts_are_added_in_order_by_a_second_kernel() -> None:
    gemm, target = WORKLOADS["gemm"], emulated()
    program = launches.lower(scheduled(gemm, target, out_vector=4), target.tvm_target())
    function = program.functions["main"]
    first, second = function.launches
    assert first.grid == (2, 2, 4) and second.grid == (1, 1, 1)
    assert function.sizes[function.parameters :] == (4 * 13 * 20 * 4,)
    assert "atomic" not in program.source
    reads = re.findall(r"= gemm_part_ptr\[.*threadIdx.x\)(?: \+ (\d+)\))?\];", program.source)
    assert reads == ["", "65", "130", "195"]


def test_outputs_that_fill_the_device_are_in_one_part() -> None:
    target = emulated()

    def parts(**fields: str) -> tuple[Any, ...]:
        found = space(Workload(parse("gemm", fields)).prim_func(), target)
        return next(k.values for k in found.knobs if k.name == "gemm.k_split")

    assert parts(m="64", n="64", k="8192") == (1, 2, 4, 8, 16, 32, 64)
    assert parts(m="64", n="64", k="100") == (1, 2)
    assert parts(m="4096", n="4096", k="8192") == (1,)


def test_a_part_has_something_to_add_and_a_block_to_do_it() -> None:
    gemm, target = WORKLOADS["gemm"], emulated()
    with pytest.raises(IllegalConfigError, match="a part of the reduction is empty"):
        scheduled(gemm, target, k_split=8, k_tile=64)
    few = dataclasses.replace(target, cores=2)
    with pytest.raises(IllegalConfigError, match="keep the device busy without parts"):
        scheduled(gemm, few, k_split=8, y_threads=1, x_threads=1, pad=0, vector=1)


def test_few_outputs_of_a_long_sum_are_seeded_in_parts() -> None:
    target = lookup("cuda:sm_90")
    func = Workload(parse("gemm", {"m": "49", "n": "1024", "k": "9216"})).prim_func()
    found = space(func, target)
    best = min(found.seeds, key=lambda s: found.features(s)["gemm.estimate"])
    assert int(best["gemm.k_split"]) >= 8
