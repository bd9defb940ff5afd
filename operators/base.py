"""What an operator is: its parameters, its TVM compute, its reference, its arithmetic.

A newcomer adds an operator with one file: a frozen dataclass whose fields are its parameters.
Command-line fields, help, workload key and repr all derive from those fields.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from flextensor.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np
    import torch

DTYPES = ("float32", "float16", "bfloat16", "int8")
"""What a field ``dtype`` may be: of inputs and output, with sums in float32; of int8 bias, sums and
output are int32."""
Tensors = list[Any]
"""TVM tensors (`tvm.te.Tensor`), inputs first and the output last."""


@dataclasses.dataclass(frozen=True)
class Operator(ABC):
    """A dense tensor operator with its parameters. Subclasses are frozen dataclasses.

    Fields are ints (sizes, all at least 1 unless `MINIMUM` says otherwise), bools or strings.
    """

    name: ClassVar[str]
    """The name on the command line and in keys, e.g. ``conv2d``."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Names of the inputs that never change between two calls, and may be packed ahead."""
    has_peer: ClassVar[bool] = True
    """Whether `torch` exists; a user's own operator has none."""
    MINIMUM: ClassVar[Mapping[str, int]] = {"padding": 0, "output_padding": 0}
    """The smallest legal value of an int field, where it is not 1."""
    UNSAID: ClassVar[frozenset[str]] = frozenset({"dtype"})
    """Fields that keys and parameters leave out at their default: they came when databases had
    keys without them, whose results stay what they are."""

    def __post_init__(self) -> None:
        """Check every field, then `check`; raise `InputError` with one line for a person."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                check_size(f"{self.name}: {field.name}", value, self.MINIMUM.get(field.name, 1))
            elif field.type == "bool" and not isinstance(value, bool):
                raise InputError(f"{self.name}: {field.name} must be true or false, got {value!r}")
            elif field.type == "str" and not isinstance(value, str):
                raise InputError(f"{self.name}: {field.name} must be a string, got {value!r}")
            if field.name == "dtype" and value not in DTYPES:
                raise unknown(f"dtype of {self.name}", value, DTYPES)
        self.check()

    def check(self) -> None:  # noqa: B027 - a hook, and most operators need none
        """Raise `InputError` when the parameters contradict each other."""

    @abstractmethod
    def compute(self) -> Tensors:
        """The plain TVM compute: placeholders first, the output last."""

    def formulations(self) -> Mapping[str, Callable[[], Tensors]]:
        """Every way to compute the operator, by name; the tuner chooses among them."""
        return {"direct": self.compute}

    @abstractmethod
    def flops(self) -> int:
        """Floating-point operations of the whole operator; a multiply-accumulate counts as 2."""

    @abstractmethod
    def torch(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The operator as the best plain PyTorch expression, in the dtype of `inputs`.

        Evaluated in float64 it is the reference that every kernel is verified against; in the
        operator's own dtype it is the peer that kernels are timed against.
        """

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray[Any, Any]] | None:
        """Random inputs, or None for standard normal floats, any integers of 8 and 16 bits, and 0
        to 7 for wider ones, which may be places."""
        return None

    def reference(self, inputs: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The output in float64 for NumPy `inputs`, without any scheduled TVM kernel."""
        import numpy as np
        import torch

        # float64 holds the products of int8 and their sums exactly
        promoted = getattr(self, "dtype", "") == "int8"
        whole = [x.dtype.kind in "iub" and not promoted for x in inputs]
        tensors = [
            torch.from_numpy(np.array(x, dtype=x.dtype if is_whole else np.float64))
            for x, is_whole in zip(inputs, whole, strict=True)
        ]
        with torch.no_grad():
            return np.asarray(self.torch(*tensors).to(torch.float64).numpy())

    def params(self) -> Mapping[str, Any]:
        """The parameters by field name, in declared order, without what goes `UNSAID`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if k not in self.UNSAID or v != defaults[k]}

    def key(self) -> str:
        """What identifies the operator with its parameters, e.g. ``gemm(m=64, n=64, k=64)``."""
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params().items())})"

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Self:
        """The operator from fields written as text, ``{"m": "64", "relu": "true"}``."""
        types = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for field in values:
            if field not in types:
                raise unknown(f"field of {cls.name}", field, types)
        return cls(**{k: convert(f"{cls.name}: {k}", v, types[k]) for k, v in values.items()})


def check_size(what: str, value: object, minimum: int = 1) -> None:
    """Raise `InputError` unless `value` is an int in [minimum, 2**31)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{what} must be an integer, got {value!r}")
    if not minimum <= value < 2**31:
        raise InputError(f"{what} must be between {minimum} and {2**31 - 1}, got {value}")


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def convert(what: str, text: str, kind: str) -> Any:
    """`text` as an ``int``, ``float``, ``bool`` or ``str`` (`kind`), or a one-line `InputError`."""
    if kind == "bool":
        if text.lower() not in _BOOLS:
            raise InputError(f"{what} must be true or false, got {text!r}")
        return _BOOLS[text.lower()]
    if kind not in ("int", "float"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        noun = "an integer" if kind == "int" else "a number"
        raise InputError(f"{what} must be {noun}, got {text!r}") from None


_REGISTRY: dict[str, type[Operator]] = {}


def register(cls: type[Operator]) -> type[Operator]:
    """Class decorator that makes an operator known by its name; a name is taken once."""
    if cls.name in _REGISTRY:
        raise ValueError(f"operator {cls.name!r} registered twice")
    _REGISTRY[cls.name] = cls
    return cls


def registry() -> Mapping[str, type[Operator]]:
    """Every registered operator class, by name."""
    return _REGISTRY


def lookup(name: str) -> type[Operator]:
    """The operator class called `name`, or an `InputError` that names the nearest ones."""
    if name not in _REGISTRY:
        raise unknown("operator", name, _REGISTRY)
    return _REGISTRY[name]
