"""A workload: one operator with all its parameters and dtypes, as the tuner sees it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flextensor.operators.base import Operator

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class BufferSpec:
    """Shape and dtype of one input or output, row-major and contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return math.prod(self.shape) * (int("".join(filter(str.isdigit, self.dtype))) // 8)


@dataclasses.dataclass(frozen=True)
class Workload:
    """An operator and its parameters: key, arithmetic, inputs, reference, formulations."""

    operator: Operator

    @cached_property
    def key(self) -> str:
        """The stable name of the workload in a database, e.g. ``gemm(m=64, n=64, k=64)``.

        Equal workloads have equal keys in every process and version; a custom operator's key
        comes from the structure of its program, so that renaming it keeps its results.
        """
        raise NotImplementedError

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The operator's parameters by field name."""
        raise NotImplementedError

    @cached_property
    def formulations(self) -> tuple[str, ...]:
        """Names of the operator's formulations; the first is the plain one."""
        return tuple(self.operator.formulations())

    def prim_func(self, formulation: str = "direct") -> Any:
        """The unscheduled `tvm.tirx.PrimFunc` of one formulation."""
        raise NotImplementedError

    @cached_property
    def buffers(self) -> tuple[BufferSpec, ...]:
        """Inputs in order, then the output."""
        raise NotImplementedError

    @property
    def flops(self) -> int:
        """Floating-point operations; a multiply-accumulate counts as 2."""
        return self.operator.flops()

    @property
    def bytes(self) -> int:
        """Compulsory traffic: every input read once, the output written once."""
        return sum(b.nbytes for b in self.buffers)

    def inputs(self, seed: int) -> list[np.ndarray[Any, Any]]:
        """Random inputs, the same for the same seed."""
        raise NotImplementedError

    def reference(self, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The output in float64 (ints: exact), computed without any scheduled TVM kernel."""
        raise NotImplementedError
