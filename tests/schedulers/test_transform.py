"""Where Winograd's tiles lie between their transforms and the products, and what seeds choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flextensor.buffers import relative_error
from flextensor.lessons import MACHINES
from flextensor.operators import parse
from flextensor.operators.workload import Workload
from flextensor.schedulers import schedule, space
from flextensor.schedulers.space import Config, Space
from flextensor.targets import lookup

MACHINE = MACHINES["llvm-avx2"]
LAYER = {
    "in_channels": "64", "out_channels": "64", "height": "56", "width": "56", "padding": "1",
}  # fmt: skip


def layer(**fields: int) -> Workload:
    return Workload(parse("conv2d", {**LAYER, **{k: str(v) for k, v in fields.items()}}))


def winograd(**fields: int) -> Space:
    return space(layer(**fields).prim_func("winograd4"), MACHINE)


def stored(config: Config, name: str) -> list[int]:
    """The shape of an intermediate buffer of the scheduled layer."""
    module = schedule(layer().prim_func("winograd4"), MACHINE, config)
    found: dict[str, Any] = {b.name: b for b in module["main"].body.block.alloc_buffers}
    return [int(n) for n in found[name].shape]


@pytest.mark.parametrize("block", [0, 16, 32])
def test_blocks_of_channels_that_are_summed_are_tasks_only(block: int) -> None:
    """Else a product's innermost loop divides the channel's number to find the element."""
    seed = winograd().seeds[0]
    config = {**seed, "conv2d_data0.block": block, "conv2d_data0.tasks": "lanes"}
    assert stored(config, "conv2d_data1") == [6, 6, 1, 14, 14, 64]


def test_blocks_of_channels_that_are_lanes_are_stored() -> None:
    seed = next(s for s in winograd().seeds if s["conv2d_weight0.lanes"] == 3)
    assert stored({**seed, "conv2d_weight0.block": 16}, "conv2d_weight1") == [4, 6, 6, 64, 16]


def test_seeds_store_weights_as_vectors_read_them() -> None:
    inline = [
        s for s in winograd().seeds if s["conv2d.lanes"] == "n" and s["conv2d.n_layout"] == "inline"
    ]
    assert {int(s["conv2d.vectors"]) for s in inline} == {2, 4}
    for seed in inline:
        assert seed["conv2d_weight0.block"] == int(seed["conv2d.vectors"]) * 8


def test_seeds_transform_weights_where_few_tasks_need_them() -> None:
    """One block of 7 rows of tiles of 14 is two readers, two rows of tiles are seven."""
    for seed in winograd().seeds:
        few = seed["conv2d.m_parts"] in (1, 2) and seed["conv2d.n_layout"] == "inline"
        inside = seed["conv2d_weight0.at"] == "consumer"
        assert inside == few, seed


def test_seeds_have_tasks_of_few_and_of_many_tiles() -> None:
    """56 x 56 pixels are 14 x 14 tiles: two rows of them are 28, seven are 98."""
    assert {s["conv2d_out0.tiles"] for s in winograd().seeds} == {2, 7}
    assert {s["conv2d_out0.tiles"] for s in winograd(height=28, width=28).seeds} == {7}


def test_no_seed_has_tasks_across_groups() -> None:
    """Four groups of 48 channels: blocks of 16 are theirs, of 32 not; TVM would refuse these."""
    fields = {**LAYER, "out_channels": "192", "groups": "4"}
    workload = Workload(parse("group_conv2d", fields))
    func = workload.prim_func("winograd4")
    seeds = space(func, MACHINE).seeds
    inside = [s for s in seeds if s["group_conv2d.output_at"] == "consumer"]
    assert inside and {s["group_conv2d_out0.block"] for s in inside} == {16}
    for seed in inside[:3]:
        schedule(func, MACHINE, seed)
    wide = {**inside[0], "group_conv2d_out0.block": 32}
    assert "several groups of 48" in str(space(func, MACHINE).reason(wide))


def test_every_seed_computes_the_layer() -> None:
    """Odd sizes, on this machine: tasks, blocks and places of all seeds."""
    target = lookup("llvm")
    workload = layer(in_channels=24, out_channels=48, height=21, width=18)
    func = workload.prim_func("winograd4")
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    import tvm

    seeds = space(func, target).seeds
    assert seeds
    for seed in seeds[:: max(len(seeds) // 6, 1)]:
        kernel = tvm.compile(schedule(func, target, seed), target=target.tvm_target())
        out = np.zeros(expected.shape, "float32")
        arguments = [tvm.runtime.tensor(a) for a in (*inputs, out)]
        kernel["main"](*arguments)
        assert relative_error(arguments[-1].numpy(), expected) < 1e-4
