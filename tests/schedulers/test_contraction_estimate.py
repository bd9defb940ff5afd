"""What the estimates of contractions know of caches, and the seeds that follow from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from flextensor.buffers import relative_error
from flextensor.cost_models.analytic import estimate
from flextensor.lessons import MACHINES
from flextensor.operators import parse
from flextensor.operators.workload import Workload
from flextensor.schedulers import schedule, space
from flextensor.schedulers.space import Space, Value
from flextensor.targets import Target, lookup

MACHINE = MACHINES["znver3"]
DEEP = {
    "in_channels": "1024", "out_channels": "1024", "height": "14", "width": "14", "padding": "1",
}  # fmt: skip
SHALLOW = {**DEEP, "in_channels": "16"}


def test_a_stage_may_have_any_name() -> None:
    assert estimate({"logits.estimate": 2.0, "logits.log_estimate": 1.0, "t.estimate": 3.0}) == 5.0


def layer(fields: Mapping[str, str]) -> Space:
    return space(Workload(parse("conv2d", fields)).prim_func(), MACHINE)


def with_knobs(found: Space, **values: Value) -> dict[str, Value]:
    """Lanes over pixels in panels, weights read in place, one block of rows for each core."""
    wanted = {
        "lanes": "m", "rows": 4, "vectors": 3, "k_unroll": 1, "k_parts": 1, "unroll_windows": 0,
        "blocks_order": "m", "tiles_order": "m", "output_at": "block", "m_layout": "panel",
        "m_at": "root", "m_parts": 1, "n_layout": "inline", "n_at": "root", "n_parts": 2, **values,
    }  # fmt: skip
    config = {f"conv2d.{name}": value for name, value in wanted.items()}
    assert found.reason(config) is None
    return config


def guess(found: Space, **values: Value) -> float:
    return estimate(found.features(with_knobs(found, **values)))


def test_a_deep_reduction_is_faster_in_blocks_and_a_shallow_one_is_not() -> None:
    deep, shallow = layer(DEEP), layer(SHALLOW)
    assert guess(deep, k_parts=4) < 0.9 * guess(deep)
    assert guess(shallow, k_parts=2) > guess(shallow)


def test_panels_that_come_while_tiles_multiply_cost_nothing_and_wider_vectors_wait() -> None:
    """Panels of lanes, 4 MB in all, that pass again for every tile of rows, beside tiles of rows
    that pass for every panel: vectors of twice the width want twice the bytes in as many cycles."""
    waits = []
    for chip in "znver3", "sapphirerapids":
        func = Workload(parse("gemm", {"m": "512", "n": "1024", "k": "1024"})).prim_func()
        found = space(func, MACHINES[chip])
        cost = []
        for order in "m", "n":
            wanted: dict[str, Value] = {
                "lanes": "n", "rows": 4, "vectors": 2, "n_layout": "panel", "m_layout": "panel",
                "m_parts": 2, "tiles_order": order,
            }  # fmt: skip
            start = {knob.name: knob.values[0] for knob in found.knobs}
            config = {**start, **{f"gemm.{name}": value for name, value in wanted.items()}}
            cost.append(found.features(config)["gemm.fetched"])
        waits.append(cost[0] - cost[1])
    assert waits[0] == pytest.approx(0) and waits[1] > 1


def test_a_full_tile_whose_rows_are_read_in_place_takes_two_steps_at_once() -> None:
    """LLVM would do so by itself, and run out of registers."""
    func = Workload(parse("gemm", {"m": "512", "n": "500", "k": "512"})).prim_func()
    found = space(func, MACHINE)
    full = [s for s in found.seeds if s["gemm.rows"] == 4 and s["gemm.vectors"] == 3]
    rows = {"m": "n", "n": "m"}
    inline = [s for s in full if s[f"gemm.{rows[str(s['gemm.lanes'])]}_layout"] == "inline"]
    assert inline and all(int(s["gemm.k_unroll"]) == 2 for s in inline)
    assert all(int(s["gemm.k_unroll"]) == 1 for s in full if s not in inline)
    for seed in inline:
        single = estimate(found.features({**seed, "gemm.k_unroll": 1}))
        assert single > 1.2 * estimate(found.features(seed))


def test_many_blocks_of_rows_fetch_the_lanes_as_often() -> None:
    deep = layer(DEEP)
    assert guess(deep, k_parts=4, n_parts=64) > guess(deep, k_parts=4)


def test_to_pack_what_no_cache_holds_costs_more_an_element() -> None:
    """Packed weights, beside the same read in place: 36 MB of them, and 0.6 MB."""
    extra = []
    for fields in DEEP, SHALLOW:
        found = layer(fields)
        elements = 1024 * int(fields["in_channels"]) * 9
        packed = guess(found, n_layout="panel", n_at="root")
        extra.append((packed - guess(found)) / elements)
    assert extra[0] > 1.5 * extra[1] > 0


def test_sums_that_no_cache_holds_cost_a_pass_of_their_own() -> None:
    """Output written by a pass at the end: 19 MB of it, and 0.4 MB."""
    extra = []
    for pixels in "14", "112":
        found = layer({**SHALLOW, "height": pixels, "width": pixels, "out_channels": "384"})
        config: dict[str, Value] = {"m_layout": "panel", "m_parts": 2}
        extra.append(guess(found, **config, output_at="root") / guess(found, **config) - 1)
    assert extra[0] == pytest.approx(0, abs=0.02)
    assert extra[1] > 0.2


def test_products_of_a_task_that_fit_the_second_cache_are_cheaper() -> None:
    """Winograd's products with their tiles read within the task: of two rows of tiles, of all."""
    func = Workload(parse("conv2d", {**DEEP, "height": "112", "width": "112"})).prim_func(
        "winograd4"
    )
    found = space(func, MACHINE)
    seed = next(s for s in found.seeds if s["conv2d.output_at"] == "consumer")
    at = {place: estimate(found.features({**seed, "conv2d.output_at": place}))
          for place in ("consumer", "blocks", "root")}  # fmt: skip
    assert at["consumer"] < at["blocks"] < at["root"]


