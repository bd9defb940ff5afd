"""Matrix times vector."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class Gemv(Operator):
    """``out[m] = sum_k A[m,k] * B[k]``."""

    name: ClassVar[str] = "gemv"

    m: int = 1024
    k: int = 1024

    def compute(self) -> Tensors:
        from tvm import te

        a = te.placeholder((self.m, self.k), name="A")
        b = te.placeholder((self.k,), name="B")
        k = te.reduce_axis((0, self.k), "k")
        return [a, b, te.compute((self.m,), lambda m: te.sum(a[m, k] * b[k], axis=k), name="gemv")]

    def flops(self) -> int:
        return 2 * self.m * self.k

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0] @ inputs[1]
