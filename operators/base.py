"""What an operator is: its parameters, its TVM compute, its reference, its arithmetic.

A newcomer adds an operator with one file: a frozen dataclass whose fields are its parameters.
Command-line fields, help, workload key and repr all derive from those fields.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np
    import torch

Tensors = list[Any]
"""TVM tensors (`tvm.te.Tensor`), inputs first and the output last."""


@dataclasses.dataclass(frozen=True)
class Operator(ABC):
    """A dense tensor operator with its parameters. Subclasses are frozen dataclasses.

    Fields are ints (sizes, all at least 1 unless `MINIMUM` says otherwise), bools or strings.
    """

    name: ClassVar[str]
    """The name on the command line and in keys, e.g. ``conv2d``."""
    MINIMUM: ClassVar[Mapping[str, int]] = {}
    """The smallest legal value of an int field, where it is not 1 (``padding`` may be 0)."""

    def __post_init__(self) -> None:
        """Check every field, then `check`; raise `InputError` with one line for a person."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int"):
                check_size(f"{self.name}: {field.name}", value, self.MINIMUM.get(field.name, 1))
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
        """Random inputs, or None for standard normal (floats) and small integers (ints)."""
        return None


def check_size(what: str, value: object, minimum: int = 1) -> None:
    """Raise `InputError` unless `value` is an int in [minimum, 2**31)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{what} must be an integer, got {value!r}")
    if not minimum <= value < 2**31:
        raise InputError(f"{what} must be between {minimum} and {2**31 - 1}, got {value}")


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
