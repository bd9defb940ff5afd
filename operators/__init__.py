"""What to compute: operators, their parameters, their TVM compute and their references."""

from collections.abc import Mapping

from flextensor.operators.base import Operator, lookup, register, registry
from flextensor.operators.batch_gemm import BatchGemm
from flextensor.operators.bilinear import Bilinear
from flextensor.operators.block_circulant import BlockCirculant
from flextensor.operators.conv import Conv1d, Conv2d, Conv3d, DilatedConv2d, GroupConv2d
from flextensor.operators.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from flextensor.operators.custom import FunctionOperator, from_file
from flextensor.operators.depthwise_conv2d import DepthwiseConv2d
from flextensor.operators.einsum import Einsum
from flextensor.operators.gemm import Gemm
from flextensor.operators.gemv import Gemv
from flextensor.operators.mttkrp import Mttkrp
from flextensor.operators.shift_conv2d import ShiftConv2d
from flextensor.operators.suites import Case, case, cases, suites
from flextensor.operators.workload import BufferSpec, Workload

__all__ = [
    "BatchGemm",
    "Bilinear",
    "BlockCirculant",
    "BufferSpec",
    "Case",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DepthwiseConv2d",
    "DilatedConv2d",
    "Einsum",
    "FunctionOperator",
    "Gemm",
    "Gemv",
    "GroupConv2d",
    "Mttkrp",
    "Operator",
    "ShiftConv2d",
    "Workload",
    "case",
    "cases",
    "from_file",
    "lookup",
    "parse",
    "register",
    "registry",
    "suites",
]


def parse(name: str, values: Mapping[str, str]) -> Operator:
    """The operator called `name` from fields written as text: ``parse("gemm", {"m": "64"})``.

    Raises `InputError` for an unknown name or field (with the nearest ones) and illegal values.
    """
    return lookup(name).parse(values)
