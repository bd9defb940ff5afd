"""Winograd's minimal filtering: a convolution with fewer multiplications, as TVM stages.

Per axis F(m, r) computes m outputs of a window of r with m + r - 1 products instead of m * r:

    y = A' ((G g) * (B' d))

after S. Winograd, *Arithmetic Complexity of Computations* (1980), for neural networks A. Lavin and
S. Gray, *Fast Algorithms for Convolutional Neural Networks* (CVPR 2016). The matrices are those
of Toom and Cook for the interpolation points 0, 1, -1, 2, -2, .. and infinity. Rounding errors
grow with m: about 1e-6 of the largest output for m = 2, and 1e-5 for m = 4, in float32.

A longer window is cut into parts (D. Huang et al., *DWM: A Decomposable Winograd Method for
Convolution Acceleration*, AAAI 2020), here of m taps, so that all slide over the same transformed
tiles, each part one tile further: nine taps are three parts of F(3, 3), and the products of tile t
are those of part 0 with tile t, of part 1 with tile t + 1 and of part 2 with tile t + 2, summed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from flextensor.operators.polyphase import digits
from flextensor.operators.stages import guarded, pad

GROWN = (16, 8)
"""Output and input channels grow to multiples of these, so that transforms fill vectors; halves of
them will do for the input, each channel of which costs a product."""
Matrix = tuple[tuple[Fraction, ...], ...]
MOST_POINTS = 7
"""Points of a tile along an axis, at most: rounding errors grow with each."""
GAIN = Fraction(5, 4)
"""How many times fewer products per output one more formulation must need."""
POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))
"""Interpolation points, in the order in which they are taken; infinity always is one more."""


@functools.cache
def tiles(window: int) -> dict[int, int]:
    """Outputs of the tiles worth computing for a window, and the taps of its parts, those with the
    fewest points first: 3 -> ``{2: 3, 4: 3}``, 5 -> ``{3: 5}``, 7 -> ``{3: 3, 4: 4}``."""
    found, least = dict[int, int](), Fraction(window)
    for points in range(3, MOST_POINTS + 1):
        cuts = [(tile, points - tile + 1) for tile in range(2, points)]
        cuts = [(tile, taps) for tile, taps in cuts if taps == window or taps == tile < window]
        costs = {cut: Fraction(points * -(-window // cut[1]), cut[0]) for cut in cuts}
        best = min(costs, key=lambda cut: costs[cut], default=None)
        if best is not None and costs[best] * GAIN <= least:
            found[best[0]], least = best[1], costs[best]
    return found


def worthwhile(kernel: int, stride: int, ndim: int) -> list[int]:
    """The tiles for windows of `kernel` and `stride` along each of `ndim` axes that need `GAIN`
    times fewer products than there are. A longer stride multiplies the taps of all its phases, some
    of which may be zero: 3 by 2 -> ``[5]`` in two dimensions, 7 by 2 -> ``[2, 3]``."""
    window, axes = -(-kernel // stride), min(ndim, 2)
    found = []
    for tile, taps in tiles(window).items():
        products = Fraction((tile + taps - 1) * -(-window // taps), tile)
        needed = (products * stride) ** axes * (window * stride) ** (ndim - axes)
        if needed * GAIN <= kernel**ndim:
            found.append(tile)
    return found


@functools.cache
def matrices(outputs: int, window: int) -> tuple[Matrix, Matrix, Matrix]:
    """A' [outputs, n], G [n, window] and B' [n, n] of F(outputs, window), n = outputs + window - 1.

    Row j of B' holds the coefficients of ``prod over i != j of (x - p[i])``, the last row those
    of the product over all points; G divides by ``prod (p[j] - p[i])``.
    """
    if outputs + window - 2 > len(POINTS):
        raise ValueError(f"F({outputs}, {window}) needs more than {len(POINTS)} points")
    points = [Fraction(p) for p in POINTS[: outputs + window - 2]]
    others = [[p for i, p in enumerate(points) if i != j] for j in range(len(points))]
    scale = [math.prod((p - q for q in others[j]), start=Fraction(1)) for j, p in enumerate(points)]
    zero, one = Fraction(0), Fraction(1)
    a = [[p**i for p in points] + [one if i == outputs - 1 else zero] for i in range(outputs)]
    g = [[p**i / s for i in range(window)] for p, s in zip(points, scale, strict=True)]
    g.append([one if i == window - 1 else zero for i in range(window)])
    b = [[*_polynomial(roots), zero] for roots in others] + [_polynomial(points)]
    return tuple(map(tuple, a)), tuple(map(tuple, g)), tuple(map(tuple, b))


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of ``prod (x - root)``, lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in itertools.zip_longest(
            shifted, coefficients, fillvalue=Fraction(0))]  # fmt: skip
    return coefficients


def combine(matrix: Matrix, row: Any, element: Callable[[int], Any], dtype: str) -> Any:
    """``sum_j matrix[row][j] * element(j)``: a choice among rows that folds once `row` is known."""
    from tvm import tirx

    def line(coefficients: Sequence[Fraction]) -> Any:
        total: Any = None
        for j, c in enumerate(coefficients):
            if c == 0:
                continue
            if total is not None and c == -1:
                total = total - element(j)
                continue
            term = element(j) if c == 1 else element(j) * tirx.const(float(c), dtype)
            total = term if total is None else total + term
        return total

    *rest, value = map(line, matrix)
    for number, other in reversed(list(enumerate(rest))):
        value = tirx.if_then_else(row == number, other, value)
    return value


def convolve(data: Any, weight: Any, *, tile: int, dilation: int, groups: int, name: str) -> Any:
    """`flextensor.operators.stages.convolve` with stride 1, by F(tile, taps), see `tiles`.

    A window with gaps sees only every `dilation`-th element: along the tiled axes the data is
    dealt out to ``dilation ** axes`` images, which are convolved without gaps and joined again.
    Channels that are not in groups grow to multiples of `GROWN`.
    """
    axes = min(len(weight.shape) - 2, 2)
    out_channels, size = int(weight.shape[0]), [int(n) for n in data.shape[-axes:]]
    if groups == 1:
        more = [-int(n) % m for n, m in zip(weight.shape[:2], GROWN, strict=True)]
        rest = [0] * (len(data.shape) - 2)
        data = pad(data, [0, 0, *rest], [0, more[1], *rest])
        weight = pad(weight, [0, 0, *rest], [*more, *rest])
    images = data if dilation == 1 else _deal(data, axes, dilation)
    taps = tiles(int(weight.shape[-1]))[tile]
    none, zeros = [0] * len(data.shape), -int(weight.shape[-1]) % taps
    images, filters = (pad(t, none, none[axes:] + [zeros] * axes) for t in (images, weight))
    fast = Winograd(images, filters, out_channels, tile, taps, axes, dilation, groups, name)
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
class Winograd:
    """A convolution of stride 1 whose last `axes` axes are computed by F(tile, window).

    `data` [N, C, (D,) size..] is padded already, `weight` is [K, C/groups, (R,) parts*window..], of
    whose output channels the first `out_channels` are wanted. An output y along a tiled axis is
    ``t*tile + i``: row i of tile t. `dilation` is that of the axis without tiles, if there is one.
    Where there is more than one part, its window is as long as a tile.
    """

    data: Any
    weight: Any
    out_channels: int
    tile: int
    window: int
    axes: int
    dilation: int
    groups: int
    name: str

    @property
    def parts(self) -> int:
        """Parts of the window along an axis."""
        return int(self.weight.shape[-1]) // self.window

    @property
    def points(self) -> int:
        """Products along an axis of a tile."""
        return self.tile + self.window - 1

    @property
    def out_size(self) -> tuple[int, ...]:
        """Output extents along all spatial axes."""
        sizes, taps = self.data.shape[2:], self.weight.shape[2:]
        gaps = [self.dilation] * (len(taps) - self.axes) + [1] * self.axes
        return tuple(int(n) - d * (int(r) - 1) for n, r, d in zip(sizes, taps, gaps, strict=True))

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of the output along each tiled axis."""
        return tuple(-(-n // self.tile) for n in self.out_size[-self.axes :])

    @property
    def seen(self) -> tuple[int, ...]:
        """Tiles of the data along each tiled axis."""
        return tuple(n + self.parts - 1 for n in self.tiles)

    def compute(self) -> Any:
        """The output [N, K, (D,) size..]; its products are the stage `name`."""
        return self._gather(self._products(self._transform_data(), self._transform_weight()))

    def _pad(self) -> Any:
        """The data, grown to whole tiles along tiled axes."""
        fixed = len(self.data.shape) - self.axes
        size = [int(n) for n in self.data.shape[fixed:]]
        wanted = [t * self.tile + self.window - 1 for t in self.seen]
        after = [0] * fixed + [w - n for w, n in zip(wanted, size, strict=True)]
        return pad(self.data, [0] * len(after), after)

    def _rows(self, stage: str, matrix: Matrix, source: Any, axis: int) -> Any:
        """One axis of a transform: ``matrix`` applied to dimension `axis` of a tile.

        `source` [elements.., rest..] becomes [.., rows of matrix at `axis`, .., rest..].
        """
        from tvm import te

        shape = [int(n) for n in source.shape]
        shape[axis] = len(matrix)

        def value(*at: Any) -> Any:
            def element(j: int) -> Any:
                return source(*at[:axis], j, *at[axis + 1 :])

            return combine(matrix, at[axis], element, source.dtype)

        return te.compute(shape, value, name=f"{self.name}_{stage}{axis}")

    def _transform_data(self) -> Any:
        """V = B' d B, [points.., N, (D,) seen.., C]."""
        from tvm import te

        data = self._pad()
        _, _, b = matrices(self.tile, self.window)
        batch, channels, *size = (int(n) for n in data.shape)
        loose, ndim = size[: len(size) - self.axes], self.axes
        shape = [*[self.points] * ndim, batch, *loose, *self.seen, channels]

        def first(*at: Any) -> Any:
            offsets, n, rest, c = at[:ndim], at[ndim], at[ndim + 1 : -1], at[-1]
            free, tile = rest[: len(loose)], rest[len(loose) :]

            def element(j: int) -> Any:
                inside = (j, *offsets[1:])
                place = [t * self.tile + o for t, o in zip(tile, inside, strict=True)]
                return data(n, c, *free, *place)

            return combine(b, offsets[0], element, data.dtype)

        rows = te.compute(shape, first, name=f"{self.name}_data0")
        return rows if ndim == 1 else self._rows("data", b, rows, 1)

    def _transform_weight(self) -> Any:
        """U = G g G' of every part, [points.., C/groups, (R,) parts.., K]."""
        from tvm import te

        weight, ndim = self.weight, self.axes
        _, g, _ = matrices(self.tile, self.window)
        out_channels, in_group, *taps = (int(n) for n in weight.shape)
        loose = taps[: len(taps) - ndim]
        parts = [self.parts] * ndim if self.parts > 1 else []
        shape = [self.points, *[self.window] * (ndim - 1), in_group, *loose, *parts, out_channels]

        def first(*at: Any) -> Any:
            offsets, (c, *free, k) = at[:ndim], at[ndim:]
            free, part = free[: len(loose)], free[len(loose) :] or [0] * ndim

            def element(j: int) -> Any:
                inside = (j, *offsets[1:])
                place = [p * self.window + o for p, o in zip(part, inside, strict=True)]
                return weight(k, c, *free, *place)

            return combine(g, offsets[0], element, weight.dtype)

        rows = te.compute(shape, first, name=f"{self.name}_weight0")
        return rows if ndim == 1 else self._rows("weight", g, rows, 1)

    def _products(self, data: Any, weight: Any) -> Any:
        """M = U V summed over channels, loose taps and parts, [points.., N, K, (D,) tiles..]."""
        from tvm import te

        ndim = self.axes
        in_group, *taps, out_channels = (int(n) for n in weight.shape[ndim:])
        c = te.reduce_axis((0, in_group), "rc")
        window = [te.reduce_axis((0, r), f"r{i}") for i, r in enumerate(taps)]
        per_group = out_channels // self.groups
        loose = list(self.out_size[:-ndim])
        steps = [self.dilation] * len(loose) + [1] * ndim

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

        a, _, _ = matrices(self.tile, self.window)
        out = products
        for axis in range(self.axes):
            out = self._rows("out", a, out, axis)
        batch = int(products.shape[self.axes])
        loose = len(self.out_size) - self.axes

        def value(n: Any, k: Any, *position: Any) -> Any:
            inside = [x % self.tile for x in position[loose:]]
            tile = [x // self.tile for x in position[loose:]]
            return out(*inside, n, k, *position[:loose], *tile)

        return te.compute(
            [batch, self.out_channels, *self.out_size], value, name=f"{self.name}_tiles"
        )
