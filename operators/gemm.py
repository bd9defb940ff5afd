"""Matrix times matrix."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from flextensor.operators.base import Operator, Tensors, register
from flextensor.operators.stages import epilogue, epilogue_flops, result_dtype, wide

if TYPE_CHECKING:
    import torch


@register
@dataclasses.dataclass(frozen=True)
class Gemm(Operator):
    """``out[m,n] = sum_k A[m,k] * B[k,n]``, then ``+ bias[n]`` and relu where asked.

    Of int8, bias and output are int32.
    """

    name: ClassVar[str] = "gemm"
    weights: ClassVar[tuple[str, ...]] = ("B",)

    m: int = 512
    n: int = 512
    k: int = 512
    bias: bool = False
    relu: bool = False
    dtype: str = "float32"

    def compute(self) -> Tensors:
        from tvm import te

        a = te.placeholder((self.m, self.k), name="A", dtype=self.dtype)
        b = te.placeholder((self.k, self.n), name="B", dtype=self.dtype)
        result = result_dtype(self.dtype)
        bias = [te.placeholder((self.n,), name="bias", dtype=result)] if self.bias else []
        k = te.reduce_axis((0, self.k), "k")
        out = te.compute(
            (self.m, self.n),
            lambda m, n: te.sum(wide(a(m, k)) * wide(b(k, n)), axis=k),
            name="gemm",
        )
        first = bias[0] if bias else None
        return [a, b, *bias, epilogue(out, 1, first, self.relu, self.dtype)]

    def flops(self) -> int:
        contraction = 2 * self.m * self.n * self.k
        return contraction + epilogue_flops((self.m, self.n), self.bias, self.relu)

    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        a, b, *bias = inputs
        if a.dtype == torch.int8:
            out = torch._int_mm(a, b)
            out = out + bias[0] if bias else out
        else:
            out = torch.addmm(bias[0], a, b) if bias else a @ b
        return out.relu() if self.relu else out
