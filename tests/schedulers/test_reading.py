"""Programs that are read as stages, and programs that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_programs import rms_norm
from tvm import te, tirx

import flextensor
from flextensor.errors import UnsupportedError
from flextensor.operators import FunctionOperator, Operator, Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.schedulers.expression import rewrite
from flextensor.schedulers.program import read
from flextensor.targets import Target, lookup

TARGET = lookup("llvm", 2)
GPU = lookup("cuda:sm_80")


def largest(rows: int = 7, cols: int = 40) -> list[Any]:
    """Where the largest element of each row stands: a reduction of pairs."""
    a = te.placeholder((rows, cols), name="a")
    k = te.reduce_axis((0, cols), name="k")
    later = te.comm_reducer(
        lambda x, y: tuple(tirx.Select(x[1] >= y[1], x[i], y[i]) for i in (0, 1)),
        lambda *dtypes: (tirx.const(-1, dtypes[0]), tirx.min_value(dtypes[1])),
        name="argmax",
    )
    places, _ = te.compute((rows,), lambda i: later((k, a[i, k]), axis=k), name="argmax")
    return [a, te.compute((rows,), lambda i: places[i] + 0, name="places")]


def squares(rows: int = 7, cols: int = 40) -> list[Any]:
    """A reduction by a combiner of the user's own."""
    a = te.placeholder((rows, cols), name="a")
    k = te.reduce_axis((0, cols), name="k")
    norm = te.comm_reducer(lambda x, y: te.sqrt(x * x + y * y), lambda t: tirx.const(0, t), "norm")
    return [a, te.compute((rows,), lambda i: norm(a[i, k], axis=k), name="norms")]


@pytest.mark.parametrize("function", [largest, squares])
def test_what_cannot_be_read_runs_as_it_is(function: Any, tmp_path: Path) -> None:
    assert read(Workload(FunctionOperator(function, {})).prim_func()) is None
    result = flextensor.tune(function, trials=4, db=tmp_path / "trials.db").json()
    assert result["verified"]
    assert (result["trials"], result["config"]) == (1, {})


@pytest.mark.parametrize("target", [GPU, lookup("fpga:vu9p")])
@pytest.mark.parametrize(("function", "block"), [(largest, "argmax"), (squares, "norms")])
def test_a_device_names_what_cannot_be_read(function: Any, block: str, target: Target) -> None:
    func = Workload(FunctionOperator(function, {})).prim_func()
    with pytest.raises(UnsupportedError, match=f"has no way to compute {block}: it is no map"):
        space(func, target)


@pytest.mark.parametrize("target", [TARGET, GPU])
def test_a_scalar_is_a_stage(target: Target) -> None:
    func = Workload(FunctionOperator(rms_norm, {})).prim_func()
    program = read(func)
    assert program is not None
    assert [s.shape for s in program.stages] == [(), (), (7, 40)]
    schedule(func, target, space(func, target).seeds[0])


def test_a_value_that_nobody_can_write_anew_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no scheduler knows a value with Broadcast in it"):
        rewrite(tirx.Broadcast(tirx.const(1.0, "float32"), 4), {})


def test_a_layer_with_one_pixel_has_the_space_of_a_product_with_a_vector() -> None:
    """A window of one place is no loop, so that channels are what vectors run along."""
    layer = {"in_channels": "64", "out_channels": "32", "height": "1", "width": "1", "kernel": "1"}

    def decisions(operator: Operator) -> list[tuple[str, Any]]:
        found = space(Workload(operator).prim_func(), GPU)
        return [(knob.name.partition(".")[2], knob.values) for knob in found.knobs]

    assert decisions(parse("conv2d", layer)) == decisions(parse("gemv", {"m": "32", "k": "64"}))


@pytest.mark.parametrize(("rows", "columns", "left"), [(1, 5, [5]), (3, 1, [3]), (1, 1, [1])])
def test_a_reduction_keeps_one_loop(rows: int, columns: int, left: list[int]) -> None:
    def total() -> list[Any]:
        a = te.placeholder((4, rows, columns), name="a")
        r, s = te.reduce_axis((0, rows), name="r"), te.reduce_axis((0, columns), name="s")
        return [a, te.compute((4,), lambda i: te.sum(a[i, r, s], axis=[r, s]), name="total")]

    program = read(Workload(FunctionOperator(total, {})).prim_func())
    assert program is not None
    assert [it.extent for it in program.stages[0].reduction] == left
