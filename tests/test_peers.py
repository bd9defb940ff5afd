"""Every method of every peer computes the operator, and the fastest one counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flextensor import peers
from flextensor.buffers import relative_error
from flextensor.errors import InputError
from flextensor.operators import Conv2d, Conv3d, Gemm, Gemv, Operator, Workload
from flextensor.operators.depthwise_conv2d import DepthwiseConv2d

CONV = Conv2d(in_channels=8, height=9, width=11, out_channels=16, padding=1, stride=2)
WAYS = [
    ("torch", CONV),
    ("torch channels_last", CONV),
    ("torch prepacked", CONV),
    ("torch prepacked", DepthwiseConv2d(channels=8, height=9, width=9, padding=1)),
    ("torch channels_last", Conv3d(in_channels=4, depth=5, height=6, width=7, out_channels=8)),
    ("torch prepacked", Gemm(m=9, n=11, k=13, bias=True, relu=True)),
    ("blas", Gemm(m=9, n=11, k=13)),
]


@pytest.mark.parametrize(("method", "operator"), WAYS)
def test_a_method_computes_the_operator(method: str, operator: Operator) -> None:
    workload = Workload(operator)
    inputs = workload.inputs(0)
    with torch.inference_mode():
        call = peers.call(method, operator, inputs)
        assert call is not None
        got: Any = call()
    assert relative_error(np.asarray(got), workload.reference(inputs)) < 1e-5


@pytest.mark.parametrize(
    ("method", "operator"),
    [("blas", CONV), ("torch prepacked", Gemv(m=3, k=3)),
     ("torch channels_last", Gemm(m=3, n=3, k=3))],
)  # fmt: skip
def test_what_a_method_cannot_compute_is_none(method: str, operator: Operator) -> None:
    with torch.inference_mode():
        assert peers.call(method, operator, Workload(operator).inputs(0)) is None


def test_the_fastest_method_of_a_peer_counts() -> None:
    seconds = {"torch": 3.0, "torch prepacked": 2.0, "blas": 1.0}
    assert peers.fastest("torch-best", seconds) == ("torch prepacked", 2.0)
    assert peers.fastest("torch", seconds) == ("torch", 3.0)
    assert peers.fastest("blas", {"torch": 1.0}) is None


def test_methods_are_measured_once() -> None:
    assert peers.methods(("torch", "torch-best")) == peers.PEERS["torch-best"]
    with pytest.raises(InputError, match="did you mean torch"):
        peers.methods(("torhc",))
