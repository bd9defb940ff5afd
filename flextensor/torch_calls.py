"""Ways to have PyTorch compute an operator that serve a CPU and a card alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from flextensor.operators import Operator

Call = Callable[[], Any]


def tensor(array: np.ndarray[Any, Any]) -> Any:
    """A tensor on the memory of an array; PyTorch takes no bfloat16 of NumPy's but by its bits."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(tensor: Any) -> np.ndarray[Any, Any]:
    """An array on the memory of a tensor of the CPU; RuntimeError or TypeError where none can
    be."""
    import torch

    from flextensor.operators.workload import numpy_dtype

    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray[Any, Any] = tensor.view(torch.int16).numpy()
        return bits.view(numpy_dtype("bfloat16"))
    plain: np.ndarray[Any, Any] = tensor.numpy()
    return plain


def channels_last(operator: Operator, tensors: list[Any]) -> Call | None:
    """The operator's expression on tensors that lie channels last, converted once; None when
    neither its data nor its weights could."""
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not any(t.ndim in formats for t in tensors[:2]):
        return None
    converted = [
        t.contiguous(memory_format=formats[t.ndim]) if t.ndim in formats else t for t in tensors
    ]
    return lambda: operator.torch(*converted)


def compiled(operator: Operator, tensors: list[Any], mode: str) -> Call | None:
    """torch.compile of what has weights, all inputs but the first frozen; a product of several
    data operands could be folded away when they are frozen."""
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
    layer = torch.compile(Layer().eval(), mode=mode, dynamic=False)
    layer(data)
    return lambda: layer(data)
