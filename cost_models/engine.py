"""How many cycles an engine takes: read, compute and write time of a tile, overlapped or not.

The paper has time = workload / #PE * max(R, C, W). This is the same idea, for tiles that need not
divide and buffers that need not be double. Per tile step, in cycles:

    read A   rows * words * beats + gap * bursts + latency + 3
             one port; `beats` cycles for a word; every burst, that is every address that does
             not follow the last one, closes the port for `gap` cycles; the first beat comes
             `latency` after its request; 3 to start and to register
    read B   words * column steps * beats + latency + 3, in one burst that goes on from tile to
             tile; + gap where B is read again from its start
    compute  row steps * column steps * words + pipeline: a word a cycle, then the pipeline drains
    write    row steps * column steps * beats + 1, once the last tile of the reduction is summed

A step takes the longest of what runs beside each other. Reading into the other half of a double
buffer runs beside computing; into a single one it comes before:

    step  =  max(compute, each of read A, read B: double ? read : read + compute)
    tile  =  max(sum of steps over k, double C ? write : sum of steps + what is left of write)

The whole is the first read, all steps, and the last write. Nothing is fitted to a measurement.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from flextensor.targets.engine import Digits, Engine, ceil_div

START = 3
"""Cycles from a free buffer to the first request, and from the last beat to a full buffer."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the model knows of memory, in cycles: see `flextensor.targets.fpga`."""

    latency: int
    gap: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Cycles in all, and what each unit is busy for; `bound` is the unit that binds."""

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


@dataclasses.dataclass(frozen=True)
class Part:
    """Tiles of one size along one loop: how many, and whether they are the last ones."""

    count: int
    edge: bool


def parts(tiles: int) -> tuple[Part, ...]:
    """The full tiles, if any, and the last one."""
    return (Part(tiles - 1, False), Part(1, True)) if tiles > 1 else (Part(1, True),)


@dataclasses.dataclass(frozen=True)
class Step:
    """Cycles of the units for one tile step."""

    read_a: float
    read_b: float
    compute: float


def predict(engine: Engine, memory: Memory) -> Prediction:
    """The cycles of a design. Takes tens of microseconds."""
    total = read_a = read_b = compute = write = 0.0
    a_reads, b_reads = _reads(engine)
    first = last_write = 0.0
    for m, n in itertools.product(parts(engine.m_tiles), parts(engine.n_tiles)):
        count = engine.groups.count * m.count * n.count
        steps = [(k, _step(engine, memory, m.edge, n.edge, k.edge)) for k in parts(engine.k_tiles)]
        store = _write(engine, m.edge, n.edge)
        total += count * _tile(engine, steps, store)
        for k, step in steps:
            read_a += count * k.count * step.read_a * a_reads
            read_b += count * k.count * step.read_b * b_reads
            compute += count * k.count * step.compute
        write += count * store
        first = first or max(steps[0][1].read_a, steps[0][1].read_b)
        last = steps[-1][1]
        last_write = store + last.compute - _period(engine, last)
    return Prediction(total + first + last_write, read_a, read_b, compute, write)


def _reads(engine: Engine) -> tuple[float, float]:
    """The share of the tile steps in which A and B are read."""
    steps = math.prod(engine.loops)
    return math.prod(engine.a_loops) / steps, math.prod(engine.b_loops) / steps


def _tile(engine: Engine, steps: list[tuple[Part, Step]], store: float) -> float:
    """Cycles from one output tile to the next."""
    periods = sum(k.count * _period(engine, step) for k, step in steps)
    if engine.c_buffers == 2:
        return max(periods, store)
    idle = max(0.0, _period(engine, steps[0][1]) - steps[0][1].compute)
    return periods + max(0.0, store - idle)


def _period(engine: Engine, step: Step) -> float:
    """Cycles from one tile step to the next."""
    a_reads, b_reads = _reads(engine)
    times = [step.compute]
    for read, share, buffers in (
        (step.read_a, a_reads, engine.a_buffers),
        (step.read_b, b_reads, engine.b_buffers),
    ):
        if buffers == 2:
            times.append(read * share)
        else:
            times.append(read * share + step.compute)
    return max(times)


def _step(engine: Engine, memory: Memory, m_edge: bool, n_edge: bool, k_edge: bool) -> Step:
    rows = engine.m_edge if m_edge else engine.tile_m
    row_steps = ceil_div(rows, engine.pe_m)
    columns = engine.n_edge if n_edge else engine.n_steps
    words = engine.k_edge if k_edge else engine.k_words
    wait = memory.latency + START
    again = engine.m_tiles > 1 and engine.stationary != "weight" and engine.k_tiles == 1
    return Step(
        rows * words * engine.a_beats + memory.gap * bursts(engine, rows, words) + wait,
        columns * words * engine.b_beats + wait + memory.gap * (again / engine.n_tiles),
        row_steps * columns * words + engine.pipeline,
    )


def _write(engine: Engine, m_edge: bool, n_edge: bool) -> float:
    rows = engine.m_edge if m_edge else engine.tile_m
    columns = engine.n_edge if n_edge else engine.n_steps
    return ceil_div(rows, engine.pe_m) * columns * engine.c_beats + 1


def bursts(engine: Engine, rows: int, words: int) -> float:
    """Addresses in a tile of A that do not follow the one before, on average.

    A row breaks where a digit of the taps counts on whose stride is not what the inner digits
    span; between two rows there is a break unless the next row begins where this one ends.
    """
    within = sum(count for count in _breaks(engine.taps)) / engine.taps.count
    inside = within * (words - 1) if words < engine.taps.count else sum(_breaks(engine.taps))
    joined = words == engine.taps.count and not engine.depthwise and _joins(engine)
    if joined:
        return 1 + rows * inside
    return rows * (1 + inside)


def _breaks(digits: Digits) -> Iterator[int]:
    """For every digit, how often its counting on breaks the run of addresses."""
    outer = 1
    for extent, step in zip(digits.extents, digits.steps, strict=True):
        if step != 1:
            yield outer * (extent - 1)
        outer *= extent


def _joins(engine: Engine) -> bool:
    """Whether the word after a row's last is the next row's first."""
    span = sum((e - 1) * s for e, s in zip(engine.taps.extents, engine.taps.strides, strict=True))
    return bool(engine.rows.strides) and engine.rows.strides[-1] == span + 1
