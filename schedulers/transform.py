"""Small linear transforms of tiles, such as Winograd's: rows unrolled, points in vector lanes.

    rows0[i, j, p, c]  = choose row i: sum of data[.., c]         one chain of stages, each of which
    rows1[i, j, p, c]  = choose row j: sum of rows0[i, .., p, c]  reads all rows of the one before
    out[c, y, x]       = rows1[y % m, x % m, tile of (y, x), c]   spreads the tiles, or is not there

    ->  for points, tile by tile, in parallel:
            for rows, unrolled:  rows0, rows1 in registers, 16 channels at a time; then out

A row is an iterator that the value is chosen by; once it is a number the choice is gone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tvm import te, tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad

from flextensor.schedulers import loops
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import linear, loads, variables, walk
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, movable
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target

MOST_ROWS = 64
"""Rows that are unrolled; a longer choice is no small transform."""
BLOCKS = -2
"""Stands for the loop over blocks of lanes where loops are numbered by dimension."""


def rows(stage: Stage) -> tuple[Iterator, ...]:
    """Iterators that decide which of several expressions the value is: ``i == 2 ? a : b``."""
    chosen: set[Any] = set()
    for node in walk(stage.value):
        if isinstance(node, Call) and getattr(node.op, "name", "") == "prim.if_then_else":
            condition = node.args[0]
            if isinstance(condition, tirx.EQ) and isinstance(condition.b, tirx.IntImm):
                chosen |= variables(condition.a)
    return tuple(i for i in stage.spatial if i.var in chosen)


@dataclasses.dataclass(frozen=True)
class Digit:
    """``var // divisor % modulus``: one loop of a split iterator; modulus None is the outermost."""

    var: Any
    divisor: int
    modulus: int | None

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
        used = {d.var for d in digits if d is not None}
        whole = all(i.var in used or i.extent == 1 for i in consumer.spatial)
        known = all(d or i.extent == 1 for d, i in zip(digits, stage.spatial, strict=True))
        return cls(consumer, digits) if whole and known else None

    def dimensions(self, iterator: Iterator) -> list[int]:
        """Dimensions of the tiles that are digits of an iterator, outermost first."""
        own = {p: d.divisor for p, d in enumerate(self.digits)
               if d is not None and d.var.same_as(iterator.var)}  # fmt: skip
        return sorted(own, key=lambda p: -own[p])

    def exact(self, dimension: int) -> bool:
        """Whether the tiles end where the output ends, along the iterator of a dimension."""
        digit = self.digits[dimension]
        if digit is None:
            return True
        it = next(i for i in self.stage.spatial if i.var.same_as(digit.var))
        top = self.digits[self.dimensions(it)[0]]
        return top is not None and it.extent % top.divisor == 0