@pytest.mark.parametrize("chip", MACHINES)
def test_seeds_of_a_deep_reduction_have_panels_that_fit_the_second_cache(
    chip: str,
) -> None:
    machine = MACHINES[chip]
    fields = {**DEEP, "in_channels": "8192"}
    found = space(Workload(parse("conv2d", fields)).prim_func(), machine)
    blocked = [s for s in found.seeds if int(s["conv2d.k_parts"]) > 1]
    assert all(panels(s, 8192 * 9, machine) <= machine.l2_bytes for s in blocked)
    rows = {"m": "n", "n": "m"}
    assert [
        s for s in blocked if s[f"conv2d.{rows[str(s['conv2d.lanes'])]}_parts"] == machine.cores
    ]


@pytest.mark.parametrize("chip", MACHINES)
def test_some_seeds_have_panels_that_fit_the_first_cache(chip: str) -> None:
    machine = MACHINES[chip]
    deep = space(Workload(parse("conv2d", {**DEEP, "in_channels": "256"})).prim_func(), machine)
    first, *_ = deep.seeds
    assert panels(first, 256 * 9, machine) > machine.l1_bytes
    tile = {k: first[f"conv2d.{k}"] for k in ("lanes", "rows", "vectors")}
    same = [s for s in deep.seeds if tile == {k: s[f"conv2d.{k}"] for k in tile}]
    assert any(panels(s, 256 * 9, machine) <= machine.l1_bytes for s in same)
    assert not any(int(s["conv2d.k_parts"]) > 1 for s in layer({**DEEP, "in_channels": "2"}).seeds)


def panels(seed: Mapping[str, Value], steps: int, machine: Target) -> float:
    """Bytes that a tile of both sides reads in a block of the reduction."""
    lanes = int(seed["conv2d.vectors"]) * machine.lanes("float32")
    return (lanes + int(seed["conv2d.rows"])) * steps / int(seed["conv2d.k_parts"]) * 4


