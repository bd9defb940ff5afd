"""A batch of independent matrix products."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.stages import epilogue, epilogue_flops

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class BatchGemm(Operator):
    """``out[b,m,n] = sum_k A[b,m,k] * B[b,k,n]``, then ``+ bias[n]`` and relu where asked."""

    name: ClassVar[str] = "batch_gemm"

    batch: int = 8
    m: int = 256
    n: int = 256
    k: int = 256
    bias: bool = False
    relu: bool = False

    def compute(self) -> Tensors:
        from tvm import te

        a = te.placeholder((self.batch, self.m, self.k), name="A")
        b = te.placeholder((self.batch, self.k, self.n), name="B")
        bias = [te.placeholder((self.n,), name="bias")] if self.bias else []
        k = te.reduce_axis((0, self.k), "k")
        out = te.compute(
            (self.batch, self.m, self.n),
            lambda i, m, n: te.sum(a[i, m, k] * b[i, k, n], axis=k),
            name="batch_gemm",
        )
        return [a, b, *bias, epilogue(out, 2, bias[0] if bias else None, self.relu)]

    def flops(self) -> int:
        contraction = 2 * self.batch * self.m * self.n * self.k
        return contraction + epilogue_flops((self.batch, self.m, self.n), self.bias, self.relu)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        a, b, *bias = inputs
        out = torch.baddbmm(bias[0], a, b) if bias else torch.bmm(a, b)
        return out.relu() if self.relu else out
