"""The libraries that a kernel is measured beside, on the same inputs, in the same process.

A peer is one or several methods, the fastest of which counts. Conversions that a method needs
(another memory format, weights packed ahead, compilation) are done before and cost it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flextensor.errors import unknown

if TYPE_CHECKING:
    import numpy as np

    from flextensor.operators import Gemm, Operator

    Arrays = Sequence[np.ndarray[Any, Any]]

Call = Callable[[], Any]

PEERS: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torch-best": (
        "torch",
        "torch channels_last",
        "torch prepacked",
        "torch prepacked channels_last",
        "torch compiled",
    ),
    "torch-prepacked": ("torch prepacked", "torch prepacked channels_last", "torch compiled"),
    "blas": ("blas",),
    "metaschedule": ("metaschedule",),
    "dlight": ("dlight", "dlight-fallback"),
}
"""The methods of every peer:

- ``torch``: the operator's PyTorch expression, eager, plain layouts.
- ``torch channels_last``: the same on tensors that lie channels last.
- ``torch prepacked``: oneDNN (for a gemm: MKL) with weights that lie ahead of time as its kernel
  wants them.
- ``torch prepacked channels_last``: the same on data that lies channels last.
- ``torch compiled``: torch.compile, max-autotune, with frozen weights.
- ``blas``: NumPy's matmul on OpenBLAS with threads of its own.
- ``metaschedule``: TVM's own tuner, see `flextensor.metaschedule`.
- ``dlight``: TVM's default schedule of a GPU, see `flextensor.dlight`.
- ``dlight-fallback``: the same by its last rule, a thread for every element.

The last three are no calls, but libraries: see `flextensor.peer_libraries`.
"""

SPINS: Mapping[str, float] = {"blas": 0.5}
"""Seconds for which a method's threads go on spinning after a call: OpenBLAS's take half of every
core from whoever comes next."""


def methods(peers: Sequence[str]) -> tuple[str, ...]:
    """The methods of several peers, each once; `InputError` for an unknown peer."""
    for peer in peers:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    return tuple(dict.fromkeys(m for peer in peers for m in PEERS[peer]))


def fastest(peer: str, seconds: Mapping[str, float]) -> tuple[str, float] | None:
    """The fastest measured method of a peer with its seconds, or None when it has none here."""
    own = {m: seconds[m] for m in PEERS[peer] if m in seconds}
    return min(own.items(), key=lambda item: item[1]) if own else None


def call(method: str, operator: Operator, inputs: Arrays) -> Call | None:
    """A call of a method on the inputs, or None when it has no way to compute the operator.

    Must be made and called under `torch.inference_mode`.
    """
    import torch

    if method == "blas":
        return _blas(operator, inputs)
    tensors = [torch.from_numpy(array) for array in inputs]
    if method == "torch":
        return lambda: operator.torch(*tensors)
    if method == "torch channels_last":
        return _channels_last(operator, tensors)
    if method.startswith("torch prepacked"):
        return _prepacked(operator, tensors, last=method.endswith("channels_last"))
    return _compiled(operator, tensors)


def _blas(operator: Operator, inputs: Arrays) -> Call | None:
    import numpy as np

    from flextensor.operators import BatchGemm, Gemm, Gemv

    if not isinstance(operator, Gemm | Gemv | BatchGemm) or len(inputs) != 2:
        return None
    if getattr(operator, "relu", False):
        return None
    a, b = inputs
    out = np.empty(np.matmul(a, b).shape, a.dtype)
    return lambda: np.matmul(a, b, out=out)


def _channels_last(operator: Operator, tensors: list[Any]) -> Call | None:
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not any(t.ndim in formats for t in tensors[:2]):
        return None
    converted = [
        t.contiguous(memory_format=formats[t.ndim]) if t.ndim in formats else t for t in tensors
    ]
    return lambda: operator.torch(*converted)


def _prepacked(operator: Operator, tensors: list[Any], last: bool) -> Call | None:
    """oneDNN's convolution. `mkldnn_convolution` would pack the weights again at every call."""
    import torch

    from flextensor.operators import Gemm
    from flextensor.operators.conv import Convolution
    from flextensor.operators.conv_transpose import ConvolutionTranspose

    if isinstance(operator, Gemm) and not last:
        return _prepacked_gemm(operator, tensors)
    if not isinstance(operator, Convolution) or isinstance(operator, ConvolutionTranspose):
        return None
    if len(operator.size) != 2:
        return None
    data, weight, *bias = tensors
    filters = weight.reshape(operator.out_channels, -1, operator.kernel, operator.kernel)
    pads, strides, gaps = ([n] * 2 for n in (operator.padding, operator.stride, operator.dilation))
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        filters, pads, strides, gaps, operator.groups, list(data.shape)
    )
    if last:
        data = data.contiguous(memory_format=torch.channels_last)
    after = "relu" if operator.relu else "none"
    return lambda: torch.ops.mkldnn._convolution_pointwise(
        data, packed, bias[0] if bias else None, pads, strides, gaps, operator.groups, after, [], ""
    )


def _prepacked_gemm(operator: Gemm, tensors: list[Any]) -> Call:
    import torch

    a, b, *bias = tensors
    weight = b.t().contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, operator.m)
    added = bias[0] if bias else None

    def linear() -> Any:
        out = torch.ops.mkl._mkl_linear(a, packed, weight, added, operator.m)
        return out.relu_() if operator.relu else out

    return linear


def _compiled(operator: Operator, tensors: list[Any]) -> Call | None:
    """What has weights, all inputs but the first frozen; a product of several data operands
    could be folded away when they are frozen."""
    import torch

    if not operator.weights:
        return None
    from torch._inductor import config

    data, *weights = tensors

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(
                [torch.nn.Parameter(w, requires_grad=False) for w in weights]
            )

        def forward(self, x: Any) -> Any:
            return operator.torch(x, *self.weights)

    config.freezing = True
    compiled = torch.compile(Layer().eval(), mode="max-autotune", dynamic=False)
    compiled(data)
    return lambda: compiled(data)
