"""How many cycles an engine takes: every unit's time for a tile, and who waits for whom.

The paper has time = workload / #PE * max(R, C, W). This is the same idea, for tiles that need not
divide and buffers that need not be double. What a tile takes, in cycles:

    read A   rows * words * beats + gap * bursts + latency + START
             `beats` of the port for a word; each burst, that is each address that does not
             follow the last one, closes the port for `gap` cycles; the first beat comes
             `latency` after its request
    read B   column steps * words * beats + latency + START, one burst that goes on from tile to
             tile; + gap where B is read again from its first tile
    compute  row steps * column steps * words, a word a cycle; then the pipeline drains:
             read, multiply, one cycle for each level of the adder tree, accumulate
    write    row steps * column steps * beats + 1

and when it begins, for tile step t, with 1 or 2 buffers:

    read A, B   when the port is done with the tile before, and the buffer is free: its last
                tile, 1 or 2 before, was computed
    compute     when the pipeline has drained, the tiles of A and B are there, and, where a sum
                begins, a buffer of C is free
    write       when the last tile of the reduction is summed, and the port is done

For float32 this is optimistic: an adder of several cycles accumulates a word a cycle only where
sums are interleaved, which neither the model nor the HLS source does.

A loop whose turns all take the same time is not followed to its end: `_repeat` jumps. Nothing is
fitted to a measurement; `results/fpga` has the model beside simulated RTL.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

from flextensor.targets.engine import Digits, Engine
from flextensor.targets.rounding import ceil_div

START = 3
"""Cycles of a tile's read beside its beats: the buffer is seen to be free, the request and the
beat that comes are registered."""
Times = tuple[float, ...]
"""The numbers of a `State`."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the model knows of memory, in cycles: see `flextensor.targets.fpga`."""

    latency: int
    gap: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Cycles in all, and what each unit is busy for."""

    cycles: float
    read_a: float
    read_b: float
    compute: float
    write: float

    @property
    def bound(self) -> str:
        """The busiest unit, or ``latency`` where units wait for each other most of the time."""
        busy = self.busy
        name = max(busy, key=lambda n: busy[n])
        return name if busy[name] > self.cycles / 2 else "latency"

    @property
    def busy(self) -> Mapping[str, float]:
        """Cycles by unit."""
        return {n: getattr(self, n) for n in ("read_a", "read_b", "compute", "write")}


@dataclasses.dataclass
class State:
    """When the units are free, and what they were busy for so far.

    `a_free`, `b_free` and `c_free` hold, oldest first, when each half of a buffer is free.
    """

    a_port: float = 0.0
    b_port: float = 0.0
    c_port: float = 0.0
    array: float = 0.0
    a_free: tuple[float, ...] = ()
    b_free: tuple[float, ...] = ()
    c_free: tuple[float, ...] = ()
    busy: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)

    def numbers(self) -> Times:
        """All of it as one vector."""
        return (
            self.a_port, self.b_port, self.c_port, self.array,
            *self.a_free, *self.b_free, *self.c_free, *self.busy,
        )  # fmt: skip

    def add(self, change: Times, times: int) -> None:
        """Move on by `times` turns that each add `change`."""
        moved = [n + times * c for n, c in zip(self.numbers(), change, strict=True)]
        self.a_port, self.b_port, self.c_port, self.array, *rest = moved
        a, b, c = len(self.a_free), len(self.b_free), len(self.c_free)
        self.a_free, self.b_free = tuple(rest[:a]), tuple(rest[a : a + b])
        self.c_free, self.busy = tuple(rest[a + b : a + b + c]), tuple(rest[a + b + c :])


class Timeline:
    """The tile steps of one engine, carried out in order on a `State`."""

    def __init__(self, engine: Engine, memory: Memory) -> None:
        self.engine, self.memory = engine, memory
        self._tiles: dict[tuple[bool, ...], TileTimes] = {}
        self.state = State(
            a_free=(0.0,) * engine.a_buffers,
            b_free=(0.0,) * engine.b_buffers,
            c_free=(0.0,) * engine.c_buffers,
        )

    def run(self) -> Prediction:
        """All groups."""
        groups, outer, *_ = self.engine.loops
        self._repeat(groups, lambda: self._edges(outer, self._outer))
        return Prediction(self.state.c_port, *self.state.busy)

    def _tile(self, *edges: bool) -> TileTimes:
        """Cycles of a tile that is the last one along m, n and k, or not."""
        if edges not in self._tiles:
            self._tiles[edges] = tile_times(self.engine, self.memory, *edges)
        return self._tiles[edges]

    def _repeat(self, count: int, turn: Callable[[], None]) -> None:
        """`count` turns; once two in a row have the same effect the rest have it too."""
        if count < 3:
            for _ in range(count):
                turn()
            return
        last: Times = ()
        before = self.state.numbers()
        for done in range(1, count + 1):
            turn()
            now = self.state.numbers()
            change = tuple(b - a for a, b in zip(before, now, strict=True))
            if change == last:
                self.state.add(change, count - done)
                return
            before, last = now, change

    def _edges(self, count: int, turn: Callable[[bool, bool], None]) -> None:
        """`count` turns, each told whether it is the first, and the last."""
        if count == 1:
            return turn(True, True)
        turn(True, False)
        self._repeat(count - 2, lambda: turn(False, False))
        turn(False, True)

    def _outer(self, first: bool, last: bool) -> None:
        inner, k = self.engine.loops[2:]
        weight = self.engine.stationary == "weight"

        def columns(inner_first: bool, inner_last: bool) -> None:
            m_edge, n_edge = (inner_last, last) if weight else (last, inner_last)
            self._edges(
                k, lambda *ends: self._step(m_edge, n_edge, (inner_first, inner_last), ends)
            )

        self._edges(inner, columns)

    def _step(
        self, m_edge: bool, n_edge: bool, inner: tuple[bool, bool], k: tuple[bool, bool]
    ) -> None:
        """One tile step; `inner` and `k` say whether the loop is at its first and last turn."""
        state, order = self.state, self.engine.stationary
        tile = self._tile(m_edge, n_edge, k[1])
        read_a, read_b, compute, write = state.busy
        if order != "input" or inner[0]:
            state.a_port = max(state.a_port, state.a_free[0]) + tile.read_a
            read_a += tile.read_a
        if order != "weight" or inner[0]:
            again = self.memory.gap if inner[0] and k[0] and order != "weight" else 0
            state.b_port = max(state.b_port, state.b_free[0]) + tile.read_b + again
            read_b += tile.read_b + again
        begin = max(state.array, state.a_port, state.b_port, state.c_free[0] if k[0] else 0.0)
        issued = begin + 1 + tile.compute
        state.array = issued + self.engine.pipeline - 1
        compute += tile.compute
        if order != "input" or inner[1]:
            state.a_free = (*state.a_free[1:], issued)
        if order != "weight" or inner[1]:
            state.b_free = (*state.b_free[1:], issued)
        if k[1]:
            state.c_port = max(state.c_port, state.array) + tile.write
            state.c_free = (*state.c_free[1:], state.c_port)
            write += tile.write
        state.busy = read_a, read_b, compute, write


@dataclasses.dataclass(frozen=True)
class TileTimes:
    """Cycles of the units for one tile."""

    read_a: float
    read_b: float
    compute: float
    write: float


def predict(engine: Engine, memory: Memory) -> Prediction:
    """The cycles of a design; takes a fraction of a millisecond."""
    return Timeline(engine, memory).run()


def tile_times(
    engine: Engine, memory: Memory, m_edge: bool, n_edge: bool, k_edge: bool
) -> TileTimes:
    """What each unit takes for a tile, the last one along a loop or not."""
    rows = engine.m_edge if m_edge else engine.tile_m
    row_steps = ceil_div(rows, engine.pe_m)
    columns = engine.n_edge if n_edge else engine.n_steps
    words = engine.k_edge if k_edge else engine.k_words
    wait = memory.latency + START
    return TileTimes(
        rows * words * engine.a_beats + memory.gap * bursts(engine, rows, words) + wait,
        columns * words * engine.b_beats + wait,
        row_steps * columns * words,
        row_steps * columns * engine.c_beats + 1,
    )


def bursts(engine: Engine, rows: int, words: int) -> float:
    """Addresses in a tile of A that do not follow the one before, on average over the tiles.

    Within a row: where a digit of the taps counts on whose step is not 1, unless there the tile
    ends. Between rows: always, unless the step to the next row is what a tile's words span.
    """
    span = _offset(engine.taps, words - 1) + 1
    joined = sum(n for n, step in _carries(engine.rows) if step == span)
    share = joined / max(engine.rows.count - 1, 1)
    return rows * (1 + _breaks(engine.taps, engine.k_words)) - (rows - 1) * share


@functools.lru_cache(maxsize=4096)
def _breaks(taps: Digits, words: int) -> float:
    """Steps other than 1 within a tile of `words`, on average over all tiles of the taps."""
    tiles, total, period = ceil_div(taps.count, words), 0, taps.count
    for extent, step in zip(taps.extents, taps.steps, strict=True):
        outer, period = period, period // extent
        if step != 1:
            total += _multiples(taps.count, period, words) - _multiples(taps.count, outer, words)
    return total / tiles


def _multiples(count: int, period: int, words: int) -> int:
    """Multiples of `period` between 0 and `count` (not included) that are none of `words`."""
    return (count - 1) // period - (count - 1) // math.lcm(period, words)


def _carries(digits: Digits) -> list[tuple[int, int]]:
    """(how often, step) of every digit's counting on, over all values."""
    found, outer = [], 1
    for extent, step in zip(digits.extents, digits.steps, strict=True):
        found.append((outer * (extent - 1), step))
        outer *= extent
    return found


def _offset(digits: Digits, index: int) -> int:
    """The offset of value number `index`."""
    total = 0
    for extent, stride in zip(reversed(digits.extents), reversed(digits.strides), strict=True):
        index, digit = divmod(index, extent)
        total += digit * stride
    return total
