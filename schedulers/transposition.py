"""Matrices transposed in vector registers, where a copy has rows as columns.

    for c in 16, i in 16:                    r[i] = W[i, 0:16]            for all 16 rows
        P[c, i] = W[i, c]           ->       four times: two shuffles     of every pair of rows
                                             P[c, 0:16] = r[place of c]   for all 16 columns

Element by element that takes a load and a store each; so it takes a load, a store and four
shuffles for 16 of them (`shuffles`). A copy made turn by turn of a loop asks memory for what the
next turn reads, while this one is transposed. One that is zero outside of what it copies, as the
frame of an image, is transposed inside (`guards`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir import Range

from flextensor.schedulers.expression import linear, rewrite, variables, walk
from flextensor.schedulers.guards import Guarded
from flextensor.schedulers.shuffles import DTYPE, PART, Vectors
from flextensor.targets.base import Target

MARK, PARALLEL = "flextensor.transposed", "flextensor.parallel"
"""What a block is annotated with: lanes, and whether to copy in parallel."""
AHEAD = "flextensor.ahead"
"""Marks a copy that asks memory for what the next turn of the loop around it reads: rows lie pages
apart, where hardware does not look ahead."""
NEAR = 16
"""Bytes of L2 for each element of such a copy, at least: a quarter holds what is asked for."""
LINE = 16
"""Elements of a cache line."""


def width(rows: int, target: Target) -> int:
    """Lanes of vectors that so many rows fill, of 128 bits at least; 0 where they fill none."""
    lanes = target.lanes(DTYPE)
    while lanes >= PART and rows % lanes:
        lanes //= 2
    return lanes if lanes >= PART else 0


def mark(sch: Any, block: Any, target: Target, parallel: bool = False) -> bool:
    """Have `carry_out` transpose what a block copies in vector registers, in `parallel` tiles if
    so, but for padding; False where that cannot be.

    The last of its loops steps from row to row of what it reads. One of the others, or several that
    make up whole dimensions, step through neighbours there, and through rows of the copy: as many
    as a vector has lanes, or fewer, if rows lie one after the other.
    """
    copied, (_, extents) = sch.get(block), _nest(sch, block)
    if not extents:
        return False
    places, _ = _columns(copied, extents) if _each_its_own(sch, block) else ([], False)
    lanes = _fitted(sch, block, width(extents[-1], target), places) if places else 0
    if not lanes:
        return False
    sch.annotate(block, MARK, lanes)
    if math.prod(extents) <= target.l2_bytes // NEAR:
        sch.annotate(block, AHEAD, True)
    if parallel:
        sch.annotate(block, PARALLEL, True)
    return True


def _fitted(sch: Any, block: Any, lanes: int, places: Sequence[int]) -> int:
    """Lanes, of so many at most, that columns fill, or short rows one after the other; 0 where none
    do. A vector of what is guarded reads nothing outside, which may be beyond the tensor."""
    copied, (nest, extents) = sch.get(block), _nest(sch, block)
    columns, extent = math.prod(extents[p] for p in places), extents[places[0]]
    if not _guard(copied).forms:
        return lanes if columns >= lanes or _adjacent(copied, places, extents) else 0
    low, high = _span(sch, block, nest, places[0], extent)
    while lanes > columns // extent * (high - low):
        lanes //= 2
    return lanes if lanes >= PART else 0


def _span(sch: Any, block: Any, nest: Sequence[Any], place: int, extent: int) -> tuple[int, int]:
    """From where to where a block's columns are inside of what it copies, where that is the same in
    every turn of the loops around."""
    copied, loop = sch.get(block), sch.get(nest[place]).loop_var
    if not _values(sch, block)[place].same_as(loop):
        return 0, extent
    return _guard(copied).span(copied.iter_vars[place].var, extent)


def carry_out(sch: Any) -> None:
    """Transpose what marked blocks copy, in a program that is scheduled but for that: TVM does not
    follow what shuffles write. A copy for a task that ends early, where the operand does, stays.

        for c in 64, r in 3, i in 32  ->  for io in 2, co in 4: a tile of 16 x 3 columns, 16 rows
    """
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        notes = sch.get(block).annotations
        if MARK in notes and not _clipped(sch, block):
            _in_registers(sch, block, int(notes[MARK]))


def _clipped(sch: Any, block: Any) -> bool:
    """Whether a block begins at the lesser of two places."""
    nodes = (node for value in _values(sch, block) for node in walk(value))
    return any(isinstance(node, tirx.Min | tirx.Max) for node in nodes)


def _in_registers(sch: Any, block: Any, lanes: int) -> None:
    """Have the loops of a marked block around the block of a tile, in parallel if it is to be."""
    (nest, extents), notes = _nest(sch, block), sch.get(block).annotations
    outside = sch.get_loops(block)[: -len(nest)] if AHEAD in notes else []
    places, backward = _columns(sch.get(block), extents)
    (first, *rest), outer = (nest[p] for p in places), []
    inner = math.prod(extents[p] for p in places[1:])
    whole, extent = math.lcm(inner, lanes) // inner, extents[places[0]]
    inside = _span(sch, block, nest, places[0], extent)
    if extent % whole == 0 and inside == (0, extent):
        over, first = sch.split(first, [None, whole])
        outer.append(over)
    between, row = sch.split(nest[-1], [None, lanes])
    sch.reorder(between, *outer, first, *rest, row)
    if PARALLEL in notes:
        every, begin = sch.get_loops(block), sch.get(first)
        around = every[: next(p for p, loop in enumerate(every) if sch.get(loop).same_as(begin))]
        sch.parallel(sch.fuse(*around) if len(around) > 1 else around[0])
    turns = [loop for loop in map(sch.get, outside) if loop.kind == tirx.ForKind.SERIAL]
    tile = _Tile.of(sch.get(first), lanes)
    made = tile.shuffled(backward, [turn for turn in turns if not _one(turn.extent)])
    if made is not None:
        sch.state.replace(sch.get_sref(first), made, {})


def _each_its_own(sch: Any, block: Any) -> bool:
    """Whether every loop of `_nest` steps through one iterator of a block, by one."""
    nest, extents = _nest(sch, block)
    every = [sch.get(loop).loop_var for loop in nest]
    for var, extent, value in zip(every, extents, _values(sch, block), strict=True):
        begin = sym.Analyzer().simplify(value - var) if extent > 1 else value
        if variables(begin) & set(every) - ({var} if extent == 1 else set()):
            return False
    return True


def _guard(copied: Any) -> Guarded:
    """What a marked block copies."""
    guard = Guarded.of(copied.body.value)
    assert guard is not None
    return guard


def _values(sch: Any, block: Any) -> list[Any]:
    """Where a block is, by its iterators."""
    return list(sch.get(sch.get_loops(block)[-1]).body.iter_values)


def _one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1


def _nest(sch: Any, block: Any) -> tuple[list[Any], list[int]]:
    """The loops over a block's iterators, and their extents; none where one of them is unknown."""
    nest = sch.get_loops(block)[-len(sch.get(block).iter_vars) :]
    extents = [sch.get(loop).extent for loop in nest]
    known = all(isinstance(n, tirx.IntImm) for n in extents)
    return (nest, [int(n) for n in extents]) if known else ([], [])


