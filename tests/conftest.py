"""Options of the test suite, and what every comparison with a reference needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flextensor.operators import Workload
from flextensor.operators.program import PLAIN

Array = np.ndarray[Any, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden schedules")


@pytest.fixture(scope="session")
def error_of() -> Callable[[Workload, str], float]:
    """The largest error of one unscheduled formulation, relative to the output's size."""
    import tvm

    def measure(workload: Workload, formulation: str) -> float:
        inputs = workload.inputs(seed=7)
        out = np.full(workload.buffers[-1].shape, np.nan, "float32")
        tvm.compile(workload.prim_func(formulation), target=PLAIN)(*inputs, out)
        expected = workload.reference(inputs)
        assert expected.dtype == np.float64
        assert expected.shape == out.shape
        return float(np.max(np.abs(out - expected)) / max(1.0, np.max(np.abs(expected))))

    return measure
