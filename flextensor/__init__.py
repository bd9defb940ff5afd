"""FlexTensor: a tensor-schedule autotuner for heterogeneous hardware, on Apache TVM.

    import flextensor
    result = flextensor.tune(flextensor.operators.Gemm(m=1024, n=1024, k=1024), target="llvm")
    result.kernel(a, b, c)

Names are handed on lazily, so that importing a family costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flextensor.database import Database
    from flextensor.errors import FlexTensorError
    from flextensor.kernel import Kernel
    from flextensor.result import Result, load
    from flextensor.tuner import tune
    from flextensor.tuner_all import tune_all

__all__ = ["Database", "FlexTensorError", "Kernel", "Result", "load", "tune", "tune_all"]

_HOME = {
    "Database": "flextensor.database",
    "FlexTensorError": "flextensor.errors",
    "Kernel": "flextensor.kernel",
    "Result": "flextensor.result",
    "load": "flextensor.result",
    "tune": "flextensor.tuner",
    "tune_all": "flextensor.tuner_all",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("operators", "schedulers", "cost_models", "targets"):
        return importlib.import_module(f"flextensor.{name}")
    raise AttributeError(f"module 'flextensor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