def _columns(copied: Any, extents: Sequence[int]) -> tuple[list[int], bool]:
    """Positions of the iterators, outermost first, that together step through neighbours of what a
    block copies, and through rows of its copy; none where it does anything else than to copy. And
    whether they step backward, through whole dimensions."""
    store, variables = copied.body, [it.var for it in copied.iter_vars]
    guarded = Guarded.of(store.value) if isinstance(store, tirx.BufferStore) else None
    if guarded is None:
        return [], False
    if str(store.buffer.dtype) != DTYPE or not store.indices[-1].same_as(variables[-1]):
        return [], False
    found, backward, load = list[int](), False, guarded.load
    for size, index in reversed(_wide(load.source, load.indices)):
        form = linear(index)
        if form is None or len(form.terms) != 1:
            break
        ((var, step),) = form.terms.items()
        at = next((p for p, v in enumerate(variables[:-1]) if v.same_as(var)), None)
        back = (step, form.constant) == (-1, size - 1)
        shifted = bool(guarded.forms) and not found  # what is not there is not read
        if at is None or not (back or (step == 1 and (shifted or form.constant == 0))):
            break
        whole = extents[at] == size and (back or form.constant == 0)
        if (found and back != backward) or (back and not whole):
            break
        found, backward = [at, *found], back
        if not whole:
            break
    stored = _wide(store.buffer, store.indices)[-1 - len(found) : -1]
    same = [p for p, (_, index) in zip(found, stored, strict=False) if variables[p].same_as(index)]
    inner = [size for size, _ in stored[1:]] == [extents[p] for p in found[1:]]
    rows = [linear(index) for index in load.indices]
    ahead = all(form and form.terms.get(variables[-1], 0) >= 0 for form in rows)
    once = all(sum(variables[p] in form.terms for form in rows if form) == 1 for p in found)
    return (found if same == found and inner and ahead and once else []), backward


