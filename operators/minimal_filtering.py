"""Minimal filtering: how a window is computed with fewer products than taps, as numbers.

Per axis F(m, r) computes m outputs of a window of r with m + r - 1 products instead of m * r:

    y = A' ((G g) * (B' d))

after S. Winograd, *Arithmetic Complexity of Computations* (1980). The matrices are those of Toom
and Cook for some interpolation points and infinity. Rounding errors grow with m, and with the axes:
about 1e-6 of the largest output for m = 2, and up to 1e-5 for m = 4, in float32.

A longer window is cut into parts (D. Huang et al., *DWM: A Decomposable Winograd Method for
Convolution Acceleration*, AAAI 2020), here of m taps, so that all slide over the same transformed
tiles, each part one tile further: nine taps are three parts of F(3, 3), and the products of tile t
are those of part 0 with tile t, of part 1 with tile t + 1 and of part 2 with tile t + 2, summed.

That sum slides over tiles as a window of three over elements, and F(4, 3) computes it in turn: one
is nested in the other (J. Jiang, X. Chen and C.-Y. Tsui, *A Reconfigurable Winograd CNN Accelerator
with Nesting Decomposition Algorithm for Computing Convolution with Large Filters*, 2021), and 12
outputs of nine taps take 6 * 5 products. The place of an element then has two digits, the number of
an inner tile and the place in it, over which all is as it is for a window of 3 x 3.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

Matrix = tuple[tuple[Fraction, ...], ...]
MOST_POINTS = 7
"""Points of a level, at most: rounding errors grow with each."""
GAIN = Fraction(6, 5)
"""How many times fewer products per output one more formulation must need."""
POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))
"""Interpolation points, in the order in which they are taken; infinity always is one more."""
FIVE_POINTS = tuple(Fraction(p, 4) for p in (0, 3, -3, 6, -6))
"""What is taken in place of the first five, as of F(4, 3): their powers lie closer together, and
errors of layers are less than a third of those of 0, 1, -1, 2 and -2. Which points lose least:
B. Barabasz et al., *Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks* (ACM TOMS 2020)."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a window along one axis is computed: by F(m, r) of each pair (m, r) of `levels`, the
    outermost first, and in `parts` that are summed."""

    levels: tuple[tuple[int, int], ...]
    parts: int = 1

    @property
    def tile(self) -> int:
        """Outputs of a tile."""
        return math.prod(m for m, _ in self.levels)

    @property
    def taps(self) -> int:
        """Taps of a part."""
        inner = math.prod(m for m, _ in self.levels[1:])
        return inner * self.levels[0][1]

    @property
    def points(self) -> int:
        """Products of a tile and a part."""
        return math.prod(m + r - 1 for m, r in self.levels)

    @property
    def products(self) -> Fraction:
        """Products of an output."""
        return Fraction(self.points * self.parts, self.tile)


Tiling = tuple[Scheme, ...]
"""How the last axes are computed, each by its own; those before them are not tiled."""


@functools.cache
def schemes(window: int, axes: int) -> dict[int, Scheme]:
    """What is worth computing for a window along each of some tiled axes, by the outputs of a tile,
    those with the fewest points first, each of which needs `GAIN` times fewer products than the
    one before: 3 -> F(2, 3) and F(4, 3), 5 -> F(2, 5) and F(3, 5), 7 -> F(3, 3) in three parts and
    F(4, 4) in two; along one axis also tiles of tiles, as 9 -> F(2, 3) and F(4, 3), of F(3, 3)
    each. Of those with as many outputs, the one with the fewest products."""
    known = [Scheme((level,), parts) for level, parts in _cuts(window)]
    if axes == 1:
        known += [
            Scheme((level, *inner.levels), parts)
            for inner in known
            for level, parts in _cuts(inner.parts)
        ]
    best = {s.tile: s for s in sorted(known, key=lambda s: -s.products)}.values()
    found, least = dict[int, Scheme](), Fraction(window)
    for scheme in sorted(best, key=lambda s: (s.points, s.products)):
        if scheme.products * GAIN <= least:
            found[scheme.tile], least = scheme, scheme.products
    return found


def _cuts(window: int) -> list[tuple[tuple[int, int], int]]:
    """Each F(m, r) that computes a window of two or more, and in how many parts. A window in one
    part has tiles of 2 and 4, whose outputs vectors shuffle to their places; or of 3 where 4 have
    too many points."""
    sizes = (2, 4) if window + 3 <= MOST_POINTS else (2, 3)
    whole = [((m, window), 1) for m in sizes]
    parts = [((m, m), -(-window // m)) for m in range(2, MOST_POINTS) if m < window]
    return [((m, r), n) for (m, r), n in whole + parts if 1 < r <= MOST_POINTS + 1 - m]


@functools.cache
def tilings(kernel: int, stride: int, ndim: int) -> dict[str, Tiling]:
    """What is worth computing for windows of `kernel` and `stride` along each of `ndim` axes, by
    the outputs of a tile, those with the fewest points first, each of which needs `GAIN` times
    fewer products than the one before, and the first than there are: 3 -> ``2`` and ``4`` along the
    last two axes, and in three dimensions also ``2x4x4`` and ``4x4x4``.

    A longer stride multiplies the taps of all its phases, some of which may be zero: 3 by 2 ->
    ``4``, 7 by 2 -> ``2`` and ``4`` in two dimensions.
    """
    window = -(-kernel // stride)
    every = schemes(window, ndim).values()
    known = [(str(s.tile), (s,) * min(ndim, 2)) for s in every]
    if ndim == 3:
        deep = [(d, s, s) for s in every for d in every if d.tile <= s.tile]
        known += [("x".join(str(s.tile) for s in tiling), tiling) for tiling in deep]
    found, least = dict[str, Tiling](), Fraction(kernel**ndim)
    for name, tiling in sorted(known, key=lambda entry: math.prod(s.points for s in entry[1])):
        taps = math.prod((s.products for s in tiling), start=Fraction(1))
        products = taps * window ** (ndim - len(tiling)) * stride**ndim
        if products * GAIN <= least:
            found[name], least = tiling, products
    return found


@functools.cache
def matrices(outputs: int, window: int) -> tuple[Matrix, Matrix, Matrix]:
    """A' [outputs, n], G [n, window] and B' [n, n] of F(outputs, window), n = outputs + window - 1.

    Row j of B' holds the coefficients of ``prod over i != j of (x - p[i])``, the last row those
    of the product over all points; G divides by ``prod (p[j] - p[i])``.
    """
    count = outputs + window - 2
    if count > len(POINTS):
        raise ValueError(f"F({outputs}, {window}) needs more than {len(POINTS)} points")
    points = [Fraction(p) for p in (FIVE_POINTS if count == 5 else POINTS[:count])]
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
