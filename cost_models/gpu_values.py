"""Integer expressions of a lowered kernel, computed for every thread and iteration at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad
from tvm.ir.prim import expr as prim

from flextensor.schedulers.expression import children

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    tirx.Add: np.add, tirx.Sub: np.subtract, tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide, tirx.FloorMod: np.mod,
    tirx.Div: lambda a, b: np.fix(a / b).astype(np.int64), tirx.Mod: np.fmod,
    tirx.Min: np.minimum, tirx.Max: np.maximum,
    tirx.EQ: np.equal, tirx.NE: np.not_equal, tirx.LT: np.less, tirx.LE: np.less_equal,
    tirx.GT: np.greater, tirx.GE: np.greater_equal,
    tirx.And: np.logical_and, tirx.Or: np.logical_or,
    prim.RShift: np.right_shift, prim.LShift: np.left_shift, prim.BitwiseAnd: np.bitwise_and,
    prim.BitwiseOr: np.bitwise_or, prim.BitwiseXor: np.bitwise_xor,
}  # fmt: skip
_CALLS: Mapping[str, Callable[..., Any]] = {
    "prim.if_then_else": np.where, "prim.likely": lambda a: a, "prim.abs": np.abs,
}  # fmt: skip


def value(
    expr: Any,
    values: Mapping[Any, Any],
    bound: Mapping[Any, Any],
    divided: Callable[[Any], None],
) -> Any:
    """An integer or boolean expression as an array.

    `values` has the variables, `bound` expressions that others stand for; `divided` is told the
    result of every division. Raises `ValueError` for what is no address.
    """

    def of(expr: Any) -> Any:
        if isinstance(expr, tirx.IntImm | tirx.FloatImm):
            return np.asarray(expr.value)
        if isinstance(expr, tirx.Var):
            return of(bound[expr]) if expr in bound else values[expr]
        if isinstance(expr, tirx.Cast | tirx.Broadcast):
            return of(expr.value)
        if isinstance(expr, tirx.Ramp):
            return of(expr.base)  # the first lane stands for all
        if isinstance(expr, tirx.Not):
            return np.logical_not(of(expr.a))
        if isinstance(expr, tirx.Select):
            return np.where(*map(of, children(expr)))
        if isinstance(expr, Call) and expr.op.name in _CALLS:
            return _CALLS[expr.op.name](*map(of, expr.args))
        if type(expr) in _BINARY:
            found = _BINARY[type(expr)](of(expr.a), of(expr.b))
            if isinstance(expr, tirx.FloorDiv | tirx.FloorMod | tirx.Div | tirx.Mod):
                divided(found)
            return found
        if isinstance(expr, TensorLoad):
            return np.int64(0)  # data decides: any element is as likely
        raise ValueError(f"cannot read the address {expr}")

    return of(expr)