def _wide(buffer: Any, indices: Sequence[Any]) -> list[tuple[int, Any]]:
    """Extent and index of the dimensions that have more than one element."""
    sizes = map(int, buffer.shape)
    return [(n, index) for n, index in zip(sizes, indices, strict=True) if n > 1]


def _adjacent(copied: Any, places: Sequence[int], extents: Sequence[int]) -> bool:
    """Whether the next row follows where the columns of a row end."""
    source, row = _guard(copied).load, copied.iter_vars[-1].var
    wide = _wide(source.source, source.indices)
    before, (size, _) = wide[: -len(places)], wide[-len(places)]
    form = linear(before[-1][1]) if before else None
    return form is not None and form.terms.get(row) == 1 and extents[places[0]] == size


@dataclasses.dataclass(frozen=True)
class _Tile:
    """The loops over columns and, the last, over as many rows as vectors have lanes, and the block
    in them.

    What it reads and writes is seen as two matrices; their columns are counted in the last
    dimension of a row, beyond whose end TVM addresses what follows.
    """

    nest: Any
    over: Mapping[Any, int]
    """Extents by the variables of the loops."""
    realize: Any
    lanes: int

    @classmethod
    def of(cls, nest: Any, lanes: int) -> _Tile:
        """The tile that a loop begins."""
        inner, over = nest, dict[Any, int]()
        while isinstance(inner, tirx.For):
            over[inner.loop_var] = int(inner.extent)
            inner = inner.body
        return cls(nest, over, inner, lanes)

    @functools.cached_property
    def bound(self) -> dict[Any, Any]:
        """What the iterators of the block are, in the loops."""
        iterators, values = self.realize.block.iter_vars, self.realize.iter_values
        return {it.var: value for it, value in zip(iterators, values, strict=True)}

    @property
    def run(self) -> int:
        """Columns."""
        return math.prod(self.over.values()) // self.lanes

    def shuffled(self, backward: bool, turns: Sequence[Any]) -> Any:
        """The tile by shuffles, which asks for what it reads in the next turn of the last of the
        loops `turns`; None where that cannot be.

        Columns that are padding are stored as such, and a tile is copied as it was where anything
        else may be padding.
        """
        block, predicate, span = self.realize.block, self.realize.predicate, (0, self.run)
        guard = _guard(block).bound(self.bound, self.over)
        if guard is None or variables(predicate) & set(self.over):
            return None
        padding = guard.outside
        if not backward:
            first, extent = next(iter(self.over.items()))
            low, high = guard.span(first, extent)
            span = low * self.run // extent, high * self.run // extent
            guard = guard.elsewhere(first)
        inside = guard.whole(self.over)
        if inside is None or (padding is not None and span[1] - span[0] < self.lanes):
            return None
        reads = self._region(guard.load.source, guard.load.indices)
        writes = self._region(block.body.buffer, block.body.indices)
        source, copy = _matched(reads, "rows"), _matched(writes, "columns")
        ahead, begins = _ahead(reads, turns), self._begins(guard.load.indices)
        parts = [self._by_columns(source.buffer, copy.buffer, begins, ahead, span, backward)]
        for begin, end in ((0, span[0]), (span[1], self.run)):
            edge = tirx.Var("edge", "int32")
            if begin < end:
                zeros = tirx.Broadcast(padding, self.lanes)
                parts.append(
                    _loop(edge, end - begin, self._stored(copy.buffer, zeros, edge + begin))
                )
        name, whole = f"{block.name_hint}_o", tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]
        if not guard.forms:
            return _realized(name, reads, writes, whole, [source, copy], predicate)
        made = _realized(f"{name}_inside", reads, writes, whole, [source, copy])
        if not isinstance(inside, tirx.IntImm):
            made = tirx.IfThenElse(inside, made, self.nest)
        return _realized(name, reads, writes, made, [], predicate)

    def _by_columns(
        self, source: Any, copy: Any, begins: Sequence[Sequence[Any]], ahead: Sequence[int],
        span: tuple[int, int], backward: bool,
    ) -> Any:  # fmt: skip
        """The loop over the columns of a span, a vector of each row at a time. The last turn begins
        so early that vectors end where the row does, or those of short rows, one after the other,
        where the last row does."""
        lanes, vectors, turn = self.lanes, Vectors(self.lanes), tirx.Var("turn", "int32")
        (low, high), run = span, self.run
        wide = high - low
        start = turn * lanes if wide % lanes == 0 else tirx.min(turn * lanes, max(wide - lanes, 0))
        start = low + start

        def row(number: int) -> Any:
            if wide >= lanes:
                return vectors.load(source, begins[number], start)
            begin = min(number * run, lanes * run - lanes)
            return vectors.load(source, begins[0], begin, number * run - begin)

        columns = enumerate(vectors.transposed(row, min(wide, lanes)))
        stores = [
            self._stored(copy, vector, run - 1 - start - n if backward else start + n)
            for n, vector in columns
        ]
        lines = [(place, start) for place in begins]
        if wide < lanes:
            lines = [(begins[0], at) for at in range(0, lanes * run, LINE)]
        asked = [_asked(source, [*place, at], ahead) for place, at in lines if ahead]
        return _loop(turn, -(-wide // lanes), tirx.SeqStmt([*asked, *vectors.made, *stores]))

    def _stored(self, copy: Any, vector: Any, column: Any) -> Any:
        place = [*[0] * (len(copy.shape) - 2), column, tirx.Ramp(0, 1, self.lanes)]
        return tirx.BufferStore(copy, vector, place)

    def _region(self, buffer: Any, indices: Sequence[Any]) -> Any:
        """What the block reads or writes at `indices` in all turns of the loops."""
        simplify = sym.Analyzer().simplify
        first, last = (
            {var: tirx.const(n - 1 if end else 0, "int32") for var, n in self.over.items()}
            for end in (False, True)
        )
        ranges = []
        for index in (rewrite(index, self.bound) for index in indices):
            ends = [simplify(rewrite(index, corner)) for corner in (first, last)]
            extent = simplify(ends[1] - ends[0])
            least = ends[1] if int(extent) < 0 else ends[0]
            ranges.append(Range.from_min_extent(least, abs(int(extent)) + 1))
        return tirx.BufferRegion(buffer, ranges)

    def _begins(self, indices: Sequence[Any]) -> list[list[Any]]:
        """All indices but the last of where each row begins, as seen from the first one."""
        own = [rewrite(index, self.bound) for index in indices[:-1]]
        first, simplify = dict.fromkeys(self.over, tirx.const(0, "int32")), sym.Analyzer().simplify
        last = list(self.over)[-1]
        rows = [{**first, last: tirx.const(row, "int32")} for row in range(self.lanes)]
        return [[simplify(rewrite(i, row) - rewrite(i, first)) for i in own] for row in rows]


def _loop(var: Any, extent: int, body: Any) -> Any:
    return tirx.For(var, 0, extent, tirx.ForKind.SERIAL, body)


def _realized(
    name: str, reads: Any, writes: Any, body: Any, matched: Sequence[Any], predicate: Any = None
) -> Any:
    """A block of no iterators, which sees regions as buffers of their own."""
    block = s_tir.SBlock([], [reads], [writes], name, body, None, [], matched, {})
    return s_tir.SBlockRealize([], tirx.const(1, "bool") if predicate is None else predicate, block)


def _ahead(region: Any, turns: Sequence[Any]) -> list[int]:
    """How far behind a region lies what is read in the next of the last of `turns`, by dimension;
    nothing where there is none, or that is not known."""
    if not turns:
        return []
    later, simplify = {turns[-1].loop_var: turns[-1].loop_var + 1}, sym.Analyzer().simplify
    steps = [simplify(rewrite(side.min, later) - side.min) for side in region.region]
    known = all(isinstance(step, tirx.IntImm) for step in steps)
    found = [int(step) for step in steps] if known else []
    return found if any(found) else []


def _asked(buffer: Any, place: Sequence[Any], ahead: Sequence[int]) -> Any:
    """The statement that has a line, so far behind a place, brought to L2, if there is one."""
    load = tirx.BufferLoad(buffer, [at + step for at, step in zip(place, ahead, strict=True)])
    read, level, data = 0, 2, 1
    call = tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(load), read, level, data)
    return tirx.Evaluate(call)


def _matched(region: Any, name: str) -> Any:
    """A region of a tensor as a buffer of its own, wherever its elements lie."""
    shape = [int(n.extent) for n in region.region]
    strides = [tirx.Var(f"{name}_{d}", "int32") for d in range(len(shape))]
    buffer = tirx.decl_buffer(
        shape, DTYPE, name, strides=strides, elem_offset=tirx.Var(f"{name}_at", "int32"),
        offset_factor=1, scope=region.source.scope(),
    )  # fmt: skip
    return s_tir.MatchBufferRegion(buffer, region)
