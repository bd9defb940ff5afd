"""Weights packed ahead: what is split off, and that both parts together compute the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from flextensor import compiled
from flextensor.errors import InputError
from flextensor.kernel import Kernel
from flextensor.operators import Conv2d, Gemm, Operator, Workload
from flextensor.schedulers import schedule, space
from flextensor.targets import lookup

TARGET = lookup("llvm", 2)
CONV = Conv2d(in_channels=11, out_channels=13, height=9, width=7, kernel=3, padding=1, bias=True)
GEMM = Gemm(m=19, n=37, k=23, relu=True)


@pytest.mark.parametrize("operator", [CONV, GEMM], ids=["conv2d", "gemm"])
def test_packed_ahead_or_not_a_kernel_computes_the_reference(
    operator: Operator, tmp_path: Path
) -> None:
    workload = Workload(operator, prepacked=True)
    data, weight, *bias = inputs = workload.inputs(1)
    want = workload.reference(inputs)
    ahead, number = 0, itertools.count()
    for name in workload.formulations:
        func = workload.prim_func(name)
        found = space(func, TARGET)
        points = found.sample(np.random.default_rng(3), 4)
        for config in [*found.seeds[:2], *map(found.config, points)]:
            path = tmp_path / f"kernel{next(number)}.so"  # a loaded path is not loaded again
            compiled.build(func, TARGET, config, path)
            ahead += bool(json.loads(path.with_suffix(".json").read_text())["packed"])
            kernel = Kernel(path, workload.buffers, TARGET.runtime())
            layer = kernel.prepack(weight)
            for got in (kernel(*inputs), layer(data, *bias), layer(data, *bias)):
                assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
            out = np.empty_like(want, dtype="float32")
            assert layer(data, *bias, out=out) is out
            assert np.abs(out - want).max() < 1e-4 * np.abs(want).max()
            compiled.remove(path)
    assert ahead >= 2
    assert not list(tmp_path.iterdir())


def test_what_is_computed_from_weights_alone_leaves_main() -> None:
    """The Winograd transform of the weights, and nothing of the data's."""
    func = Workload(CONV, prepacked=True).prim_func("winograd4")
    found = space(func, TARGET)
    config = next(s for s in found.seeds if s["conv2d_weight0.at"] == "root")
    module = schedule(func, TARGET, config)
    main, pack = module["main"].script(), module["pack"].script()
    assert "conv2d_weight0" in pack and "conv2d_weight0" not in main
    assert "conv2d_data0" in main and "conv2d_data0" not in pack
    plain = Workload(CONV).prim_func("winograd4")
    assert len(schedule(plain, TARGET, config).functions) == 1


@pytest.mark.parametrize("layout", ["panel", "flat"])
@pytest.mark.parametrize(
    ("inputs", "kernel", "channels", "registers"),
    [(32, 3, 64, True), (32, 3, 60, True), (3, 1, 60, False)],
)
def test_a_copy_of_weights_leaves_main_however_it_is_made(
    inputs: int, kernel: int, channels: int, registers: bool, layout: str
) -> None:
    """Rows of weights become columns in registers, those of three weights one by one."""
    conv = Conv2d(in_channels=inputs, out_channels=channels, height=8, width=8, kernel=kernel)
    func = Workload(conv, prepacked=True).prim_func()
    config = space(func, TARGET).seeds[0] | {
        "conv2d.lanes": "n", "conv2d.vectors": 1, "conv2d.rows": 4,
        "conv2d.n_layout": layout, "conv2d.n_at": "root", "conv2d.n_parts": 1,
    }  # fmt: skip
    main, pack = (schedule(func, TARGET, config)[name].script() for name in ("main", "pack"))
    assert "conv2d_lanes[" in pack and "weight[" not in main
    assert ("Shuffle" in pack) == registers


def test_weights_packed_ahead_cost_nothing_in_the_estimate() -> None:
    plain, ahead = (Workload(CONV, p).prim_func("winograd4") for p in (False, True))
    config = space(ahead, TARGET).seeds[0]
    costs = [space(f, TARGET).features(config)["conv2d_weight0.estimate"] for f in (plain, ahead)]
    assert costs[1] < 0.1 * costs[0]


def test_a_wrong_number_of_weights_is_said(tmp_path: Path) -> None:
    workload = Workload(GEMM, prepacked=True)
    func = workload.prim_func()
    compiled.build(func, TARGET, space(func, TARGET).seeds[0], tmp_path / "kernel.so")
    kernel = Kernel(tmp_path / "kernel.so", workload.buffers, TARGET.runtime())
    with pytest.raises(InputError, match=r"takes 1 inputs \(B\), got 0"):
        kernel.prepack()
    with pytest.raises(InputError, match=r"takes 1 inputs \(A\), got 2"):
        kernel.prepack(workload.inputs(0)[1])(*workload.inputs(0))
