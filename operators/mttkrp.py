"""Matricised tensor times Khatri-Rao product, the core of CP decomposition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class Mttkrp(Operator):
    """``out[n,m] = sum_{k1,k2} A[n,k1,k2] * B[k1,m] * C[k2,m]``."""

    name: ClassVar[str] = "mttkrp"

    n: int = 128
    m: int = 64
    k1: int = 128
    k2: int = 128

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """``direct``, and ``two_stage`` with half the arithmetic."""
        return {"direct": self.compute, "two_stage": self.compute_two_stage}

    def compute(self) -> Tensors:
        from tvm import te

        a, b, c = self._placeholders()
        k1, k2 = te.reduce_axis((0, self.k1), "k1"), te.reduce_axis((0, self.k2), "k2")
        out = te.compute(
            (self.n, self.m),
            lambda n, m: te.sum(a[n, k1, k2] * b[k1, m] * c[k2, m], axis=[k1, k2]),
            name="mttkrp",
        )
        return [a, b, c, out]

    def compute_two_stage(self) -> Tensors:
        """A GEMM over k2 into T[n,k1,m], then a weighted sum over k1 with m innermost."""
        from tvm import te

        a, b, c = self._placeholders()
        k1, k2 = te.reduce_axis((0, self.k1), "k1"), te.reduce_axis((0, self.k2), "k2")
        inner = te.compute(
            (self.n, self.k1, self.m),
            lambda n, j, m: te.sum(a[n, j, k2] * c[k2, m], axis=k2),
            name="contract_k2",
        )
        out = te.compute(
            (self.n, self.m),
            lambda n, m: te.sum(inner[n, k1, m] * b[k1, m], axis=k1),
            name="contract_k1",
        )
        return [a, b, c, out]

    def _placeholders(self) -> Tensors:
        from tvm import te

        return [
            te.placeholder((self.n, self.k1, self.k2), name="A"),
            te.placeholder((self.k1, self.m), name="B"),
            te.placeholder((self.k2, self.m), name="C"),
        ]

    def flops(self) -> int:
        """As the paper counts: one multiply-accumulate for each (n, m, k1, k2)."""
        return 2 * self.n * self.m * self.k1 * self.k2

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        a, b, c = inputs
        return ((a @ c) * b).sum(1)
