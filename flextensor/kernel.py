"""A tuned kernel as a Python callable on NumPy arrays and PyTorch CPU tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flextensor import torch_calls
from flextensor.buffers import Array, aligned, empty
from flextensor.compiled import Library
from flextensor.errors import InputError
from flextensor.operators.workload import ALIGNMENT, BufferSpec, numpy_dtype
from flextensor.targets.runtime import Runtime


class Kernel:
    """``kernel(*inputs, out=None) -> out``: a compiled program whose last buffer is its output.

    Arrays that are row-major, writable and aligned to 64 bytes are passed as they are; others
    are copied (an `out` back again), also an `out` that overlaps an input. The output is a new
    aligned array, or tensor when the first input is one. `InputError` for a wrong number, type,
    dtype, shape or device of arguments, and for tensors that require gradients.
    """

    def __init__(self, path: str | Path, buffers: Sequence[BufferSpec], runtime: Runtime) -> None:
        """`path` is a library that `flextensor.compiled.build` wrote, for a target of `runtime`."""
        self.buffers = tuple(buffers)
        self._library, self._runtime = Library(Path(path), runtime), runtime

    def __repr__(self) -> str:
        *inputs, out = (f"{b.name}: {b.dtype}{list(b.shape)}" for b in self.buffers)
        return f"Kernel({', '.join(inputs)}) -> {out}"

    def __call__(self, *inputs: Any, out: Any = None) -> Any:
        """Compute `out` from the inputs; weights of a prepacked kernel are packed now."""
        views = self._views(inputs, range(len(self.buffers) - 1))
        packed = self._pack([views[p] for p in self._library.constants])
        return self._run(views, packed, inputs, out)

    def prepack(self, *weights: Any) -> Callable[..., Any]:
        """``layer(*other_inputs, out=None) -> out``, the kernel with its weights packed now.

        Weights are the inputs that were tuned as constant, in order; none for a plain kernel.
        """
        constants = self._library.constants
        fixed = [passable(view) for view in self._views(weights, constants)]
        packed = self._pack(fixed)
        others = [p for p in range(len(self.buffers) - 1) if p not in constants]

        def layer(*inputs: Any, out: Any = None) -> Any:
            """The kernel on the inputs that are no weights."""
            views = dict(zip(others, self._views(inputs, others), strict=True))
            views |= dict(zip(constants, fixed, strict=True))
            return self._run([views[p] for p in sorted(views)], packed, inputs, out)

        return layer

    def _pack(self, weights: Sequence[Array]) -> list[Array]:
        return self._library.pack([self._runtime.passed(passable(w)) for w in weights])

    def _views(self, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
        """Arrays on the memory of the inputs at `positions`, checked."""
        specs = [self.buffers[p] for p in positions]
        if len(values) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise InputError(f"the kernel takes {len(specs)} inputs ({names}), got {len(values)}")
        return [view(value, spec) for value, spec in zip(values, specs, strict=True)]

    def _run(
        self, views: Sequence[Array], packed: Sequence[Array], like: Sequence[Any], out: Any
    ) -> Any:
        arguments, last = [*map(passable, views), *packed], self.buffers[-1]
        if out is None:
            result = empty(last.shape, last.dtype)
            self._library.call([*arguments, result])
            return _like(result, like)
        target = view(out, last)
        if not target.flags.writeable:
            raise InputError(f"output {last.name} is read-only")
        overlaps = any(np.may_share_memory(target, given) for given in views)
        direct = _fits(target) and not overlaps
        result = target if direct else empty(last.shape, last.dtype)
        self._library.call([*arguments, result])
        if not direct:
            np.copyto(target, result)
        return out


def view(value: Any, spec: BufferSpec) -> Array:
    """`value` as a NumPy array on the same memory, or `InputError` when it is not `spec`."""
    array = _array(value, spec)
    if array.dtype != numpy_dtype(spec.dtype):
        raise InputError(f"{spec.name} must be {spec.dtype}, got {array.dtype}")
    if array.shape != spec.shape:
        raise InputError(f"{spec.name} must have shape {spec.shape}, got {array.shape}")
    return array


def _array(value: Any, spec: BufferSpec) -> Array:
    if isinstance(value, np.ndarray):
        return value
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise InputError(f"{spec.name} must be a NumPy array or a PyTorch tensor, got {kind}")
    if value.device.type != "cpu":
        raise InputError(f"{spec.name} must be on the CPU, got a tensor on {value.device}")
    if value.requires_grad:
        raise InputError(f"{spec.name} requires a gradient, kernels have none: detach it")
    try:
        array: Array = torch_calls.array(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{spec.name} cannot be read as an array: {error}") from error
    return array


def _fits(array: Array) -> bool:
    """Whether a kernel may touch this memory itself: LLVM emits loads that fault otherwise."""
    flags = array.flags
    address: int = array.__array_interface__["data"][0]
    return flags.c_contiguous and flags.writeable and address % ALIGNMENT == 0


def passable(array: Array) -> Array:
    """`array`, or an aligned copy where a kernel may not read it in place.

    A read-only array is copied because NumPy cannot hand it on through DLPack.
    """
    return array if _fits(array) else aligned(array)


def _like(result: Array, inputs: Sequence[Any]) -> Any:
    """The output as the kind of the first input."""
    torch = sys.modules.get("torch")
    if inputs and torch is not None and isinstance(inputs[0], torch.Tensor):
        return torch_calls.tensor(result)
    return result
