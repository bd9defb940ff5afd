"""What to compute: operators, their parameters, their TVM compute and their references."""

from flextensor.operators.base import Operator, lookup, register, registry
from flextensor.operators.batch_gemm import BatchGemm
from flextensor.operators.conv import Conv1d, Conv2d, Conv3d, DilatedConv2d, GroupConv2d
from flextensor.operators.gemm import Gemm
from flextensor.operators.gemv import Gemv
from flextensor.operators.workload import BufferSpec, Workload

__all__ = [
    "BatchGemm",
    "BufferSpec",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DilatedConv2d",
    "Gemm",
    "Gemv",
    "GroupConv2d",
    "Operator",
    "Workload",
    "lookup",
    "register",
    "registry",
]
