"""Contractions in tile registers (AMX), of int8, bfloat16, and float32 in terms of bfloat16."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.s_tir import Schedule

from flextensor.buffers import aligned, empty, poison, relative_error
from flextensor.errors import InputError
from flextensor.operators import Workload, parse
from flextensor.operators.workload import TERMS, TWO_TERMS
from flextensor.schedulers import schedule, space, spaces
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.tile_contraction import (
    TileContractionSchedule,
    TileContractionScheduler,
)
from flextensor.targets import LLVM, Target, lookup
from flextensor.targets.tiles import REGISTERS
from flextensor.testing import SchedulerCase

CHIP = LLVM(
    cores=4, vector_bits=512, vector_registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20,
    l3_bytes=32 << 20, max_unroll=512, mcpu="sapphirerapids",
    features=("amx-bf16", "amx-int8", "amx-tile", "avx512bf16", "avx512vnni"),
)  # fmt: skip
"""A fixed CPU to compile for, and not to run on."""
SMALL = {"in_channels": "14", "out_channels": "18", "height": "9", "width": "11", "padding": "1"}
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "gemm_epilogue": ("gemm", {"m": "16", "n": "33", "k": "64", "bias": "true", "relu": "true"}),
    "batch_gemm": ("batch_gemm", {"batch": "3", "m": "17", "n": "20", "k": "19", "bias": "true"}),
    "conv2d": ("conv2d", {**SMALL, "bias": "true", "relu": "true"}),
    "conv2d_stride": ("conv2d", {**SMALL, "batch": "2", "stride": "2"}),
    "conv2d_half_read": (  # a row of 15 and its overhang are two tiles, of which one is read
        "conv2d", {"in_channels": "64", "out_channels": "32", "height": "10", "width": "17"},
    ),
    "group_conv2d": ("group_conv2d", {**SMALL, "in_channels": "56", "out_channels": "40"}),
}  # fmt: skip


@pytest.fixture(params=["int8", "bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["tiles", "loops"])
def machine(request: pytest.FixtureRequest, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Target:
    """What kernels run on: this CPU with its tile registers, or any CPU, where the loops stay that
    instructions on tiles would take the place of."""
    own = lookup("llvm")
    assert isinstance(own, LLVM)
    if request.param == "loops":
        monkeypatch.setattr(Schedule, "tensorize", lambda *_: None)
        monkeypatch.setattr(TileContractionSchedule, "wrap", lambda _, func: func)
        return dataclasses.replace(CHIP, mcpu=own.mcpu, mattr=own.mattr)
    if not own.tile_depth(dtype if dtype == "int8" else "bfloat16"):
        pytest.skip("this CPU has no AMX-INT8" if dtype == "int8" else "this CPU has no AMX-BF16")
    return own


def program(workload: Workload, dtype: str) -> Any:
    return workload.prim_func("direct_bf16x2" if dtype == "float32" else "direct")


@pytest.mark.parametrize("case", CASES)
class TestTileContraction(SchedulerCase):
    @pytest.fixture
    def target(self) -> Target:
        return CHIP

    @pytest.fixture
    def workload(self, case: str, dtype: str) -> Workload:
        name, fields = CASES[case]
        return Workload(parse(name, {**fields, "dtype": dtype}))

    @pytest.fixture
    def formulation(self, workload: Workload, dtype: str) -> str:
        return "direct_bf16x2" if dtype == "float32" else "direct"

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return TileContractionScheduler()

    @pytest.fixture
    def runner(self, machine: Target) -> Target:
        return machine


def test_seeds_fit_where_one_of_two_tiles_is_read() -> None:
    name, fields = CASES["conv2d_half_read"]
    func = Workload(parse(name, {**fields, "dtype": "int8"})).prim_func()
    found = space(func, CHIP)
    assert "flat" in {seed["conv2d.m_layout"] for seed in found.seeds}
    for seed in found.seeds:
        schedule(func, CHIP, seed)


def test_features_count_tile_registers_and_terms() -> None:
    def of(dtype: str) -> list[tuple[Any, dict[str, float]]]:
        fields = {**SMALL, "in_channels": "32", "dtype": dtype}
        found = space(program(Workload(parse("conv2d", fields)), dtype), CHIP)
        return [(dict(seed), found.features(seed)) for seed in found.seeds]

    once, in_terms = of("bfloat16"), of("float32")
    assert [seed for seed, _ in once] == [seed for seed, _ in in_terms]
    assert {seed["conv2d.m_layout"] for seed, _ in once} == {"flat", "panel"}
    for (_, one), (_, both) in zip(once, in_terms, strict=True):
        assert 2 ** both["conv2d.packed"] - 1 == pytest.approx(2 * (2 ** one["conv2d.packed"] - 1))
        assert one["conv2d.registers"] <= REGISTERS


def takers(target: Target, func: Any) -> list[str]:
    return [type(part).__name__ for part, _ in Composition.of(func, target).parts]


def test_who_takes_what() -> None:
    without = dataclasses.replace(CHIP, features=("avx512bf16", "avx512vnni"))
    for dtype in ("int8", "bfloat16"):
        func = Workload(parse("gemm", {"dtype": dtype})).prim_func()
        assert takers(CHIP, func) == ["TileContractionSchedule"]
        assert takers(without, func) == ["DotContractionSchedule"]
    short = dataclasses.replace(CHIP, vector_bits=256, vector_registers=16)
    assert takers(short, func) == ["ContractionSchedule"]  # 16 sums are no vector there
    thin = Workload(parse("conv2d", {"in_channels": "6", "dtype": "int8"})).prim_func()
    assert takers(CHIP, thin) == ["DotContractionSchedule"]  # six of 64 would waste the tiles
    plain = Workload(parse("gemm", {}))
    assert takers(CHIP, plain.prim_func()) == ["ContractionSchedule"]
    assert takers(CHIP, plain.prim_func("direct_bf16x2")) == ["TileContractionSchedule"]


def test_terms_are_offered_where_tiles_multiply_and_the_tolerance_allows() -> None:
    gemm, conv = Workload(parse("gemm", {})), Workload(parse("conv2d", {}))
    without = dataclasses.replace(CHIP, features=("amx-int8", "amx-tile"))
    assert list(spaces(gemm, CHIP)) == ["direct", "direct_bf16x2"]
    assert list(spaces(gemm, CHIP, TWO_TERMS / 2)) == list(spaces(gemm, without)) == ["direct"]
    assert list(spaces(conv, CHIP)) == ["direct", "winograd2", "winograd4", "direct_bf16x2"]
    transposed = Workload(parse("conv_transpose2d", {"stride": "2"}))
    assert "subpixel_bf16x2" in spaces(transposed, CHIP)
    shift = Workload(parse("shift_conv2d", {}))
    assert list(spaces(shift, CHIP)) == ["direct", "offsets"]  # nothing is multiplied there
    assert conv.has("winograd4") and not conv.has("winograd4_bf16x2")
    assert gemm.has("direct_bf16x2") and not gemm.has(None)
    narrow = Workload(parse("gemm", {"dtype": "int8"}))
    assert narrow.in_terms(1e-4) == () and not narrow.has("direct_bf16x2")
    for workload, name in ((conv, "winograd4_bf16x2"), (narrow, "direct_bf16x2")):
        with pytest.raises(InputError, match=name):
            workload.prim_func(name)


def test_sums_stay_in_tiles(dtype: str) -> None:
    """Between the first and the last product of a tile nothing is stored, and none is zeroed."""
    import tvm

    fields = {"m": "96", "n": "96", "k": "256", "dtype": dtype}
    func = program(Workload(parse("gemm", fields)), dtype)
    module = schedule(func, CHIP, space(func, CHIP).seeds[0])
    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    text = tvm.compile(module, target=target).mod.inspect_source("s")
    name = "tdpbssd" if dtype == "int8" else "tdpbf16ps"
    lines = [line.split()[0] for line in text.splitlines() if re.match(r"\s+t(dp|ile)", line)]
    first, last = lines.index(name), len(lines) - 1 - lines[::-1].index(name)
    own = lines[first:last]
    assert own.count(name) >= 3 and own.count("tileloadd") >= 3
    between = "".join("S" if x == "tilestored" else "Z" if x == "tilezero" else "." for x in lines)
    assert re.fullmatch(r"(Z+\.+S+)+\.*", between), between
    assert "ldtilecfg" in text and "tilerelease" in text


def test_weights_are_packed_ahead(dtype: str) -> None:
    func = program(Workload(parse("gemm", {"dtype": dtype}), prepacked=True), dtype)
    module = schedule(func, CHIP, space(func, CHIP).seeds[0])
    assert {v.name_hint for v in module.functions} == {"main", "pack"}
    assert str(module["main"].params[2].dtype) == "uint32"


def test_bits_of_inputs_are_packed_as_they_are() -> None:
    for name, fields in (("gemm", {}), ("conv2d", {**SMALL, "in_channels": "32"})):
        func = Workload(parse(name, {**fields, "dtype": "bfloat16"})).prim_func()
        assert takers(CHIP, func) == ["TileContractionSchedule"]
        assert "isnan" not in schedule(func, CHIP, space(func, CHIP).seeds[0]).script()


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_what_was_computed_in_bfloat16_is_rounded_where_it_is_packed(
    machine: Target, tmp_path: Path
) -> None:
    """TVM keeps it in float32, of which the bits would not be those of a bfloat16."""
    from tvm import te

    def product(a: Any, b: Any, name: str) -> Any:
        k = te.reduce_axis((0, 64), "k")

        def at(m: Any, n: Any) -> Any:
            return te.sum(a[m, k].astype("float32") * b[k, n].astype("float32"), axis=k)

        return te.compute((64, 64), at, name=name)

    a, b, c = (te.placeholder((64, 64), "bfloat16", name=name) for name in "abc")
    sums = product(a, b, "sums")
    narrow = te.compute((64, 64), lambda m, n: sums[m, n].astype("bfloat16"), name="narrow")
    func = te.create_prim_func([a, b, c, product(narrow, c, "last")])
    assert takers(machine, func) == ["TileContractionSchedule"] * 2
    machine.build(schedule(func, machine, space(func, machine).seeds[0]), tmp_path / "k.so")
    rng, out = np.random.default_rng(0), empty((64, 64), "float32")
    inputs = [aligned(rng.standard_normal((64, 64)), "bfloat16") for _ in range(3)]
    runtime = machine.runtime()
    runtime.load(tmp_path / "k.so")["main"](*map(runtime.passed, (*inputs, out)))
    x, y, z = (value.astype("float32") for value in inputs)
    rounded = (x @ y).astype(inputs[0].dtype).astype("float32")
    assert relative_error(out, rounded @ z) <= 1e-6


def run(workload: Workload, func: Any, config: Any, target: Target, path: Path) -> Any:
    inputs = workload.inputs(3)
    out = empty(workload.buffers[-1].shape, workload.buffers[-1].dtype)
    poison(out)
    target.build(schedule(func, target, config), path)
    runtime = target.runtime()
    runtime.load(path)["main"](*map(runtime.passed, (*inputs, out)))
    return relative_error(out, workload.reference(inputs))


def test_long_reductions_are_summed_in_blocks(dtype: str, machine: Target, tmp_path: Path) -> None:
    for case, (name, fields) in {
        "gemm": ("gemm", {"m": "40", "n": "50", "k": "700", "dtype": dtype, "relu": "true"}),
        "conv": ("conv2d", {**SMALL, "in_channels": "280", "dtype": dtype}),
    }.items():
        workload = Workload(parse(name, fields))
        func = program(workload, dtype)
        found = space(func, machine)
        config = dict(found.seeds[0]) | {f"{name}.k_parts": 2}
        assert found.reason(config) is None
        error = run(workload, func, config, machine, tmp_path / f"{case}.so")
        assert error <= workload.tolerance(TWO_TERMS)


@pytest.mark.parametrize("dtype", ["float32"])
def test_two_terms_keep_what_they_promise(machine: Target, tmp_path: Path) -> None:
    workload = Workload(parse("gemm", {"m": "64", "n": "64", "k": "512"}))
    func = workload.prim_func("direct_bf16x2")
    error = run(workload, func, space(func, machine).seeds[0], machine, tmp_path / "k.so")
    assert 1e-7 < error <= TWO_TERMS


@pytest.mark.parametrize("dtype", ["int8"])
@pytest.mark.parametrize("value", [-128, 127])
def test_the_ends_of_int8_do_not_saturate(value: int, machine: Target, tmp_path: Path) -> None:
    workload = Workload(parse("gemm", {"m": "3", "n": "17", "k": "27", "dtype": "int8"}))
    func = workload.prim_func()
    machine.build(schedule(func, machine, space(func, machine).seeds[0]), tmp_path / "k.so")
    a, b = (np.full(spec.shape, value, "int8") for spec in workload.buffers[:2])
    for other in (b, ~b):
        out = empty((3, 17), "int32")
        machine.runtime().load(tmp_path / "k.so")["main"](aligned(a), aligned(other), out)
        assert (out == a.astype("int32") @ other.astype("int32")).all()


def test_two_products_of_a_program_share_the_functions_of_tiles() -> None:
    import tvm
    from tvm import te

    a, b, c = (te.placeholder((64, 64), name=name) for name in "abc")
    k, j = te.reduce_axis((0, 64), "k"), te.reduce_axis((0, 64), "j")
    first = te.compute((64, 64), lambda m, n: te.sum(a[m, k] * b[k, n], axis=k), name="first")
    last = te.compute((64, 64), lambda m, n: te.sum(first[m, j] * c[j, n], axis=j), name="last")
    func = te.create_prim_func([a, b, c, last]).with_attr(TERMS, 2)
    assert takers(CHIP, func) == ["TileContractionSchedule"] * 2
    module = schedule(func, CHIP, space(func, CHIP).seeds[0])
    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    text = tvm.compile(module, target=target).mod.inspect_source("s")
    assert text.count("ldtilecfg") == text.count("tilerelease") == 2  # inlined where tasks begin
