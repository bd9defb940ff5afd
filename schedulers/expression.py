"""Index and value expressions of a program: walk them, rewrite them, read them as linear forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Call
from tvm.ir.expr import Constant, TensorLoad

from flextensor.errors import UnsupportedError

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.Div: lambda a, b: tirx.div(a, b),
    tirx.Mod: lambda a, b: tirx.truncmod(a, b),
    tirx.FloorDiv: lambda a, b: tirx.floordiv(a, b),
    tirx.FloorMod: lambda a, b: tirx.floormod(a, b),
    tirx.Min: lambda a, b: tirx.min(a, b),
    tirx.Max: lambda a, b: tirx.max(a, b),
    tirx.EQ: lambda a, b: tirx.EQ(a, b),
    tirx.NE: lambda a, b: tirx.NE(a, b),
    tirx.LT: lambda a, b: a < b,
    tirx.LE: lambda a, b: a <= b,
    tirx.GT: lambda a, b: a > b,
    tirx.GE: lambda a, b: a >= b,
    tirx.And: lambda a, b: tirx.And(a, b),
    tirx.Or: lambda a, b: tirx.Or(a, b),
    tirx.LShift: lambda a, b: a << b,
    tirx.RShift: lambda a, b: a >> b,
    tirx.BitwiseAnd: lambda a, b: a & b,
    tirx.BitwiseOr: lambda a, b: a | b,
    tirx.BitwiseXor: lambda a, b: a ^ b,
}
_UNARY: dict[type, Callable[[Any], Any]] = {tirx.Not: tirx.Not, tirx.BitwiseNot: tirx.BitwiseNot}
_LEAVES = (tirx.Var, Constant, te.Tensor)

Load = Callable[[Any, list[Any]], Any]
"""Given a buffer and its (rewritten) indices, the expression that takes the load's place."""


def call(like: Any, args: list[Any]) -> Any:
    """A call of the same operator and type as `like`, with other arguments."""
    return Call(like.op, args, like.attrs, list(like.ty_args), None, like.ty)


def children(expr: Any) -> list[Any]:
    """Direct operands of an expression node."""
    if type(expr) in _BINARY:
        return [expr.a, expr.b]
    if isinstance(expr, TensorLoad):
        return list(expr.indices)
    if isinstance(expr, Call):
        return list(expr.args)
    if isinstance(expr, tirx.Cast):
        return [expr.value]
    if isinstance(expr, tirx.Select):
        return [expr.condition, expr.true_value, expr.false_value]
    if type(expr) in _UNARY:
        return [expr.a]
    if isinstance(expr, tirx.Let):
        return [expr.value, expr.body]
    return []


def walk(expr: Any) -> Iterator[Any]:
    """Every node of an expression, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def loads(expr: Any) -> list[Any]:
    """Every buffer load of an expression, outermost first."""
    return [node for node in walk(expr) if isinstance(node, TensorLoad)]


def variables(expr: Any) -> set[Any]:
    """Every variable that an expression reads, in indices too."""
    return {node for node in walk(expr) if isinstance(node, tirx.Var)}


def transform(expr: Any, visit: Callable[[Any], Any], load: Load | None = None) -> Any:
    """The expression rebuilt bottom up; where `visit` gives no None, that takes a node's place."""

    def go(node: Any) -> Any:
        placed = visit(node)
        if placed is not None:
            return placed
        if type(node) in _BINARY:
            return _BINARY[type(node)](go(node.a), go(node.b))
        if isinstance(node, TensorLoad):
            indices = [go(i) for i in node.indices]
            return load(node.source, indices) if load else tirx.BufferLoad(node.source, indices)
        if isinstance(node, Call):
            return call(node, [go(a) for a in node.args])
        if isinstance(node, tirx.Cast):
            return tirx.Cast(node.ty, go(node.value))
        if isinstance(node, tirx.Select):
            return tirx.Select(go(node.condition), go(node.true_value), go(node.false_value))
        if type(node) in _UNARY:
            return _UNARY[type(node)](go(node.a))
        if isinstance(node, tirx.Let):
            return tirx.Let(node.var, go(node.value), go(node.body))
        if isinstance(node, _LEAVES):
            return node
        raise UnsupportedError(f"no scheduler knows a value with {type(node).__name__} in it")

    return go(expr)


def rewrite(expr: Any, replace: Mapping[Any, Any], load: Load | None = None) -> Any:
    """The expression with variables replaced and, through `load`, buffers too.

    `replace` maps variables to expressions; constants fold on the way.

        rewrite(A[i, k] * 2, {i: j + 1})  ->  A[j + 1, k] * 2
    """
    return transform(
        expr, lambda node: replace.get(node, node) if isinstance(node, tirx.Var) else None, load
    )