class TransformScheduler(Scheduler):
    """Takes stages whose value is chosen by an iterator, with those that follow."""

    name = "transform"

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The chain that begins with the stage, when it is a transform of one buffer."""
        sources = loads(stage.value)
        if stage.combiner or not 1 < math.prod(i.extent for i in rows(stage)) <= MOST_ROWS:
            return None
        if not sources or not all(s.source.same_as(sources[0].source) for s in sources):
            return None
        chain = [stage]
        while len(after := program.consumers(chain[-1])) == 1 and _follows(chain[-1], after[0]):
            chain.append(after[0])
        return TransformSchedule(program, tuple(chain), target)


def _follows(before: Stage, after: Stage) -> bool:
    """Whether `after` is a transform that reads rows of `before`, and else its own elements."""
    chosen = rows(after)
    if after.combiner or len(after.spatial) != len(before.spatial):
        return False
    if not 1 < math.prod(i.extent for i in chosen) <= MOST_ROWS:
        return False
    return all(
        load.source.same_as(before.buffer)
        and all(
            it in chosen or it.extent == 1 or index.same_as(it.var)
            for index, it in zip(load.indices, after.spatial, strict=True)
        )
        for load in loads(after.value)
    )


class TransformSchedule(StageSchedule):
    """A chain of transforms, and the stage that spreads its tiles."""

    fuses = True

    def __init__(self, program: Program, chain: tuple[Stage, ...], target: Target) -> None:
        self.chain, self.target, self.stage = chain, target, chain[0]
        self.spread = Spread.of(program, chain[-1])
        self.ends = chain[-1].buffer.same_as(program.output)
        self.rows = {s.spatial.index(r) for s in chain for r in rows(s)}
        source = loads(chain[0].value)[0].source
        producer = program.producer(source)
        self.source = source if producer is None or movable(program, producer) else None
        lanes = sorted((p for p in range(len(chain[-1].spatial)) if self._width(p) > 1),
                       key=self._stride) or [-1]  # fmt: skip
        places: tuple[str, ...] = ("inline",)
        if self.source is not None:
            places = ("copy", "inline") if producer else ("inline", "copy")
        self.space = Space(
            (
                choice("lanes", lanes),
                choice("block", (32, 16, 64, 128, 0)),
                sizes("rows", _divisors(chain[-1].spatial[self._first(lanes[0])].extent)),
                choice("source", places),
                choice("tasks", ("points", "lanes")),
                choice("order", ("inner", "outer")),
            ),
            (self._illegal,),
            features=self._features,
        )
        self.space = dataclasses.replace(self.space, seeds=tuple(self._seeds(lanes[0], places[0])))

    def _first(self, lane: int) -> int:
        """The outermost dimension of tiles with more than one, which is cut into tasks."""
        spatial = self.chain[-1].spatial
        wide = [p for p in self._points(lane) if spatial[p].extent > 1]
        return (wide or self._points(lane))[0]

    def _points(self, lane: int) -> list[int]:
        """Dimensions of the last transform that are neither rows nor lanes."""
        found = [p for p in range(len(self.chain[-1].spatial)) if p not in {lane, *self.rows}]
        return found or [lane]

    def _seeds(self, lane: int, source: str) -> Iterable[Config]:
        """Blocks of two vectors; tasks of sixteen tiles or more where they are spread."""
        spatial = self.chain[-1].spatial
        points = self._points(lane)
        first = self._first(lane)
        inner = math.prod(spatial[p].extent for p in points if p > first)
        divisors = _divisors(spatial[first].extent)
        rows = next((r for r in divisors if r * inner >= 16), divisors[-1])
        for block in (32, 16, 0):
            config: Config = {
                "lanes": lane, "block": block, "rows": rows if self.spread else 1,
                "source": source, "tasks": "points", "order": "inner",
            }  # fmt: skip
            if self._illegal(config) is None:
                yield config
                return

    @property
    def covers(self) -> tuple[Stage, ...]:
        return (*self.chain, self.spread.stage) if self.spread else self.chain

    def _width(self, dimension: int) -> int:
        """Vector lanes that a dimension of the tiles fills; 1 where none can be filled."""
        extent = self.chain[-1].spatial[dimension].extent
        if dimension < 0 or dimension in self.rows:
            return 1
        if self.spread and not self.spread.exact(dimension):
            return 1
        full = self.target.lanes(str(self.chain[-1].buffer.dtype))
        return next((w for w in (full, full // 2, full // 4) if extent % w == 0), 1)

    def _stride(self, dimension: int) -> tuple[bool, int]:
        """What makes a dimension worse for lanes. Spread tiles: being a digit, being short;
        stored ones: being an outer dimension."""
        if self.spread is None:
            return False, -dimension
        digit = self.spread.digits[dimension]
        split = digit is not None and (digit.divisor, digit.modulus) != (1, None)
        return split, -self.chain[-1].spatial[dimension].extent

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        lane, block, rows = int(config["lanes"]), int(config["block"]), int(config["rows"])
        spatial = self.chain[-1].spatial
        if block and (lane < 0 or spatial[lane].extent % block or block % self._width(lane)):
            return f"the lanes have no whole blocks of {block}"
        if spatial[self._first(lane)].extent % rows:
            return f"{spatial[self._first(lane)].extent} tiles have no whole tasks of {rows}"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        width = self._width(int(config["lanes"]))
        seconds = sum(s.points for s in self.chain) * (0.15e-9 + 3e-9 / width) / self.target.cores
        return {"estimate": seconds, "log_estimate": math.log2(seconds), "width": width}

    def elements(self, config: Mapping[str, Value], dimension: int) -> int:
        extent = self.chain[0].spatial[dimension].extent
        lane = int(config["lanes"])
        if dimension == lane:
            return int(config["block"]) or extent
        return int(config["rows"]) if dimension == self._first(lane) else extent

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Every transform with the lanes in its last dimension, but for the program's output; the
        source likewise, if it is copied."""
        lane = int(config["lanes"])
        if config["source"] == "copy":
            self._copy_source(lane, tensors)
        for stage in self.chain:
            value = functools.partial(stage.at, load=tensors.load)
            end = stage is self.chain[-1]
            last = -1 if self.ends and end else lane
            block = int(config["block"]) if end and self._stored_in_blocks else 0
            _permuted(stage.buffer, last, value, stage.name, tensors, block)
        if final is not self.chain[-1]:
            tensors.plain(final, name=f"{self.stage.name}_out")

    @property
    def _stored_in_blocks(self) -> bool:
        """Whether the tiles are stored, and not as the program's output."""
        return not self.spread and not self.ends

    def _copy_source(self, lane: int, tensors: Tensors) -> None:
        """The source as it lies, but for the dimension that lanes step through by one: last."""
        assert self.source is not None
        steps = -1
        if lane >= 0:
            var = self.chain[0].spatial[lane].var
            for d, index in enumerate(loads(self.chain[0].value)[0].indices):
                form = linear(index)
                steps = d if form is not None and dict(form.terms) == {var: 1} else steps
        value = functools.partial(tensors.load, self.source)
        _permuted(self.source, steps, value, f"{self.stage.name}_source", tensors)

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Parallel over tasks; in a tile, rows unrolled, all but the last stage in registers."""
        lane, block = int(config["lanes"]), int(config["block"])
        inner = [s.name for s in self.chain]
        out = sch.get_sblock(f"{self.stage.name}_out" if self._spreads(sch) else inner.pop())
        nest = self._loops(sch, out, lane, block if self._stored_in_blocks else 0)
        unrolled = [nest.pop(p) for p in sorted(self.rows) if p in nest]
        first = self._first(lane)
        task, tile = [nest[p] for p in sorted(nest) if -1 < p < first and p != lane], []
        if first in nest and first != lane:
            task_rows, within = sch.split(nest[first], [None, int(config["rows"])])
            task.append(task_rows)
            tile.append(within)
        tile += [nest[p] for p in sorted(nest) if p > first and p != lane]
        vector = []
        if self._width(lane) > 1:
            blocks = nest.get(BLOCKS)
            loop, width = nest[lane], self._width(lane)
            if blocks is None:
                blocks, loop = sch.split(loop, [None, block]) if block else (None, loop)
            over, lanes = sch.split(loop, [None, width])
            vector.append(lanes)
            tile.insert(len(tile) if config["order"] == "inner" else 0, over)
            if blocks is not None:
                task.insert(len(task) if config["tasks"] == "points" else 0, blocks)
        if not tile:
            tile.append(task.pop())
        sch.reorder(*task, *tile, *unrolled, *vector)
        if task:
            sch.parallel(loops.fuse(sch, task))
        depth = len(tile) + bool(task)
        for name in reversed(inner):
            stage = sch.get_sblock(name)
            sch.set_scope(stage, 0, "local")
            sch.compute_at(stage, tile[-1], preserve_unit_loops=True)
            self._unroll(sch, sch.get_loops(stage)[depth:], bool(vector))
        self._unroll(sch, [*unrolled, *vector], bool(vector))
        if config["source"] == "copy":
            source = sch.get_sblock(f"{self.stage.name}_source")
            loops.pack(sch, source, self.target, parallel=True)

    def _spreads(self, sch: Any) -> bool:
        """Whether a block after the transforms takes what they compute."""
        root = sch.get_child_blocks(sch.get_sblock("root"))
        return f"{self.stage.name}_out" in {str(sch.get(b).name_hint) for b in root}

    def _loops(self, sch: Any, out: Any, lane: int, block: int) -> dict[int, Any]:
        """The loops of the last stage by dimension of the tiles; iterators split in digits, the
        loop over stored blocks of lanes under `BLOCKS`."""
        nest = sch.get_loops(out)
        if self.spread is None:
            order = _last(len(nest) - bool(block), -1 if self.ends else lane)
            return dict(zip([BLOCKS, *order] if block else order, nest, strict=True))
        found: dict[int, Any] = {}
        for loop, it in zip(nest, self.spread.stage.spatial, strict=True):
            own = self.spread.dimensions(it)
            factors = [self.chain[-1].spatial[p].extent for p in own[1:]]
            pieces = sch.split(loop, [None, *factors]) if factors else [loop]
            found |= dict(zip(own, pieces, strict=True)) if own else {}
        return found

    def _unroll(self, sch: Any, nest: list[Any], vector: bool) -> None:
        for loop in nest[: len(nest) - vector]:
            if loops.extent(sch, loop) > 1:
                sch.unroll(loop)
        if vector:
            sch.vectorize(nest[-1])


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _last(count: int, position: int) -> list[int]:
    """``range(count)`` with one element moved to the end; -1 moves none."""
    order = list(range(count))
    if position >= 0:
        order.append(order.pop(position))
    return order


def _permuted(
    buffer: Any,
    last: int,
    value: Callable[[list[Any]], Any],
    name: str,
    tensors: Tensors,
    block: int = 0,
) -> None:
    """A tensor of `value` (of the indices of `buffer`) that stands for `buffer`, with dimension
    `last` moved to the end, and cut in blocks: ``[i, c, k] -> [k // block, i, c, k % block]``."""
    shape = [int(n) for n in buffer.shape]
    order = _last(len(shape), last)
    moved = [shape[d] for d in order]
    if block:
        moved = [shape[last] // block, *moved[:-1], block]

    def body(*at: Any) -> Any:
        place = dict(zip(order, at[-len(order) :], strict=True))
        if block:
            place[last] = at[0] * block + place[last]
        return value([place[d] for d in range(len(order))])

    tensor = te.compute(moved, body, name=name)

    def element(*at: Any) -> Any:
        place = [at[d] for d in order]
        if not block:
            return tensor(*place)
        return tensor(tirx.floordiv(at[last], block), *place[:-1], tirx.floormod(at[last], block))

    tensors.set(buffer, tensor if order == sorted(order) and not block else element)
