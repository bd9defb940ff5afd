"""How one operand of a contraction lies in memory while the kernel runs.

The M or N iterators of an operand (its *side*) are flattened into one index q, which is cut into
blocks (shared between threads, sized to a cache) of tiles (held in registers). Three layouts:

    inline   the operand is read where it lies
    panel    one contiguous panel per tile: P[batch, block, tile, k..., i]; for a convolution
             this is im2col
    flat     one padded copy in which a window slides by adding an offset to q:
             F[batch, k..., phase..., q + offset(k)]; rows keep their overhang, so that every tap
             of every pixel is one contiguous vector load, and nothing is stored twice
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from flextensor.operators.stages import guarded
from flextensor.schedulers.analysis import Operand
from flextensor.schedulers.expression import Linear, bfloat16_bits, bfloat16_term, rewrite
from flextensor.schedulers.groups import Group, in_word, word
from flextensor.schedulers.program import Iterator, Tensors
from flextensor.targets.rounding import ceil_div, round_up


@dataclasses.dataclass(frozen=True)
class Cut:
    """One side's iterators as blocks x tiles x elements of a tile.

    The first iterator is cut into `blocks` of `block`; what a block spans is flattened with
    `pitches` (extents, or more where rows keep an overhang) and padded to `tiles` full tiles.
    """

    extents: tuple[int, ...]
    pitches: tuple[int, ...]
    block: int
    blocks: int
    tile: int
    tiles: int

    @classmethod
    def of(cls, extents: Sequence[int], pitches: Sequence[int], parts: int, tile: int) -> Cut:
        """Cut a side into about `parts` blocks of tiles of `tile` elements."""
        return _cut(tuple(extents), tuple(pitches), parts, tile)

    @property
    def rest(self) -> int:
        """Flat elements per step of the first iterator."""
        return math.prod(self.pitches[1:])

    @property
    def padded(self) -> int:
        """Elements computed, all blocks together."""
        return self.blocks * self.tiles * self.tile

    @property
    def points(self) -> int:
        """Elements wanted."""
        return math.prod(self.extents)

    @property
    def waste(self) -> float:
        """Elements computed per element wanted, at least 1."""
        return self.padded / self.points

    @property
    def exact(self) -> bool:
        """Whether every element computed is wanted."""
        return self.padded == self.points

    @property
    def lone(self) -> bool:
        """Whether less than a tile of a block is read, in one tile or among several that overhang
        fills: such tiles must not be computed at a block of their consumer, where TVM would shrink
        them to what is read."""
        following = [math.prod(self.pitches[p + 1 :]) for p in range(len(self.pitches))]
        steps = zip((self.block, *self.extents[1:]), following, strict=False)
        read = 1 + sum((extent - 1) * step for extent, step in steps)
        return read < self.tile

    def coordinates(self, o: Any, q: Any) -> list[Any]:
        """The iterators' values at element q of block o; may lie outside the extents."""
        if not self.extents:
            return []
        rest, values = self.rest, []
        for position, pitch in enumerate(self.pitches[1:]):
            following = math.prod(self.pitches[position + 2 :])
            values.append(tirx.floormod(tirx.floordiv(q, following), pitch))
        return [o * self.block + tirx.floordiv(q, rest), *values]

    def locate(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """Block and flat element of given iterator values."""
        if not self.extents:
            return 0, 0
        q = tirx.floormod(values[0], self.block)
        for value, pitch in zip(values[1:], self.pitches[1:], strict=True):
            q = q * pitch + value
        return tirx.floordiv(values[0], self.block), q


@functools.lru_cache(maxsize=1 << 14)
def _cut(extents: tuple[int, ...], pitches: tuple[int, ...], parts: int, tile: int) -> Cut:
    """`Cut.of`, which a search asks for the same few cuts thousands of times."""
    first = extents[0] if extents else 1
    rest = math.prod(pitches[1:])
    block = ceil_div(first, parts)
    if rest == 1:
        block = round_up(block, tile)
    tiles = ceil_div(block * rest, tile)
    return Cut(extents, pitches, block, ceil_div(first, block), tile, tiles)


@dataclasses.dataclass(frozen=True)
class Slide:
    """How one side iterator moves through its dimension: `stride * (u + reach(k)) + phase(k)`."""

    dimension: int
    stride: int
    taps: Linear
    span: int
    """Steps of u that the window adds beyond the iterator's extent."""

    def offset(self, at: dict[Any, Any]) -> tuple[Any, Any]:
        """(whole steps, phase within a step) of a tap."""
        taps = self.taps.at(at)
        if self.stride == 1:
            return taps, 0
        return tirx.floordiv(taps, self.stride), tirx.floormod(taps, self.stride)


Element = Callable[[Sequence[Any], Any, Any, Any, dict[Any, Any]], Any]
"""(batch values, block o, tile t, element i, k values by variable) -> the operand's value."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One operand with the iterators that only it (and the output) has."""

    operand: Operand
    iterators: tuple[Iterator, ...]
    batch: tuple[Iterator, ...]
    k: tuple[Iterator, ...]
    fixed: bool = False
    """Whether the operand depends on constants alone: packed at the root, it is so ahead."""
    group: Group | None = None
    stored: str = ""
    """What is packed, if another dtype: uint8 for int8, which is 128 more; uint16 for bfloat16,
    the same bits, for TVM lets buffers of bfloat16 be of float32; either in words."""
    summed: bool = False
    """Whether what is packed is also summed by itself, and so is packed once."""
    steps: Mapping[Any, int] = dataclasses.field(default_factory=dict)
    """Elements between neighbours along each variable, where an input is read in place."""

    @property
    def extents(self) -> tuple[int, ...]:
        """Extents of the side's iterators."""
        return tuple(i.extent for i in self.iterators)

    @functools.cached_property
    def own_batch(self) -> tuple[Iterator, ...]:
        """Batch iterators that the operand reads."""
        return tuple(i for i in self.batch if i in self.operand.iterators)

    @functools.cached_property
    def own_k(self) -> tuple[Iterator, ...]:
        """Reduction iterators that the operand reads."""
        return tuple(i for i in self.k if i in self.operand.iterators)

    @functools.cached_property
    def still_k(self) -> tuple[Iterator, ...]:
        """Those of `own_k` that slide no window: with them alone, each element is read once."""
        sliding = {v for slide in self.slides or () for v in slide.taps.terms}
        return tuple(i for i in self.own_k if i.var not in sliding)

    def reads(self, buffer: Any) -> bool:
        """Whether the operand is a plain load of a buffer."""
        return self.operand.buffer is not None and bool(self.operand.buffer.same_as(buffer))

    @property
    def contiguous(self) -> bool:
        """Whether steps of the innermost iterator are neighbours in memory, as they lie."""
        access = self.operand.access
        if not access or not self.iterators:
            return False
        return bool(access[-1].terms.get(self.iterators[-1].var) == 1)

    @functools.cached_property
    def slides(self) -> tuple[Slide, ...] | None:
        """How every side iterator slides, or None when `flat` does not fit the operand: each
        iterator must have a dimension to itself but for non-negative taps of K iterators."""
        access = self.operand.access
        if access is None or not self.iterators:
            return None
        by_k = {i.var: i.extent for i in self.k}
        found = []
        for it in self.iterators:
            dims = [d for d, form in enumerate(access) if it.var in form.terms]
            if len(dims) != 1:
                return None
            form = access[dims[0]]
            taps = Linear({v: c for v, c in form.terms.items() if v != it.var}, form.constant)
            stride = form.terms[it.var]
            if stride < 1 or taps.constant < 0:
                return None
            if any(v not in by_k or c < 1 for v, c in taps.terms.items()):
                return None
            reach = taps.constant + sum(c * (by_k[v] - 1) for v, c in taps.terms.items())
            found.append(Slide(dims[0], stride, taps, reach // stride))
        return tuple(found) if len({s.dimension for s in found}) == len(found) else None

    def pitches(self, layout: str) -> tuple[int, ...]:
        """Flat elements per iterator; `flat` keeps the overhang of every row but the first's."""
        slides = self.slides if layout == "flat" else None
        if slides is None:
            return self.extents
        return tuple(i.extent + s.span for i, s in zip(self.iterators, slides, strict=True))

    def _stored(self, value: Any, at: Mapping[Any, Any]) -> Any:
        """A value as it is packed, of the term that `at` says."""
        if self.stored == "uint8":
            return tirx.Cast("uint8", value) + tirx.const(128, "uint8")
        if self.stored != "uint16":
            return value
        if self.group and self.group.terms > 1:
            return bfloat16_term(value, at[self.group.term])
        return bfloat16_bits(value)

    def _packed(self, place: Sequence[Any], value: Callable[[dict[Any, Any]], Any]) -> Any:
        """What is stored at the last indices, of the values at those of the group."""
        if not self.group:
            return value({})
        found = [value(member) for member in self.group.members(place)]
        return found[0] if not self.group.part else word(found)

    def _read(self, tensor: Any, first: Sequence[Any], i: Any, k: dict[Any, Any]) -> Any:
        """The element i of what is packed, at the first indices and values of the reduction."""
        if not self.group:
            return tensor(*first, i)
        stored = tensor(*first, *self.group.indices(i, k))
        if not self.group.part:
            return stored
        return in_word(stored, k[self.group.var] % self.group.part, self.stored)

    def bind(
        self, batch: Sequence[Any], values: Sequence[Any], k: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Iterator variables to the given expressions."""
        at = {i.var: v for i, v in zip(self.batch, batch, strict=True)}
        at |= {i.var: v for i, v in zip(self.iterators, values, strict=True)}
        return at | k

    def inline(self, cut: Cut, tensors: Tensors) -> Element:
        """Read where it lies; beyond the edge of a block its last element is read again, and
        dropped: a producer inside the task then computes what the block has and no more."""
        filled = cut.block * cut.rest

        def element(batch: Sequence[Any], o: Any, t: Any, i: Any, k: dict[Any, Any]) -> Any:
            q = t * cut.tile + i
            if cut.tiles * cut.tile != filled:
                q = tirx.min(q, filled - 1)
            values = cut.coordinates(o, q)
            if cut.extents and cut.blocks * cut.block != cut.extents[0]:
                values[0] = tirx.min(values[0], cut.extents[0] - 1)
            return rewrite(self.operand.value, self.bind(batch, values, k), tensors.load)

        return element

    def panel(self, cut: Cut, tensors: Tensors, name: str, padded_k: dict[Any, int]) -> Element:
        """P[batch, block, tile, k..., i], zero beyond the edges."""
        own_batch, own_k = self.own_batch, self.own_k
        k_extents = [padded_k.get(i.var, i.extent) for i in own_k]
        guard_first = cut.extents and cut.blocks * cut.block * cut.rest != cut.points
        overfull = cut.tiles * cut.tile != cut.block * cut.rest

        group, first = self.group, len(own_batch) + 2 + len(own_k)

        def body(*at: Any) -> Any:
            batch, (o, t, *k), place = at[: len(own_batch)], at[len(own_batch) : first], at[first:]
            q = t * cut.tile + (group.element(place) if group else place[0])
            values = cut.coordinates(o, q)
            bound = {b.var: v for b, v in zip(own_batch, batch, strict=True)}
            bound |= {s.var: v for s, v in zip(self.iterators, values, strict=True)}
            bound |= {r.var: v for r, v in zip(own_k, k, strict=True)}
            inside = []
            if cut.extents and (guard_first or overfull):
                inside.append(values[0] < cut.extents[0])
            if overfull and cut.rest > 1:
                inside.append(q < cut.block * cut.rest)

            def value(member: dict[Any, Any]) -> Any:
                here, within = bound | member, list(inside)
                for r, v, extent in zip(own_k, k, k_extents, strict=True):
                    if group and r is group.whole:
                        within += group.inside(v, here[group.var], extent)
                    elif extent != r.extent:
                        within.append(v < r.extent)
                read = rewrite(self.operand.value, here, tensors.load)
                return guarded(within, self._stored(read, here))

            return self._packed(place, value)

        shape = [i.extent for i in own_batch] + [cut.blocks, cut.tiles, *k_extents]
        shape += group.place(cut.tile) if group else [cut.tile]
        tensor = te.compute(shape, body, name=name)

        def element(batch: Sequence[Any], o: Any, t: Any, i: Any, k: dict[Any, Any]) -> Any:
            own = [v for b, v in zip(self.batch, batch, strict=True) if b in own_batch]
            return self._read(tensor, (*own, o, t, *(k[r.var] for r in own_k)), i, k)

        return element

    def row(self, cut: Cut) -> int:
        """Elements of a row of a `flat` copy; 1 where there is but one, or it has groups."""
        return 1 if self.group or len(cut.pitches) < 2 else cut.pitches[-1]

    def flat(self, cut: Cut, tensors: Tensors, name: str, padded_k: dict[Any, int]) -> Element:
        """F[batch, k..., phase..., q + offset(k)], zero beyond the edges."""
        slides = self.slides
        assert slides is not None and self.operand.access is not None
        own_batch = self.own_batch
        sliding = {s.dimension for s in slides}
        loose = [
            r
            for r in self.own_k
            if any(r.var in f.terms for d, f in enumerate(self.operand.access) if d not in sliding)
        ]
        phases = [s.stride for s in slides if s.stride > 1]
        following = [math.prod(cut.pitches[p + 1 :]) for p in range(len(slides))]
        overhang = sum(s.span * f for s, f in zip(slides, following, strict=True))
        last = (cut.blocks - 1) * cut.block * cut.rest + cut.tiles * cut.tile
        length = round_up(last + overhang, self.row(cut))
        shape = [
            *(i.extent for i in own_batch),
            *(padded_k.get(r.var, r.extent) for r in loose),
            *phases,
            *(self.group.place(length) if self.group else [length]),
        ]
        extents = [int(e) for e in self.operand.buffer.shape]
        group, first = self.group, len(own_batch) + len(loose) + len(phases)

        def body(*at: Any) -> Any:
            bound: dict[Any, Any] = {b.var: at[p] for p, b in enumerate(own_batch)}
            bound |= {r.var: at[len(own_batch) + p] for p, r in enumerate(loose)}
            phase, place = list(at[len(own_batch) + len(loose) : first]), at[first:]
            steps = unflatten(group.element(place) if group else place[0], cut.pitches)
            placed: dict[int, Any] = {}
            for slide, step in zip(slides, steps, strict=True):
                placed[slide.dimension] = step * slide.stride
                if slide.stride > 1:
                    placed[slide.dimension] = placed[slide.dimension] + phase.pop(0)
            inside = [index < extents[d] for d, index in placed.items()]

            def value(member: dict[Any, Any]) -> Any:
                here, within = bound | member, list(inside)
                for r in loose:
                    extent = padded_k.get(r.var, r.extent)
                    if group and r is group.whole:
                        within += group.inside(here[r.var], here[group.var], extent)
                    elif extent != r.extent:
                        within.append(here[r.var] < r.extent)
                assert self.operand.access is not None
                indices = [
                    placed[d] if d in placed else form.at(here)
                    for d, form in enumerate(self.operand.access)
                ]
                read = tensors.load(self.operand.buffer, indices)
                return guarded(within, self._stored(read, here))

            return self._packed(place, value)

        tensor = te.compute(shape, body, name=name)

        def element(batch: Sequence[Any], o: Any, t: Any, i: Any, k: dict[Any, Any]) -> Any:
            own = [v for b, v in zip(self.batch, batch, strict=True) if b in own_batch]
            q = o * (cut.block * cut.rest) + t * cut.tile + i
            phase = []
            for slide, step in zip(slides, following, strict=True):
                whole, part = slide.offset(k)
                q = q + whole * step
                if slide.stride > 1:
                    phase.append(part)
            return self._read(tensor, (*own, *(k[r.var] for r in loose), *phase), q, k)

        return element


def unflatten(q: Any, pitches: Sequence[int]) -> list[Any]:
    """The indices that are flattened to q, outermost first; the first may exceed its extent."""
    values = []
    for position, pitch in enumerate(pitches):
        value = tirx.floordiv(q, math.prod(pitches[position + 1 :]))
        values.append(value if position == 0 else tirx.floormod(value, pitch))
    return values
