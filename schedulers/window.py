"""Windows that slide over data of their own: depthwise convolution, pooling, stencils.

    for batch, channel in parallel:
        copy the channel, padded and dealt out by the stride's phase, into a buffer of the task
        for tile of rows, tile of columns:
            for taps, unrolled:  acc[rows, columns] op= f(copy[y + r, x + s], ..)   # in registers
            write the tile out, through the fused elementwise consumers

Nothing is shared between channels, so that lanes are neighbouring columns of an output row. A row
need not be whole vectors: LLVM makes good code of 28 or 7 lanes once all taps are unrolled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.operators.stages import guarded
from flextensor.schedulers import loops
from flextensor.schedulers.analysis import iterators, points, split_groups
from flextensor.schedulers.base import Scheduler, StageSchedule
from flextensor.schedulers.expression import Linear, Load, linear, loads, rewrite, variables
from flextensor.schedulers.program import Iterator, Program, Stage, Tensors, inlinable, reduce
from flextensor.schedulers.space import Config, Space, Value, choice, sizes
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div, round_up

MOST_TAPS = 64
"""Taps that are unrolled; a longer reduction has channels in it."""
MOST_FILTERS = 8
"""Filters over the same data; more of them are a contraction."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A reduction over taps of `data`, whose last dimension is ``stride * x + taps``.

    `outputs` has, per dimension of the output, the iterators that make it up.
    """

    value: Any
    outputs: tuple[tuple[Iterator, ...], ...]
    data: Any
    stride: int
    read: tuple[Iterator, ...]
    """Spatial iterators that the data is read by, but for row and column."""
    filters: tuple[Iterator, ...]
    """Spatial iterators that it is not read by."""
    row: Iterator | None
    column: Iterator

    @property
    def access(self) -> Any:
        """The load of the data."""
        (load,) = (ld for ld in loads(self.value) if ld.source.same_as(self.data))
        return load

    @property
    def pinned(self) -> set[Any]:
        """Variables that something else than the data is read by: a tile that passes their ends
        would read beyond it."""
        others = [ld for ld in loads(self.value) if not ld.source.same_as(self.data)]
        return {v for ld in others for index in ld.indices for v in variables(index)}

    @classmethod
    def of(cls, stage: Stage) -> Window | None:
        """The stage as a window, or None when it is no such thing."""
        if stage.combiner not in ("sum", "max", "min") or points(stage.reduction) > MOST_TAPS:
            return None
        value, outputs = split_groups(stage)
        spatial = [i for parts in outputs for i in parts]
        taps = {i.var for i in stage.reduction if i.extent > 1}
        sliding = [ld for ld in loads(value) if _is_read_by(ld, taps) and spatial
                   and _is_read_by(ld, {spatial[-1].var})]  # fmt: skip
        if len(sliding) != 1 or not outputs[-1]:
            return None
        (load,) = sliding
        forms = [linear(index) for index in load.indices]
        known = [form for form in forms if form is not None]
        if len(known) < len(forms) or not all(map(_forward, known)):
            return None
        if sum(ld.source.same_as(load.source) for ld in loads(value)) != 1:
            return None
        column, last = spatial[-1], known[-1]
        if column.var not in last.terms or not taps & set(last.terms):
            return None
        others = spatial[:-1]
        row = others.pop() if others and _slides(others[-1], taps, known) else None
        read = tuple(i for i in others if _is_read_by(load, {i.var}))
        filters = tuple(i for i in others if i not in read)
        return cls(value, outputs, load.source, last.terms[column.var], read, filters, row, column)


def _is_read_by(load: Any, found: set[Any]) -> bool:
    """Whether any of some variables is in the indices of a load."""
    return any(found & variables(index) for index in load.indices)


def _forward(form: Linear) -> bool:
    """Whether an index only grows with its variables, from 0 or more."""
    return form.constant >= 0 and all(c > 0 for c in form.terms.values())


def _slides(iterator: Iterator, taps: set[Any], forms: list[Linear]) -> bool:
    """Whether a dimension is addressed by a sum of the iterator and taps."""
    return any(iterator.var in form.terms and taps & set(form.terms) for form in forms)


class WindowScheduler(Scheduler):
    """Takes short reductions over a window of data that few filters share."""

    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage, when its data can be copied once per channel."""
        found = Window.of(stage)
        if found is None or points(found.filters) > MOST_FILTERS:
            return None
        producer = program.producer(found.data)
        if producer is not None and not inlinable(program, producer):
            return None
        return WindowSchedule(program, stage, found, target)


