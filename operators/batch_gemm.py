"""A batch of independent matrix products."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.stages import epilogue, epilogue_flops, result_dtype, wide

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class BatchGemm(Operator):
    """``out[b,m,n] = sum_k A[b,m,k] * B[b,k,n]``, then ``+ bias[n]`` and relu where asked.

    Of int8, bias and output are int32.
    """

    name: ClassVar[str] = "batch_gemm"

    batch: int = 8
    m: int = 256
    n: int = 256
    k: int = 256
    bias: bool = False
    relu: bool = False
    dtype: str = "float32"

    def compute(self) -> Tensors:
        from tvm import te

        a = te.placeholder((self.batch, self.m, self.k), name="A", dtype=self.dtype)
        b = te.placeholder((self.batch, self.k, self.n), name="B", dtype=self.dtype)
        result = result_dtype(self.dtype)
        bias = [te.placeholder((self.n,), name="bias", dtype=result)] if self.bias else []
        k = te.reduce_axis((0, self.k), "k")
        out = te.compute(
            (self.batch, self.m, self.n),
            lambda i, m, n: te.sum(wide(a(i, m, k)) * wide(b(i, k, n)), axis=k),
            name="batch_gemm",
        )
        first = bias[0] if bias else None
        return [a, b, *bias, epilogue(out, 2, first, self.relu, self.dtype)]

    def flops(self) -> int:
        contraction = 2 * self.batch * self.m * self.n * self.k
        return contraction + epilogue_flops((self.batch, self.m, self.n), self.bias, self.relu)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        a, b, *bias = inputs
        if a.dtype == torch.int8:  # of which there is no batched product
            out = torch.empty((self.batch, self.m, self.n), dtype=torch.int32, device=a.device)
            for i in range(self.batch):
                torch._int_mm(a[i], b[i], out=out[i])
            out = out + bias[0] if bias else out
        else:
            out = torch.baddbmm(bias[0], a, b) if bias else torch.bmm(a, b)
        return out.relu() if self.relu else out
