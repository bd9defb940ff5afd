"""Copies that are zero outside of what they copy, and which parts of them need not ask.

    P[x, c] = 1 <= x and x < 15 and c < 233 ? D[c, x - 1] : 0

The comparisons are linear forms that are not negative inside: x - 1, 14 - x and 232 - c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.expression import Linear, linear, variables


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A value that is loaded where no form is negative, and `outside` elsewhere; without forms,
    everywhere."""

    load: Any
    forms: tuple[Linear, ...] = ()
    outside: Any = None

    @classmethod
    def of(cls, value: Any) -> Guarded | None:
        """The value as such; None when it is anything else, or a comparison is not linear."""
        if isinstance(value, TensorLoad):
            return cls(value)
        if not is_guarded(value):
            return None
        condition, load, outside = value.args
        forms = _forms(condition)
        if not isinstance(load, TensorLoad) or not forms:
            return None
        return cls(load, forms, outside)

    def bound(self, values: Mapping[Any, Any], own: Collection[Any]) -> Guarded | None:
        """With expressions in place of the variables of its forms; None when one is not linear in
        the variables `own` then. What has none of them is a variable to the forms."""
        found = []
        for form in self.forms:
            total = Linear({}, form.constant)
            for var, coefficient in form.terms.items():
                part = _partly(values.get(var, var), own)
                if part is None:
                    return None
                total = total.plus(part, coefficient)
            found.append(total)
        return dataclasses.replace(self, forms=tuple(found))

    def span(self, var: Any, extent: int) -> tuple[int, int]:
        """From where to where a variable is inside, by the forms of it alone."""
        low, high = 0, extent
        for form in self.own(var):
            if form.terms[var] > 0:
                low = max(low, -(form.constant // form.terms[var]))
            else:
                high = min(high, form.constant // -form.terms[var] + 1)
        low = min(low, extent)
        return low, max(high, low)

    def elsewhere(self, var: Any) -> Guarded:
        """Without the forms of a variable alone."""
        own = self.own(var)
        return dataclasses.replace(self, forms=tuple(f for f in self.forms if f not in own))

    def whole(self, extents: Mapping[Any, int]) -> Any:
        """The condition that all is inside, wherever the variables of such `extents` are; None when
        it never is."""
        asked = list[Any]()
        for form in self.forms:
            outer = {v: c for v, c in form.terms.items() if v not in extents}
            least = form.constant + sum(
                min(c * (extents[v] - 1), 0) for v, c in form.terms.items() if v in extents
            )
            if outer:
                asked.append(Linear(outer, least).at({v: v for v in outer}) >= 0)
            elif least < 0:
                return None
        return tirx.all(*asked) if asked else tirx.const(1, "bool")

    def own(self, var: Any) -> list[Linear]:
        """The forms of a variable alone."""
        return [form for form in self.forms if set(form.terms) == {var}]


def is_guarded(value: Any) -> bool:
    """Whether a value is another, or a constant."""
    if not isinstance(value, Call) or getattr(value.op, "name", "") != "prim.if_then_else":
        return False
    return isinstance(value.args[2], tirx.FloatImm)


def _partly(expr: Any, own: Collection[Any]) -> Linear | None:
    """An expression as a linear form of its variables that are `own`, and of all else."""
    if not variables(expr) & set(own):
        return linear(expr) or Linear({expr: 1})
    if isinstance(expr, tirx.Add | tirx.Sub):
        a, b = _partly(expr.a, own), _partly(expr.b, own)
        return a.plus(b, 1 if isinstance(expr, tirx.Add) else -1) if a and b else None
    return linear(expr)


def _forms(condition: Any) -> tuple[Linear, ...]:
    """The comparisons that must all hold, as forms; none when one of them is not linear."""
    if isinstance(condition, tirx.And):
        a, b = _forms(condition.a), _forms(condition.b)
        return (*a, *b) if a and b else ()
    if isinstance(condition, tirx.LT | tirx.LE):
        less, more = condition.a, condition.b
    elif isinstance(condition, tirx.GT | tirx.GE):
        less, more = condition.b, condition.a
    else:
        return ()
    low, high = linear(less), linear(more)
    if low is None or high is None:
        return ()
    gap = 1 if isinstance(condition, tirx.LT | tirx.GT) else 0
    return (high.plus(low, -1).plus(Linear({}, -gap)),)
