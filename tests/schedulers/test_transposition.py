"""Copies that have rows as columns: shuffles in vector registers take the place of elements."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from transposed_copies import check, scheduled, target
from tvm import te, tirx
from tvm.s_tir import Schedule

from flextensor.schedulers import shuffles, transposition


def panels(shape: Sequence[int], rows: int, tile: int, backward: bool = False) -> Any:
    """P[t, others.., i] = W with dimension `rows` at t * tile + i, the window (dimensions after the
    first two) turned about if `backward`."""
    others = [d for d in range(len(shape)) if d != rows]
    weight = te.placeholder(shape, "float32", "weight")

    def value(t: Any, *at: Any) -> Any:
        *outer, i = at
        turned = [d > 1 and backward for d in others]
        pairs = zip(others, outer, turned, strict=True)
        place = {d: shape[d] - 1 - index if back else index for d, index, back in pairs}
        place[rows] = t * tile + i
        return weight(*[place[d] for d in range(len(shape))])

    size = [shape[rows] // tile, *(shape[d] for d in others), tile]
    return te.create_prim_func([weight, te.compute(size, value, name="panels")])


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_the_network_makes_columns_of_rows(lanes: int) -> None:
    vectors = np.arange(lanes * lanes).reshape(lanes, lanes)
    wanted = vectors.T
    rounds, where = shuffles.network(lanes)
    assert 2 ** len(rounds) == lanes
    for pairs in rounds:
        vectors = np.stack(
            [np.concatenate([vectors[a], vectors[b]])[[*mask]] for a, b, mask in pairs]
        )
    assert (vectors[[*where]] == wanted).all()


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(
    ("shape", "rows", "tile"),
    [
        ((64, 32, 3, 3), 0, 32),  # a block of channels in whole vectors of columns
        ((64, 32, 1, 1), 0, 64),
        ((48, 33), 0, 24),  # vectors of the last turn begin early
        ((48, 33), 0, 12),
        ((32, 5, 3, 3, 3), 0, 16),
        ((32, 48, 3, 3), 1, 16),  # rows shorter than vectors, one after the other
        ((3, 48, 5), 1, 48),
        ((8, 48, 2, 2), 1, 16),
        ((64, 9), 0, 16),
        ((64, 2), 0, 64),
        ((64, 32, 3, 1), 0, 32),
        ((64, 8, 3, 3, 1), 0, 16),
    ],
)
def test_panels_are_transposed_exactly(
    shape: tuple[int, ...], rows: int, tile: int, bits: int
) -> None:
    marked, module = scheduled(panels(shape, rows, tile), bits)
    assert marked
    given = np.random.default_rng(0).random(shape, "float32")
    check(module, given, np.moveaxis(given, rows, -1), tile)


@pytest.mark.parametrize("shape", [(8, 48, 3, 3), (8, 48, 3, 3, 3), (3, 64, 2), (4, 32, 4, 4)])
def test_windows_are_turned_about(shape: tuple[int, ...]) -> None:
    marked, module = scheduled(panels(shape, 1, 16, backward=True))
    assert marked
    given = np.random.default_rng(0).random(shape, "float32")
    check(module, given, np.moveaxis(np.flip(given, (*range(2, len(shape)),)), 1, -1), 16)


def test_a_vector_takes_a_load_a_store_and_a_shuffle_a_round() -> None:
    marked, module = scheduled(panels((64, 32), 0, 64))
    assert marked
    lines = [line.strip() for line in module.script().splitlines()]
    assert sum("= rows[" in line for line in lines) == 8
    assert sum("T.Shuffle" in line for line in lines) == 8 * 3
    stores = [line for line in lines if line.startswith("columns[")]
    assert len(stores) == 8
    assert all("0:8] = v" in line for line in stores)


@pytest.mark.parametrize(
    ("shape", "rows", "tile", "why"),
    [
        ((30, 32), 0, 30, "rows fill no vector"),
        ((48, 4, 3, 3), 0, 48, "windows turned about are shorter than vectors, and apart"),
        ((2, 3, 64), 2, 64, "rows lie side by side"),
    ],
)
def test_what_cannot_be_transposed_stays(
    shape: tuple[int, ...], rows: int, tile: int, why: str
) -> None:
    func = panels(shape, rows, tile, backward=True)
    marked, module = scheduled(func, 512)
    assert not marked, why
    assert module.script() == tvm.IRModule({"main": func}).script()


def test_a_column_that_is_read_along_two_dimensions_stays() -> None:
    source = te.placeholder((16, 32, 16), "float32", "source")
    diagonal = te.compute((16, 32, 16), lambda i, k, c: source(i, c, i), name="panels")
    assert not scheduled(te.create_prim_func([source, diagonal]))[0]


def test_parts_of_rows_shorter_than_vectors_stay() -> None:
    source = te.placeholder((16, 14), "float32", "source")
    pairs = te.compute((2, 16), lambda p, i: source(i, p), name="panels")
    assert not scheduled(te.create_prim_func([source, pairs]), 512)[0]


def test_a_copy_that_is_not_guarded_by_forms_stays() -> None:
    data = te.placeholder((32, 32), "float32", "data")
    even = te.compute(
        (32, 32),
        lambda k, i: tirx.if_then_else(k % 2 < 1, data(i, k), tirx.const(0, "float32")),
        name="panels",
    )
    assert not scheduled(te.create_prim_func([data, even]))[0]


def taps(channels: int, rows: int, columns: int) -> tuple[Any, Any]:
    """Rows of taps doubled as columns, scheduled so that those of a channel are copied for it
    alone; and the loop over channels."""
    weight = te.placeholder((channels, rows, columns), "float32", "weight")
    panels = te.compute((channels, columns, rows), lambda c, k, i: weight(c, i, k), name="panels")
    twice = te.compute((channels, columns, rows), lambda c, k, i: panels(c, k, i) * 2.0, "twice")
    sch = Schedule(te.create_prim_func([weight, twice]))
    channel = sch.get_loops(sch.get_sblock("twice"))[0]
    sch.compute_at(sch.get_sblock("panels"), channel, preserve_unit_loops=True)
    return sch, channel


@pytest.mark.parametrize(("columns", "lines"), [(9, 9), (32, 16)])
def test_a_copy_asks_memory_for_what_the_next_turn_reads(columns: int, lines: int) -> None:
    """16 rows of 9 taps are 9 lines, one after the other; longer rows ask for a line each in a
    turn over their columns. All of them of the next channel, and beyond the last for nothing."""
    sch, _ = taps(5, 16, columns)
    assert transposition.mark(sch, sch.get_sblock("panels"), target(512))
    transposition.carry_out(sch)
    asked = [line.strip() for line in sch.mod.script().splitlines() if "prefetch" in line]
    assert len(asked) == lines
    assert all("rows[1, " in line for line in asked)
    given = np.random.default_rng(0).random((5, 16, columns), "float32")
    out = tvm.runtime.tensor(np.full((5, columns, 16), np.nan, "float32"))
    tvm.compile(sch.mod, target="llvm")["main"](tvm.runtime.tensor(given), out)
    assert (out.numpy() == 2 * given.transpose(0, 2, 1)).all()


def test_nothing_is_asked_for_that_would_push_out_what_is_there() -> None:
    """A turn of parallel tasks is the next of nobody's, one of half of L2 leaves no room."""
    for parallel, l2 in ((True, 1 << 20), (False, 2 * 4 * 16 * 9)):
        sch, channel = taps(5, 16, 9)
        if parallel:
            sch.parallel(channel)
        small = dataclasses.replace(target(512), l2_bytes=l2)
        assert transposition.mark(sch, sch.get_sblock("panels"), small)
        transposition.carry_out(sch)
        assert "prefetch" not in sch.mod.script()