@pytest.mark.parametrize(
    "name, fields",
    [
        ("conv_transpose1d", {"kernel": "3", "stride": "2"}),
        ("conv_transpose2d", {"kernel": "3", "padding": "1"}),
        ("conv_transpose2d", {"kernel": "4", "stride": "2", "padding": "1"}),
    ],
)
@pytest.mark.parametrize("pixels", ("flat", "panel"))
def test_a_mirrored_weight_is_read_in_place(
    name: str, fields: Mapping[str, str], pixels: str
) -> None:
    """No copy of it is made: the weight of a transposed layer is only renamed."""
    import tvm

    target = lookup("llvm", 2)
    size = {"length": "11"} if name.endswith("1d") else {"height": "7", "width": "6"}
    channels = {"in_channels": "16", "out_channels": "40"}
    workload = Workload(parse(name, {**channels, **size, **fields}))
    func = workload.prim_func()
    found = space(func, target)
    wanted: dict[str, Value] = {
        "lanes": "m", "rows": 3, "vectors": 1, "k_parts": 2, "m_layout": pixels,
        "n_layout": "inline", "output_at": "root",
    }  # fmt: skip
    start = {knob.name: knob.values[0] for knob in found.knobs}
    config = {**start, **{f"{name}.{key}": value for key, value in wanted.items()}}
    assert found.reason(config) is None
    module = schedule(func, target, config)
    assert "flip_weight" not in str(module) and f"{name}_rows" not in str(module)
    inputs = workload.inputs(seed=3)
    out = tvm.runtime.tensor(np.full(workload.buffers[-1].shape, np.nan, "float32"))
    tensors = [tvm.runtime.tensor(a) for a in inputs]
    tvm.compile(module, target=target.tvm_target())(*tensors, out)
    assert relative_error(out.numpy(), workload.reference(inputs)) < 1e-5


def test_a_weight_of_groups_is_no_renamed_one() -> None:
    """Its element is found by a division, of which nothing is known."""
    fields = {"in_channels": "32", "out_channels": "80", "kernel": "3"}
    values = []
    for groups in ("1", "2"):
        func = Workload(parse("conv_transpose2d", {**fields, "groups": groups})).prim_func()
        knobs = {knob.name: knob.values for knob in space(func, MACHINE).knobs}
        values.append(knobs["conv_transpose2d.n_layout"])
    assert "inline" in values[0] and "inline" not in values[1]


def test_what_steps_over_pages_is_fetched_more_slowly_in_place() -> None:
    """A mirrored weight [in, out, 3, 3], whose neighbours along the reduction are 4 kB apart for
    114 outputs and more: to read it in place, over reading it in panels."""
    ratios = []
    for outputs in "108", "120":
        fields = {**DEEP, "kernel": "3", "out_channels": outputs}
        found = space(Workload(parse("conv_transpose2d", fields)).prim_func(), MACHINE)
        cost = []
        for layout in "inline", "panel":
            start = with_knobs(layer(DEEP), n_layout=layout)
            config = {name.replace("conv2d", "conv_transpose2d"): v for name, v in start.items()}
            cost.append(estimate(found.features(config)))
        ratios.append(cost[0] / cost[1])
    assert ratios[0] < 1 < ratios[1] and ratios[1] > 1.1 * ratios[0]


def test_a_matrix_whose_rows_are_whole_pages_is_not_read_in_place() -> None:
    """Its lanes fall into few sets of a cache: 1024 columns, beside 1000."""
    cost = {}
    for n in "1000", "1024":
        found = space(
            Workload(parse("gemm", {"m": "1024", "n": n, "k": "1024"})).prim_func(), MACHINE
        )
        wanted: dict[str, Value] = {"lanes": "n", "rows": 4, "vectors": 1, "n_layout": "inline"}
        start = {knob.name: knob.values[0] for knob in found.knobs}
        config = {**start, **{f"gemm.{name}": value for name, value in wanted.items()}}
        assert found.reason(config) is None
        cost[n] = estimate(found.features(config))
    assert cost["1024"] > 1.3 * cost["1000"]


def test_rows_that_a_window_reads_again_leave_a_full_tile_no_registers() -> None:
    """12 sums, 2 vectors and 8 rows of 6, which LLVM keeps for all three taps, are 22 of 16
    registers; in a loop over the taps, or where a tile is smaller, nothing is kept."""
    fields = {"in_channels": "64", "out_channels": "64", "length": "770", "kernel": "3"}
    found = space(Workload(parse("conv1d", fields)).prim_func(), MACHINE)
    wanted: dict[str, Value] = {
        "conv1d.lanes": "n", "conv1d.n_layout": "panel", "conv1d.m_layout": "inline",
        "conv1d.k_parts": 1, "conv1d.m_parts": 1, "conv1d.vectors": 2,
    }  # fmt: skip
    config = found.seeds[0] | wanted

    def rate(rows: int, unrolled: int) -> float:
        changes: dict[str, Value] = {
            "conv1d.rows": rows, "conv1d.unroll_windows": unrolled, "conv1d.k_unroll": 1,
        }  # fmt: skip
        return found.features(config | changes)["conv1d.rate"]

    assert rate(6, 1) < 0.8 * rate(6, 0)
    assert rate(4, 1) > rate(4, 0)
