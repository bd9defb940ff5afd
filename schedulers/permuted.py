"""A tensor that lies in another order than its elements are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx


def moved_last(count: int, position: int) -> list[int]:
    """``range(count)`` with one element moved to the end; -1 moves none."""
    order = list(range(count))
    if position >= 0:
        order.append(order.pop(position))
    return order


def permuted(
    buffer: Any, last: int, value: Callable[[list[Any]], Any], name: str, block: int = 0
) -> Any:
    """A tensor of `value` (of the indices of `buffer`), as a function of those indices, that has
    dimension `last` at its end, and cut in blocks: ``[i, c, k] -> [k // block, i, c, k % block]``.
    """
    shape = [int(n) for n in buffer.shape]
    order = moved_last(len(shape), last)
    moved = [shape[d] for d in order]
    if block:
        moved = [shape[last] // block, *moved[:-1], block]

    def body(*at: Any) -> Any:
        place = dict(zip(order, at[-len(order) :], strict=True))
        if block:
            place[last] = at[0] * block + place[last]
        return value([place[d] for d in range(len(order))])

    tensor = te.compute(moved, body, name=name)
    if order == sorted(order) and not block:
        return tensor

    def element(*at: Any) -> Any:
        place = [at[d] for d in order]
        if not block:
            return tensor(*place)
        return tensor(tirx.floordiv(at[last], block), *place[:-1], tirx.floormod(at[last], block))

    return element
