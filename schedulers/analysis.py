"""What a stage computes, by the roles of its iterators: batch, M, N, K and window.

A convolution, a GEMM, an einsum and a stranger's correlation layer are the same contraction with
different roles.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.expression import (
    Linear,
    address,
    divisors_used,
    linear,
    rewrite,
    split_variable,
    variables,
)
from flextensor.schedulers.program import Iterator, Program, Stage, inlinable, reindexed, steps


@dataclasses.dataclass(frozen=True)
class Operand:
    """One side of a product: its value, the iterators that it reads, and how it is addressed.

    `access` has one linear form per dimension of `buffer` when the value is one plain load with
    affine indices, else it is None.
    """

    value: Any
    iterators: tuple[Iterator, ...]
    buffer: Any = None
    access: tuple[Linear, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Contraction:
    """`out[batch, m, n] = sum over k of a[batch, m, k] * b[batch, n, k]`.

    `outputs` has, per dimension of the output, the iterators that make it up, outermost first:
    none for a unit dimension, two for a dimension that the analysis split (channels into
    groups and channels of a group).
    """

    stage: Stage
    outputs: tuple[tuple[Iterator, ...], ...]
    batch: tuple[Iterator, ...]
    m: tuple[Iterator, ...]
    n: tuple[Iterator, ...]
    k: tuple[Iterator, ...]
    a: Operand
    b: Operand

    @property
    def reuses(self) -> bool:
        """Whether both sides have something to hold in registers, or a window slides."""
        reuse = min(points(self.m), points(self.n))
        return bool(self.k) and (reuse > 1 or self.windows)

    @property
    def windows(self) -> bool:
        """Whether an operand slides: a dimension addressed by both an M or N and a K iterator."""
        return slides(self.a, self.m, self.k) or slides(self.b, self.n, self.k)


def points(iterators: Sequence[Iterator]) -> int:
    """Iterations of a loop nest over `iterators`."""
    return math.prod(i.extent for i in iterators)


def slides(operand: Operand, side: tuple[Iterator, ...], k: tuple[Iterator, ...]) -> bool:
    """Whether one dimension of the operand is addressed by a sum of side and K iterators."""
    if operand.access is None:
        return False
    sides, ks = {i.var for i in side}, {i.var for i in k}
    return any(sides & set(f.terms) and ks & set(f.terms) for f in operand.access)


def contraction(stage: Stage) -> Contraction | None:
    """The roles of a sum of products, or None when the stage is no such thing.

    conv2d   sum pad[n, c, y+r, x+s] * w[k, c, r, s]   M = y, x   N = k   K = c, r, s
    grouped  sum pad[n, k//8*4 + c, y+r, x+s] * w[...]  k -> (g, k'), batch = g, N = k'
    """
    if stage.combiner != "sum":
        return None
    value, outputs = split_groups(stage)
    reduction = tuple(i for i in stage.reduction if i.extent > 1)
    value = rewrite(value, {i.var: 0 for i in stage.reduction if i.extent == 1})
    spatial = tuple(i for dims in outputs for i in dims)
    operands = _pair(_factors(value), spatial, reduction)
    if operands is None:
        return None
    a, b = operands
    in_a, in_b = {i.var for i in a.iterators}, {i.var for i in b.iterators}
    m = tuple(i for i in spatial if i.var in in_a - in_b)
    n = tuple(i for i in spatial if i.var in in_b - in_a)
    batch = tuple(i for i in spatial if i not in m and i not in n)
    return Contraction(stage, outputs, batch, m, n, reduction, a, b)


def contiguous(program: Program, stage: Stage) -> tuple[tuple[Iterator, ...], tuple[Iterator, ...]]:
    """The reduction in two: its last axes, as far as they are one walk through memory in steps of 1
    wherever they are read, and those around them. Unit dimensions do not matter.

    gemm     sum a[m, k] * b[k, 0]                  k
    conv2d   sum data[n, c, r, s] * w[k, c, r, s]   c, r, s, where the image is no larger than w
    """
    walks = [_walk(program, load) for load in stage.loads]
    known = [walk for walk in walks if walk is not None]
    producers = [program.producer(load.source) for load in stage.loads]
    inner: tuple[Iterator, ...] = ()
    if len(known) == len(walks):
        for axis in reversed([i for i in stage.reduction if i.extent > 1]):
            last = inner[-1] if inner else axis
            own = [(walk.get(last.var, 0), walk.get(axis.var, 0)) for walk in known]
            if not all(step in (0, 1) and at == step * points(inner) for step, at in own):
                break
            inner = (axis, *inner)
            if any(p and inlinable(program, p) and not reindexed(program, p) for p in producers):
                break  # padding asks where each of them is
    return tuple(i for i in stage.reduction if i.extent > 1 and i not in inner), inner


def _walk(program: Program, load: Any) -> dict[Any, int] | None:
    """Elements between what a load reads of neighbours along each variable; None where that is not
    the same everywhere."""
    access = [linear(index) for index in load.indices]
    forms = [form for form in access if form is not None]
    if len(forms) < len(access):
        return None
    producer = program.producer(load.source)
    if producer is None or reindexed(program, producer):
        return steps(program, load.source, forms)
    return dict(address(forms, load.source.shape).terms)


def neutral(combiner: str, dtype: str) -> Any:
    """What changes no sum, no product, or no other extreme."""
    if combiner in ("sum", "prod"):
        return tirx.const(int(combiner == "prod"), dtype)
    return tirx.min_value(dtype) if combiner == "max" else tirx.max_value(dtype)


def iterators(outputs: tuple[tuple[Iterator, ...], ...], indices: Any) -> dict[Any, Any]:
    """Values of a stage's iterators, by variable, at indices of its output."""
    at: dict[Any, Any] = {}
    for index, parts in zip(indices, outputs, strict=True):
        if len(parts) == 1:
            at[parts[0].var] = index
        elif parts:
            outer, inner = parts
            at[outer.var] = index // inner.extent
            at[inner.var] = index % inner.extent
    return at


def split_groups(stage: Stage) -> tuple[Any, tuple[tuple[Iterator, ...], ...]]:
    """Drop unit iterators, and split an iterator v that is read as `v // c` and `v % c`."""
    value = stage.value
    divisors = divisors_used(value)
    outputs: list[tuple[Iterator, ...]] = []
    for it in stage.spatial:
        if it.extent == 1:
            value = rewrite(value, {it.var: 0})
            outputs.append(())
            continue
        factors = {c for c in divisors.get(it.var, set()) if 1 < c < it.extent}
        if len(factors) == 1 and it.extent % (factor := factors.pop()) == 0:
            outer = Iterator(tirx.Var(f"{it.var.name}_o", it.var.ty), it.extent // factor)
            inner = Iterator(tirx.Var(f"{it.var.name}_i", it.var.ty), factor)
            value = split_variable(value, it.var, outer.var, inner.var, factor)
            outputs.append((outer, inner))
        else:
            outputs.append((it,))
    return value, tuple(outputs)


def _factors(value: Any) -> list[Any]:
    if isinstance(value, tirx.Mul):
        return _factors(value.a) + _factors(value.b)
    return [value]


def _pair(
    factors: list[Any], spatial: tuple[Iterator, ...], reduction: tuple[Iterator, ...]
) -> tuple[Operand, Operand] | None:
    """The factors in two groups, such that the groups' products are smallest to hold."""
    if not 2 <= len(factors) <= 4:
        return None
    best: tuple[int, Operand, Operand] | None = None
    for mask in itertools.product((0, 1), repeat=len(factors) - 1):
        sides = (0, *mask)
        if not any(sides):
            continue
        a, b = (
            _operand(
                [f for f, s in zip(factors, sides, strict=True) if s == side], spatial, reduction
            )
            for side in (0, 1)
        )
        cost = points(a.iterators) + points(b.iterators)
        if best is None or cost < best[0]:
            best = (cost, a, b)
    return None if best is None else (best[1], best[2])


def _operand(
    factors: list[Any], spatial: tuple[Iterator, ...], reduction: tuple[Iterator, ...]
) -> Operand:
    value = factors[0]
    for factor in factors[1:]:
        value = value * factor
    used = variables(value)
    return operand_of(value, tuple(i for i in (*spatial, *reduction) if i.var in used))


def operand_of(value: Any, iterators: tuple[Iterator, ...]) -> Operand:
    """A value that reads `iterators` as an operand, addressed where it is one plain load."""
    if not isinstance(value, TensorLoad):
        return Operand(value, iterators)
    forms = [linear(index) for index in value.indices]
    access = None if any(f is None for f in forms) else tuple(f for f in forms if f is not None)
    return Operand(value, iterators, value.source, access)
