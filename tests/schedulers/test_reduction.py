"""Reductions along contiguous memory: what they take, and that lengths and shapes do not matter."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from sample_programs import check, every_config, loops_of
from tvm import te

from flextensor.lessons import MACHINES
from flextensor.operators import FunctionOperator, Operator, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.analysis import contiguous, points
from flextensor.schedulers.composition import Composition
from flextensor.schedulers.program import read

MACHINE = MACHINES["sapphirerapids"]


def parts(workload: Workload) -> list[str]:
    found = Composition.of(workload.prim_func(), MACHINE).parts
    return [f"{p.stage.name}:{type(p).__name__.removesuffix('Schedule')}" for p, _ in found]


def pooled(
    images: int = 2, channels: int = 12, height: int = 9, width: int = 5, stored: int = 0
) -> list[Any]:
    """Sums over all of an image, which may be computed, too."""
    a = te.placeholder((images, channels, height, width), name="a")
    image = a
    if stored:
        image = te.compute(a.shape, lambda n, c, y, x: te.exp(a[n, c, y, x]), name="image")
    r, s = te.reduce_axis((0, height), "r"), te.reduce_axis((0, width), "s")
    shape = (images, channels, 1, 1)
    out = te.compute(
        shape,
        lambda n, c, y, x: te.sum(image[n, c, r, s] * image[n, c, r, s], axis=[r, s]),
        name="power",
    )
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


def lowest(rows: int = 6, length: int = 47, highest: int = 0) -> list[Any]:
    """Extremes that zeros would win."""
    a, k = te.placeholder((rows, length), name="a"), te.reduce_axis((0, length), "k")
    if highest:
        out = te.compute((rows,), lambda i: te.max(a[i, k] - 9.0, axis=k), name="extreme")
    else:
        out = te.compute((rows,), lambda i: te.min(a[i, k] + 9.0, axis=k), name="extreme")
    return [a, out]


def channel_sums(batch: int = 3, channels: int = 24, size: int = 7) -> list[Any]:
    """Sums over images of more than one walk."""
    a = te.placeholder((batch, channels, size, size), name="a")
    n, y, x = (te.reduce_axis((0, e), v) for e, v in ((batch, "n"), (size, "y"), (size, "x")))
    out = te.compute((channels,), lambda c: te.sum(a[n, c, y, x], axis=[n, y, x]), name="sums")
    return [a, out]


REMAINDERS = [
    parse("gemv", {"m": "24", "k": "47"}),
    parse("gemv", {"m": "6", "k": "127"}),
    FunctionOperator(lowest, {}),
    FunctionOperator(lowest, {"highest": 1}),
    FunctionOperator(channel_sums, {}),
    FunctionOperator(pooled, {}),
]


@pytest.mark.parametrize("operator", REMAINDERS)
def test_what_lanes_leave_is_summed_in_the_same_tasks(operator: Operator) -> None:
    """No pass over the matrix beside the one, and none of it in one core."""
    workload = Workload(operator)
    for config in every_config(workload, MACHINE):
        text = schedule(workload.prim_func(), MACHINE, config).script()
        roots = re.findall(r"^ {8}for .* in (?:T\.)?(\w+)", text, re.MULTILINE)
        assert len(roots) == 1
        parallel = [value for knob, value in config.items() if knob.endswith(".parallel")]
        assert (roots == ["parallel"]) == (parallel == [1])
        check(workload, MACHINE, config)


def length(size: int) -> list[Any]:
    a, k = te.placeholder((size,), name="a"), te.reduce_axis((0, size), "k")
    return [a, te.compute((1,), lambda i: te.sum(a[k] * a[k], axis=k), name="length")]


@pytest.mark.parametrize("operator", [
    FunctionOperator(length, {"size": 1 << 15}),
    FunctionOperator(length, {"size": (1 << 15) + 3001}),
    FunctionOperator(pooled, {"channels": 1, "height": 131, "width": 137, "images": 1}),
])  # fmt: skip
def test_one_sum_alone_is_made_of_one_part_for_each_core(operator: Operator) -> None:
    workload, machine = Workload(operator), dataclasses.replace(MACHINE, cores=7)
    for config in every_config(workload, machine):
        found = [loop for loop in loops_of(workload, machine, config) if "parallel" in loop]
        wanted = any(v for k, v in config.items() if k.endswith(".parallel"))
        assert found == ["parallel(7"] * wanted
        check(workload, machine, config)


def test_a_short_sum_alone_is_left_to_one_core() -> None:
    workload = Workload(FunctionOperator(length, {"size": 2048}))
    for config in every_config(workload, MACHINE):
        assert not any("parallel" in loop for loop in loops_of(workload, MACHINE, config))
        check(workload, MACHINE, config)


def form(n: int = 24, m: int = 8, j: int = 48, k: int = 20) -> list[Any]:
    """Rows of a product of matrices, each summed with a vector of its own."""
    x, w = te.placeholder((n, j), name="x"), te.placeholder((m, j, k), name="w")
    z = te.placeholder((n, k), name="z")
    inner, along = te.reduce_axis((0, k), "k"), te.reduce_axis((0, j), "j")
    t = te.compute(
        (n, m, j), lambda a, b, c: te.sum(z[a, inner] * w[b, c, inner], axis=inner), name="t"
    )
    out = te.compute(
        (n, m), lambda a, b: te.sum(x[a, along] * t[a, b, along], axis=along), name="form"
    )
    return [x, w, z, out]


@pytest.mark.parametrize(
    ("sizes", "sums"),
    [({}, 8), ({"n": 7, "m": 10, "j": 37, "k": 9}, 10), ({"m": 1}, 24), ({"j": 64}, 8)],
)
def test_tasks_hold_what_they_sum(sizes: dict[str, int], sums: int) -> None:
    """The product is made in the tasks that sum it, as much of it as each sums."""
    workload = Workload(FunctionOperator(form, sizes))
    found = space(workload.prim_func(), MACHINE)
    inside = [seed for seed in found.seeds if seed.get("t.output_at") == "consumer"]
    assert inside
    for config in inside[::4]:
        text = schedule(workload.prim_func(), MACHINE, config).script()
        tasks = re.findall(r"^ {8}for .* in T.parallel\((\d+)\):$.*?^ {12}\w", text, re.M | re.S)
        assert str(sums // int(config["form.rows"])) in tasks
        *_, last = re.split(r"^ {8}(?=\w)", text, flags=re.M)
        assert 'T.sblock("t_acc' in last and 'T.sblock("form' in last
        check(workload, MACHINE, config)


def test_a_product_that_fits_no_task_is_not_held() -> None:
    """Where tasks are chunks of all outputs, or it is cut into blocks of more rows than a task."""
    found = space(Workload(FunctionOperator(form, {})).prim_func(), MACHINE)
    inside = next(seed for seed in found.seeds if seed["t.output_at"] == "consumer")
    reason = found.reason(inside | {"form.parallel": 1})
    assert reason is not None and "a task of 0" in reason
    assert found.reason(inside | {"form.rows": 1, "t.n_parts": 2}) is not None
