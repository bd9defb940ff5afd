"""A workload: one operator with all its parameters and dtypes, as the tuner sees it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flextensor.errors import UnsupportedError, unknown
from flextensor.operators.base import Operator, Tensors

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 64
"""Bytes that every array of `Workload.inputs` is aligned to: a cache line, a vector register."""


ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The least relative error that may be asked of an output, by dtype; see `Workload.tolerance`."""
CONSTANTS = "flextensor.constants"
"""The attribute of a PrimFunc that has the positions of the inputs that never change."""
TERMS = "flextensor.terms"
"""The attribute of a PrimFunc that says how many terms of bfloat16 may stand for a float32 value
that is multiplied; see `Workload.in_terms`."""
IN_TWO_TERMS = "_bf16x2"
"""What names of formulations in two terms end with; oneMKL's name of such products."""
PRODUCTS = {1: 1, 2: 3}
"""Products of terms that are summed for one product, by the number of terms of a value; that of two
second terms is left out."""
TWO_TERMS = 2.0**-15
"""The least tolerance, relative to the largest output, that two terms keep: they hold 16 of 24
significant bits, and leave out up to 2**-15 of each product. Of random sums, whose errors cancel,
that is some 5e-6 of the largest."""


@dataclasses.dataclass(frozen=True)
class BufferSpec:
    """Shape and dtype of one input or output, row-major and contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        bits = int("".join(filter(str.isdigit, self.dtype)) or 8)  # "bool" has no digits
        return math.prod(self.shape) * max(bits // 8, 1)


@dataclasses.dataclass(frozen=True)
class Workload:
    """An operator and its parameters: key, arithmetic, inputs, reference, formulations.

    `prepacked` says that its weights are packed once, and not at every call. Raises
    `UnsupportedError` when it has none, or when a tensor of the plain formulation, or all inputs
    with the reference, do not fit this machine.
    """

    operator: Operator
    prepacked: bool = False

    def __post_init__(self) -> None:
        if self.prepacked and not self.operator.weights:
            raise UnsupportedError(
                f"{self.operator.name} has no weights that could be packed ahead"
            )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for spec in map(_spec, _stages(self._direct[-1])):
            what = f"{self.operator.name}: tensor {spec.name} of shape {list(spec.shape)}"
            if spec.nbytes > memory:
                size, has = spec.nbytes / 2**30, memory / 2**30
                raise UnsupportedError(
                    f"{what} needs {size:.1f} GiB, this machine has {has:.1f} GiB"
                )
            if math.prod(spec.shape) >= 2**31:
                raise UnsupportedError(f"{what} has more than 2**31 - 1 elements")
        *inputs, output = self.buffers
        whole = sum(b.nbytes for b in inputs) + 8 * math.prod(output.shape)
        if whole > memory:
            raise UnsupportedError(
                f"{self.operator.name}: inputs and the float64 reference need "
                f"{whole / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Workload, (self.operator, self.prepacked)  # programs are rebuilt, not pickled

    @cached_property
    def key(self) -> str:
        """The stable name of the workload in a database, e.g. ``gemm(m=64, n=64, k=64)``.

        Equal workloads have equal keys in every process and version; a custom operator's key
        comes from the structure of its program, so that renaming it keeps its results.
        """
        return self.operator.key() + (" prepacked" if self.prepacked else "")

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The operator's parameters by field name."""
        return self.operator.params()

    @cached_property
    def formulations(self) -> tuple[str, ...]:
        """Names of the operator's formulations; the first is the plain one."""
        return tuple(self.operator.formulations())

    def in_terms(self, tolerance: float) -> tuple[str, ...]:
        """Names of the formulations in float32 whose products may be taken of terms of bfloat16,
        if a relative `tolerance` of the output allows it.

        Each computes as the one that it is named after, on hardware that multiplies bfloat16 much
        faster (Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype For
        Higher-Precision Computations, ARITH 2019). Infinite inputs give NaN.

            a * b  ->  a0 * b0 + a0 * b1 + a1 * b0       a0 = bfloat16(a), a1 = bfloat16(a - a0)
        """
        if {b.dtype for b in self.buffers} != {"float32"} or tolerance < TWO_TERMS:
            return ()
        # Winograd's transforms would magnify what is left out, those of F(4, 3) some 25 times
        plain = (name for name in self.formulations if not name.startswith("winograd"))
        return tuple(f"{name}{IN_TWO_TERMS}" for name in plain)

    def has(self, formulation: object) -> bool:
        """Whether there is a formulation of that name, in terms or not."""
        return formulation in (*self.formulations, *self.in_terms(math.inf))

    def terms(self, formulation: str) -> int:
        """Terms of bfloat16 that stand for a value that is multiplied; 1 where it stands itself."""
        return 2 if formulation.endswith(IN_TWO_TERMS) else 1

    def prim_func(self, formulation: str = "direct") -> Any:
        """The unscheduled `tvm.tirx.PrimFunc` of one formulation; its attribute `CONSTANTS` has
        the positions of what may be packed ahead, `TERMS` the terms of a value."""
        from tvm import te

        if not self.has(formulation):
            raise unknown(f"formulation of {self.operator.name}", formulation, self.formulations)
        if formulation not in self._programs:
            name = formulation.removesuffix(IN_TWO_TERMS)
            func = te.create_prim_func(self.operator.formulations()[name]())
            if self.prepacked:
                func = func.with_attr(CONSTANTS, list(self.constants))
            terms = self.terms(formulation)
            self._programs[formulation] = func if terms == 1 else func.with_attr(TERMS, terms)
        return self._programs[formulation]

    @cached_property
    def _programs(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _direct(self) -> Tensors:
        return self.operator.compute()

    @cached_property
    def buffers(self) -> tuple[BufferSpec, ...]:
        """Inputs in order, then the output."""
        return tuple(map(_spec, self._direct))

    @property
    def constants(self) -> tuple[int, ...]:
        """Positions of the inputs that never change between two calls."""
        return tuple(p for p, b in enumerate(self.buffers) if b.name in self.operator.weights)

    @property
    def flops(self) -> int:
        """Floating-point operations; a multiply-accumulate counts as 2."""
        return self.operator.flops()

    @property
    def bytes(self) -> int:
        """Compulsory traffic: every input read once, the output written once."""
        return sum(b.nbytes for b in self.buffers)

    def tolerance(self, asked: float) -> float:
        """The relative error that an output may have: integers are exact, and no float is nearer
        than its dtype allows.

        float16 has 11 significant bits: rounding to nearest moves the largest output by 2**-11 of
        itself, and as much again is left for sums that round the other way. bfloat16 has 8.
        """
        dtype = self.buffers[-1].dtype
        return 0.0 if dtype.startswith(("int", "uint")) else max(asked, ROUNDING.get(dtype, 0.0))

    def inputs(self, seed: int) -> list[np.ndarray[Any, Any]]:
        """Random inputs, the same for the same seed, aligned to `ALIGNMENT` bytes."""
        import numpy as np

        rng = np.random.default_rng(seed)
        arrays = self.operator.inputs(rng)
        if arrays is None:
            arrays = [_random(rng, b) for b in self.buffers[:-1]]
        return [aligned(a, b.dtype) for a, b in zip(arrays, self.buffers, strict=False)]

    def reference(self, inputs: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The output in float64 (ints: exact), computed without any scheduled TVM kernel."""
        return self.operator.reference(inputs)


def _spec(tensor: Any) -> BufferSpec:
    return BufferSpec(tensor.op.name, tuple(int(n) for n in tensor.shape), str(tensor.dtype))


def _stages(output: Any) -> Iterator[Any]:
    """`output` and every tensor that it is computed from, each once."""
    seen, stack = set(), [output]
    while stack:
        tensor = stack.pop()
        if tensor not in seen:
            seen.add(tensor)
            yield tensor
            stack.extend(tensor.op.input_tensors)


def _random(rng: np.random.Generator, spec: BufferSpec) -> np.ndarray[Any, Any]:
    import numpy as np

    if spec.dtype in ("int8", "uint8", "int16", "uint16"):
        limits = np.iinfo(spec.dtype)
        return rng.integers(limits.min, limits.max + 1, spec.shape)
    if spec.dtype.startswith(("int", "uint", "bool")):
        return rng.integers(0, 2 if spec.dtype == "bool" else 8, spec.shape)
    return rng.standard_normal(spec.shape, dtype="float32")


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """NumPy's dtype of a name or dtype; its bfloat16 is that of ml_dtypes, as TVM's."""
    import ml_dtypes  # noqa: F401 - importing it lets NumPy know the name
    import numpy as np

    found: np.dtype[Any] = np.dtype(dtype)
    return found


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """An uninitialised row-major array that starts at a multiple of `ALIGNMENT` bytes."""
    import numpy as np

    element = numpy_dtype(dtype)
    size = math.prod(shape) * element.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array: np.ndarray[Any, Any] = raw[start : start + size].view(element).reshape(shape)
    return array


def aligned(array: np.ndarray[Any, Any], dtype: Any = None) -> np.ndarray[Any, Any]:
    """A copy of `array`, in `dtype` if one is given, as `empty` makes them."""
    out = empty(array.shape, dtype or array.dtype)
    out[...] = array
    return out
