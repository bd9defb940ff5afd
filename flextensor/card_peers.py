"""PyTorch on a CUDA card: cuBLAS, cuDNN, and Triton through torch.compile.

Every method is captured as a CUDA graph, which one launch replays: what is timed is the card, and
none of the host's launches. cuDNN tries its algorithms first (`cudnn.benchmark`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flextensor import torch_calls

if TYPE_CHECKING:
    from flextensor.operators import Operator

WARM_CALLS = 3
"""Calls before the capture, in which libraries choose algorithms and take workspaces."""


def call(method: str, operator: Operator, tensors: list[Any]) -> Callable[[], Any] | None:
    """A call of a method on tensors of the card, or None when it cannot compute the operator.

    Products of float32 are those of float32, but for ``torch tf32``, whose operands lose 13 bits.
    """
    import torch

    run = _expression(method, operator, tensors)
    if run is None:
        return None
    coarse = method == "torch tf32"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = coarse
    torch.backends.cuda.matmul.allow_tf32 = coarse
    return _captured(run)


def _expression(method: str, operator: Operator, tensors: list[Any]) -> Callable[[], Any] | None:
    import torch

    if method == "torch" or (method == "torch tf32" and tensors[0].dtype == torch.float32):
        return lambda: operator.torch(*tensors)
    if method == "torch channels_last":
        return torch_calls.channels_last(operator, tensors)
    if method == "torch compiled":
        return torch_calls.compiled(operator, tensors, "max-autotune-no-cudagraphs")
    return None


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """All kernels of a call as one graph; replaying it returns the same output, overwritten."""
    import torch

    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Any:
        graph.replay()
        return out

    return replay
