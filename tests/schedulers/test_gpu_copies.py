"""Panels that are copied beside a kernel, several steps ahead, on awkward sizes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from emulated_programs import card, error
from tvm import te

from flextensor.errors import IllegalConfigError
from flextensor.operators import FunctionOperator, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.gpu_contraction import GpuContractionSchedule
from flextensor.targets import Target, launches, lookup
from flextensor.targets.cuda_compiler import body, compile_cuda

IMAGE = {"in_channels": "5", "out_channels": "6", "height": "8", "width": "9", "padding": "1"}
WORKLOADS = {
    "gemm": Workload(parse("gemm", {"m": "61", "n": "68", "k": "37", "bias": "true"})),
    "whole": Workload(parse("gemm", {"m": "32", "n": "64", "k": "32"})),
    "conv2d": Workload(parse("conv2d", {**IMAGE, "batch": "2", "relu": "true"})),
    "long conv2d": Workload(parse("conv2d", {**IMAGE, "in_channels": "25", "bias": "true"})),
    "conv_transpose2d": Workload(parse("conv_transpose2d", {**IMAGE, "stride": "2"})),
    "batch_gemm": Workload(parse("batch_gemm", {"batch": "3", "m": "11", "n": "20", "k": "13"})),
}
TILE: dict[str, Any] = {
    "y_virtual": 1, "y_threads": 4, "y_inner": 2, "x_virtual": 2, "x_threads": 4, "x_inner": 4,
    "k_tile": 4, "k_unroll": 1, "staged": "both", "vector": 1,
    "pad": 4, "prefetch": "async3", "out_vector": 1, "k_split": 1, "k_turn": 0,
}  # fmt: skip
ONE_SIDE = {"k_tile": 1, "pad": 0}


@pytest.fixture(scope="module")
def target() -> Target:
    return card("sm_80", emulated=True)


def config(workload: Workload, **changes: Any) -> dict[str, Any]:
    name = workload.operator.name
    return {f"{name}.{knob}": value for knob, value in (TILE | changes).items()}


def lowered(workload: Workload, target: Target, **changes: Any) -> launches.Program:
    module = schedule(workload.prim_func(), target, config(workload, **changes))
    return launches.lower(module, target.tvm_target())


def copied(source: str) -> list[str]:
    """Bytes of every asynchronous copy, in order; fails where something else stores to panels."""
    lines = body(source).splitlines()
    stored = [line.partition(" = ")[0] for line in lines if " = " in line]
    assert not [left for left in stored if re.search(r"shmem\w*_ptr|shared_dyn\w*_ptr", left)]
    found = (re.match(r"\s+ptx_cp_async_\w+?_c[ag]_(\d+)_", line) for line in lines)
    return [match[1] for match in found if match]


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        ("gemm", {"vector": 4}, 3 * ["4", "16"]),
        ("gemm", {"prefetch": "async2", "vector": 2, "x_inner": 2, "pad": 0}, 2 * ["4", "8"]),
        ("gemm", {"prefetch": "async4", "staged": "x", "vector": 4, **ONE_SIDE}, 4 * ["16"]),
        ("gemm", {"staged": "y", **ONE_SIDE}, 3 * ["4"]),
        ("batch_gemm", {"prefetch": "async4", "vector": 4, "out_vector": 4}, 4 * ["4", "16"]),
        ("conv2d", {"prefetch": "async4", "k_turn": 2}, 8 * ["4"]),
        ("long conv2d", {"prefetch": "async2", "k_split": 4, "x_inner": 3}, 4 * ["4"]),
        ("conv_transpose2d", {"y_threads": 2, "y_inner": 3, "pad": 0}, 6 * ["4"]),
    ],
)
def test_what_is_copied_beside_the_kernel_is_right(
    name: str, changes: dict[str, Any], sizes: list[str], target: Target
) -> None:
    workload = WORKLOADS[name]
    program = lowered(workload, target, **changes)
    assert copied(program.source) == sizes
    assert error(workload, program) < 1e-6


@pytest.fixture(scope="module")
def whole(target: Target) -> launches.Program:
    """One that only copies: no zeros take the place of anything."""
    program = lowered(WORKLOADS["whole"], target, vector=4)
    assert error(WORKLOADS["whole"], program) < 1e-6
    return program


@pytest.mark.parametrize("barrier", range(4))
def test_no_barrier_can_go(barrier: int, whole: launches.Program) -> None:
    places = [m.span() for m in re.finditer(r"__syncthreads\(\);", whole.source)]
    assert len(places) == 4
    start, end = places[barrier]
    source = whole.source[:start] + whole.source[end:]
    assert not error(WORKLOADS["whole"], whole, source) < 1e-2


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_no_wait_can_go(groups: int, whole: launches.Program) -> None:
    source, count = re.subn(rf"(\s)tvm_\w+wait_group_{groups}\(\);", r"\1", body(whole.source))
    assert count == 1
    assert not error(WORKLOADS["whole"], whole, source) < 1e-2


def test_a_wait_for_fewer_copies_is_too_short(whole: launches.Program) -> None:
    source = whole.source.replace("wait_group_1();", "wait_group_2();")
    assert not error(WORKLOADS["whole"], whole, source) < 1e-2


def squares(n: int = 24) -> list[Any]:
    """A product of which one side is computed."""
    a, b = (te.placeholder((n, n), name=name) for name in "ab")
    k = te.reduce_axis((0, n), "k")
    product = lambda i, j: te.sum(a[i, k] * a[i, k] * b[k, j], axis=k)  # noqa: E731
    return [a, b, te.compute((n, n), product, name="squares")]


def ways(workload: Workload, target: Target) -> tuple[Any, ...]:
    """What the space offers to come ahead."""
    found = space(workload.prim_func(), target)
    return next(k.values for k in found.knobs if k.name.endswith(".prefetch"))


def test_only_devices_that_copy_beside_a_kernel_are_asked_to() -> None:
    gemm = WORKLOADS["gemm"]
    for spec in ("cuda:sm_75", "opencl"):
        assert ways(gemm, lookup(spec)) == ("none", "register")
    two = dataclasses.replace(lookup("cuda:sm_90"), copies_ahead=1)
    assert ways(gemm, two) == ("none", "register", "async2")
    assert ways(gemm, lookup("cuda:sm_90"))[2:] == ("async2", "async3", "async4")


def test_what_is_computed_or_of_another_size_is_not_copied(target: Target) -> None:
    """A square is no copy, and neither is what becomes float32 on the way."""
    mixed = Workload(FunctionOperator(squares, {}))
    found = space(mixed.prim_func(), target)
    own = {f"squares.{knob}": value for knob, value in (TILE | ONE_SIDE).items()}
    (plain,) = (s for s in "xy" if found.reason(own | {"squares.staged": s}) is None)
    for staged in ({"x": "y", "y": "x"}[plain], "both"):
        reason = found.reason(own | {"squares.staged": staged})
        assert reason == "what is computed is not copied beside the kernel"
    bytes_ = parse("gemm", {"m": "61", "n": "68", "k": "37", "dtype": "int8"})
    assert ways(Workload(bytes_), target) == ("none", "register")


def test_vectors_are_of_what_lies_together(target: Target) -> None:
    def widths(name: str, **fields: str) -> dict[str, int]:
        parts = Composition.of(Workload(parse(name, fields)).prim_func(), target).parts
        part = next(p for p, _ in parts if isinstance(p, GpuContractionSchedule))
        return {side: copy.width for side, copy in part.decides.copies.items()}

    conv = {"in_channels": "16", "out_channels": "64", "height": "14", "width": "10"}
    assert widths("gemm", m="64", n="68", k="64") == {"y": 1, "x": 4}
    assert widths("gemm", m="64", n="67", k="64") == {"y": 1, "x": 1}
    assert widths("gemm", m="64", n="70", k="64") == {"y": 1, "x": 2}
    assert widths("conv2d", **conv, kernel="1") == {"y": 1, "x": 4}
    assert widths("conv2d", **conv, kernel="1", stride="2") == {"y": 1, "x": 1}
    assert widths("conv2d", **conv, padding="1") == {"y": 1, "x": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k_tile": 32, "k_unroll": 1}, "there are not so many panels"),
        ({"k_tile": 16, "k_unroll": 16, "y_inner": 8}, "bodies have 3072 operations, limit 2048"),
        ({"vector": 4, "staged": "y", **ONE_SIDE}, "no such vectors lie together"),
        ({"vector": 4, "x_inner": 1, "x_threads": 2, "pad": 0, "x_virtual": 1}, "no whole number"),
        ({"staged": "none", "pad": 0, "k_tile": 1}, "only panels are padded and fetched ahead"),
    ],
)
def test_what_makes_no_sense_is_illegal(
    changes: dict[str, Any], reason: str, target: Target
) -> None:
    with pytest.raises(IllegalConfigError, match=reason):
        lowered(WORKLOADS["gemm"], target, **changes)


def test_panels_fit_the_shared_memory_of_a_launch() -> None:
    """More than a kernel may declare, and no more than a block can have; the kernel takes so much
    as the space has reckoned."""
    workload = Workload(parse("gemm", {"m": "512", "n": "512", "k": "512"}))
    func, wide = (
        workload.prim_func(),
        {"y_threads": 16, "y_inner": 8, "x_threads": 16, "x_inner": 4},
    )
    deep = config(workload, **wide, k_tile=32, vector=4)
    size = 3 * 32 * 2 * (128 + 4) * 4
    for arch, limit in {"sm_80": 163, "sm_86": 99}.items():
        target = lookup(f"cuda:{arch}")
        said = f"panels need {size} bytes of shared memory, limit {limit << 10}"
        assert space(func, target).reason(deep) == (said if size > limit << 10 else None)
    program = launches.lower(
        schedule(func, target := lookup("cuda:sm_80"), deep), target.tvm_target()
    )
    (launch,) = program.functions["main"].launches
    assert launch.shared == size > target.shared_bytes
    assert compile_cuda(program.source, "sm_80").resources["main_kernel"].shared == 0


@pytest.mark.parametrize(
    ("arch", "name", "fields"),
    [
        ("sm_90", "gemm", {"m": "1024", "n": "1024", "k": "512"}),
        (
            "sm_80",
            "conv2d",
            {"in_channels": "64", "out_channels": "128", "height": "28", "padding": "1"},
        ),
    ],
)
def test_seeds_copy_ahead_without_spills(name: str, fields: dict[str, str], arch: str) -> None:
    target, func = lookup(f"cuda:{arch}"), Workload(parse(name, fields)).prim_func()
    found = space(func, target)
    seeds = [s for s in found.seeds if s[f"{name}.prefetch"] == "async3"]
    assert len(seeds) >= 8
    seed = min(seeds, key=lambda s: found.features(s)[f"{name}.estimate"])
    program = launches.lower(schedule(func, target, seed), target.tvm_target())
    resources = compile_cuda(program.source, arch).resources.values()
    assert copied(program.source)
    assert not sum(kernel.spill_stores + kernel.spill_loads for kernel in resources)


def test_the_estimate_knows_panels_ahead(target: Target) -> None:
    """They hide the way to memory where blocks are few, and take the place of blocks where many."""
    workload = Workload(parse("gemm", {"m": "4096", "n": "4096", "k": "512"}))
    found = space(workload.prim_func(), target)

    def features(prefetch: str, **changes: Any) -> dict[str, float]:
        own = {"y_threads": 16, "y_inner": 4, "x_threads": 16, "vector": 4, "k_tile": 32}
        full = config(workload, **own | changes, prefetch=prefetch)
        return {k.partition(".")[2]: v for k, v in found.features(full).items()}

    shallow, deep = (
        [features(way, k_tile=k_tile)["estimate"] for way in ("none", "async2", "async4")]
        for k_tile in (8, 32)
    )
    assert shallow[0] > shallow[1] >= shallow[2]
    assert deep[0] > deep[1] < deep[2]
    one, two, four = (2 ** features(way)["shared"] - 1 for way in ("none", "async2", "async4"))
    assert [two / one, four / one] == pytest.approx([2, 4])
    assert [features(w)["hidden"] for w in ("none", "register", "async4")] == [0, 1, 3]
