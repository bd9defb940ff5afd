"""Small linear transforms of tiles, such as Winograd's: rows unrolled, points in vector lanes.

    rows0[i, j, p, c]  = choose row i: sum of data[.., c]         one chain of stages, each of which
    rows1[i, j, p, c]  = choose row j: sum of rows0[i, .., p, c]  reads all rows of the one before
    out[c, y, x]       = rows1[y % m, x % m, tile of (y, x), c]   spreads the tiles, or is not there

    ->  for points, tile by tile, in parallel:
            for rows, unrolled:  rows0, rows1 in registers, 16 channels at a time; then out
            of a large tile a stage unrolls its own rows, in loops over the others; in L1

A row is an iterator that the value is chosen by; once it is a number the choice is gone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from flextensor.schedulers import loops, transposition
from flextensor.schedulers.base import Pieces, Scheduler, StageSchedule
from flextensor.schedulers.contraction_estimate import CLOCK
from flextensor.schedulers.expression import Load
from flextensor.schedulers.guards import Guarded
from flextensor.schedulers.permuted import moved_last, permuted
from flextensor.schedulers.program import Program, Stage, Tensors, fusable, inlinable
from flextensor.schedulers.space import Config, Value
from flextensor.schedulers.transform_analysis import MOST_ROWS, Spread, chain, rows, stepped, summed
from flextensor.schedulers.transform_estimate import (
    source_cycles,
    store_cycles,
    transform_cycles,
)
from flextensor.schedulers.transform_space import Tiles
from flextensor.targets.base import Target

BLOCKS = -2
"""Stands for the loop over blocks of lanes where loops are numbered by dimension."""


class TransformScheduler(Scheduler):
    """Takes stages whose value is chosen by an iterator, with those that follow."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The chain that begins with the stage, when it is a transform of one buffer."""
        found = chain(program, stage)
        return TransformSchedule(program, found, target) if found else None


