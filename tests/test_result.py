"""Where a result stands under the roof."""

from __future__ import annotations

import pytest

from flextensor.operators import Workload, parse
from flextensor.result import roofline
from flextensor.targets import LLVM

PEAKS = {"float32": 1e12, "bfloat16": 1e13, "int8": 2e13}
BANDWIDTH = 1e11


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> LLVM:
    """A CPU with tile registers; its peaks are invented."""
    monkeypatch.setattr(LLVM, "peak_flops", lambda _, dtype: PEAKS[dtype])
    monkeypatch.setattr(LLVM, "bandwidth", lambda _: BANDWIDTH)
    return LLVM(
        cores=4, vector_bits=512, vector_registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20,
        l3_bytes=32 << 20, max_unroll=512, features=("amx-bf16", "amx-int8"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "formulation", "roof"),
    [
        ("float32", "direct", PEAKS["float32"]),
        ("float32", "direct_bf16x2", PEAKS["bfloat16"] / 3),  # three products for one
        ("bfloat16", "direct", PEAKS["bfloat16"]),
        ("int8", "direct", PEAKS["int8"]),
    ],
)
def test_the_roof_is_of_what_multiplies(
    target: LLVM, dtype: str, formulation: str, roof: float
) -> None:
    size = {"m": "4096", "n": "4096", "k": "4096"}
    workload = Workload(parse("gemm", {**size, "dtype": dtype}))
    seconds = workload.flops / roof * 2
    share, bound = roofline(workload, target, seconds, formulation)
    assert share == pytest.approx(0.5) and bound == "compute"


def test_small_products_are_bound_by_memory(target: LLVM) -> None:
    workload = Workload(parse("gemv", {}))
    seconds = workload.bytes / BANDWIDTH
    share, bound = roofline(workload, target, seconds)
    assert share == pytest.approx(1.0) and bound == "memory"
