"""Winograd's minimal filtering: a convolution with fewer multiplications, as TVM stages.

    y = A' ((G g) * (B' d))        transforms of the weight g and of tiles of the data d, products
                                   of their points, summed over channels, and a transform of these

for neural networks after A. Lavin and S. Gray, *Fast Algorithms for Convolutional Neural Networks*
(CVPR 2016); what the matrices are, and for which windows, says `minimal_filtering`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from flextensor.operators.minimal_filtering import Matrix, Tiling, matrices
from flextensor.operators.polyphase import digits
from flextensor.operators.stages import guarded, pad

GROWN = (16, 8)
"""Output and input channels grow to multiples of these, so that transforms fill vectors; halves of
them will do for the input, each channel of which costs a product."""


def combine(matrix: Matrix, row: Any, element: Callable[[int], Any], dtype: str) -> Any:
    """``sum_j matrix[row][j] * element(j)``: a choice among rows that folds once `row` is known.

    Points p and -p have rows of B' and G, and columns of A', that differ only in signs. What they
    share is written alike, so that a compiler computes it once:

        b[1]*d1 + b[2]*d2 + b[3]*d3 + d4  ->  (b[2]*d2 + d4) + (b[1]*d1 + b[3]*d3)     a row of B'
        m1 - m2 + 2*m3 - 2*m4             ->  (m1 - m2) + 2*(m3 - m4)                  a row of A'
    """
    from tvm import tirx

    def scaled(c: Fraction, value: Any) -> Any:
        return value if c == 1 else value * tirx.const(float(c), dtype)

    def total(terms: Sequence[tuple[Fraction, Any]]) -> Any:
        found: Any = None
        for c, value in terms:
            if found is None:
                found = scaled(c, value)
            else:
                found = found - value if c == -1 else found + scaled(c, value)
        return found

    def both(j: int, alike: bool) -> Any:
        return element(j) + element(j + 1) if alike else element(j) - element(j + 1)

    pairs = _pairs(matrix)
    single = [j for j in range(len(matrix[0])) if j not in pairs and j - 1 not in pairs]

    def line(own: Sequence[Fraction]) -> Any:
        if pairs:
            terms = [(own[j], element(j)) for j in single if own[j]]
            return total(terms + [(own[j], both(j, own[j] == own[j + 1])) for j in pairs if own[j]])
        even, odd = (
            [(own[j], element(j)) for j in range(part, len(own), 2) if own[j]] for part in (0, 1)
        )
        if not even or not odd:
            return total(even or odd)
        if odd[0][0] > 0:
            return total(even) + total(odd)
        return total(even) - total([(-c, value) for c, value in odd])

    *rest, value = map(line, matrix)
    for number, other in reversed(list(enumerate(rest))):
        value = tirx.if_then_else(row == number, other, value)
    return value


def _pairs(matrix: Matrix) -> list[int]:
    """The columns, each with the next, whose elements differ only in signs: of symmetric points."""
    columns, found = list(zip(*matrix, strict=True)), list[int]()
    for j in range(len(columns) - 1):
        taken = found and found[-1] == j - 1
        if not taken and all(abs(a) == abs(b) for a, b in zip(*columns[j : j + 2], strict=True)):
            found.append(j)
    return found


def convolve(
    data: Any, weight: Any, *, tiling: Tiling, dilation: int, groups: int, name: str
) -> Any:
    """`flextensor.operators.stages.convolve` with stride 1, by tiles, see `tilings`.

    A window with gaps sees only every `dilation`-th element: along the tiled axes the data is
    dealt out to ``dilation ** axes`` images, which are convolved without gaps and joined again.
    Channels that are not in groups grow to multiples of `GROWN`.
    """
    axes = len(tiling)
    out_channels, size = int(weight.shape[0]), [int(n) for n in data.shape[-axes:]]
    if groups == 1:
        more = [-int(n) % m for n, m in zip(weight.shape[:2], GROWN, strict=True)]
        rest = [0] * (len(data.shape) - 2)
        data = pad(data, [0, 0, *rest], [0, more[1], *rest])
        weight = pad(weight, [0, 0, *rest], [*more, *rest])
    images = data if dilation == 1 else _deal(data, axes, dilation)
    none = [0] * len(data.shape)
    zeros = none[axes:] + [-int(weight.shape[-1]) % scheme.taps for scheme in tiling]
    images, filters = (pad(t, none, zeros) for t in (images, weight))
    fast = Winograd(images, filters, out_channels, tiling, dilation, groups, name)
    out = fast.compute()
    if dilation == 1:
        return out
    gaps = [dilation * (int(r) - 1) for r in weight.shape[-axes:]]
    kept = [n - gap for n, gap in zip(size, gaps, strict=True)]
    return _join(out, axes, dilation, [*out.shape[2:-axes], *kept], int(data.shape[0]))


def _deal(data: Any, axes: int, count: int) -> Any:
    """``images[(n*d + p)*d + q, .., y, x] = data[n, .., y*d + p, x*d + q]``, zero outside."""
    from tvm import te

    batch, *rest = (int(n) for n in data.shape)
    tiled = rest[-axes:]

    def value(image: Any, *at: Any) -> Any:
        n, phase = digits(image, count, axes)
        place = [x * count + p for x, p in zip(at[-axes:], phase, strict=True)]
        inside = [x < size for x, size in zip(place, tiled, strict=True) if size % count]
        return guarded(inside, data(n, *at[:-axes], *place))

    shape = [batch * count**axes, *rest[:-axes], *(-(-n // count) for n in tiled)]
    return te.compute(shape, value, name="phases")


def _join(images: Any, axes: int, count: int, size: Sequence[Any], batch: int) -> Any:
    """The reverse of `_deal`, for an output of `size` along all spatial axes."""
    from tvm import te

    def value(n: Any, k: Any, *at: Any) -> Any:
        image = n
        for x in at[-axes:]:
            image = image * count + x % count
        return images(image, k, *at[:-axes], *(x // count for x in at[-axes:]))

    return te.compute([batch, int(images.shape[1]), *size], value, name="join_phases")


@dataclasses.dataclass(frozen=True)
class Level:
    """A dimension of transforms: F(tile, window) over every `step`-th element along a tiled axis,
    which is a digit of the place along that axis."""

    axis: int
    step: int
    tile: int
    window: int

    @property
    def points(self) -> int:
        """Products along the dimension."""
        return self.tile + self.window - 1


@dataclasses.dataclass(frozen=True)
class Winograd:
    """A convolution of stride 1 whose last axes are computed by the schemes of a tiling.

    `data` [N, C, (D,) size..] is padded already, `weight` is [K, C/groups, (R,) parts*taps..], of
    whose output channels the first `out_channels` are wanted. An output y along a tiled axis is
    ``t*tile + i``: row i of tile t, whose digits are those of the levels. `dilation` is that of the
    axis D without tiles, if there is one.
    """

    data: Any
    weight: Any
    out_channels: int
    tiling: Tiling
    dilation: int
    groups: int
    name: str

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """The dimensions of transforms: those of each tiled axis, the outermost first."""
        found = list[Level]()
        for axis, scheme in enumerate(self.tiling):
            step = scheme.tile
            for tile, window in scheme.levels:
                step //= tile
                found.append(Level(axis, step, tile, window))
        return tuple(found)

    @property
    def axes(self) -> int:
        """How many axes are tiled."""
        return len(self.tiling)

    @property
    def out_size(self) -> tuple[int, ...]:
        """Output extents along all spatial axes."""
        sizes, taps = self.data.shape[2:], self.weight.shape[2:]
        gaps = [self.dilation] * (len(taps) - self.axes) + [1] * self.axes
        return tuple(int(n) - d * (int(r) - 1) for n, r, d in zip(sizes, taps, gaps, strict=True))

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of the output along each tiled axis."""
        sizes = self.out_size[-self.axes :]
        return tuple(-(-n // s.tile) for n, s in zip(sizes, self.tiling, strict=True))

    @property
    def seen(self) -> tuple[int, ...]:
        """Tiles of the data along each tiled axis."""
        return tuple(n + s.parts - 1 for n, s in zip(self.tiles, self.tiling, strict=True))

    def compute(self) -> Any:
        """The output [N, K, (D,) size..]; its products are the stage `name`."""
        return self._gather(self._products(self._transform_data(), self._transform_weight()))

    def _pad(self) -> Any:
        """The data, grown to whole tiles along tiled axes."""
        fixed = len(self.data.shape) - self.axes
        size = [int(n) for n in self.data.shape[fixed:]]
        wanted = [t * s.tile + s.taps - 1 for t, s in zip(self.seen, self.tiling, strict=True)]
        after = [0] * fixed + [w - n for w, n in zip(wanted, size, strict=True)]
        return pad(self.data, [0] * len(after), after)

    def _places(self, first: Sequence[Any], offsets: Sequence[Any]) -> list[Any]:
        """Places along the tiled axes: offsets along the levels, behind the `first` of a tile."""
        found = list(first)
        for level, offset in zip(self.levels, offsets, strict=True):
            found[level.axis] = found[level.axis] + offset * level.step
        return found

    def _rows(self, stage: str, matrices: Sequence[Matrix], source: Any, axis: int) -> Any:
        """One axis of a transform: its matrix applied to dimension `axis` of a tile.

        `source` [elements.., rest..] becomes [.., rows of matrix at `axis`, .., rest..].
        """
        from tvm import te

        shape = [int(n) for n in source.shape]
        shape[axis] = len(matrices[axis])

        def value(*at: Any) -> Any:
            def element(j: int) -> Any:
                return source(*at[:axis], j, *at[axis + 1 :])

            return combine(matrices[axis], at[axis], element, source.dtype)

        return te.compute(shape, value, name=f"{self.name}_{stage}{axis}")

    def _matrices(self, which: int) -> list[Matrix]:
        """Of A', G and B', the one of every level."""
        return [matrices(level.tile, level.window)[which] for level in self.levels]

    def _transform_data(self) -> Any:
        """V = B' d B, [points.., N, (D,) seen.., C]."""
        from tvm import te

        data, by, ndim = self._pad(), self._matrices(2), len(self.levels)
        batch, channels, *size = (int(n) for n in data.shape)
        loose = size[: len(size) - self.axes]
        points = [level.points for level in self.levels]

        def first(*at: Any) -> Any:
            offsets, n, rest, c = at[:ndim], at[ndim], at[ndim + 1 : -1], at[-1]
            free, tile = rest[: len(loose)], rest[len(loose) :]

            def element(j: int) -> Any:
                start = [t * s.tile for t, s in zip(tile, self.tiling, strict=True)]
                return data(n, c, *free, *self._places(start, (j, *offsets[1:])))

            return combine(by[0], offsets[0], element, data.dtype)

        shape = [*points, batch, *loose, *self.seen, channels]
        out = te.compute(shape, first, name=f"{self.name}_data0")
        for level in range(1, ndim):
            out = self._rows("data", by, out, level)
        return out

    def _transform_weight(self) -> Any:
        """U = G g G' of every part, [points.., C/groups, (R,) parts.., K]."""
        from tvm import te

        weight, by, ndim = self.weight, self._matrices(1), len(self.levels)
        out_channels, in_group, *taps = (int(n) for n in weight.shape)
        loose = taps[: len(taps) - self.axes]
        parts = [s.parts for s in self.tiling] if any(s.parts > 1 for s in self.tiling) else []
        window = [level.window for level in self.levels[1:]]

        def first(*at: Any) -> Any:
            offsets, (c, *free, k) = at[:ndim], at[ndim:]
            free, part = free[: len(loose)], free[len(loose) :] or [0] * self.axes

            def element(j: int) -> Any:
                start = [p * s.taps for p, s in zip(part, self.tiling, strict=True)]
                return weight(k, c, *free, *self._places(start, (j, *offsets[1:])))

            return combine(by[0], offsets[0], element, weight.dtype)

        shape = [self.levels[0].points, *window, in_group, *loose, *parts, out_channels]
        out = te.compute(shape, first, name=f"{self.name}_weight0")
        for level in range(1, ndim):
            out = self._rows("weight", by, out, level)
        return out

    def _products(self, data: Any, weight: Any) -> Any:
        """M = U V summed over channels, loose taps and parts, [points.., N, K, (D,) tiles..]."""
        from tvm import te

        ndim = len(self.levels)
        in_group, *taps, out_channels = (int(n) for n in weight.shape[ndim:])
        c = te.reduce_axis((0, in_group), "rc")
        window = [te.reduce_axis((0, r), f"r{i}") for i, r in enumerate(taps)]
        per_group = out_channels // self.groups
        loose = list(self.out_size[: -self.axes])
        steps = [self.dilation] * len(loose) + [1] * self.axes

        def value(*at: Any) -> Any:
            points, n, k, rest = at[:ndim], at[ndim], at[ndim + 1], at[ndim + 2 :]
            slid = [q + r * d for q, r, d in zip(rest, window, steps, strict=False)]
            channel = c if self.groups == 1 else k // per_group * in_group + c
            term = data(*points, n, *slid, *rest[len(slid) :], channel)
            return te.sum(term * weight(*points, c, *window, k), axis=[c, *window])

        shape = [*data.shape[:ndim], data.shape[ndim], out_channels, *loose, *self.tiles]
        return te.compute(shape, value, name=self.name)

    def _gather(self, products: Any) -> Any:
        """Y = A' M A, and every element of a tile to its place in [N, K, (D,) size..]."""
        from tvm import te

        out, by = products, self._matrices(0)
        for level in range(len(by)):
            out = self._rows("out", by, out, level)
        batch = int(products.shape[len(by)])
        loose = len(self.out_size) - self.axes

        def value(n: Any, k: Any, *position: Any) -> Any:
            tiled = position[loose:]
            tile = [x // s.tile for x, s in zip(tiled, self.tiling, strict=True)]
            inside = [self._digit(tiled[level.axis], level) for level in self.levels]
            return out(*inside, n, k, *position[:loose], *tile)

        return te.compute(
            [batch, self.out_channels, *self.out_size], value, name=f"{self.name}_tiles"
        )

    @staticmethod
    def _digit(x: Any, level: Level) -> Any:
        """The offset of an output along a level."""
        return (x if level.step == 1 else x // level.step) % level.tile
