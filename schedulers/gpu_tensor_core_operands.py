"""How the operands of a contraction on matrix units lie in memory."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.analysis import Contraction, Operand
from flextensor.schedulers.expression import Linear, linear
from flextensor.schedulers.layouts import Side, unflatten
from flextensor.schedulers.program import Iterator

WIDTHS = (8, 4, 2, 1)
"""Elements of a vector that is copied into a panel."""


def half(operand: Operand) -> Operand | None:
    """float32(half) -> half: the operand as it goes into a panel, or None for another."""
    if not isinstance(operand.value, tirx.Cast):
        return None
    value = operand.value.value
    if str(value.ty) != "float16":
        return None
    if not isinstance(value, TensorLoad):
        return Operand(value, operand.iterators)
    forms = [linear(index) for index in value.indices]
    access = None if any(f is None for f in forms) else tuple(f for f in forms if f is not None)
    return Operand(value, operand.iterators, value.source, access)


def run(operand: Operand, inputs: tuple[Any, ...], along: tuple[Iterator, ...]) -> tuple[int, int]:
    """How many of the last iterators `along` a panel's rows walk memory as one would, and how many
    elements lie side by side, at a whole number of vectors, wherever a vector of a row starts;
    (0, 1) for what is no load of an input, and is gathered."""
    if operand.access is None or operand.buffer not in inputs:
        return 0, 1
    flat, pitch = Linear({}), 1
    for form, extent in zip(reversed(operand.access), reversed(operand.buffer.shape), strict=True):
        flat, pitch = flat.plus(form, pitch), pitch * int(extent)
    return walk(dict(flat.terms), [flat.constant, pitch], along)


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
