"""Matrices transposed in vector registers, where a copy has rows as columns.

    for c in 16, i in 16:                    r[i] = W[i, 0:16]            for all 16 rows
        P[c, i] = W[i, c]           ->       four times: two shuffles     of every pair of rows
                                             P[c, 0:16] = r[place of c]   for all 16 columns

Element by element that takes a load and a store each; so it takes a load, a store and four
shuffles for 16 of them. Rows are interleaved within parts of 128 bits, and these then dealt out,
which CPUs do in one instruction each (``vunpcklps``, ``vunpcklpd``, ``vshuff32x4``). A copy made
turn by turn of a loop asks memory for what the next turn reads, while this one is transposed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.expression import linear, rewrite, walk
from flextensor.targets.base import Target

DTYPE = "float32"
"""What is transposed."""
MARK, PARALLEL = "flextensor.transposed", "flextensor.parallel"
"""What a block is annotated with: lanes, and whether to copy in parallel."""
AHEAD = "flextensor.ahead"
"""Marks a copy that asks memory for what the next turn of the loop around it reads: rows lie pages
apart, where hardware does not look ahead."""
NEAR = 16
"""Bytes of L2 for each element of such a copy, at least: a quarter holds what is asked for."""
PART = 4
"""Elements of 128 bits, within which rows are interleaved."""
LINE = 16
"""Elements of a cache line."""

Shuffle = tuple[int, int, tuple[int, ...]]
"""Two vectors, and which of their elements, counted through both, make up the new one."""


@functools.cache
def network(lanes: int) -> tuple[tuple[tuple[Shuffle, ...], ...], tuple[int, ...]]:
    """(rounds of shuffles that make `lanes` vectors of those before, of rows in the first round;
    where the column 0, 1, .. is in the end)."""
    vectors = [[(row, column) for column in range(lanes)] for row in range(lanes)]
    rounds, apart = list[tuple[Shuffle, ...]](), 1
    while apart < lanes:
        found: list[Shuffle] = [(0, 0, ())] * lanes
        for a in (row for row in range(lanes) if not row & apart):
            for half, mask in enumerate(_masks(lanes, apart)):
                found[a + half * apart] = a, a + apart, mask
        vectors = [[(vectors[a] + vectors[b])[p] for p in mask] for a, b, mask in found]
        rounds.append(tuple(found))
        apart *= 2
    columns = [vector[0][1] for vector in vectors]
    return tuple(rounds), tuple(columns.index(column) for column in range(lanes))


def _masks(lanes: int, apart: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The elements that two vectors take of two whose rows are so far apart."""
    parts = [range(p, p + PART) for p in range(0, 2 * lanes, PART)]
    if apart >= PART:
        even, odd = (itertools.chain(*parts[half::2]) for half in (0, 1))
        return tuple(even), tuple(odd)
    own, other = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    low, high = list[int](), list[int]()
    for mine, theirs in zip(own, other, strict=True):
        for mask, half in ((low, 0), (high, PART // 2)):
            for p in range(half, half + PART // 2, apart):
                mask += [*mine[p : p + apart], *theirs[p : p + apart]]
    return tuple(low), tuple(high)


def width(rows: int, target: Target) -> int:
    """Lanes of vectors that so many rows fill, of 128 bits at least; 0 where they fill none."""
    lanes = target.lanes(DTYPE)
    while lanes >= PART and rows % lanes:
        lanes //= 2
    return lanes if lanes >= PART else 0


def mark(sch: Any, block: Any, target: Target, parallel: bool = False) -> bool:
    """Have `carry_out` transpose what a block copies in vector registers, in `parallel` tiles if
    so; False where that cannot be.

    The last of its loops steps from row to row of what it reads. One of the others, or several that
    make up whole dimensions, step through neighbours there, and through rows of the copy: as many
    as a vector has lanes, or fewer, if rows lie one after the other.
    """
    copied, (_, extents) = sch.get(block), _nest(sch, block)
    if not extents:
        return False
    lanes, (places, _) = width(extents[-1], target), _columns(copied, extents)
    if not lanes or not places:
        return False
    if math.prod(extents[p] for p in places) < lanes and not _adjacent(copied, places, extents):
        return False
    sch.annotate(block, MARK, lanes)
    if math.prod(extents) <= target.l2_bytes // NEAR:
        sch.annotate(block, AHEAD, True)
    if parallel:
        sch.annotate(block, PARALLEL, True)
    return True


def carry_out(sch: Any) -> None:
    """Transpose what marked blocks copy, in a program that is scheduled but for that: TVM does not
    follow what shuffles write. A copy for a task that ends early, where the operand does, stays:
    where it begins is no place that TVM could make a tile of.

        for c in 64, r in 3, i in 32  ->  for io in 2, co in 4: a tile of 16 x 3 columns, 16 rows
    """
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        notes = sch.get(block).annotations
        if MARK in notes and not _clipped(sch, block):
            tile = _in_registers(sch, block, int(notes[MARK]))
            if PARALLEL in notes:
                nest = sch.get_loops(tile)
                sch.parallel(sch.fuse(*nest) if len(nest) > 1 else nest[0])


def _clipped(sch: Any, block: Any) -> bool:
    """Whether a block begins at the lesser of two places."""
    realize = sch.get(sch.get_loops(block)[-1]).body
    nodes = (node for value in realize.iter_values for node in walk(value))
    return any(isinstance(node, tirx.Min | tirx.Max) for node in nodes)


def _in_registers(sch: Any, block: Any, lanes: int) -> Any:
    """The block of a tile, the loops of a marked one around it."""
    nest, extents = _nest(sch, block)
    outside = sch.get_loops(block)[: -len(nest)] if AHEAD in sch.get(block).annotations else []
    places, backward = _columns(sch.get(block), extents)
    (first, *rest), outer = (nest[p] for p in places), []
    inner = math.prod(extents[p] for p in places[1:])
    whole = math.lcm(inner, lanes) // inner
    if extents[places[0]] % whole == 0:
        around, first = sch.split(first, [None, whole])
        outer.append(around)
    between, row = sch.split(nest[-1], [None, lanes])
    sch.reorder(between, *outer, first, *rest, row)
    tile = sch.blockize(first)
    old = sch.get(tile)
    new = _shuffled(old, lanes, backward, _ahead(sch, tile, outside))
    sch.state.replace(sch.get_sref(tile), new, {old: new})
    return tile


def _ahead(sch: Any, tile: Any, outside: Sequence[Any]) -> list[int]:
    """How far behind what a tile reads lies what it reads in the next turn of the innermost of the
    loops `outside` the copy, by dimension; nothing where there is none, or that is not known."""
    turns = [loop for loop in map(sch.get, outside) if loop.kind == tirx.ForKind.SERIAL]
    serial = [turn.loop_var for turn in turns if not _one(turn.extent)]
    if not serial:
        return []
    realize, later = sch.get(sch.get_loops(tile)[-1]).body, {}
    for it, value in zip(realize.block.iter_vars, realize.iter_values, strict=True):
        form = linear(value)
        step = form.terms.get(serial[-1], 0) if form else 0
        later[it.var] = it.var + step
    (read,), simplify = realize.block.reads, sym.Analyzer().simplify
    steps = [simplify(rewrite(side.min, later) - side.min) for side in read.region]
    known = all(isinstance(step, tirx.IntImm) for step in steps)
    found = [int(step) for step in steps] if known else []
    return found if any(found) else []


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
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, TensorLoad):
        return [], False
    if str(store.buffer.dtype) != DTYPE or not store.indices[-1].same_as(variables[-1]):
        return [], False
    found, backward = list[int](), False
    for size, index in reversed(_wide(store.value.source, store.value.indices)):
        form = linear(index)
        if form is None or len(form.terms) != 1:
            break
        ((var, step),) = form.terms.items()
        at = next((p for p, v in enumerate(variables[:-1]) if v.same_as(var)), None)
        back = (step, form.constant) == (-1, size - 1)
        if at is None or not (back or (step, form.constant) == (1, 0)):
            break
        whole = extents[at] == size
        if (found and back != backward) or (back and not whole):
            break
        found, backward = [at, *found], back
        if not whole:
            break
    stored = _wide(store.buffer, store.indices)[-1 - len(found) : -1]
    same = [p for p, (_, index) in zip(found, stored, strict=False) if variables[p].same_as(index)]
    inner = [size for size, _ in stored[1:]] == [extents[p] for p in found[1:]]
    rows = [linear(index) for index in store.value.indices]
    ahead = all(form and form.terms.get(variables[-1], 0) >= 0 for form in rows)
    return (found if same == found and inner and ahead else []), backward


def _wide(buffer: Any, indices: Sequence[Any]) -> list[tuple[int, Any]]:
    """Extent and index of the dimensions that have more than one element."""
    sizes = map(int, buffer.shape)
    return [(n, index) for n, index in zip(sizes, indices, strict=True) if n > 1]


def _adjacent(copied: Any, places: Sequence[int], extents: Sequence[int]) -> bool:
    """Whether the next row follows where the columns of a row end."""
    source, row = copied.body.value, copied.iter_vars[-1].var
    wide = _wide(source.source, source.indices)
    before, (size, _) = wide[: -len(places)], wide[-len(places)]
    form = linear(before[-1][1]) if before else None
    return form is not None and form.terms.get(row) == 1 and extents[places[0]] == size


def _shuffled(tile: Any, lanes: int, backward: bool, ahead: Sequence[int]) -> Any:
    """The block of a tile, whose last loop is over as many rows as vectors have lanes; it asks for
    what is so far `ahead`.

    What it reads and writes is seen as two matrices; their columns are counted in the last
    dimension of a row, beyond whose end TVM addresses what follows. Vectors of the last turn begin
    so early that they end where the row does, or those of short rows where the last row does.
    """
    (read,), (written,) = tile.reads, tile.writes
    source, copy = _matched(read, "rows"), _matched(written, "columns")
    run = math.prod(int(n.extent) for n in written.region) // lanes
    turn = tirx.Var("turn", "int32")
    start = turn * lanes if run % lanes == 0 else tirx.min(turn * lanes, max(run - lanes, 0))
    begins, vectors = _begins(tile, lanes), _Vectors(lanes)

    def row(number: int) -> Any:
        if run >= lanes:
            return vectors.load(source.buffer, begins[number], start)
        begin = min(number * run, lanes * run - lanes)
        return vectors.load(source.buffer, begins[0], begin, number * run - begin)

    columns = vectors.transposed(row, min(run, lanes))
    stores = []
    for number, vector in enumerate(columns):
        column = run - 1 - start - number if backward else start + number
        place = [*[0] * (len(written.region) - 2), column, tirx.Ramp(0, 1, lanes)]
        stores.append(tirx.BufferStore(copy.buffer, vector, place))
    lines = [(place, start) for place in begins]
    if run < lanes:  # one row follows the other
        lines = [(begins[0], at) for at in range(0, lanes * run, LINE)]
    asked = [_asked(source.buffer, [*place, at], ahead) for place, at in lines if ahead]
    body = tirx.SeqStmt([*asked, *vectors.made, *stores])
    turns = tirx.For(turn, 0, -(-run // lanes), tirx.ForKind.SERIAL, body)
    return s_tir.SBlock(
        tile.iter_vars, tile.reads, tile.writes, tile.name_hint, turns, tile.init,
        tile.alloc_buffers, [source, copy], tile.annotations,
    )  # fmt: skip


def _begins(tile: Any, lanes: int) -> list[list[Any]]:
    """All indices but the last of where each row of a tile begins, as seen from the first one."""
    inner, over = tile.body, list[Any]()
    while isinstance(inner, tirx.For):
        over.append(inner.loop_var)
        inner = inner.body
    bound = {it.var: v for it, v in zip(inner.block.iter_vars, inner.iter_values, strict=True)}
    indices = [rewrite(index, bound) for index in inner.block.body.value.indices[:-1]]
    first, simplify = dict.fromkeys(over, tirx.const(0, "int32")), sym.Analyzer().simplify
    rows = [{**first, over[-1]: tirx.const(row, "int32")} for row in range(lanes)]
    return [[simplify(rewrite(i, row) - rewrite(i, first)) for i in indices] for row in rows]


def _asked(buffer: Any, place: Sequence[Any], ahead: Sequence[int]) -> Any:
    """The statement that has a line, so far behind a place, brought to L2, if there is one."""
    load = tirx.BufferLoad(buffer, [at + step for at, step in zip(place, ahead, strict=True)])
    read, level, data = 0, 2, 1
    call = tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(load), read, level, data)
    return tirx.Evaluate(call)


class _Vectors:
    """Vectors of so many `lanes`, and the statements that make them."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.made = lanes, list[Any]()

    def _held(self, value: Any) -> Any:
        var = tirx.Var(f"v{len(self.made)}", f"{DTYPE}x{self.lanes}")
        self.made.append(tirx.Bind(var, value))
        return var

    def load(self, buffer: Any, place: Sequence[Any], begin: Any, ahead: int = 0) -> Any:
        """What lies at a place, from `begin` on, without the first elements that are `ahead`."""
        vector = self._held(tirx.BufferLoad(buffer, [*place, tirx.Ramp(begin, 1, self.lanes)]))
        mask = [min(p + ahead, self.lanes - 1) for p in range(self.lanes)]
        return self._held(tirx.Shuffle([vector], mask)) if ahead else vector

    def transposed(self, row: Callable[[int], Any], columns: int) -> list[Any]:
        """The first columns of a matrix, given what loads a row."""
        rounds, where = network(self.lanes)

        @functools.cache
        def vector(done: int, number: int) -> Any:
            if not done:
                return row(number)
            a, b, mask = rounds[done - 1][number]
            return self._held(tirx.Shuffle([vector(done - 1, a), vector(done - 1, b)], mask))

        return [vector(len(rounds), place) for place in where[:columns]]


def _matched(region: Any, name: str) -> Any:
    """A region of a tensor as a buffer of its own, wherever its elements lie."""
    shape = [int(n.extent) for n in region.region]
    strides = [tirx.Var(f"{name}_{d}", "int32") for d in range(len(shape))]
    buffer = tirx.decl_buffer(
        shape, DTYPE, name, strides=strides, elem_offset=tirx.Var(f"{name}_at", "int32"),
        offset_factor=1, scope=region.source.scope(),
    )  # fmt: skip
    return s_tir.MatchBufferRegion(buffer, region)
