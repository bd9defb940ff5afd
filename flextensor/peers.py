"""The libraries that a kernel is measured beside, on the same inputs, in the same process; those of
a card are in `flextensor.card_peers`.

A peer is one or several methods, the fastest of which counts. Conversions that a method needs
(another memory format, weights packed ahead, compilation) are done before and cost it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flextensor import torch_calls
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
    "torch-tf32": ("torch tf32",),
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
- ``torch tf32``: the expression on a card, products of float32 by tensor cores in TensorFloat-32.
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


def call(method: str, operator: Operator, inputs: Arrays, device: str = "cpu") -> Call | None:
    """A call of a method on the inputs, on a device in PyTorch's words, or None when it has no way
    to compute the operator there.

    Must be made and called under `torch.inference_mode`.
    """

    tensors = [torch_calls.tensor(array).to(device) for array in inputs]
    if device != "cpu":
        from flextensor import card_peers

        return card_peers.call(method, operator, tensors)
    if method == "torch":
        return lambda: operator.torch(*tensors)
    if method == "torch channels_last":
        return torch_calls.channels_last(operator, tensors)
    if method == "torch compiled":
        return torch_calls.compiled(operator, tensors, "max-autotune")
    if method.startswith("torch prepacked"):
        return _prepacked(operator, tensors, last=method.endswith("channels_last"))
    return _blas(operator, inputs) if method == "blas" else None


def array(output: Any) -> np.ndarray[Any, Any]:
    """What a call returned as an array of the host, of a precision that NumPy has."""
    import numpy as np

    if isinstance(output, np.ndarray):
        return output
    host = output.cpu()
    return np.asarray(host.double() if host.is_floating_point() else host)


def _blas(operator: Operator, inputs: Arrays) -> Call | None:
    import numpy as np

    from flextensor.operators import BatchGemm, Gemm, Gemv

    if not isinstance(operator, Gemm | Gemv | BatchGemm) or len(inputs) != 2:
        return None
    if getattr(operator, "relu", False) or inputs[0].dtype != np.float32:
        return None
    a, b = inputs
    out = np.empty(np.matmul(a, b).shape, a.dtype)
    return lambda: np.matmul(a, b, out=out)


def _prepacked(operator: Operator, tensors: list[Any], last: bool) -> Call | None:
    """oneDNN's convolution. `mkldnn_convolution` would pack the weights again at every call."""
    import torch

    from flextensor.operators import Gemm
    from flextensor.operators.conv import Convolution
    from flextensor.operators.conv_transpose import ConvolutionTranspose

    if tensors[0].dtype == torch.int8:
        return None
    if isinstance(operator, Gemm) and not last:
        if tensors[0].dtype != torch.float32:
            return None
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
