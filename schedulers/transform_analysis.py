"""The structure of computing by tiles: stages whose value a row chooses, and what spreads tiles.

rows0[i, q, p] = i == 0 ? data[p*2] + data[p*2 + 1] : data[p*2] - data[p*2 + 1]    i is a row
    out[y]         = tiles[y % 4, y // 4]                    the digits of y: (y % 4, y // 4)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.expression import linear, variables
from flextensor.schedulers.program import Iterator, Program, Stage

MOST_ROWS = 64
"""Rows that a stage is unrolled over; a longer choice is no small transform."""
MOST_TILE = 512
"""Rows of all stages of a chain, together: L1 has place for a vector of each."""


def rows(stage: Stage) -> tuple[Iterator, ...]:
    """Iterators that decide which of several expressions the value is: ``i == 2 ? a : b``."""
    chosen: set[Any] = set()
    for node in stage.nodes:
        if isinstance(node, Call) and getattr(node.op, "name", "") == "prim.if_then_else":
            condition = node.args[0]
            if isinstance(condition, tirx.EQ) and isinstance(condition.b, tirx.IntImm):
                chosen |= variables(condition.a)
    return tuple(i for i in stage.spatial if i.var in chosen)


def stepped(stage: Stage, dimension: int) -> int:
    """The dimension of what a stage first loads that one of its own steps through by one; -1 where
    there is none."""
    if dimension < 0:
        return -1
    var = stage.spatial[dimension].var
    forms = enumerate(map(linear, stage.loads[0].indices))
    steps = (d for d, form in forms if form is not None and dict(form.terms) == {var: 1})
    return next(steps, -1)


def summed(stage: Stage, consumers: list[Stage]) -> set[int]:
    """Dimensions of a stage along which a consumer sums."""
    axes = {i.var for consumer in consumers for i in consumer.reduction}
    loads = [load for c in consumers for load in c.loads if load.source.same_as(stage.buffer)]
    return {d for load in loads for d, index in enumerate(load.indices) if variables(index) & axes}


@dataclasses.dataclass(frozen=True)
class Digit:
    """``var // divisor % modulus``: one loop of a split iterator; modulus None is the outermost."""

    var: Any
    divisor: int
    modulus: int | None

    @property
    def whole(self) -> bool:
        """Whether it is the variable itself."""
        return (self.divisor, self.modulus) == (1, None)

    @classmethod
    def of(cls, expr: Any) -> Digit | None:
        """The expression as a digit of one variable, or None."""
        if isinstance(expr, tirx.Var):
            return cls(expr, 1, None)
        if not isinstance(expr, (tirx.FloorDiv, tirx.FloorMod)):
            return None
        inner = cls.of(expr.a)
        if inner is None or not isinstance(expr.b, tirx.IntImm):
            return None
        by = int(expr.b.value)
        if isinstance(expr, tirx.FloorDiv):
            if inner.modulus is None:
                return cls(inner.var, inner.divisor * by, None)
            whole = inner.modulus % by == 0
            return cls(inner.var, inner.divisor * by, inner.modulus // by) if whole else None
        return cls(inner.var, inner.divisor, by) if inner.modulus in (None, by) else None


@dataclasses.dataclass(frozen=True)
class Spread:
    """The stage that only puts the elements of another in other places.

    ``out[c, y] = tiles[y % 4, c, y // 4]`` has the digits (y % 4, c, y // 4), one for each
    dimension of `tiles`; None for a dimension of extent 1.
    """

    stage: Stage
    digits: tuple[Digit | None, ...]

    @classmethod
    def of(cls, program: Program, stage: Stage) -> Spread | None:
        """The only consumer of a stage, if it spreads the stage's elements."""
        consumers = program.consumers(stage)
        if len(consumers) != 1 or consumers[0].combiner or rows(consumers[0]):
            return None
        (consumer,) = consumers
        if not isinstance(consumer.value, TensorLoad):
            return None
        digits = tuple(map(Digit.of, consumer.value.indices))
        known = all(d or i.extent == 1 for d, i in zip(digits, stage.spatial, strict=True))
        found = cls(consumer, digits)
        return found if known and all(map(found.covered, consumer.spatial)) else None

    def covered(self, iterator: Iterator) -> bool:
        """Whether the digits of an iterator give it back: each goes on where the next ends."""
        if iterator.extent == 1:
            return True
        expected: int | None = 1
        for position in reversed(self.dimensions(iterator)):
            digit = self.digits[position]
            assert digit is not None
            if digit.divisor != expected:
                return False
            expected = digit.divisor * digit.modulus if digit.modulus else None
        return expected is None

    def iterator(self, dimension: int) -> Iterator | None:
        """The iterator that a dimension of the tiles is a digit of."""
        digit = self.digits[dimension]
        found = (i for i in self.stage.spatial if digit is not None and i.var.same_as(digit.var))
        return next(found, None)

    def dimensions(self, iterator: Iterator) -> list[int]:
        """Dimensions of the tiles that are digits of an iterator, outermost first."""
        own = {p: d.divisor for p, d in enumerate(self.digits)
               if d is not None and d.var.same_as(iterator.var)}  # fmt: skip
        return sorted(own, key=lambda p: -own[p])

    def exact(self, dimension: int) -> bool:
        """Whether the tiles end where the output ends, along the iterator of a dimension."""
        it = self.iterator(dimension)
        if it is None:
            return True
        top = self.digits[self.dimensions(it)[0]]
        return top is not None and it.extent % top.divisor == 0


def is_transform(stage: Stage) -> bool:
    """Whether a stage is a small transform: few rows, of one buffer, at many points."""
    chosen = rows(stage)
    sources = stage.loads
    same = all(s.source.same_as(sources[0].source) for s in sources)
    few = 1 < math.prod(i.extent for i in chosen) <= MOST_ROWS
    return stage.combiner is None and few and bool(sources) and same


def chain(program: Program, stage: Stage) -> tuple[Stage, ...]:
    """The transforms that begin with a stage, each of which reads rows of the one before; empty
    when nothing but rows would be left to run over."""
    found: list[Stage] = []
    chosen: dict[int, int] = {}
    after = [stage]
    while len(after) == 1 and is_transform(after[0]):
        (current,) = after
        own = {current.spatial.index(r): r.extent for r in rows(current)}
        if math.prod((chosen | own).values()) > MOST_TILE:
            break
        if found and not _follows(found[-1], current):
            break
        chosen |= own
        found.append(current)
        after = program.consumers(current)
    return tuple(found) if len(chosen) < len(stage.spatial) else ()


def _follows(before: Stage, after: Stage) -> bool:
    """Whether a transform reads rows of `before`, and else its own elements."""
    chosen = rows(after)
    if len(after.spatial) != len(before.spatial):
        return False
    return all(
        load.source.same_as(before.buffer)
        and all(
            it in chosen or it.extent == 1 or index.same_as(it.var)
            for index, it in zip(load.indices, after.spatial, strict=True)
        )
        for load in after.loads
    )
