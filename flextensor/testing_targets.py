"""Conformance suites of targets; see `flextensor.testing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import buffers, targets
from flextensor.buffers import empty
from flextensor.errors import DeviceError
from flextensor.targets import Target


class TargetCase:
    """What every target must do."""

    @pytest.fixture
    def target(self) -> Target:
        """The target under test."""
        raise NotImplementedError

    def test_numbers_are_positive(self, target: Target) -> None:
        for name in ("cores", "vector_bits", "vector_registers", "l1_bytes", "l2_bytes"):
            assert getattr(target, name) > 0, name
        assert target.l1_bytes < target.l2_bytes
        assert target.max_unroll > 1
        assert target.lanes("float32") == 2 * target.lanes("float64") > 1

    def test_is_a_value_that_travels_as_json(self, target: Target) -> None:
        copy = targets.load(json.loads(json.dumps(targets.dump(target))))
        assert copy == target
        assert hash(copy) == hash(target)
        assert copy.fingerprint == target.fingerprint

    def test_says_what_it_is(self, target: Target) -> None:
        assert target.device
        assert "\n" not in target.device
        assert target.fingerprint.startswith(target.kind)

    def test_fingerprint_knows_the_threads(self, target: Target) -> None:
        other = targets.load(targets.dump(target) | {"cores": target.cores + 1})
        assert other.fingerprint != target.fingerprint


class DeviceCase(TargetCase):
    """What every target must do that runs programs here."""

    def test_builds_a_library_that_runs(self, target: Target, tmp_path: Path) -> None:
        import tvm

        path = tmp_path / "kernel.so"
        target.build(tvm.IRModule({"main": doubling(target)}), path)
        assert [file.name for file in tmp_path.iterdir()] == ["kernel.so"]
        runtime = target.runtime()
        x, y = empty((64,), "float32"), empty((64,), "float32")
        x[:], y[:] = np.arange(64), np.nan
        source, output = runtime.place(x), runtime.place(y)
        double = runtime.load(path)["main"]
        double(source, output)
        runtime.sync()
        assert np.array_equal(output.numpy(), 2 * x)
        source.copyfrom(x + 1)
        double(source, output)
        runtime.sync()
        assert np.array_equal(output.numpy(), 2 * x + 2)
        assert np.isnan(y).all()
        double(x, y)
        assert np.array_equal(y, 2 * x)

    def test_shows_what_it_compiles(self, target: Target) -> None:
        import tvm

        assert "main" in target.source(tvm.IRModule({"main": doubling(target)}))
        assert target.numbers and "\n" not in target.numbers

    def test_peaks_are_measured_once(
        self, target: Target, monkeypatch: Any, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        first = target.peak_flops(), target.bandwidth()
        assert all(value > 1e8 for value in first)
        assert (target.peak_flops(), target.bandwidth()) == first

    def test_launches_of_awkward_sizes(self, target: Target, tmp_path: Path) -> None:
        """One element, extents that nothing divides, and more blocks along a grid than a side
        other than its first may have."""
        import tvm

        programs = {name: doubling(target, *of, name=name) for name, of in LAUNCHES.items()}
        target.build(tvm.IRModule(programs), tmp_path / "kernel.so")
        runtime, rng = target.runtime(), np.random.default_rng(0)
        functions = runtime.load(tmp_path / "kernel.so")
        for name, (shape, _) in LAUNCHES.items():
            x, y = empty(shape, "float32"), empty(shape, "float32")
            x[...], y[...] = rng.standard_normal(shape, dtype="float32"), np.nan
            output = runtime.place(y)
            functions[name](runtime.place(x), output)
            runtime.sync()
            assert np.array_equal(output.numpy(), 2 * x), name

    @pytest.mark.parametrize("shape", [(65537, 1, 2), (1, 65537, 2)], ids=["z", "y"])
    def test_a_grid_is_refused_when_it_is_built_or_runs(
        self, target: Target, shape: tuple[int, ...], tmp_path: Path
    ) -> None:
        """Never later: a launch that fails, or does half of it, looks like a kernel's fault."""
        import tvm

        path = tmp_path / "kernel.so"
        try:
            target.build(tvm.IRModule({"main": doubling(target, shape, 2)}), path)
        except DeviceError as refused:
            assert "65537" in str(refused) and "\n" not in str(refused)
            assert not path.exists()
            return
        x, y = np.ones(shape, "float32"), empty(shape, "float32")
        y[...] = np.nan
        target.runtime().load(path)["main"](buffers.aligned(x), y)
        assert np.array_equal(y, 2 * x)

    def test_kernels_run_in_turn_and_share_a_workspace(
        self, target: Target, tmp_path: Path
    ) -> None:
        import tvm

        target.build(tvm.IRModule({"main": gram(target, 13, 7)}), tmp_path / "kernel.so")
        runtime, rng = target.runtime(), np.random.default_rng(0)
        function = runtime.load(tmp_path / "kernel.so")["main"]
        x, scale, y = empty((13, 7), "float32"), empty((13,), "float32"), empty((13, 13), "float32")
        placed = [runtime.place(array) for array in (x, scale, y)]
        for _ in range(2):  # what the first call left in the workspace is of no use to the second
            x[...], scale[...] = rng.standard_normal((13, 7)), rng.standard_normal(13)
            y[...] = np.nan
            for device, array in zip(placed, (x, scale, y), strict=True):
                device.copyfrom(array)
            function(*placed)
            runtime.sync()
            want = ((x + 1) @ (x + 1).T) * scale[:, None]
            np.testing.assert_allclose(placed[-1].numpy(), want, rtol=1e-5, atol=1e-5)


