"""Windows over data of their own: the tasks that they are cut into, and what those cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sample_programs import check, loops_of
from tvm import te

from flextensor.lessons import MACHINES
from flextensor.operators import FunctionOperator, Workload, parse
from flextensor.schedulers import Space, space
from flextensor.targets import Target

MACHINE = MACHINES["sapphirerapids"]


def fir(length: int = 4096, taps: int = 5, stride: int = 1) -> list[Any]:
    a = te.placeholder(((length - 1) * stride + taps,), name="a")
    w, s = te.placeholder((taps,), name="w"), te.reduce_axis((0, taps), "s")
    body = lambda x: te.sum(a[x * stride + s] * w[s], axis=s)  # noqa: E731
    return [a, w, te.compute((length,), body, name="fir")]


def machine(cores: int) -> Target:
    return dataclasses.replace(MACHINE, cores=cores)


def estimate(found: Space, **values: int) -> float:
    config = {**found.seeds[0], **{f"fir.{knob}": value for knob, value in values.items()}}
    assert found.reason(config) is None
    return found.features(config)["fir.estimate"]


def test_a_row_alone_is_cut_for_all_cores() -> None:
    workload = Workload(FunctionOperator(fir, {}))
    found = space(workload.prim_func(), machine(24))
    first = found.seeds[0]
    assert first["fir.tasks"] == 24
    assert loops_of(workload, machine(24), first)[0] == "parallel(24"
    check(workload, machine(24), first)


@pytest.mark.parametrize("cores", [2, 24, 96])
def test_tasks_go_up_to_two_for_each_core(cores: int) -> None:
    found = space(Workload(FunctionOperator(fir, {})).prim_func(), machine(cores))
    (tasks,) = (knob.values for knob in found.knobs if knob.name == "fir.tasks")
    assert {1, 2, 4, 8, 16, cores, 2 * cores} <= set(tasks)


def test_tasks_take_as_long_as_the_busiest_core() -> None:
    """Three tasks on two cores as long as four; a channel for each core needs no more tasks."""
    found = space(Workload(FunctionOperator(fir, {})).prim_func(), machine(16))
    one, eight, sixteen = (estimate(found, columns=32, tasks=t) for t in (1, 8, 16))
    assert one == pytest.approx(8 * eight) and eight == pytest.approx(2 * sixteen)
    fields = {"channels": "32", "height": "16", "width": "16", "padding": "1"}
    deep = space(Workload(parse("depthwise_conv2d", fields)).prim_func(), machine(16))
    assert deep.seeds[0]["depthwise_conv2d.tasks"] == 1


def test_the_copy_of_one_row_grows_as_its_stride() -> None:
    two, four, eight = (
        estimate(
            space(Workload(FunctionOperator(fir, {"stride": stride})).prim_func(), MACHINE),
            columns=32, rows=1, tasks=1,
        )
        for stride in (2, 4, 8)
    )  # fmt: skip
    assert eight - four == pytest.approx(2 * (four - two))
