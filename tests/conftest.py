"""Options of the test suite, and what every comparison with a reference needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from flextensor.buffers import empty, poison, relative_error
from flextensor.operators import Workload
from flextensor.operators.program import PLAIN
from flextensor.targets.runtime import as_tensor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden schedules")


@pytest.fixture(scope="session")
def error_of() -> Callable[[Workload, str], float]:
    """The largest error of one unscheduled formulation, relative to the output's size."""
    import tvm

    def measure(workload: Workload, formulation: str) -> float:
        inputs = workload.inputs(seed=7)
        out = empty(workload.buffers[-1].shape, workload.buffers[-1].dtype)
        poison(out)
        tvm.compile(workload.prim_func(formulation), target=PLAIN)(*map(as_tensor, (*inputs, out)))
        expected = workload.reference(inputs)
        assert expected.dtype == np.float64
        assert expected.shape == out.shape
        return relative_error(out, expected)

    return measure


@pytest.fixture(scope="session", autouse=True)
def private_kernel_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's caches of OpenCL kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCL_CACHE_DIR", str(tmp_path_factory.mktemp("pocl")))
        patch.setenv("PYOPENCL_NO_CACHE", "1")
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made."""
    return tmp_path / "trials.db"
