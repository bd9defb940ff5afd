"""The order in which operands are copied: no line is fetched for a single element of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sample_programs import extents
from tvm import te
from tvm.s_tir import Schedule

from flextensor.buffers import relative_error
from flextensor.lessons import MACHINES
from flextensor.operators import Workload, parse
from flextensor.schedulers import loops, schedule, space
from flextensor.targets import lookup

MACHINE = MACHINES["znver3"]
GEMM = {"m": "48", "n": "64", "k": "1024"}
EINSUM = {"equation": "km,kn->mn", "m": "2048", "n": "48", "k": "64"}


def packed(operator: str, fields: dict[str, str], at: str, parts: int = 1, **wanted: Any) -> Any:
    """A product whose lanes are packed `at` the root or in each block, scheduled."""
    func = Workload(parse(operator, fields)).prim_func("direct")
    found = space(func, MACHINE)
    lanes = wanted["lanes"]
    wanted |= {f"{lanes}_layout": "panel", f"{lanes}_at": at, f"{lanes}_parts": parts}
    wanted |= {"k_parts": 1, "k_unroll": 1, "rows": 4, "vectors": 2}
    config = found.seeds[0] | {f"{operator}.{name}": value for name, value in wanted.items()}
    assert found.reason(config) is None, found.reason(config)
    return schedule(func, MACHINE, config)


@pytest.mark.parametrize("at", ["root", "block"])
@pytest.mark.parametrize(("m", "full"), [(48, True), (45, False)])
def test_full_panels_are_transposed_in_registers(at: str, m: int, full: bool) -> None:
    """The last panel of 45 rows is not full, which every panel asks for."""
    module = packed("gemm", {**GEMM, "m": str(m)}, at, lanes="m")
    text = module.script()
    assert "T.Shuffle" in text and "gemm_lanes_o" in text
    assert ("gemm_lanes_o_inside" in text) != full
    assert text.count("T.parallel") == (2 if at == "root" else 1)


@pytest.mark.parametrize(("m", "few"), [(2048, True), (192, False)])
def test_rows_that_lie_pages_apart_are_packed_side_by_side(m: int, few: bool) -> None:
    """Eight steps of the reduction for all panels of a block, not all of it for each in turn."""
    module = packed("einsum", {**EINSUM, "m": str(m)}, "block", lanes="m")
    loops = list(map(int, extents(module, "einsum_lanes")[-4:]))
    assert loops[-2:] == ([8, 16] if few else [64, 16])
    assert not few or loops[0] == 8


def test_a_block_of_a_single_tile_is_packed_as_it_is() -> None:
    """The loop outside of those over a panel is that over tasks, and stays there."""
    module = packed("einsum", EINSUM, "block", lanes="m", parts=128)
    assert extents(module, "einsum_lanes") == [128, 1, 1, 64, 16]


@pytest.mark.parametrize("at", ["root", "block"])
@pytest.mark.parametrize(("operator", "fields"), [("gemm", GEMM), ("einsum", EINSUM)])
def test_what_is_packed_in_another_order_is_the_same(
    operator: str, fields: dict[str, str], at: str
) -> None:
    import tvm

    workload = Workload(parse(operator, fields))
    module = packed(operator, fields, at, lanes="m")
    kernel = tvm.compile(module, target=lookup("llvm").tvm_target())
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    out = np.zeros(expected.shape, "float32")
    tensors = [tvm.runtime.tensor(a) for a in (*inputs, out)]
    kernel(*tensors)
    assert relative_error(tensors[-1].numpy(), expected) < 1e-5


@pytest.mark.parametrize("at", ["root", "block"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_copy_in_which_a_window_slides_is_made_row_by_row(at: str, stride: int) -> None:
    """The last loop is over a row with its overhang, so that no element's place is divided."""
    import tvm

    size = {"in_channels": "3", "out_channels": "8", "height": "13", "width": "17"}
    window = {"kernel": "5", "padding": "2", "stride": str(stride)}
    workload = Workload(parse("conv2d", size | window))
    func = workload.prim_func("direct")
    found = space(func, MACHINE)
    wanted: dict[str, Any] = {
        "lanes": "m",
        "m_layout": "flat",
        "m_at": at,
        "m_parts": 4,
        "rows": 4,
        "vectors": 2,
    }
    config = found.seeds[0] | {f"conv2d.{name}": value for name, value in wanted.items()}
    assert found.reason(config) is None, found.reason(config)
    module = schedule(func, MACHINE, config)
    taps = 4 // stride
    assert extents(module, "conv2d_lanes")[-1] == -(-17 // stride) + taps
    kernel = tvm.compile(module, target=lookup("llvm").tvm_target())
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    tensors = [tvm.runtime.tensor(a) for a in (*inputs, np.full(expected.shape, np.nan, "float32"))]
    kernel(*tensors)
    assert relative_error(tensors[-1].numpy(), expected) < 1e-5


@pytest.mark.parametrize(("side", "few"), [(64, True), (56, False)])
def test_rows_that_share_places_in_the_cache_are_copied_a_few_at_a_time(
    side: int, few: bool
) -> None:
    """64 x 64 pixels are four pages: all channels of a pixel lie in one place of the first cache,
    which has eight; those of 56 x 56 in sixteen. Doubled, they are not transposed in registers."""
    data = te.placeholder((32, side, side), "float32", "data")
    twice = te.compute((side, side, 32), lambda y, x, c: data(c, y, x) * 2.0, name="twice")
    sch = Schedule(te.create_prim_func([data, twice]))
    assert loops.transpose(sch, sch.get_sblock("twice"), 1, MACHINES["znver3"]) == few
    assert (extents(sch.mod, "twice")[-2:] == [side, 8]) == few