@dataclasses.dataclass(frozen=True)
class Linear:
    """`sum(coefficient * variable) + constant`."""

    terms: Mapping[Any, int]
    constant: int = 0

    def plus(self, other: Linear, scale: int = 1) -> Linear:
        """`self + scale * other`."""
        terms = dict(self.terms)
        for var, coefficient in other.terms.items():
            terms[var] = terms.get(var, 0) + scale * coefficient
        kept = {v: c for v, c in terms.items() if c}
        return Linear(kept, self.constant + scale * other.constant)

    def at(self, values: Mapping[Any, Any]) -> Any:
        """What it is where its variables have such values."""
        return sum((c * values[v] for v, c in self.terms.items()), self.constant)


def linear(expr: Any) -> Linear | None:
    """An integer expression as a linear form of its variables, or None when it is not one."""
    if isinstance(expr, int):
        return Linear({}, expr)
    if isinstance(expr, tirx.IntImm):
        return Linear({}, int(expr.value))
    if isinstance(expr, tirx.Var):
        return Linear({expr: 1})
    if isinstance(expr, tirx.Cast):
        return linear(expr.value)
    if isinstance(expr, (tirx.Add, tirx.Sub)):
        a, b = linear(expr.a), linear(expr.b)
        return a.plus(b, 1 if isinstance(expr, tirx.Add) else -1) if a and b else None
    if isinstance(expr, tirx.Mul):
        a, b = linear(expr.a), linear(expr.b)
        if a is None or b is None or (a.terms and b.terms):
            return None
        form, factor = (a, b.constant) if a.terms else (b, a.constant)
        return Linear({}).plus(form, factor)
    return None


def address(access: Sequence[Linear], shape: Sequence[Any]) -> Linear:
    """Where an element lies among those of a tensor, row by row.

    [i, j + 1] of shape (a, b)  ->  i * b + j + 1
    """
    flat = Linear({})
    for form, extent in zip(access, shape, strict=True):
        flat = form.plus(flat, int(extent))
    return flat


def divisors_used(expr: Any) -> dict[Any, set[int]]:
    """For every variable v in `v // c` or `v % c`, the constants c."""
    found: dict[Any, set[int]] = {}
    for node in walk(expr):
        if isinstance(node, (tirx.FloorDiv, tirx.FloorMod)):
            if isinstance(node.a, tirx.Var) and isinstance(node.b, tirx.IntImm):
                found.setdefault(node.a, set()).add(int(node.b.value))
    return found


def split_variable(expr: Any, var: Any, outer: Any, inner: Any, factor: int) -> Any:
    """Replace `var` by `outer * factor + inner`, and its quotient and remainder by the parts.

    v // factor  ->  outer
    v % factor   ->  inner
    v            ->  outer * factor + inner
    """

    def visit(node: Any) -> Any:
        if isinstance(node, (tirx.FloorDiv, tirx.FloorMod)) and isinstance(node.b, tirx.IntImm):
            if node.a.same_as(var) and int(node.b.value) == factor:
                return outer if isinstance(node, tirx.FloorDiv) else inner
        if isinstance(node, tirx.Var) and node.same_as(var):
            return outer * factor + inner
        return None

    return transform(expr, visit)


def bfloat16_bits(value: Any) -> Any:
    """The bits of a bfloat16 value, as uint16. Of what is loaded of an input, and chosen among,
    they are taken as they are; what is computed is float32 to TVM, and rounded to nearest even.

    if_then_else(c, A[i], 0)  ->  if_then_else(c, reinterpret(A[i]), 0)
    """
    if isinstance(value, Call) and getattr(value.op, "name", "") == "prim.if_then_else":
        condition, chosen, other = value.args
        return tirx.if_then_else(condition, bfloat16_bits(chosen), bfloat16_bits(other))
    if _of_input(value) and str(value.ty) == "bfloat16":
        return tirx.reinterpret("uint16", value)
    if isinstance(value, tirx.FloatImm) and value.value == 0:
        return tirx.const(0, "uint16")
    wide = value.astype("float32")
    no_number = tirx.const(0x7FC0, "uint16")
    return tirx.Select(tirx.isnan(wide), no_number, _rounded(wide))


def _of_input(value: Any) -> bool:
    """Whether a value is loaded of an input of the program, which TVM leaves in its dtype."""
    if not isinstance(value, Call) or getattr(value.op, "name", "") != "te.tensor_load":
        return False
    return isinstance(value.args[0].op, te.PlaceholderOp)


def _rounded(value: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, even ones where two are."""
    bits = tirx.reinterpret("uint32", value)
    even = (bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32")
    rounded = (bits + tirx.const(0x7FFF, "uint32") + even) >> tirx.const(16, "uint32")
    return rounded.astype("uint16")


def bfloat16_term(value: Any, term: Any) -> Any:
    """The bits of the first or the second of two bfloat16 terms, whose sum holds 16 of the 24
    significant bits of a float32 value, as uint16.

        x  ->  a = bfloat16(x),  b = bfloat16(x - a)
    """
    first = bfloat16_bits(value)
    whole = tirx.reinterpret("float32", first.astype("uint32") << tirx.const(16, "uint32"))
    return tirx.Select(term == 0, first, _rounded(value - whole))
