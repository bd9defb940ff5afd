"""Square matrices transposed in vector registers, by shuffles of pairs of vectors.

Rows are interleaved within parts of 128 bits, and these then dealt out, which CPUs do in one
instruction each (``vunpcklps``, ``vunpcklpd``, ``vshuff32x4``).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

DTYPE = "float32"
"""What is transposed."""
PART = 4
"""Elements of 128 bits, within which rows are interleaved."""

Shuffle = tuple[int, int, tuple[int, ...]]
"""Two vectors, and which of their elements, counted through both, make up the new one."""


@functools.cache
def network(lanes: int) -> tuple[tuple[tuple[Shuffle, ...], ...], tuple[int, ...]]:
    """(rounds of shuffles that make `lanes` vectors of those before, of rows in the first round;
    where the column 0, 1, .. is in the end)."""
    vectors = [[(row, column) for column in range(lanes)] for row in range(lanes)]
    rounds, apart = list[tuple[Shuffle, ...]](), 1
    while apart < lanes:
        found: list[Shuffle] = [(0, 0, ())] * lanes
        for a in (row for row in range(lanes) if not row & apart):
            for half, mask in enumerate(_masks(lanes, apart)):
                found[a + half * apart] = a, a + apart, mask
        vectors = [[(vectors[a] + vectors[b])[p] for p in mask] for a, b, mask in found]
        rounds.append(tuple(found))
        apart *= 2
    columns = [vector[0][1] for vector in vectors]
    return tuple(rounds), tuple(columns.index(column) for column in range(lanes))


def _masks(lanes: int, apart: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The elements that two vectors take of two whose rows are so far apart."""
    parts = [range(p, p + PART) for p in range(0, 2 * lanes, PART)]
    if apart >= PART:
        even, odd = (itertools.chain(*parts[half::2]) for half in (0, 1))
        return tuple(even), tuple(odd)
    own, other = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    low, high = list[int](), list[int]()
    for mine, theirs in zip(own, other, strict=True):
        for mask, half in ((low, 0), (high, PART // 2)):
            for p in range(half, half + PART // 2, apart):
                mask += [*mine[p : p + apart], *theirs[p : p + apart]]
    return tuple(low), tuple(high)


class Vectors:
    """Vectors of so many `lanes`, and the statements that make them."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.made = lanes, list[Any]()

    def _held(self, value: Any) -> Any:
        var = tirx.Var(f"v{len(self.made)}", f"{DTYPE}x{self.lanes}")
        self.made.append(tirx.Bind(var, value))
        return var

    def load(self, buffer: Any, place: Sequence[Any], begin: Any, ahead: int = 0) -> Any:
        """What lies at a place, from `begin` on, without the first elements that are `ahead`."""
        vector = self._held(tirx.BufferLoad(buffer, [*place, tirx.Ramp(begin, 1, self.lanes)]))
        mask = [min(p + ahead, self.lanes - 1) for p in range(self.lanes)]
        return self._held(tirx.Shuffle([vector], mask)) if ahead else vector

    def transposed(self, row: Callable[[int], Any], columns: int) -> list[Any]:
        """The first columns of a matrix, given what loads a row."""
        rounds, where = network(self.lanes)

        @functools.cache
        def vector(done: int, number: int) -> Any:
            if not done:
                return row(number)
            a, b, mask = rounds[done - 1][number]
            return self._held(tirx.Shuffle([vector(done - 1, a), vector(done - 1, b)], mask))

        return [vector(len(rounds), place) for place in where[:columns]]
