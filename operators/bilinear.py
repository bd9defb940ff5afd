"""Bilinear layer: a quadratic form of two matrices for every output feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class Bilinear(Operator):
    """``out[n,m] = sum_{k1,k2} A[n,k1] * W[m,k1,k2] * B[n,k2]``."""

    name: ClassVar[str] = "bilinear"

    n: int = 64
    m: int = 32
    k1: int = 256
    k2: int = 256

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """``direct``, and ``two_stage`` with half the arithmetic."""
        return {"direct": self.compute, "two_stage": self.compute_two_stage}

    def compute(self) -> Tensors:
        from tvm import te

        a, w, b = self._placeholders()
        k1, k2 = te.reduce_axis((0, self.k1), "k1"), te.reduce_axis((0, self.k2), "k2")
        out = te.compute(
            (self.n, self.m),
            lambda n, m: te.sum(a[n, k1] * w[m, k1, k2] * b[n, k2], axis=[k1, k2]),
            name="bilinear",
        )
        return [a, w, b, out]

    def compute_two_stage(self) -> Tensors:
        """A GEMM over k2 into T[n,m,k1], then a row-wise dot product over k1."""
        from tvm import te

        a, w, b = self._placeholders()
        k1, k2 = te.reduce_axis((0, self.k1), "k1"), te.reduce_axis((0, self.k2), "k2")
        inner = te.compute(
            (self.n, self.m, self.k1),
            lambda n, m, j: te.sum(b[n, k2] * w[m, j, k2], axis=k2),
            name="contract_k2",
        )
        out = te.compute(
            (self.n, self.m),
            lambda n, m: te.sum(a[n, k1] * inner[n, m, k1], axis=k1),
            name="contract_k1",
        )
        return [a, w, b, out]

    def _placeholders(self) -> Tensors:
        from tvm import te

        return [
            te.placeholder((self.n, self.k1), name="A"),
            te.placeholder((self.m, self.k1, self.k2), name="W"),
            te.placeholder((self.n, self.k2), name="B"),
        ]

    def flops(self) -> int:
        """As the paper counts: one multiply-accumulate for each (n, m, k1, k2)."""
        return 2 * self.n * self.m * self.k1 * self.k2

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        a, w, b = inputs
        return functional.bilinear(a, b, w)