class TransformSchedule(StageSchedule):
    """A chain of transforms, and the stage that spreads its tiles."""

    fuses = True

    def __init__(self, program: Program, stages: tuple[Stage, ...], target: Target) -> None:
        self.chain, self.target, self.stage = stages, target, stages[0]
        self.spread = Spread.of(program, stages[-1])
        self.fixed = program.fixed(self.chain[-1].buffer)
        self.rows = {s.spatial.index(r) for s in stages for r in rows(s)}
        source = stages[0].loads[0].source
        producer = program.producer(source)
        inlinable_source = producer is None or inlinable(program, producer)
        self.source = source if inlinable_source else None
        self.plain = producer is None or Guarded.of(producer.value) is not None
        """Whether elements of the source are nothing but read from somewhere, or zero."""
        written = self.spread or fusable(program, stages[-1])
        self.out = f"{self.stage.name}_out" if written else stages[-1].name
        ends = bool(written) or stages[-1].buffer.same_as(program.output)
        self.stored = not ends
        """Whether the tiles are stored for another stage."""
        after = program.consumers(stages[-1]) if self.stored else []
        self.summed = summed(stages[-1], after)
        alone = len(after) == 1
        self.tiles = Tiles(self.chain, self.spread, self.rows, self.source, target)
        self.space = self.tiles.space(alone, self._features)

    def same(self, config: Mapping[str, Value], pieces: Pieces) -> Config:
        lane = int(config["lanes"])
        piece = pieces(self.chain[-1].buffer, lane) if self.inside(config) and lane >= 0 else 0
        return self.tiles.same(config, piece)

    def inside(self, config: Mapping[str, Value]) -> bool:
        return config["at"] == "consumer"

    def variants(self, holds: bool) -> tuple[Config, ...]:
        """Tasks of few and of many tiles, in blocks of channels that groups may be made of, and of
        all channels, so that no other task needs the tiles."""
        if not self.spread or not holds:
            return ({},)
        (start,) = self.space.seeds
        block = int(start["block"])
        blocks = dict.fromkeys((block, min(block, 16), 0))
        return tuple(
            {"tiles": cut, "block": block}
            for cut in self.tiles.cuts(int(start["lanes"]))
            for block in blocks
        )

    def _stored_block(self, lane: int, block: int) -> int:
        """Lanes of a block as the tiles are stored; 0 for as they are: the blocks of a dimension
        that is summed are tasks only, lest every turn of the sum's loop divides its index."""
        return block if self.stored and lane not in self.summed else 0

    def _stored_order(self, lane: int, block: int) -> list[int]:
        """The dimensions of the tiles, and `BLOCKS` where lanes have blocks, as they lie."""
        order = moved_last(len(self.chain[-1].spatial), lane if self.stored else -1)
        return [BLOCKS, *order] if self._stored_block(lane, block) else order

    @property
    def covers(self) -> tuple[Stage, ...]:
        return (*self.chain, self.spread.stage) if self.spread else self.chain

    def beside(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> dict[str, float]:
        if not self.inside(config):
            return {}
        tiles = self.chain[-1].buffer
        repeats = consumer.readers(theirs, tiles, self.rows)
        return self._features(config, repeats, consumer.parts_of(theirs, tiles))

    def _features(
        self, config: Mapping[str, Value], repeats: float = 1, parts: float = 1
    ) -> dict[str, float]:
        """`repeats`: how often a tile is transformed; `parts`: of the tiles, one for a task."""
        lane, source = int(config["lanes"]), self.source
        width, repeats = self.tiles.width(lane), max(repeats, 1)
        cycles = transform_cycles(self.chain, width, self.spread is not None)
        if source is not None:
            place, steps = str(config["source"]), stepped(self.stage, lane)
            rows = int(config["block"]) or int(source.shape[steps])
            turned = self.plain and bool(transposition.width(rows, self.target))
            cycles += source_cycles(source, steps, place, self.stage, self.target, turned)
        if self.stored:
            tasks = parts if self.inside(config) else 0
            cycles += store_cycles(self.chain[-1].points, tasks, self.target)
        seconds = repeats * cycles / (self.target.cores * CLOCK)
        if self.fixed and not self.inside(config):
            seconds = 1e-9  # packed ahead
        log = math.log2
        return {
            "estimate": seconds, "log_estimate": log(seconds), "width": width,
            "repeats": log(repeats),
        }  # fmt: skip

    def elements(self, config: Mapping[str, Value], dimension: int) -> int:
        extent = self.chain[0].spatial[dimension].extent
        lane = int(config["lanes"])
        if dimension == lane:
            return int(config["block"]) or extent
        return int(config["tiles"]) if dimension == self.tiles.first(lane) else extent

    def _whole(self, lane: int) -> bool:
        """Whether every element along the lanes is wanted; not so where channels were grown."""
        digit = self.spread.digits[lane] if self.spread and lane >= 0 else None
        if self.spread is None or digit is None or not digit.whole:
            return True
        it = self.spread.iterator(lane)
        return it is None or it.extent == self.chain[-1].spatial[lane].extent

    def misfit(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> str | None:
        if not self.inside(config):
            return None
        if not consumer.readers(theirs, self.chain[-1].buffer):
            return "the consumer has no tasks that need tiles"
        lane = int(config["lanes"])
        piece = consumer.piece(theirs, lambda dimension: 0, self.chain[-1].buffer, lane)
        if piece % self.tiles.width(lane):
            return f"a block of the reduction, of {piece}, is not full of vectors"
        return None

    def fitted(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> Config:
        """Inside the consumer's tasks where one or two of them read a tile or a row of it, unless
        it can be packed ahead; stored in blocks of what the consumer's vectors read."""
        readers = consumer.readers(theirs, self.chain[-1].buffer, self.rows)
        few = not self.fixed and 1 <= readers <= 2
        places = next(k.values for k in self.space.knobs if k.name == "at")
        found = {**config, "at": "consumer" if few and "consumer" in places else "root"}
        width = consumer.width(theirs, self.chain[-1].buffer)
        blocked = {**found, "block": width}
        return blocked if width and self.space.has(blocked) else found

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Every transform with the lanes in its last dimension, but for what others read as it
        is; the source likewise, if it is copied."""
        lane = int(config["lanes"])
        load = tensors.load if config["source"] == "inline" else self._copy(lane, tensors)
        for stage in self.chain:
            value = functools.partial(stage.at, load=load)
            ends = stage is self.chain[-1]
            last, block = lane, 0
            if ends and self.stored:
                block = self._stored_block(lane, int(config["block"]))
            elif ends and self.out == stage.name:
                last = -1
            if not self._whole(lane):
                # an axis of its own, lest TVM shrinks it to what is read
                block = self.tiles.width(lane)
            access = permuted(stage.buffer, last, value, stage.name, block)
            tensors.set(stage.buffer, access)
            load = tensors.load
        if final is not self.chain[-1]:
            tensors.plain(final, name=self.out)

    def _copy(self, lane: int, tensors: Tensors) -> Load:
        """The source as it lies, but for the dimension that lanes step through by one: last; what
        loads from the copy."""
        assert self.source is not None
        source = self.source
        value = functools.partial(tensors.load, source)
        copy = permuted(source, stepped(self.stage, lane), value, f"{self.stage.name}_source")

        def load(buffer: Any, indices: list[Any]) -> Any:
            return copy(*indices) if buffer.same_as(source) else tensors.load(buffer, indices)

        return load

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Parallel over tasks; in a tile, rows unrolled, all but the last stage in registers, or of
        a large tile in L1."""
        lane, block = int(config["lanes"]), int(config["block"])
        inner = [s for s in self.chain if s.name != self.out]
        out = sch.get_sblock(self.out)
        around = self._around(config, sch, out)
        if around:
            sch.compute_at(out, around[-1], preserve_unit_loops=True)

        def cut(loop: Any, size: int) -> list[Any]:
            """A loop in parts: of a block of the reduction, no larger than it is."""
            if len(around) > 1:
                size = math.gcd(size, loops.extent(sch, loop))
            return list(sch.split(loop, [None, size]))

        nest = self._loops(sch, sch.get_loops(out)[len(around) :], lane, block)
        looped, unrolled = (
            [nest.pop(p) for p in group if p in nest] for group in self._turns(self.chain[-1])
        )
        first = self.tiles.first(lane)
        task, tile = [nest[p] for p in sorted(nest) if -1 < p < first and p != lane], []
        if first in nest and first != lane:
            tile_tasks, within = cut(nest[first], self.tiles.cut(config))
            task.append(tile_tasks)
            tile.append(within)
        tile += [nest[p] for p in sorted(nest) if p > first and p != lane]
        vector = []
        if self.tiles.width(lane) > 1:
            blocks = nest.get(BLOCKS)
            loop, width = nest[lane], self.tiles.width(lane)
            if blocks is None:
                blocks, loop = cut(loop, block) if block else (None, loop)
            over, lanes = sch.split(loop, [None, width])
            vector.append(lanes)
            tile.insert(len(tile) if config["order"] == "inner" else 0, over)
            if blocks is not None:
                task.insert(len(task) if config["tasks"] == "points" else 0, blocks)
        if not tile:
            tile.append(task.pop())
        whole = self._whole(lane)  # where not, one guard per lane, around the rows
        turns = [*looped, *unrolled]
        sch.reorder(*task, *tile, *(turns + vector if whole else vector + turns))
        if task and not around:
            task = [loops.fuse(sch, task)]
            sch.parallel(task[0])
        depth = len(sch.get_loops(out)) - len(turns) - len(vector)
        for stage in reversed(inner):
            made = sch.get_sblock(stage.name)
            sch.set_scope(made, 0, "local")
            sch.compute_at(made, tile[-1], preserve_unit_loops=True)
            self._unroll(
                sch, self._rest(sch, stage, lane, sch.get_loops(made)[depth:]), bool(vector)
            )
        self._unroll(sch, unrolled, False)
        if vector and whole:
            sch.vectorize(vector[0])
        if self.stored:
            order = self._stored_order(lane, block)
            loops.stagger(sch, out, max(p for p, d in enumerate(order) if d in self.rows))
        if config["source"] != "inline":
            source = sch.get_sblock(f"{self.stage.name}_source")
            if config["source"] == "task":
                sch.compute_at(source, [*tile[:1], *around, *task][-1], preserve_unit_loops=True)
                loops.transpose(sch, source, 1, self.target)
            else:
                loops.pack(sch, source, 1, self.target)

    def _around(self, config: Mapping[str, Value], sch: Any, out: Any) -> list[Any]:
        """The loops of the consumer that the tiles are made in: over its tasks, and over blocks of
        its reduction if they hold what is made."""
        if not self.inside(config):
            return []
        tasks, inner, *_ = sch.get_loops(sch.get_consumers(out)[-1])
        return [tasks, inner] if loops.HOLDS in sch.get(inner).annotations else [tasks]

    def _loops(self, sch: Any, nest: list[Any], lane: int, block: int) -> dict[int, Any]:
        """The loops of the last block by dimension of the tiles; iterators split in digits, the
        loop over stored blocks of lanes under `BLOCKS`."""
        if self.spread is None:
            return dict(zip(self._stored_order(lane, block), nest, strict=True))
        found: dict[int, Any] = {}
        for loop, it in zip(nest, self.spread.stage.spatial, strict=True):
            own = self.spread.dimensions(it)
            factors = [d.modulus for p in own[1:] if (d := self.spread.digits[p]) is not None]
            pieces = sch.split(loop, [None, *factors]) if factors else [loop]
            found |= dict(zip(own, pieces, strict=True)) if own else {}
        return found

    def _turns(self, stage: Stage) -> tuple[list[int], list[int]]:
        """The dimensions of rows that a stage has loops over, and those that are unrolled: all, or
        of a large tile those that its value is chosen by."""
        every = set(self.rows)
        own = {stage.spatial.index(r) for r in rows(stage)}
        if math.prod(stage.spatial[p].extent for p in every) <= MOST_ROWS:
            own = every
        return sorted(every - own), sorted(own)

    def _rest(self, sch: Any, stage: Stage, lane: int, nest: list[Any]) -> list[Any]:
        """What is left of a stage's loops in a tile when those over rows that are not unrolled are
        the outermost."""
        order = moved_last(len(stage.spatial), lane)
        looped = {len(nest) - len(order) + order.index(p) for p in self._turns(stage)[0]}
        if not looped:
            return nest
        rest = [loop for p, loop in enumerate(nest) if p not in looped]
        sch.reorder(*(nest[p] for p in sorted(looped)), *rest)
        return rest

    def _unroll(self, sch: Any, nest: list[Any], vector: bool) -> None:
        for loop in nest[: len(nest) - vector]:
            if loops.extent(sch, loop) > 1:
                sch.unroll(loop)
        if vector:
            sch.vectorize(nest[-1])
