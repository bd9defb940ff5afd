"""Winograd's minimal filtering: a convolution with fewer multiplications, as TVM stages.

Per axis F(m, r) computes m outputs of a window of r with m + r - 1 products instead of m * r:

    y = A' ((G g) * (B' d))

after S. Winograd, *Arithmetic Complexity of Computations* (1980), for neural networks A. Lavin and
S. Gray, *Fast Algorithms for Convolutional Neural Networks* (CVPR 2016). The matrices are those
of Toom and Cook for the interpolation points 0, 1, -1, 2, -2, .. and infinity. Rounding errors
grow with m: about 1e-6 of the largest output for m = 2, and 1e-5 for m = 4, in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

Matrix = tuple[tuple[Fraction, ...], ...]
POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))
"""Interpolation points, in the order in which they are taken; infinity always is one more."""


@functools.cache
def matrices(outputs: int, window: int) -> tuple[Matrix, Matrix, Matrix]:
    """A' [outputs, n], G [n, window] and B' [n, n] of F(outputs, window), n = outputs + window - 1.

    Row j of B' holds the coefficients of ``prod over i != j of (x - p[i])``, the last row those
    of the product over all points; G divides by ``prod (p[j] - p[i])``.
    """
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


@dataclasses.dataclass(frozen=True)
class Winograd:
    """A stride-1 convolution whose last one or two axes are computed by F(tile, window).

    `data` [N, C, (D,) size..] is padded already, `weight` is [K, C/groups, (R,) window..]. An
    output y along such an axis is ``(t*tile + i) * dilation + p``: row i of tile t of phase p.
    """

    data: Any
    weight: Any
    tile: int
    dilation: int
    groups: int
    name: str

    @property
    def axes(self) -> int:
        """Axes that are computed by tiles: all, or the last two of three."""
        return min(len(self.weight.shape) - 2, 2)

    @property
    def window(self) -> int:
        """Taps along an axis."""
        return int(self.weight.shape[-1])

    @property
    def points(self) -> int:
        """Products along an axis of a tile."""
        return self.tile + self.window - 1

    @property
    def out_size(self) -> tuple[int, ...]:
        """Output extents along all spatial axes; those without tiles have dilation too."""
        sizes, taps = self.data.shape[2:], self.weight.shape[2:]
        return tuple(
            int(n) - self.dilation * (int(r) - 1) for n, r in zip(sizes, taps, strict=True)
        )

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles along each tiled axis, of one phase of the dilation."""
        step = self.tile * self.dilation
        return tuple(-(-n // step) for n in self.out_size[-self.axes :])

    def compute(self) -> Any:
        """The output [N, K, (D,) size..]; its products are the stage `name`."""
        return self._gather(self._products(self._transform_data(), self._transform_weight()))

    def _pad(self) -> Any:
        """The data, grown to whole tiles along tiled axes."""
        from flextensor.operators.stages import pad

        step = self.tile * self.dilation
        wanted = [(t - 1) * step + self.points * self.dilation for t in self.tiles]
        fixed = len(self.data.shape) - self.axes
        size = [int(n) for n in self.data.shape[fixed:]]
        after = [0] * fixed + [max(w - n, 0) for w, n in zip(wanted, size, strict=True)]
        return pad(self.data, [0] * len(after), after)

    @property
    def _place(self) -> list[int]:
        """Extents that say where a tile is: tile number and, where dilated, phase per axis."""
        phase = [self.dilation] if self.dilation > 1 else []
        return [n for t in self.tiles for n in (t, *phase)]

    def _start(self, place: Sequence[Any], axis: int, offset: Any) -> Any:
        """The coordinate along a tiled axis of element `offset` of a tile."""
        if self.dilation == 1:
            return place[axis] * self.tile + offset
        return (place[2 * axis] * self.tile + offset) * self.dilation + place[2 * axis + 1]

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
        """V = B' d B, [points.., N, (D,) place.., C]."""
        from tvm import te

        data = self._pad()
        _, _, b = matrices(self.tile, self.window)
        batch, channels, *size = (int(n) for n in data.shape)
        loose, ndim = size[: len(size) - self.axes], self.axes
        shape = [*[self.points] * ndim, batch, *loose, *self._place, channels]

        def first(*at: Any) -> Any:
            offsets, n, rest, c = at[:ndim], at[ndim], at[ndim + 1 : -1], at[-1]
            free, place = rest[: len(loose)], rest[len(loose) :]

            def element(j: int) -> Any:
                position = [self._start(place, i, j if i == 0 else o)
                            for i, o in enumerate(offsets)]  # fmt: skip
                return data(n, c, *free, *position)

            return combine(b, offsets[0], element, data.dtype)

        rows = te.compute(shape, first, name=f"{self.name}_data0")
        return rows if ndim == 1 else self._rows("data", b, rows, 1)

    def _transform_weight(self) -> Any:
        """U = G g G', [points.., C/groups, (R,) K]."""
        from tvm import te

        weight, ndim = self.weight, self.axes
        _, g, _ = matrices(self.tile, self.window)
        out_channels, in_group, *taps = (int(n) for n in weight.shape)
        loose = taps[: len(taps) - ndim]
        shape = [self.points, *[self.window] * (ndim - 1), in_group, *loose, out_channels]

        def first(*at: Any) -> Any:
            offsets, (c, *free, k) = at[:ndim], at[ndim:]

            def element(j: int) -> Any:
                return weight(k, c, *free, j, *offsets[1:])

            return combine(g, offsets[0], element, weight.dtype)

        rows = te.compute(shape, first, name=f"{self.name}_weight0")
        return rows if ndim == 1 else self._rows("weight", g, rows, 1)

    def _products(self, data: Any, weight: Any) -> Any:
        """M = U V summed over channels and loose taps, [points.., N, K, (D,) place..]."""
        from tvm import te

        ndim = self.axes
        in_group, *taps, out_channels = (int(n) for n in weight.shape[ndim:])
        c = te.reduce_axis((0, in_group), "rc")
        window = [te.reduce_axis((0, r), f"r{i}") for i, r in enumerate(taps)]
        per_group = out_channels // self.groups
        loose = list(self.out_size[: len(taps)])

        def value(*at: Any) -> Any:
            points, n, k, rest = at[:ndim], at[ndim], at[ndim + 1], at[ndim + 2 :]
            depth = [
                q + r * self.dilation for q, r in zip(rest[: len(taps)], window, strict=True)
            ]
            channel = c if self.groups == 1 else k // per_group * in_group + c
            term = data(*points, n, *depth, *rest[len(taps) :], channel)
            return te.sum(term * weight(*points, c, *window, k), axis=[c, *window])

        shape = [*data.shape[:ndim], data.shape[ndim], out_channels, *loose, *self._place]
        return te.compute(shape, value, name=self.name)

    def _gather(self, products: Any) -> Any:
        """Y = A' M A, and every element of a tile to its place in [N, K, (D,) size..]."""
        from tvm import te

        a, _, _ = matrices(self.tile, self.window)
        out = products
        for axis in range(self.axes):
            out = self._rows("out", a, out, axis)
        batch, channels = int(products.shape[self.axes]), int(products.shape[self.axes + 1])
        loose = len(self.out_size) - self.axes

        def value(n: Any, k: Any, *position: Any) -> Any:
            inside, place = [], []
            for x in position[loose:]:
                inside.append(x // self.dilation % self.tile)
                place.append(x // (self.tile * self.dilation))
                if self.dilation > 1:
                    place.append(x % self.dilation)
            return out(*inside, n, k, *position[:loose], *place)

        return te.compute([batch, channels, *self.out_size], value, name=f"{self.name}_tiles")
