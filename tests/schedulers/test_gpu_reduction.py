"""Reductions that threads of a block share, on awkward sizes, in emulation and by PoCL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_programs import card
from tvm import te

from flextensor.buffers import relative_error
from flextensor.errors import IllegalConfigError
from flextensor.operators import FunctionOperator, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.composition import Composition
from flextensor.targets import Target, launches, lookup
from flextensor.targets.cuda_compiler import compile_cuda
from flextensor.targets.cuda_emulation import EmulatedFunction, compiled


def total(length: int = 997) -> list[Any]:
    """One output."""
    a = te.placeholder((length,), name="a")
    k = te.reduce_axis((0, length), "k")
    return [a, te.compute((1,), lambda i: te.sum(a[k], axis=k), name="red")]


def row_max(batch: int = 3, rows: int = 5, length: int = 200) -> list[Any]:
    """Another combiner, whose neutral element is no zero; then an elementwise consumer."""
    a = te.placeholder((batch, rows, length), name="a")
    k = te.reduce_axis((0, length), "k")
    red = te.compute((batch, rows), lambda i, j: te.max(a[i, j, k] - 9, axis=k), name="red")
    return [a, te.compute((batch, rows), lambda i, j: red[i, j] * 2, name="twice")]


def column_sum(length: int = 301, columns: int = 20) -> list[Any]:
    """Neighbours of the outputs lie together, and not those of the reduction."""
    a = te.placeholder((length, columns), name="a")
    k = te.reduce_axis((0, length), "k")
    return [a, te.compute((columns,), lambda i: te.sum(a[k, i], axis=k), name="red")]


WORKLOADS = {
    "gemv": Workload(parse("gemv", {"m": "37", "k": "332"})),
    **{f.__name__: Workload(FunctionOperator(f, {})) for f in (total, row_max, column_sum)},
}
BASE: dict[str, Any] = {
    "k_threads": 32, "q_threads": 1, "vector": 1, "k_unroll": 1, "neighbours": "k", "k_split": 1,
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {"q_threads": 4, "vector": 4},
    {"k_threads": 64, "k_unroll": 2},
    {"k_threads": 8, "q_threads": 4, "neighbours": "q", "k_split": 2},
    {"k_threads": 1, "q_threads": 2, "k_unroll": 4},
    {"k_threads": 16, "k_split": 2, "vector": 2},
]


@pytest.fixture(scope="module")
def cuda() -> Target:
    return card("sm_80", emulated=True)


def config(workload: Workload, target: Target, changes: dict[str, Any]) -> dict[str, Any]:
    """The nearest config that the shape has."""
    found = space(workload.prim_func(), target)
    prefix = found.knobs[0].name.partition(".")[0]
    wanted = {f"{prefix}.{knob}": value for knob, value in (BASE | changes).items()}
    config = found.config(found.project(wanted))
    assert found.reason(config) is None
    return config


@pytest.mark.parametrize("device", ["cuda", "opencl"])
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: "-".join(map(str, c.values())))
def test_threads_reduce_together(
    name: str, changes: dict[str, Any], device: str, cuda: Target, tmp_path: Path
) -> None:
    target = cuda if device == "cuda" else lookup(device)
    workload, path, runtime = WORKLOADS[name], tmp_path / "kernel", target.runtime()
    module = schedule(workload.prim_func(), target, config(workload, target, changes))
    target.build(module, path)
    inputs = workload.inputs(0)
    want = workload.reference(inputs)
    got = np.full(want.shape, np.nan, "float32")
    runtime.load(path)["main"](*inputs, got)
    runtime.sync()
    assert relative_error(got, want) < 2e-6


def test_rows_are_read_in_vectors_and_combined_by_shuffles(cuda: Target) -> None:
    gemv = Workload(parse("gemv", {"m": "1024", "k": "4096"}))
    chosen = config(gemv, cuda, {"q_threads": 8, "vector": 4, "k_unroll": 4})
    program = launches.lower(schedule(gemv.prim_func(), cuda, chosen), cuda.tvm_target())
    assert program.source.count("*(float4*)(A_ptr") == 4
    assert program.source.count("= __shfl_down_sync") == 5
    assert "__shared__" not in program.source
    (launch,) = program.functions["main"].launches
    assert (launch.grid, launch.block) == ((128, 1, 1), (32, 8, 1))
    for arch in ("sm_80", "sm_90"):
        found = compile_cuda(program.source, arch).resources["main_kernel"]
        assert found.registers <= 64 and not found.spill_stores


def test_a_dropped_barrier_between_warps_is_caught(cuda: Target) -> None:
    workload = WORKLOADS["total"]
    chosen = config(workload, cuda, {"k_threads": 256})
    program = launches.lower(schedule(workload.prim_func(), cuda, chosen), cuda.tvm_target())
    source, dropped = re.subn(r"__syncthreads\(\);", "", program.source)
    assert dropped
    inputs = workload.inputs(0)
    got = np.full(1, np.nan, "float32")
    EmulatedFunction(compiled(source), program.functions["main"])(*inputs, got)
    assert not relative_error(got, workload.reference(inputs)) < 1e-2


def test_only_long_reductions_of_few_outputs_or_rows_are_taken(cuda: Target) -> None:
    def taken(operator: str, **fields: str) -> list[str]:
        func = Workload(parse(operator, fields)).prim_func()
        return [type(p).__name__ for p, _ in Composition.of(func, cuda).parts]

    assert taken("gemv", m="1000000", k="256") == ["GpuReductionSchedule"]
    assert taken("gemv", m="1000", k="32") == ["GpuSpatialSchedule"]
    assert taken("depthwise_conv2d", channels="8", height="9", width="9") == ["GpuSpatialSchedule"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k_threads": 1024, "q_threads": 2}, "2048 threads a block"),
        ({"k_threads": 512, "vector": 4}, "nothing to reduce"),
        ({"k_threads": 128, "k_split": 4}, "a part of the reduction is empty"),
        ({"k_threads": 256, "k_unroll": 8}, "more steps are unrolled than there are"),
    ],
)
def test_idle_threads_and_parts_are_illegal(
    changes: dict[str, Any], reason: str, cuda: Target
) -> None:
    func = WORKLOADS["gemv"].prim_func()
    wanted = {f"gemv.{knob}": value for knob, value in (BASE | changes).items()}
    with pytest.raises(IllegalConfigError, match=reason):
        schedule(func, cuda, wanted)