class WindowSchedule(StageSchedule):
    """One window over one buffer on a target."""

    fuses = True

    def __init__(self, program: Program, stage: Stage, found: Window, target: Target) -> None:
        self.stage, self.found, self.target = stage, found, target
        self.lanes = target.lanes(str(stage.buffer.dtype))
        self.taps = points(stage.reduction)
        self.rows = found.row.extent if found.row else 1
        self.columns = found.column.extent
        padded = program.producer(found.data) is not None
        widths = {d for d in range(1, 65) if self.columns % d == 0}
        widths |= {w * self.lanes for w in (1, 2, 3, 4) if w * self.lanes < 2 * self.columns}
        along = self.rows if found.row else self.columns
        most = 2 * target.cores
        tasks = {target.cores, most, *(1 << p for p in range(max(most, 16).bit_length()))}
        space = Space(
            (
                sizes("columns", widths),
                sizes("rows", range(1, min(self.rows, 16) + 1)),
                sizes("tasks", [t for t in tasks if t <= along]),
                choice("copy", ("task",) if padded or found.stride > 1 else ("task", "none")),
            ),
            (self._illegal,),
            features=self._features,
        )
        self.space = dataclasses.replace(space, seeds=tuple(self._seeds(space, sorted(widths))))

    def _seeds(self, space: Space, widths: Sequence[int]) -> Iterable[Config]:
        """The twelve best by estimate; rows that are whole tiles first."""
        picks: list[Config] = []
        for width in sorted(widths, key=lambda w: self.columns % w != 0):
            for rows in (4, 7, 8, 2, 1, 3):
                for tasks in (1, 2, self.target.cores):
                    wanted: Config = {"columns": width, "rows": rows, "tasks": tasks,
                                      "copy": "task"}  # fmt: skip
                    config = space.config(space.project(wanted))
                    if config not in picks and space.reason(config) is None:
                        picks.append(config)
        return sorted(picks, key=lambda c: space.features(c)["estimate"])[:12]

    def _sizes(self, config: Mapping[str, Value]) -> tuple[int, int, int]:
        """Columns and rows of a tile, vectors of its accumulators."""
        columns, rows = int(config["columns"]), int(config["rows"])
        return columns, rows, rows * ceil_div(columns, self.lanes)

    def _illegal(self, config: Mapping[str, Value]) -> str | None:
        columns, rows, vectors = self._sizes(config)
        if vectors + 2 > self.target.vector_registers:
            return f"tile needs {vectors + 2} vector registers"
        if vectors * self.taps > self.target.max_unroll:
            return f"unrolled body has {vectors * self.taps} operations"
        exact = self.columns % columns == 0 and self.rows % rows == 0
        if config["copy"] == "none" and not exact:
            return "data read in place needs tiles that divide"
        along = (self.rows, rows) if self.found.row else (self.columns, columns)
        if int(config["tasks"]) > ceil_div(*along):
            return "more tasks than tiles"
        for it, tile in ((self.found.row, rows), (self.found.column, columns)):
            if it is not None and it.var in self.found.pinned and it.extent % tile:
                return f"{it.var.name} is read elsewhere too, and needs tiles that divide"
        return None

    def _features(self, config: Mapping[str, Value]) -> dict[str, float]:
        columns, rows, vectors = self._sizes(config)
        tiles = ceil_div(self.columns, columns) * ceil_div(self.rows, rows)
        around = points(self.found.read) * points(self.found.filters)
        busy = min(1.0, vectors / 8)
        seconds = around * tiles * (vectors * self.taps / busy + 4 * vectors + 20) / 3e9
        copied = points(self.found.read) * self.rows * self.columns
        copied *= self.found.stride ** (2 if self.found.row else 1)
        tasks, cores = points(self.found.read) * int(config["tasks"]), self.target.cores
        busiest = ceil_div(tasks, cores) * cores / tasks
        seconds = (seconds + copied * 0.2e-9) / cores * busiest
        waste = tiles * columns * rows / (self.columns * self.rows)
        return {"estimate": seconds, "log_estimate": math.log2(seconds), "vectors": vectors,
                "waste": waste, "body": math.log2(vectors * self.taps)}  # fmt: skip

    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """The copy, the accumulators acc[.., tile row, tile column, row, column], the output."""
        found, name = self.found, self.stage.name
        columns, rows, _ = self._sizes(config)
        copied = config["copy"] == "task"
        load = self._copy(columns, rows, tensors) if copied else tensors.load
        axes = [te.reduce_axis((0, i.extent), f"r{p}") for p, i in enumerate(self.stage.reduction)]
        others = [*found.read, *found.filters]

        def accumulate(*at: Any) -> Any:
            own, (yo, xo, yi, xi) = at[: len(others)], at[len(others) :]
            bound = {i.var: v for i, v in zip(others, own, strict=True)}
            bound |= {i.var: a.var for i, a in zip(self.stage.reduction, axes, strict=True)}
            bound[found.column.var] = xo * columns + xi
            if found.row:
                bound[found.row.var] = yo * rows + yi
            value = rewrite(found.value, bound, load)
            return reduce(str(self.stage.combiner), value, axes)

        shape = [i.extent for i in others]
        shape += [ceil_div(self.rows, rows), ceil_div(self.columns, columns), rows, columns]
        acc = te.compute(shape, accumulate, name=f"{name}_acc")

        def out(*indices: Any) -> Any:
            at = iterators(found.outputs, indices)
            y, x = at[found.row.var] if found.row else 0, at[found.column.var]
            own = [at[i.var] for i in others]
            tile = tirx.floordiv(y, rows) if found.row else 0
            row = tirx.floormod(y, rows) if found.row else 0
            return acc(*own, tile, tirx.floordiv(x, columns), row, tirx.floormod(x, columns))

        tensors.written(self.stage, out, final)

    def _copy(self, columns: int, rows: int, tensors: Tensors) -> Load:
        """``copy[.., y, phase, x] = data[.., y, x * stride + phase]``, zero beyond the edges; what
        loads the data from it, and everything else from where it is."""
        found = self.found
        shape = [int(n) for n in found.data.shape]
        extents = {i.var: i.extent for i in (*self.stage.reduction, *found.read)}
        extents[found.column.var] = round_up(self.columns, columns)
        if found.row:
            extents[found.row.var] = round_up(self.rows, rows)
        reach = []
        for index, extent in zip(found.access.indices, shape, strict=True):
            form = linear(index)
            assert form is not None
            last = form.constant + sum(c * (extents[v] - 1) for v, c in form.terms.items())
            reach.append(max(extent, last + 1))
        stride = found.stride

        def body(*at: Any) -> Any:
            place = [*at[:-2], at[-1] * stride + at[-2]]
            wider = zip(place, reach, shape, strict=True)
            last = len(shape) - 1
            inside = [p < n for d, (p, r, n) in enumerate(wider)
                      if r > n or (d == last and r % stride)]  # fmt: skip
            return guarded(inside, tensors.load(found.data, place))

        size = [*reach[:-1], stride, ceil_div(reach[-1], stride)]
        copy = te.compute(size, body, name=f"{self.stage.name}_copy")

        def load(buffer: Any, indices: list[Any]) -> Any:
            if not buffer.same_as(found.data):
                return tensors.load(buffer, indices)
            *at, x = indices
            return copy(*at, tirx.floormod(x, stride), tirx.floordiv(x, stride))

        return load

    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Parallel over channels; tiles in registers, their taps unrolled."""
        found, name = self.found, self.stage.name
        columns, rows, _ = self._sizes(config)
        acc, out = sch.get_sblock(f"{name}_acc"), sch.get_sblock(f"{name}_out")
        nest, task = loops.by_iterator(sch, out, found.outputs)
        task += [nest[i.var] for i in found.read]
        tile = [nest[i.var] for i in found.filters]
        xo, xi = sch.split(nest[found.column.var], [None, columns])
        within, tasks = [xi], int(config["tasks"])
        if found.row:
            y, yi = sch.split(nest[found.row.var], [None, rows])
            outer, y = sch.split(y, [tasks, None])
            tile.append(y)
            within.insert(0, yi)
        else:
            outer, xo = sch.split(xo, [tasks, None])
        sch.reorder(*task, outer, *tile, xo, *within)
        sch.parallel(loops.fuse(sch, [*task, outer]))
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, xo, preserve_unit_loops=True)
        *_, ay, ax = sch.get_loops(acc)[: -len(self.stage.reduction)]
        taps = sch.get_loops(acc)[-len(self.stage.reduction) :]
        sch.reorder(*taps, ay, ax)
        for loop in (*taps, ay, *within[:-1]):
            sch.unroll(loop)
        sch.vectorize(ax)
        if self.columns % columns == 0:
            sch.vectorize(xi)
        sch.decompose_reduction(acc, taps[0])
        if config["copy"] == "task":
            sch.compute_at(sch.get_sblock(f"{name}_copy"), sch.get_loops(out)[0])
