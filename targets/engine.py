"""A tuned FPGA design: one contraction on an array of multipliers, with everything that sizes it.

    memory -> row loader  -> A: pe_m banks, a word is pe_k elements ------\
    memory -> word loader -> B: one bank, a word is pe_k * pe_n elements -> array -> C -> memory

A tile step multiplies tile_m rows by tile_n columns over tile_k words. The three units run on
different tiles at the same time where their buffers are double. Nothing here knows of TVM: an
`Engine` is numbers, from which the Verilog, the HLS source, the resources and the time follow.

Two kinds of array share loaders, buffers and store:

    gemm        C[m, n] += sum over lanes p of A[m, k, p] * B[k, p, n]         pe_m * pe_n * pe_k
    depthwise   C[m, n] += A[m, k, n] * B[k, n], for lanes n are channels      pe_m * pe_n
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from flextensor.targets.rounding import ceil_div

BYTES = {"int8": 1, "int16": 2, "float32": 4}
"""Bytes of an operand's element."""
SUM_BYTES = {"int8": 4, "int16": 6, "float32": 4}
"""Bytes of an accumulator: 2**15 products of int16 need 48 bits, which a DSP block has."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """A nest of counters, outermost first: `offset = sum(digit * stride)`.

    What im2col comes to in hardware: rows count (image, y, x), taps count (r, s, word), and each
    has a stride in memory.
    """

    extents: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Values that the nest runs through."""
        return math.prod(self.extents)

    def scaled(self, factor: int, inner: int = 1) -> Digits:
        """Strides times `factor`, with one more innermost digit of stride 1 if `inner` > 1."""
        last = ((inner,), (1,)) if inner > 1 else ((), ())
        return Digits(self.extents + last[0], tuple(s * factor for s in self.strides) + last[1])

    @property
    def steps(self) -> tuple[int, ...]:
        """What is added to the offset when digit i counts on and all inner ones go back to 0."""
        back = [
            sum((e - 1) * s for e, s in zip(self.extents[i:], self.strides[i:], strict=True))
            for i in range(1, len(self.extents) + 1)
        ]
        return tuple(s - b for s, b in zip(self.strides, back, strict=True))


@dataclasses.dataclass(frozen=True)
class Engine:
    """One design. Sizes are in elements, words or bytes as said; addresses of A are in words.

    `groups`, `rows` and `taps` give the address of the word of A for a group, a row m and a step
    of the reduction, `block` how far apart two blocks of columns are in it (0 where all columns
    read the same word); `depth` is the number of scalar products that one output sums; `columns`
    is N. `*_port` are bytes that a memory port moves per cycle, `*_buffers` 1 (single) or 2
    (double). `stationary` is the order of the tile steps, innermost last:

        output   m, n, k    both tiles are read in every step, a sum stays on the chip
        input    m, n       the reduction is whole in a tile; a tile of A is read once
        weight   n, m       the same; a tile of B is read once
    """

    kind: str
    dtype: str
    groups: Digits
    rows: Digits
    taps: Digits
    block: int
    columns: int
    depth: int
    pe_m: int
    pe_n: int
    pe_k: int
    m_steps: int
    n_steps: int
    k_words: int
    a_port: int
    b_port: int
    c_port: int
    a_buffers: int
    b_buffers: int
    c_buffers: int
    stationary: str

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Engine:
        """The engine that `dataclasses.asdict` wrote, also after JSON."""
        digits = {
            name: Digits(tuple(values[name]["extents"]), tuple(values[name]["strides"]))
            for name in ("groups", "rows", "taps")
        }
        return cls(**{**values, **digits})

    @property
    def depthwise(self) -> bool:
        """Whether lanes are channels, and not terms of a sum."""
        return self.kind == "depthwise"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the workload."""
        return self.groups.count * self.rows.count * self.columns * self.depth

    @property
    def multipliers(self) -> int:
        """Processing elements: products per cycle."""
        return self.pe_m * self.pe_n * self.pe_k

    @property
    def tile_m(self) -> int:
        """Rows of a tile."""
        return self.pe_m * self.m_steps

    @property
    def tile_n(self) -> int:
        """Columns of a tile."""
        return self.pe_n * self.n_steps

    @cached_property
    def m_tiles(self) -> int:
        """Tiles along the rows."""
        return ceil_div(self.rows.count, self.tile_m)

    @cached_property
    def n_tiles(self) -> int:
        """Tiles along the columns."""
        return ceil_div(self.columns, self.tile_n)

    @cached_property
    def k_tiles(self) -> int:
        """Tiles along the reduction."""
        return ceil_div(self.taps.count, self.k_words)

    @property
    def m_edge(self) -> int:
        """Rows of the last tile."""
        return self.rows.count - (self.m_tiles - 1) * self.tile_m

    @property
    def n_edge(self) -> int:
        """Column steps of the last tile."""
        return ceil_div(self.columns - (self.n_tiles - 1) * self.tile_n, self.pe_n)

    @property
    def k_edge(self) -> int:
        """Words of the last tile."""
        return self.taps.count - (self.k_tiles - 1) * self.k_words

    @property
    def a_word(self) -> int:
        """Bytes of a word of A: what one bank gives the array in a cycle."""
        return (self.pe_n if self.depthwise else self.pe_k) * BYTES[self.dtype]

    @property
    def b_word(self) -> int:
        """Bytes of a word of B."""
        return self.pe_n * self.pe_k * BYTES[self.dtype]

    @property
    def c_word(self) -> int:
        """Bytes of a word of C: all accumulators."""
        return self.pe_m * self.pe_n * SUM_BYTES[self.dtype]

    @property
    def a_beats(self) -> int:
        """Cycles of the port for a word of A."""
        return ceil_div(self.a_word, self.a_port)

    @property
    def b_beats(self) -> int:
        """Cycles of the port for a word of B."""
        return ceil_div(self.b_word, self.b_port)

    @property
    def c_beats(self) -> int:
        """Cycles of the port for a word of C."""
        return ceil_div(self.c_word, self.c_port)

    @property
    def tree(self) -> int:
        """Levels of the adder tree over the lanes, one register each."""
        return (self.pe_k - 1).bit_length()

    @property
    def pipeline(self) -> int:
        """Cycles from an address to the sum in the buffer: read, multiply, tree, accumulate."""
        return 3 + self.tree

    @property
    def loops(self) -> tuple[int, int, int, int]:
        """Tile steps as nested counters: groups, outer, inner, k."""
        outer, inner = self.m_tiles, self.n_tiles
        if self.stationary == "weight":
            outer, inner = inner, outer
        return self.groups.count, outer, inner, self.k_tiles

    @property
    def a_loops(self) -> tuple[int, int, int, int]:
        """The steps in which a tile of A is read."""
        groups, outer, inner, k = self.loops
        return (groups, outer, 1, 1) if self.stationary == "input" else (groups, outer, inner, k)

    @property
    def b_loops(self) -> tuple[int, int, int, int]:
        """The steps in which a tile of B is read."""
        groups, outer, inner, k = self.loops
        return (groups, outer, 1, 1) if self.stationary == "weight" else (groups, outer, inner, k)

    @property
    def words(self) -> tuple[int, int, int]:
        """Words that the buffers of A (each bank), B and C hold."""
        return (
            self.a_buffers * self.m_steps * self.k_words,
            self.b_buffers * self.n_steps * self.k_words,
            self.c_buffers * self.m_steps * self.n_steps,
        )
