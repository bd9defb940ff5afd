"""The knobs of a chain of transforms, the sizes that follow from them, what makes them legal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flextensor.schedulers import transposition
from flextensor.schedulers.contraction_estimate import BYTES
from flextensor.schedulers.program import Stage
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.schedulers.transform_analysis import Spread, stepped
from flextensor.targets.base import Target

SPREAD = (16, 64)
"""Tiles in a task that spreads them, at least, of seeds: few leave the sums of a task in L2, many
read operands of the sums less often."""
RUN = 2048
"""Bytes of a row that a task reads at a time, if it can: hardware fetches ahead along long ones."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles that a chain of transforms makes: `rows` are the dimensions whose elements are
    unrolled, one of the others may be vector lanes, the rest are points.

    `source` is what may be copied to have its lanes last, `spread` what puts the tiles in place.
    """

    chain: tuple[Stage, ...]
    spread: Spread | None
    rows: Collection[int]
    source: Any
    target: Target

    def space(self, alone: bool, features: Callable[..., dict[str, float]]) -> Space:
        """All decisions. The source is copied with its lanes last, what a task needs or all of it,
        or read in place; only an `alone` consumer may have the tiles in its tasks."""
        lanes = [p for p in range(len(self.chain[-1].spatial)) if self.width(p) > 1]
        lanes = sorted(lanes, key=self._lane_cost) or [-1]
        places: tuple[str, ...] = ("inline",)
        if self.source is not None:
            places = ("task", "copy", "inline")
        return Space(
            (
                choice("lanes", lanes),
                choice("block", (32, 16, 64, 128, 0)),
                sizes("tiles", _divisors(self.extent(self.first(lanes[0])))),
                choice("source", places),
                choice("tasks", ("points", "lanes")),
                choice("order", ("inner", "outer")),
                choice("at", ("root", "consumer") if alone else ("root",)),
            ),
            (self._illegal,),
            seeds=(self._seed(lanes[0], places[0]),),
            features=features,
            canonical=self.same,
        )

    def extent(self, dimension: int) -> int:
        """Elements of the last transform along a dimension."""
        return self.chain[-1].spatial[dimension].extent

    def width(self, dimension: int) -> int:
        """Vector lanes that a dimension of the tiles fills; 1 where none can be filled."""
        if dimension < 0 or dimension in self.rows:
            return 1
        if self.spread and not self.spread.exact(dimension):
            return 1
        full = self.target.lanes(str(self.chain[-1].buffer.dtype))
        widths = (full, full // 2, full // 4)
        return next((w for w in widths if self.extent(dimension) % w == 0), 1)

    def points(self, lane: int) -> list[int]:
        """Dimensions of the last transform that are neither rows nor lanes."""
        found = [p for p in range(len(self.chain[-1].spatial)) if p not in {lane, *self.rows}]
        return found or [lane]

    def first(self, lane: int) -> int:
        """The outermost dimension of tiles with more than one, which is cut into tasks."""
        wide = [p for p in self.points(lane) if self.extent(p) > 1]
        return (wide or self.points(lane))[0]

    def cut(self, config: Mapping[str, Value]) -> int:
        """Outermost tiles in a task: `tiles`, or as many more as it takes to read rows of vectors,
        `RUN` bytes of each, where a task copies its source to have the lanes last, its rows."""
        lane, cut = int(config["lanes"]), int(config["tiles"])
        first = self.first(lane)
        if config["source"] != "task" or first == lane:
            return cut
        assert self.source is not None
        shape = [int(n) for n in self.source.shape]
        row, column = (stepped(self.chain[0], d) for d in (lane, first))
        width = transposition.width(int(config["block"]) or shape[row], self.target)
        if not 0 <= row < column or not width:
            return cut
        extent, step = self.extent(first), math.prod(shape[column + 1 :])
        more = math.lcm(cut, width // math.gcd(width, step))
        while more * step * BYTES < RUN and extent % (2 * more) == 0:
            more *= 2
        return cut if extent % more else more

    def cuts(self, lane: int) -> list[int]:
        """Numbers of outermost tiles in a task: where tiles are spread, of `SPREAD` or more."""
        if not self.spread:
            return [1]
        first = self.first(lane)
        inner = math.prod(self.extent(p) for p in self.points(lane) if p > first)
        divisors = _divisors(self.extent(first))
        cuts = (next((d for d in divisors if d * inner >= n), divisors[-1]) for n in SPREAD)
        return list(dict.fromkeys(cuts))

    def same(self, config: Mapping[str, Value], piece: int = 0) -> Config:
        """The first of all configs that write the same program, where tasks of a consumer need a
        `piece` of the lanes, or it has tasks of its own: a block that holds the piece is none, and
        where blocks or tiles are but one, it matters not which of them is inside the other."""
        found, lane = dict(config), int(config["lanes"])
        first = self.first(lane)
        if lane < 0 or first == lane or self._illegal(config) is not None:
            return found
        block, lanes = int(config["block"]), piece or self.extent(lane)
        if block and block % lanes == 0:
            single = {**found, "block": 0}
            if lanes < self.extent(lane) and self.cut(single) == self.cut(found):
                found = single
            block = 0
        cut = self.cut(found)
        found["tiles"] = next(
            n for n in _divisors(self.extent(first)) if self.cut({**found, "tiles": n}) == cut
        )
        if block == 0 or cut == self.extent(first):
            found["tasks"] = "points"
        inner = cut * math.prod(self.extent(p) for p in self.points(lane) if p > first)
        if inner == 1 or (block or lanes) == self.width(lane):
            found["order"] = "inner"
        return found

    def _seed(self, lane: int, source: str) -> Config:
        """Blocks of two vectors; the smallest tasks of `SPREAD` where tiles are spread."""
        config: Config = {
            "lanes": lane, "block": 0, "tiles": self.cuts(lane)[0],
            "source": source, "tasks": "points", "order": "inner", "at": "root",
        }  # fmt: skip
        options: list[Config] = [{**config, "block": block} for block in (32, 16)]
        return next((c for c in options if self._illegal(c) is None), config)

    def _lane_cost(self, dimension: int) -> tuple[bool, int]:
        """What makes a dimension worse for lanes. Spread tiles: being a digit, being short;
        stored ones: being an outer dimension."""
        if self.spread is None:
            return False, -dimension
        digit = self.spread.digits[dimension]
        split = digit is not None and not digit.whole
        return split, -self.extent(dimension)

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        lane, block, cut = int(config["lanes"]), int(config["block"]), int(config["tiles"])
        if block and (lane < 0 or self.extent(lane) % block or block % self.width(lane)):
            return f"the lanes have no whole blocks of {block}"
        if self.extent(self.first(lane)) % cut:
            return f"{self.extent(self.first(lane))} tiles have no whole tasks of {cut}"
        if config["at"] == "consumer" and cut > 1:
            return "tiles are not cut into tasks inside another's"
        return None


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
