"""Options of the test suite, and what every comparison with a reference needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flextensor.buffers import empty, poison, relative_error
from flextensor.operators import Workload
from flextensor.operators.program import PLAIN


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden schedules")


@pytest.fixture(scope="session")
def error_of() -> Callable[[Workload, str], float]:
    """The largest error of one unscheduled formulation, relative to the output's size."""
    import tvm

    def measure(workload: Workload, formulation: str) -> float:
        inputs = workload.inputs(seed=7)
        out = empty(workload.buffers[-1].shape, "float32")
        poison(out)
        tvm.compile(workload.prim_func(formulation), target=PLAIN)(*inputs, out)
        expected = workload.reference(inputs)
        assert expected.dtype == np.float64
        assert expected.shape == out.shape
        return relative_error(out, expected)

    return measure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made."""
    return tmp_path / "trials.db"
