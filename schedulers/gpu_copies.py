"""Copies to shared memory that go on beside a kernel (cp.async): of what, and how much at a time.

A thread copies 4, 8 or 16 bytes as they lie, at a multiple of their size, or writes zeros where a
condition does not hold. TVM makes such copies of stores of that form, and of no other:

    S[k, x] = if_then_else(c, if_then_else(d, A[i], 0), 0)   ->   cp_async(S[k, x], A[i], c and d)

It takes what a vector loads for neighbours without looking: a vector must be one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad

from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.gpu_tensor_core_operands import run
from flextensor.schedulers.guards import is_guarded
from flextensor.schedulers.layouts import Side
from flextensor.schedulers.program import Program, inlinable

MOST_BYTES = 16
DTYPES = {"float32": 4, "float64": 8}
"""Bytes of what is copied: TVM knows no other zeros, and what is narrower has none of the sizes."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """How an operand can be copied beside a kernel."""

    width: int = 0
    """Elements at a time at most; 0 where it is computed."""
    together: int = 0
    """How many of the last iterators of its side walk through memory as one would."""


def copy_of(program: Program, side: Side) -> Copy:
    """How the operand of a side can be copied, with what moves data before it inlined."""
    value = rewrite(side.operand.value, {}, lambda *load: _inlined(program, *load))
    while is_guarded(value) and value.args[2].value == 0:
        value = value.args[1]
    if not isinstance(value, TensorLoad) or str(value.source.dtype) not in DTYPES:
        return Copy()
    together, width = run(side.operand, (value.source,), side.iterators)
    return Copy(min(width, MOST_BYTES // DTYPES[str(value.source.dtype)]), together)


def _inlined(program: Program, buffer: Any, indices: list[Any]) -> Any:
    """What is loaded where a schedule reads a buffer: nothing holds what is inlined."""
    stage = program.producer(buffer)
    if stage is None or not inlinable(program, stage):
        return tirx.BufferLoad(buffer, indices)
    return stage.at(indices, lambda *load: _inlined(program, *load))
