"""Neighbours along a reduction that lie together, for instructions that sum their products."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx

from flextensor.schedulers.program import Iterator


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbours along the reduction that one instruction multiplies and sums, of all lanes.

    An iterator of `extent` elements is ``whole * size + var``: packed, a group lies together,
    innermost, the last one filled up with zeros.

        P[.., k, i]   ->   P[.., k // size, i, k % size]

    Where `part` elements fill a word of 32 bits, words are packed: `across`, those of neighbours
    along the side lie together, else those of a group. A value that is stored in several terms,
    of which it is the sum, has them before.

        P[.., k, i]   ->   P[.., k // size, term, k % size // part, i]      across
        P[.., k, i]   ->   P[.., k // size, term, i, k % size // part]
    """

    whole: Iterator
    var: Any
    size: int
    extent: int
    part: int = 0
    """0: elements are packed, and not words."""
    across: bool = False
    term: Any = None
    """The variable of the term, where there are several."""
    terms: int = 1

    def place(self, tile: int) -> list[int]:
        """Extents of the last dimensions, of `tile` neighbours along the side."""
        if not self.part:
            return [tile, self.size]
        words = self.size // self.part
        terms = [self.terms] if self.terms > 1 else []
        return [*terms, words, tile] if self.across else [*terms, tile, words]

    def indices(self, i: Any, k: Mapping[Any, Any]) -> list[Any]:
        """Indices of those dimensions, of element i at given values of `term` and `var`."""
        if not self.part:
            return [i, k[self.var]]
        word = k[self.var] // self.part
        return [
            *([k[self.term]] if self.terms > 1 else []),
            *((word, i) if self.across else (i, word)),
        ]

    def element(self, place: Sequence[Any]) -> Any:
        """The neighbour along the side, of such indices."""
        return place[-1] if self.across else place[-2]

    def members(self, place: Sequence[Any]) -> list[dict[Any, Any]]:
        """Values of `term` and `var` of what is stored there, lowest bits first."""
        if not self.part:
            return [{self.var: place[-1]}]
        word = place[-2] if self.across else place[-1]
        term = {self.term: place[0]} if self.terms > 1 else {}
        return [term | {self.var: word * self.part + e} for e in range(self.part)]

    def inside(self, whole: Any, var: Any, groups: int) -> list[Any]:
        """What holds of an element that is no filling, of so many groups."""
        return [whole * self.size + var < self.extent] if groups * self.size != self.extent else []


def word(elements: Sequence[Any]) -> Any:
    """A word of 32 bits of elements that fill it, the first one lowest."""
    bits = 32 // len(elements)
    found = tirx.const(0, "uint32")
    for position, element in enumerate(elements):
        whole = element.astype(f"uint{bits}").astype("uint32")
        found = found | (whole << tirx.const(bits * position, "uint32"))
    return found


def in_word(stored: Any, position: Any, dtype: str) -> Any:
    """An element of a word: int8, or the uint16 that a bfloat16 is stored as."""
    bits = 8 if dtype == "int8" else 16
    return (stored >> (position * bits).astype("uint32")).astype(dtype)
