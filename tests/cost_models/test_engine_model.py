"""The model of engines: its jumps over equal turns, bursts by counting, and how it reacts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from flextensor.cost_models import engine as model
from flextensor.cost_models.engine import Memory, Timeline, bursts, predict
from flextensor.engines import Engines
from flextensor.rtl_check import draw
from flextensor.targets import FPGA, lookup
from flextensor.targets.engine import Digits, Engine

MEMORY = Memory(latency=64, gap=4)


def drawn(count: int, seed: int) -> list[Engine]:
    target = lookup("fpga:vu9p")
    assert isinstance(target, FPGA)
    return [Engines(d.workload, target).engine(d.candidate) for d in draw(target, count, seed)]


class Followed(Timeline):
    """A timeline that carries out every turn."""

    def _repeat(self, count: int, turn: Any) -> None:
        for _ in range(count):
            turn()


def test_jumping_over_equal_turns_changes_nothing() -> None:
    for engine in drawn(24, seed=7):
        whole = Followed(engine, MEMORY).run()
        assert predict(engine, MEMORY).cycles == pytest.approx(whole.cycles, rel=1e-3)


def offsets(digits: Digits) -> Any:
    found = np.zeros(1, int)
    for extent, stride in zip(digits.extents, digits.strides, strict=True):
        found = (found[:, None] + np.arange(extent) * stride).reshape(-1)
    return found


def test_bursts_are_those_of_the_addresses() -> None:
    for engine in drawn(24, seed=8):
        rows, taps = offsets(engine.rows), offsets(engine.taps)
        counted = expected = 0.0
        for m in range(engine.m_tiles):
            for k in range(engine.k_tiles):
                own = rows[m * engine.tile_m :][: engine.tile_m]
                words = taps[k * engine.k_words :][: engine.k_words]
                addresses = (own[:, None] + words).reshape(-1)
                counted += 1 + int((np.diff(addresses) != 1).sum())
                expected += bursts(engine, len(own), len(words))
        assert expected == pytest.approx(counted, rel=0.1)


def test_a_design_that_can_only_gain_does() -> None:
    for engine in drawn(16, seed=9):
        base = predict(engine, MEMORY)
        assert base.cycles >= max(base.busy.values())
        assert base.bound in (*base.busy, "latency")
        double = dataclasses.replace(engine, a_buffers=2, b_buffers=2, c_buffers=2)
        assert predict(double, MEMORY).cycles <= base.cycles
        assert predict(engine, Memory(latency=200, gap=4)).cycles > base.cycles
        assert predict(engine, Memory(latency=64, gap=9)).cycles > base.cycles


def test_cycles_by_hand() -> None:
    """One tile of 2 x 1 words: read B waits for nothing, and all is done in turn."""
    engine = Engine(
        kind="gemm", dtype="int8", groups=Digits(), rows=Digits((2,), (3,)),
        taps=Digits((3,), (1,)), block=0, columns=1, depth=3, pe_m=1, pe_n=1, pe_k=1, m_steps=2,
        n_steps=1, k_words=3, a_port=1, b_port=1, c_port=1, a_buffers=1, b_buffers=1, c_buffers=1,
        stationary="output",
    )  # fmt: skip
    found = predict(engine, MEMORY)
    read = 2 * 3 + MEMORY.gap + MEMORY.latency + model.START
    assert found.read_a == read
    assert found.compute == 2 * 3
    assert found.write == 2 * 4 + 1
    assert found.cycles == read + found.compute + engine.pipeline + found.write
