"""Copies that are zero outside of what they copy: transposed in vector registers inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from transposed_copies import check, scheduled, target
from tvm import te, tirx
from tvm.s_tir import Schedule

from flextensor import compiled
from flextensor.buffers import relative_error
from flextensor.operators import Workload, parse
from flextensor.operators.stages import guarded
from flextensor.schedulers import space, transposition
from flextensor.schedulers.expression import Linear, rewrite
from flextensor.schedulers.guards import Guarded
from flextensor.targets import lookup

X, Y, C = (tirx.Var(name, "int32") for name in "xyc")
DATA = tirx.decl_buffer((8, 30, 30), "float32", "data")


def load(*place: Any) -> Any:
    return tirx.BufferLoad(DATA, place)


def value(*inside: Any) -> Any:
    return guarded(inside, load(C, Y - 1, X - 1))


def test_comparisons_are_forms_that_are_not_negative_inside() -> None:
    found = Guarded.of(value(X >= 1, X < 31, Y > 0, 30 >= Y, C * 2 + X < 40))
    assert found is not None and found.load.source.same_as(DATA)
    assert [dict(f.terms) for f in found.forms] == [
        {X: 1},
        {X: -1},
        {Y: 1},
        {Y: -1},
        {C: -2, X: -1},
    ]
    assert [f.constant for f in found.forms] == [-1, 30, -1, 30, 39]
    plain = Guarded.of(load(C, Y, X))
    assert plain is not None and plain.forms == ()


def test_what_is_no_guard_is_none() -> None:
    either = tirx.if_then_else(tirx.any(X < 3, Y < 3), load(C, Y, X), tirx.const(0, "float32"))
    other = tirx.if_then_else(X < 3, load(C, Y, X), load(C, X, Y))
    assert Guarded.of(either) is Guarded.of(other) is Guarded.of(value(X % 2 < 1)) is None
    assert Guarded.of(value(X < 3) + tirx.const(1, "float32")) is None


def test_the_span_of_a_variable_and_what_is_left_of_the_others() -> None:
    found = Guarded.of(value(X >= 1, X < 31, X * 3 < 80, Y >= 1, C + X < 60))
    assert found is not None
    assert (
        found.span(X, 32) == (1, 27) and found.span(Y, 5) == (1, 5) and found.span(C, 7) == (0, 7)
    )
    rest = found.elsewhere(X)
    assert [dict(f.terms) for f in rest.forms] == [{Y: 1}, {C: -1, X: -1}]
    assert found.span(Y, 1) == (1, 1)  # nothing
    assert found.span(Y, 0) == (0, 0)


def test_all_is_inside_where_the_worst_corner_is() -> None:
    found = Guarded.of(value(Y >= 1, C * 2 - X < 9))
    assert found is not None
    bound = found.bound({C: Y * 4 + C}, {C})
    assert bound is not None
    condition = bound.whole({C: 2, X: 8})  # C is 1 at most, X is 0 at least
    for y in range(4):
        given = rewrite(condition, {Y: tirx.const(y, "int32")})
        assert bool(tvm.sym.Analyzer().simplify(given).value) == (y >= 1 and (4 * y + 1) * 2 < 9), y
    assert bound.whole({C: 2, X: 8, Y: 3}) is None  # Y is 0 somewhere
    assert found.bound({C: C // 2}, {C}) is None
    assert Guarded(found.load, (Linear({C: 1}),)).whole({C: 4}).value == 1


def image(channels: int, size: int, around: tuple[int, int], grown: int, task: int) -> Any:
    """P[c, y, x, i] = D[c * lanes + i, y, x] in a frame of zeros, in `task` rows; zero where there
    are no more channels."""
    data = te.placeholder((channels, size, size), "float32", "data")
    before, frame = around[0], size + sum(around)

    def element(t: Any, y: Any, x: Any, i: Any) -> Any:
        c = t * task + i
        inside = [y >= before, y < before + size, x >= before, x < before + size]
        inside += [c < channels] if grown > channels else []
        return guarded(inside, data(c, y - before, x - before))

    out = te.compute((grown // task, frame, frame, task), element, name="panels")
    return te.create_prim_func([data, out])


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(
    ("channels", "size", "around", "grown", "task"),
    [
        (32, 32, (1, 1), 32, 32),
        (32, 30, (1, 1), 32, 16),  # vectors of the last turn begin early
        (32, 14, (1, 3), 32, 16),  # rows shorter than the longest vectors
        (16, 7, (0, 2), 16, 16),
        (19, 20, (2, 1), 32, 16),  # some channels of a tile are not there
        (17, 4, (3, 0), 48, 16),  # all of one
    ],
)
def test_a_framed_image_is_transposed_exactly(
    channels: int, size: int, around: tuple[int, int], grown: int, task: int, bits: int
) -> None:
    marked, module = scheduled(image(channels, size, around, grown, task), bits)
    assert marked and "T.Shuffle" in module.script()
    given = np.random.default_rng(0).random((channels, size, size), "float32")
    framed = np.pad(given, [(0, grown - channels), around, around])
    check(module, given, np.moveaxis(framed, 0, -1), task)


def test_an_image_too_narrow_for_vectors_stays() -> None:
    assert not scheduled(image(16, 3, (1, 1), 16, 16))[0]


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("shape", [(37, 23, 3, 3), (61, 40, 1, 1), (33, 50, 3), (64, 37)])
def test_weights_of_odd_channels_are_transposed_exactly(shape: tuple[int, ...], bits: int) -> None:
    """P[t, c, taps.., i] = W[t * 16 + i, c, taps..], zero beyond the channels."""
    k, c = (-(-n // 16) * 16 for n in shape[:2])
    weight = te.placeholder(shape, "float32", "weight")

    def element(t: Any, at: Any, *more: Any) -> Any:
        *taps, i = more
        row = t * 16 + i
        return guarded([row < shape[0], at < shape[1]], weight(row, at, *taps))

    out = te.compute((k // 16, c, *shape[2:], 16), element, name="panels")
    marked, module = scheduled(te.create_prim_func([weight, out]), bits)
    assert marked and "T.Shuffle" in module.script()
    given = np.random.default_rng(0).random(shape, "float32")
    grown = np.pad(given, [(0, k - shape[0]), (0, c - shape[1]), *[(0, 0)] * (len(shape) - 2)])
    check(module, given, np.moveaxis(grown, 0, -1), 16)


@pytest.mark.parametrize("step", [40, 30])
def test_a_task_of_a_row_is_a_tile_where_it_sees_no_frame(step: int) -> None:
    """Tasks of 40 of a row of 100 in frames of 7, which overlap or not: the first and the last see
    a frame."""
    row = te.placeholder((16, 100), "float32", "row")
    frame = te.compute(
        (120, 16), lambda x, c: guarded([x >= 7, x < 107], row(c, x - 7)), name="panels"
    )
    window = te.compute((3, 40, 16), lambda t, x, c: frame(t * step + x, c) + 1.0, name="window")
    sch = Schedule(te.create_prim_func([row, window]))
    task = sch.get_loops(sch.get_sblock("window"))[0]
    sch.compute_at(sch.get_sblock("panels"), task, preserve_unit_loops=True)
    assert transposition.mark(sch, sch.get_sblock("panels"), target())
    transposition.carry_out(sch)
    assert "T.Shuffle" in sch.mod.script()
    given = np.random.default_rng(0).random((16, 100), "float32")
    framed = np.pad(given, [(0, 0), (7, 13)])
    wanted = np.stack([framed[:, t * step : t * step + 40].T + np.float32(1) for t in range(3)])
    out = tvm.runtime.tensor(np.full(wanted.shape, np.nan, "float32"))
    tvm.compile(sch.mod, target="llvm")["main"](tvm.runtime.tensor(given), out)
    assert (out.numpy() == wanted).all()


def test_a_copy_that_begins_within_the_frame_reads_none_of_it() -> None:
    """Ten columns from the third of a frame of seven on: six are inside, fewer than lanes."""
    row = te.placeholder((16, 100), "float32", "row")
    frame = te.compute(
        (114, 16), lambda x, c: guarded([x >= 7, x < 107], row(c, x - 7)), name="panels"
    )
    window = te.compute((10, 16), lambda x, c: frame(x + 3, c) * 1.0, name="window")
    sch = Schedule(te.create_prim_func([row, window]))
    unit = sch.add_unit_loop(sch.get_loops(sch.get_sblock("window"))[0])
    sch.compute_at(sch.get_sblock("panels"), unit, preserve_unit_loops=True)
    transposition.mark(sch, sch.get_sblock("panels"), target())
    transposition.carry_out(sch)
    given = np.random.default_rng(0).random((16, 100), "float32")
    wanted = np.pad(given, [(0, 0), (7, 7)])[:, 3:13].T
    out = tvm.runtime.tensor(np.full(wanted.shape, np.nan, "float32"))
    tvm.compile(sch.mod, target="llvm")["main"](tvm.runtime.tensor(given), out)
    assert (out.numpy() == wanted).all()


LAYERS = [
    ("conv2d in_channels=32 out_channels=64 height=30 width=30", "winograd4"),
    ("conv2d in_channels=23 out_channels=37 height=14 width=14 padding=1", "winograd2"),
    ("conv1d in_channels=64 out_channels=64 length=392 kernel=9", "winograd12"),
    ("conv1d in_channels=17 out_channels=40 length=300 kernel=9 padding=4", "winograd6"),
    ("conv3d in_channels=16 out_channels=16 depth=6 height=10 width=12", "winograd4x4x4"),
]
"""Tasks of these read rows that overlap, in frames and without, with channels that vectors fill and
others."""


@pytest.mark.parametrize(("layer", "formulation"), LAYERS)
def test_every_program_of_copies_that_overlap_computes_the_layer(
    layer: str, formulation: str, tmp_path: Path
) -> None:
    name, *fields = layer.split()
    workload, device = Workload(parse(name, dict(f.split("=") for f in fields))), lookup("llvm")
    func = workload.prim_func(formulation)
    inputs = workload.inputs(seed=5)
    expected, runtime = workload.reference(inputs), device.runtime()
    seeds = [s for s in space(func, device).seeds if s[f"{name}_data0.source"] == "task"]
    assert seeds
    programs = seeds[:: max(len(seeds) // 4, 1)]
    for number, config in enumerate(programs):
        path = tmp_path / f"kernel{number}.so"
        compiled.build(func, device, config, path)
        out = np.full(expected.shape, np.nan, "float32")
        runtime.load(path)["main"](*map(runtime.passed, (*inputs, out)))
        assert relative_error(out, expected) < 1e-4, config
