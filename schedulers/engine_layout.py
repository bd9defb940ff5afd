"""How a contraction's operands lie in the memory of an FPGA, and the counters that address them.

The host writes A once, with the zeros of padding in it, words innermost: a word is `lanes` elements
along the iterators that the engine multiplies side by side (channels), padded with zeros.

    pad[n, c, y, x]   ->   A[n, y, x, c // lanes][c % lanes]          conv2d, unfold = 0
                      ->   A[n, y, ox, (s, c) // lanes][...]          the same, unfold = 1

`unfold` also lays the innermost iterator of a window beside the channels: few channels (the first
layer has three) then fill the lanes, and rows overlap in memory. All other window iterators are
strides: address = sum(digit * stride) over rows (n, y, x) and taps (r, s, word), which is im2col
without a copy, whatever the stride, the dilation or the groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flextensor.schedulers.analysis import Contraction, points
from flextensor.schedulers.expression import Linear
from flextensor.schedulers.program import Iterator
from flextensor.targets.engine import Digits
from flextensor.targets.rounding import ceil_div


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of A in memory: its extent, and its index as a linear form of the iterators.

    It is dimension number `dimension` of the operand from the form's constant on, or, for None,
    an iterator of a dimension that the words run along.
    """

    extent: int
    index: Linear
    dimension: int | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A in memory for one choice of lanes. `inside` are the iterators within the words.

    `blocked` has the words outermost, for lanes that are channels with a result each:

        pad[n, c, y, x]   ->   A[c // lanes, n, y, x][c % lanes]      depthwise
    """

    found: Contraction
    inside: tuple[Iterator, ...]
    lanes: int
    axes: tuple[Axis, ...]
    blocked: bool = False

    @property
    def words(self) -> int:
        """Words for one index of all axes."""
        return ceil_div(points(self.inside), self.lanes)

    def digits(self, iterators: Sequence[Iterator], words: bool = False) -> Digits:
        """Counters of some iterators, with their strides in words; `words` adds those within."""
        strides = [self.stride(i.var) for i in iterators]
        extents = [i.extent for i in iterators]
        if words and self.words > 1:
            extents.append(self.words)
            strides.append(1)
        return Digits(tuple(extents), tuple(strides))

    @property
    def pixels(self) -> int:
        """Indices of all axes."""
        return math.prod(axis.extent for axis in self.axes)

    def stride(self, var: Any) -> int:
        """Words between two neighbours along an iterator."""
        total, pitch = 0, 1 if self.blocked else self.words
        for axis in reversed(self.axes):
            total += axis.index.terms.get(var, 0) * pitch
            pitch *= axis.extent
        return total


class Roles:
    """What an engine needs to know of a contraction, or None from `of` when it cannot take it."""

    def __init__(self, found: Contraction, channel: Iterator | None) -> None:
        self.found = found
        self.depthwise = _depthwise(found)
        self.channel = channel
        lanes = {channel.var} if channel else set()
        self.taps = tuple(i for i in found.k if i.var not in lanes)
        self.groups = tuple(i for i in found.batch if i.var not in lanes)
        self.columns = (channel,) if self.depthwise and channel else found.n

    @classmethod
    def of(cls, found: Contraction) -> Roles | None:
        """The roles, when both operands are plain loads at affine indices that only grow."""
        if found.a.access is None or found.b.access is None:
            return None
        if any(min((f.constant, *f.terms.values())) < 0 for f in found.a.access):
            return None
        pool = found.batch if _depthwise(found) else found.k
        alone = [i for i in pool if _alone(found.a.access, i, found.batch)]
        channel = max(alone, key=lambda i: i.extent, default=None)
        if _depthwise(found) and channel is None:
            return None
        return cls(found, channel)

    @property
    def unfolds(self) -> bool:
        """Whether a window iterator could lie beside the channels."""
        return not self.depthwise and bool(self.taps)

    def layout(self, lanes: int, unfold: bool) -> Layout:
        """A with words of `lanes` elements."""
        inside = (self.channel,) if self.channel else ()
        if unfold and self.unfolds:
            inside = (self.taps[-1], *inside)
        access = self.found.a.access
        assert access is not None
        variables = {i.var for i in inside}
        axes: list[Axis] = []
        for place, form in enumerate(access):
            if variables & set(form.terms):
                axes += self._split(form, variables, axes)
            else:
                extent = int(self.found.a.buffer.shape[place]) - form.constant
                axes.append(Axis(extent, Linear(form.terms), place))
        return Layout(self.found, inside, lanes, tuple(axes), self.depthwise)

    def _split(self, form: Linear, inside: set[Any], known: list[Axis]) -> list[Axis]:
        """A dimension that the words run along: an axis for each of its other iterators."""
        found = self.found
        every = {i.var: i for i in (*found.batch, *found.m, *found.n, *found.k)}
        done = {var for axis in known for var in axis.index.terms if axis.index == Linear({var: 1})}
        others = [var for var in form.terms if var not in inside and var not in done]
        return [Axis(every[var].extent, Linear({var: 1})) for var in others]

    def outside(self, layout: Layout) -> tuple[Iterator, ...]:
        """The iterators of the reduction that are not within the words."""
        inside = {i.var for i in layout.inside}
        return tuple(i for i in self.taps if i.var not in inside)


def _depthwise(found: Contraction) -> bool:
    """Whether nothing but batch iterators index the other operand's outputs: no columns."""
    return not found.n and bool(found.batch) and bool(found.m)


def _alone(access: Sequence[Linear], iterator: Iterator, batch: Sequence[Iterator]) -> bool:
    """Whether an iterator runs along a dimension by steps of one, beside batch iterators only."""
    others = {i.var for i in batch} - {iterator.var}
    using = [form for form in access if iterator.var in form.terms]
    return len(using) == 1 and _only(using[0].terms, iterator.var, others)


def _only(terms: Mapping[Any, int], var: Any, others: set[Any]) -> bool:
    return terms[var] == 1 and set(terms) - {var} <= others