LAUNCHES: dict[str, tuple[tuple[int, ...], int]] = {
    "single": ((1,), 8),
    "prime": ((1009,), 64),
    "sides": ((3, 5, 37), 8),
    "edges": ((7, 1, 1), 4),
    "many": ((70001,), 1),
}
"""Shapes, and how many neighbours a block has."""


def doubling(
    target: Target, shape: tuple[int, ...] = (64,), block: int = 0, name: str = "main"
) -> Any:
    """A program for `target` that doubles numbers, of blocks along all three sides of a grid, or
    parallel and vectorised; a block has `block` neighbours, or as many as a vector."""
    from tvm import te
    from tvm.s_tir import Schedule

    a = te.placeholder(shape, name="A")
    b = te.compute(shape, lambda *at: a(*at) * 2.0, name="B")
    schedule = Schedule(te.create_prim_func([a, b]))
    *outer, last = schedule.get_loops(schedule.get_sblock("B"))
    grid, inner = schedule.split(last, [None, block or target.lanes()])
    if target.threads_per_block:
        schedule.bind(inner, "threadIdx.x")
        for loop, axis in zip((grid, *reversed(outer)), "xyz", strict=False):
            schedule.bind(loop, f"blockIdx.{axis}")
    else:
        schedule.parallel(schedule.fuse(*outer, grid))
        schedule.vectorize(inner)
    return schedule.mod["main"].with_attr("global_symbol", name)


def gram(target: Target, rows: int, columns: int, threads: int = 8) -> Any:
    """`out = scale * (a + 1) @ transpose(a + 1)` by two kernels, the grid of each no whole number
    of blocks: the first writes a workspace, which the second reads."""
    from tvm import te
    from tvm.s_tir import Schedule

    a = te.placeholder((rows, columns), name="a")
    scale = te.placeholder((rows,), name="scale")
    one = te.compute((rows, columns), lambda i, j: a[i, j] + 1.0, name="one")
    k = te.reduce_axis((0, columns), "k")
    product = te.compute(
        (rows, rows), lambda i, j: te.sum(one[i, k] * one[j, k] * scale[i], axis=k), name="out"
    )
    schedule = Schedule(te.create_prim_func([a, scale, product]))
    for name in ("one", "out"):
        i, j, *_ = schedule.get_loops(schedule.get_sblock(name))
        grid, block = schedule.split(schedule.fuse(i, j), [None, threads])
        if target.threads_per_block:
            schedule.bind(grid, "blockIdx.x")
            schedule.bind(block, "threadIdx.x")
        else:
            schedule.parallel(grid)
    return schedule.mod["main"]
