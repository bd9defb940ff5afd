"""Where Winograd's tiles lie between their transforms and the products, and what seeds choose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from sample_programs import extents
from tvm import tirx

from flextensor import compiled
from flextensor.buffers import relative_error
from flextensor.lessons import MACHINES
from flextensor.operators import parse
from flextensor.operators.workload import Workload
from flextensor.schedulers import schedule, space
from flextensor.schedulers.space import Config, Point, Space
from flextensor.schedulers.transform_estimate import AGAIN, store_cycles
from flextensor.targets import lookup
from flextensor.targets.base import Target

MACHINE = MACHINES["znver3"]
LAYER = {
    "in_channels": "64", "out_channels": "64", "height": "56", "width": "56", "padding": "1",
}  # fmt: skip


TWINS = ("block", "tiles", "tasks", "order")
"""Knobs of a transform of which several values may write the same program."""


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
    """One block of 7 rows of tiles of 14 is two readers, two rows of tiles are seven; tasks of the
    sums alone have one of 36 rows of a tile, which all need its transform."""
    for seed in winograd().seeds:
        few = seed["conv2d.m_parts"] in (1, 2) and seed["conv2d.n_layout"] == "inline"
        few = few and seed["conv2d.output_at"] == "consumer"
        inside = seed["conv2d_weight0.at"] == "consumer"
        assert inside == few, seed


def test_seeds_have_tasks_of_few_and_of_many_tiles() -> None:
    """56 x 56 pixels are 14 x 14 tiles: two rows of them are 28, seven are 98."""
    assert {s["conv2d_out0.tiles"] for s in winograd().seeds} == {2, 7}
    assert {s["conv2d_out0.tiles"] for s in winograd(height=28, width=28).seeds} == {7}


def test_no_seed_has_tasks_across_groups() -> None:
    """Four groups of 48 channels: blocks of 16 are theirs and all channels are those of all, but
    blocks of 32 are not; TVM would refuse these."""
    fields = {**LAYER, "out_channels": "192", "groups": "4"}
    workload = Workload(parse("group_conv2d", fields))
    func = workload.prim_func("winograd4")
    seeds = space(func, MACHINE).seeds
    inside = [s for s in seeds if s["group_conv2d.output_at"] == "consumer"]
    blocks = {s["group_conv2d_out0.block"]: s for s in inside}
    assert set(blocks) == {16, 0}
    for seed in (*inside[:2], *blocks.values()):
        schedule(func, MACHINE, seed)
    wide = {**inside[0], "group_conv2d_out0.block": 32}
    assert "several groups of 48" in str(space(func, MACHINE).reason(wide))


def inside(fields: dict[str, int], **changes: Any) -> tuple[Any, Config]:
    """A layer whose data is transformed in the tasks of the sums, scheduled; and its config."""
    workload = layer(**fields)
    found = space(workload.prim_func("winograd4"), MACHINE)
    at = {"conv2d_data0.at": "consumer", "conv2d.output_at": "consumer"}
    config = next(s for s in found.seeds if at.items() <= s.items()) | changes
    assert found.reason(config) is None
    return schedule(workload.prim_func("winograd4"), MACHINE, config), config


@pytest.mark.parametrize("rows", [4, 6])
def test_tasks_transform_the_tiles_of_their_block_alone(rows: int) -> None:
    """A row of 28 tiles is five register tiles of 6, but no tile of the next row is made."""
    module, config = inside({"height": 112, "width": 112})
    assert config["conv2d_data0.block"] == 32 and config["conv2d_out0.tiles"] == 1
    changes = {"conv2d.rows": rows, "conv2d.vectors": 2, "conv2d.m_layout": "inline"}
    module, config = inside({"height": 112, "width": 112}, **changes)
    tasks, *loops = map(int, extents(module, "conv2d_data1"))
    blocks = 28 * 64 // (int(config["conv2d_out0.block"]) or 64)
    assert tasks == blocks and np.prod(loops) == 6 * 6 * 28 * 64


@pytest.mark.parametrize(("source", "own"), [("task", 1), ("copy", 0)])
def test_a_task_copies_what_it_transforms(source: str, own: int) -> None:
    """Six rows of 58 pixels for one of 14 tiles: of a block of channels, or all and of all. A row
    of eight channels is transposed at a time."""
    seed = {**winograd().seeds[0], "conv2d_data0.source": source, "conv2d_data0.block": 32}
    module = schedule(layer().prim_func("winograd4"), MACHINE, seed)
    tasks, *loops = map(int, extents(module, "conv2d_data0_source_o"))
    row = list(map(int, extents(module, "conv2d_data0_source")))
    assert row == [58, 8]
    copied = [14 * 2, 6 * 58 * 32] if own else [58 * 64 // 8, 58 * 8]
    assert [tasks, np.prod(loops) * np.prod(row)] == copied


def test_rows_of_stored_tiles_share_no_place_in_a_cache() -> None:
    """Steps along the last row are an odd number of lines of 16 values."""
    module = schedule(layer().prim_func("winograd4"), MACHINE, winograd().seeds[0])
    from tvm.s_tir import Schedule

    sch = Schedule(module)
    block = sch.get(sch.get_sblock("conv2d_data1"))
    ((_, axis, factor, offset),) = block.annotations["buffer_dim_align"]
    assert (int(axis), int(factor), int(offset)) == (1, 32, 16)


def test_an_estimate_counts_every_time_a_tile_is_made() -> None:
    """Two blocks of 32 channels, or one of 64, read a row of tiles."""
    found = winograd(height=112, width=112)
    at = {"conv2d_data0.at": "consumer", "conv2d_out0.tiles": 1}
    seeds = [s for s in found.seeds if at.items() <= s.items()]
    once = next(s for s in seeds if s["conv2d_out0.block"] == 0)
    twice = next(s for s in seeds if s["conv2d_out0.block"] == 32)
    first, second = (found.features(s) for s in (once, twice))
    assert (first["conv2d_data0.repeats"], second["conv2d_data0.repeats"]) == (0, 1)
    assert second["conv2d_data0.estimate"] == pytest.approx(2 * first["conv2d_data0.estimate"])


def test_an_estimate_counts_tiles_that_a_window_slides_on_to() -> None:
    """Eight images of a volume in tasks of one each are read by three of them, but for the edges;
    in one of all, once. An image of a batch is read by its own task alone."""
    fields = {**LAYER, "depth": "8", "in_channels": "16", "out_channels": "16"}
    func = Workload(parse("conv3d", fields)).prim_func("winograd4")
    found = space(func, MACHINE)
    inside: Config = {
        "conv3d_data0.at": "consumer", "conv3d.output_at": "consumer", "conv3d.m_layout": "inline",
    }  # fmt: skip
    seed = {**found.seeds[0], **inside, "conv3d_out0.block": 0, "conv3d.n_parts": 1}

    def repeats(tiles: int) -> float:
        config = {**seed, "conv3d_out0.tiles": tiles, "conv3d.m_parts": 8 // tiles}
        return 2 ** found.features(config)["conv3d_data0.repeats"]

    assert repeats(1) == pytest.approx(3 * 8 / 10) and repeats(8) == 1
    batch = space(layer(batch=8).prim_func("winograd4"), MACHINE)
    at = {"conv2d_data0.at": "consumer", "conv2d_out0.block": 0}
    once = next(s for s in batch.seeds if at.items() <= s.items())
    assert batch.features(once)["conv2d_data0.repeats"] == 0


def test_an_estimate_counts_tiles_that_leave_the_caches() -> None:
    """36 x 784 x 192 values for everyone are 21 MiB; those of a row of tiles fit L2."""
    found = winograd(height=112, width=112, in_channels=192)
    seed = next(s for s in found.seeds if s["conv2d_data0.at"] == "consumer")
    near, far = (
        found.features({**seed, "conv2d_data0.at": at})["conv2d_data0.estimate"]
        for at in ("consumer", "root")
    )
    assert far > 1.5 * near / 2 ** found.features(seed)["conv2d_data0.repeats"]


def test_tiles_that_a_task_reads_itself_stay_in_the_last_cache() -> None:
    """36 x 512 x 1024 values are 72 MiB, beside 32 MiB: 2.3 in each of 32 tasks, two at a time;
    in L2, if a task is made in eight blocks of the reduction."""
    values = 36 * 512 * 1024
    whole = store_cycles(values, 0, MACHINE)
    near = values * 8 / AGAIN
    assert store_cycles(values, 32 * 8, MACHINE) == 0
    assert store_cycles(values, 32, MACHINE) == near
    assert near < store_cycles(values, 6, MACHINE) < whole
    assert store_cycles(values, 4, MACHINE) == whole + near


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


@pytest.mark.parametrize(
    ("layer", "formulation"),
    [
        ("conv2d in_channels=32 out_channels=64 height=14 width=14 padding=1", "winograd4"),
        ("conv1d in_channels=16 out_channels=32 length=64 kernel=9 padding=4", "winograd12"),
        ("conv3d in_channels=16 out_channels=16 depth=4 height=8 width=8", "winograd4x4x4"),
        ("conv_transpose2d in_channels=16 out_channels=16 height=8 width=8 stride=2", "winograd2"),
        ("conv_transpose2d in_channels=16 out_channels=3 height=8 width=8 stride=2", "winograd2"),
    ],
)
def test_points_of_one_representative_are_one_program(
    layer: str, formulation: str, tmp_path: Path
) -> None:
    """Blocks of all lanes that a task needs are none, and so on: the same library."""
    name, *fields = layer.split()
    func = Workload(parse(name, dict(f.split("=") for f in fields))).prim_func(formulation)
    target = lookup("llvm", 2)
    found = space(func, target)
    rng = np.random.default_rng(1)

    def built(point: Point) -> str:
        path = tmp_path / "-".join(map(str, point))
        if not path.is_file():
            compiled.build(func, target, found.config(point), path)
        return compiled.digest(path)

    apart = [p for p, knob in enumerate(found.knobs) if knob.name.split(".")[-1] in TWINS]
    seeds = [found.representative(found.point(seed)) for seed in found.seeds]
    others: list[Point] = []
    while len(others) < 12:
        point = seeds[rng.integers(len(seeds))]
        values = {p: int(rng.integers(len(found.knobs[p].values))) for p in apart}
        twin = tuple(values.get(p, index) for p, index in enumerate(point))
        if found.legal(twin) and found.representative(twin) != twin:
            others.append(twin)
    for knobs in zip(*(rng.integers(len(k.values), size=500) for k in found.knobs), strict=True):
        point = tuple(map(int, knobs))  # walks come by illegal points, too
        assert found.legal(found.representative(point)) == found.legal(point)
    for point in others:
        representative = found.representative(point)
        assert found.legal(representative)
        assert found.representative(representative) == representative
        assert built(representative) == built(point)


def test_a_stage_of_a_large_tile_unrolls_its_own_rows_alone() -> None:
    """216 expressions of a stage would be 36 times the code of the six that it chooses among."""
    fields = {**LAYER, "depth": "4", "in_channels": "16", "out_channels": "16"}
    func = Workload(parse("conv3d", fields)).prim_func("winograd4x4x4")
    seed = space(func, MACHINE).seeds[0]
    assert kinds(schedule(func, MACHINE, seed), "conv3d_data1") == ["SERIAL", "SERIAL", "UNROLLED"]
    small = schedule(layer().prim_func("winograd4"), MACHINE, winograd().seeds[0])
    assert kinds(small, "conv2d_data1") == ["UNROLLED", "UNROLLED"]


def kinds(module: Any, name: str) -> list[str]:
    """Of the loops over six rows of a stage, outermost first."""
    sch = tvm.s_tir.Schedule(module)
    nest = map(sch.get, sch.get_loops(sch.get_sblock(name)))
    return [tirx.ForKind(loop.kind).name for loop in nest if int(loop.extent) == 6]


def deep(workload: Workload, target: Target, **changes: Any) -> Config:
    """A seed with blocks of the reduction around all of a task, which hold its weights alone."""
    found = space(workload.prim_func("winograd4"), target)
    wanted = {
        "conv2d.blocks_order": "k", "conv2d_weight0.at": "consumer", "conv2d_data0.at": "root",
    }  # fmt: skip
    config = next(s for s in found.seeds if wanted.items() <= s.items()) | changes
    assert found.reason(config) is None, config
    return config


def test_blocks_of_the_reduction_hold_what_transforms_make_for_them() -> None:
    """36 x 512 weights of 32 channels are 2.3 MB, of which 16 blocks of the sum have less than half
    of L2 each, and 8 have more."""
    workload = layer(in_channels=512, out_channels=256, height=14, width=14)
    config = deep(workload, MACHINE)
    tasks, parts = int(config["conv2d.n_parts"]), int(config["conv2d.k_parts"])
    module = schedule(workload.prim_func("winograd4"), MACHINE, config)
    loops = list(map(int, extents(module, "conv2d_weight1")))
    own = math.prod(loops[2:])
    assert loops[:2] == [tasks, parts] == [8, 16]
    assert own == 36 * 512 * 256 // (tasks * parts)
    assert own * 4 <= MACHINE.l2_bytes / 2 < own * 8


@pytest.mark.parametrize("parts", [2, 8, 32])
@pytest.mark.parametrize("source", ["task", "copy", "inline"])
def test_blocks_of_the_reduction_compute_the_layer(source: str, parts: int, tmp_path: Path) -> None:
    """Weights of blocks of 128 channels, 32 or 8, copied by rows of vectors or not."""
    target = lookup("llvm")
    workload = layer(in_channels=256, out_channels=128, height=9, width=14)
    changes: dict[str, Any] = {"conv2d.k_parts": parts, "conv2d_weight0.source": source}
    config = deep(workload, target, **changes)
    path = tmp_path / "kernel.so"
    compiled.build(workload.prim_func("winograd4"), target, config, path)
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    out, runtime = np.zeros(expected.shape, "float32"), target.runtime()
    runtime.load(path)["main"](*map(runtime.passed, (*inputs, out)))
    assert relative_error(out, expected) < 1e-4


def test_a_block_of_the_reduction_is_full_of_the_vectors_that_transform_for_it() -> None:
    """Data with channels in its lanes, of which a block has 4: vectors have 8."""
    workload = layer(in_channels=512, out_channels=256, height=14, width=14)
    config = deep(workload, MACHINE) | {"conv2d_data0.at": "consumer", "conv2d.m_layout": "inline"}
    found = space(workload.prim_func("winograd4"), MACHINE)
    assert found.reason(config | {"conv2d.k_parts": 64}) is None
    assert "of 4, is not full" in str(found.reason(config | {"conv2d.k_parts": 128}))
