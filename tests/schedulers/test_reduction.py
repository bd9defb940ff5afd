"""Reductions along contiguous memory: what they take, and that lengths and shapes do not matter."""

from __future__ import annotations

from typing import Any

import pytest
from sample_programs import check, every_config
from tvm import te

from flextensor.lessons import MACHINES
from flextensor.operators import FunctionOperator, Operator, Workload, parse
from flextensor.schedulers import space
from flextensor.schedulers.analysis import contiguous, points
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.program import read

MACHINE = MACHINES["llvm-avx512"]


def parts(workload: Workload) -> list[str]:
    found = Composition.of(workload.prim_func(), MACHINE).parts
    return [f"{p.stage.name}:{type(p).__name__.removesuffix('Schedule')}" for p, _ in found]


def pooled(channels: int = 12, height: int = 9, width: int = 5, stored: int = 0) -> list[Any]:
    """Means over all of an image, which may be computed, too."""
    a = te.placeholder((2, channels, height, width), name="a")
    image = a
    if stored:
        image = te.compute(a.shape, lambda n, c, y, x: te.exp(a[n, c, y, x]), name="image")
    r, s = te.reduce_axis((0, height), "r"), te.reduce_axis((0, width), "s")
    shape = (2, channels, 1, 1)
    out = te.compute(shape, lambda n, c, y, x: te.sum(image[n, c, r, s], axis=[r, s]), name="mean")
    return [a, out]


def conv2d(**sizes: int) -> Operator:
    return parse("conv2d", {name: str(size) for name, size in sizes.items()})


UNITS = [
    (parse("gemm", {"m": "24", "n": "1", "k": "96"}), 24, 96),
    (parse("batch_gemm", {"batch": "3", "m": "16", "n": "1", "k": "64"}), 16, 64),
    (conv2d(in_channels=70, out_channels=12, height=1, width=1, kernel=1), 12, 70),
    (conv2d(in_channels=6, out_channels=8, height=7, width=7, kernel=7), 8, 6 * 49),
    (conv2d(in_channels=5, out_channels=8, height=3, width=4, kernel=3), 0, 0),
    (conv2d(in_channels=2, out_channels=8, height=34, width=34, kernel=36, padding=1), 8, 36),
    (FunctionOperator(pooled, {}), 12, 45),
    (FunctionOperator(pooled, {"stored": 1}), 12, 45),
]
"""Operators, the rows that can be computed side by side, and the length of one walk in memory; 0
where the image is wider than the window. What is padded is asked for every row by itself."""


@pytest.mark.parametrize(("operator", "rows", "length"), UNITS)
def test_unit_dimensions_and_cuts_of_one_walk_do_not_matter(
    operator: Operator, rows: int, length: int
) -> None:
    workload = Workload(operator)
    name, taken = parts(workload)[-1].split(":")
    assert (taken == "Reduction") == bool(length)
    if not length:
        return
    program = read(workload.prim_func())
    assert program is not None
    _, walk = contiguous(program, next(s for s in program.stages if s.name == name))
    assert points(walk) == length
    knobs = {k.name: k.values for k in space(workload.prim_func(), MACHINE).knobs}
    assert set(knobs[f"{name}.rows"]) == {r for r in (1, 2, 4, 8, 16) if rows % r == 0}
    for config in every_config(workload, MACHINE)[:8]:
        check(workload, MACHINE, config)
