"""Arrays that a vectorised kernel may be called with, poisoned before and compared after."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from flextensor.operators.workload import aligned, empty, numpy_dtype

__all__ = ["Array", "aligned", "empty", "load", "numpy_dtype", "poison", "relative_error"]

Array = np.ndarray[Any, Any]


def load(path: str | Path) -> Array:
    """The array of a file of NumPy's, which say of bfloat16 only that it has two bytes."""
    array: Array = np.load(path)
    return array.view(numpy_dtype("bfloat16")) if array.dtype == np.dtype("V2") else array


def poison(array: Array) -> None:
    """Fill with NaN (integers: a value that is unlikely to be right; bools: true)."""
    if np.issubdtype(array.dtype, np.floating) or array.dtype == numpy_dtype("bfloat16"):
        array[...] = np.nan
    else:
        array[...] = True if array.dtype == np.bool_ else np.iinfo(array.dtype).max - 77


def relative_error(got: Array, want: Array) -> float:
    """max|got - want| / max|want|; infinite where `got` is not finite and `want` is."""
    if got.shape != want.shape:
        return math.inf
    if not got.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.subtract(got, want, dtype=np.float64)
        worst, scale = (max(float(a.max()), -float(a.min())) for a in (difference, want))
    if not math.isfinite(worst + scale):  # rare, and slower: only what should be finite counts
        finite = np.isfinite(want)
        worst = float(np.abs(difference[finite]).max(initial=0.0))
        scale = float(np.abs(want[finite]).max(initial=0.0))
        if not math.isfinite(worst):
            return math.inf
    return worst / scale if scale else worst
