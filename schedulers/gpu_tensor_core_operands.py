"""How the operands of a contraction on matrix units lie in memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tvm import tirx

from flextensor.schedulers.analysis import Contraction, Operand, operand_of, points
from flextensor.schedulers.expression import address
from flextensor.schedulers.gpu_loops import flatten
from flextensor.schedulers.layouts import Side, unflatten
from flextensor.schedulers.program import Iterator
from flextensor.targets.rounding import round_up

WIDTHS = (8, 4, 2, 1)
"""Elements of a vector that is copied into a panel."""


HALF = ("float16", "bfloat16")
"""Dtypes of two bytes whose products matrix units sum in float32."""


def half(operand: Operand) -> Operand | None:
    """float32(half) -> half: the operand as it goes into a panel, or None for another."""
    if not isinstance(operand.value, tirx.Cast):
        return None
    value = operand.value.value
    if str(value.ty) not in HALF:
        return None
    return operand_of(value, operand.iterators)


def run(operand: Operand, inputs: tuple[Any, ...], along: tuple[Iterator, ...]) -> tuple[int, int]:
    """How many of the last iterators `along` a panel's rows walk memory as one would, and how many
    elements lie side by side, at a whole number of vectors, wherever a vector of a row starts;
    (0, 1) for what is no load of an input, and is gathered."""
    if operand.access is None or operand.buffer not in inputs:
        return 0, 1
    shape = [int(n) for n in operand.buffer.shape]
    flat = address(operand.access, shape)
    return walk(dict(flat.terms), [flat.constant, math.prod(shape)], along)


def along_k(side: Side) -> bool:
    """Whether neighbours in memory differ in the reduction alone."""
    access, own = side.operand.access, {i.var for i in side.iterators}
    return access is not None and not own & set(access[-1].terms)


def sliding(side: Side) -> tuple[Iterator, ...]:
    """The iterators of the reduction that share a dimension with the side's own: the taps of a
    window. Where they are outermost, the elements of a panel differ by a channel, a constant step
    in memory, and what is inside the image is known once for all of them."""
    own = {i.var for i in side.iterators}
    forms = [f for f in side.operand.access or () if own & set(f.terms)]
    return tuple(i for i in side.k if any(i.var in f.terms for f in forms))


@dataclasses.dataclass(frozen=True)
class Laid:
    """An operand copied such that what the reduction sums beside a window's taps lies together,
    a whole number of vectors, zero beyond its end.

        data[n, c, y + r, x + s]   ->   L[batch, (n, y + r, x + s), c]

    A panel of it has its elements as rows, for one tap or a few, and is copied in vectors.
    """

    operand: Operand
    leading: tuple[Iterator, ...]
    """Of the batch, those that are addressed together with what is summed: groups."""
    outer: tuple[int, ...]
    """Dimensions of the operand's buffer that are rows of the copy."""
    taps: tuple[Iterator, ...]
    inner: tuple[Iterator, ...]
    """Of the reduction: what moves a row, and what moves along a row."""

    @classmethod
    def of(cls, side: Side) -> Laid | None:
        """The copy of a side's operand; None where there is no such one."""
        access, taps = side.operand.access, sliding(side)
        if access is None or side.own_k != side.k:
            return None
        inner = tuple(i for i in side.k if i not in taps)
        moved, along = {i.var for i in (*side.iterators, *taps)}, {i.var for i in inner}
        outer = tuple(d for d, form in enumerate(access) if not along & set(form.terms))
        rest = [form for d, form in enumerate(access) if d not in outer]
        if not inner or any(moved & set(form.terms) for form in rest):
            return None
        leading = tuple(b for b in side.own_batch if any(b.var in f.terms for f in rest))
        return cls(side.operand, leading, outer, taps, inner)

    @property
    def depth(self) -> int:
        """Elements of a row that are of the operand."""
        return points(self.inner)

    @property
    def row(self) -> int:
        """Elements of a row."""
        return round_up(self.depth, WIDTHS[0])

    @property
    def shape(self) -> list[int]:
        """Extents of the dimensions that are rows."""
        return [int(self.operand.buffer.shape[d]) for d in self.outer]

    @property
    def rows(self) -> int:
        """Rows of one of the batch."""
        return math.prod(self.shape)

    @property
    def order(self) -> tuple[Iterator, ...]:
        """The reduction in the order of the copy, the last one a row."""
        return (*self.taps, *self.inner)

    def k(self, flat: Any) -> tuple[dict[Any, Any], list[Any]]:
        """The iterators of the reduction at a flat index of it, and what holds inside of a row."""
        *taps, along = unflatten(flat, [*(i.extent for i in self.taps), self.row])
        inner, inside = self.along(along)
        return {i.var: v for i, v in zip(self.taps, taps, strict=True)} | inner, inside

    def along(self, index: Any) -> tuple[dict[Any, Any], list[Any]]:
        """The iterators of the reduction at an element of a row, and what holds there."""
        values = unflatten(index, [i.extent for i in self.inner])
        at = {i.var: v for i, v in zip(self.inner, values, strict=True)}
        return at, [index < self.depth] if self.row != self.depth else []

    def place(self, at: dict[Any, Any]) -> Any:
        """The row that iterators address."""
        assert self.operand.access is not None
        return flatten([self.operand.access[d].at(at) for d in self.outer], self.shape)

    def together(self, own: tuple[Iterator, ...]) -> int:
        """How many of the last iterators of a side walk the rows as one would."""
        assert self.operand.access is not None
        flat = address([self.operand.access[d] for d in self.outer], self.shape)
        return walk(dict(flat.terms), [], own)[0]

    def value(self, batch: dict[Any, Any], row: Any, along: Any, load: Any) -> Any:
        """The operand at an element of the copy."""
        assert self.operand.access is not None
        places = dict(zip(self.outer, unflatten(row, self.shape), strict=True))
        at, inside = self.along(along)
        at |= batch
        indices = [
            places[d] if d in places else form.at(at) for d, form in enumerate(self.operand.access)
        ]
        return inside, load(self.operand.buffer, indices)


def written(found: Contraction, side: Side) -> int:
    """Elements of the output that lie side by side along a side, as a vector of sums can be."""
    terms: dict[Any, int] = {}
    pitch = 1
    for iterator in reversed([i for parts in found.outputs for i in parts]):
        terms[iterator.var], pitch = pitch, pitch * iterator.extent
    return min(walk(terms, [pitch], side.iterators)[1], 4)  # 16 bytes of float32


def walk(terms: dict[Any, int], steps: list[int], along: tuple[Iterator, ...]) -> tuple[int, int]:
    """Of a flat address, a sum of `terms` and of constant `steps`: how many of the last iterators
    in a row are one walk through memory, and the widest vector that never leaves it."""
    run, count = 1, 0
    for iterator in reversed(along):
        if terms.get(iterator.var) != run:
            break
        run, count = run * iterator.extent, count + 1
        del terms[iterator.var]
    return count, next(w for w in WIDTHS if all(s % w == 0 for s in (run, *steps, *terms.values())))


def places(flat: Any, own: tuple[Iterator, ...], together: int) -> dict[Any, Any]:
    """The iterators at a flat index. The last `together` of them are one walk through memory:
    all of it is the last one's, which leaves its extent, and the address is simple.

        c, r, s of 8 x 3 x 3, all together:   c = 0, r = 0, s = flat
    """
    first = len(own) - max(together, 1)
    extents = [i.extent for i in own]
    values = unflatten(flat, [*extents[:first], math.prod(extents[first:])])
    at = {i.var: v for i, v in zip((*own[:first], own[-1]), values, strict=True)}
    return at | {i.var: 0 for i in own[first:-1]}
