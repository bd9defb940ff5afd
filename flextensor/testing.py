"""Conformance suites: a new member of a family passes them by overriding one fixture.

class TestMine(flextensor.testing.TargetCase):
    @pytest.fixture
    def target(self):
        return Mine(...)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import targets
from flextensor.buffers import empty
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

    def test_builds_a_library_that_runs(self, target: Target, tmp_path: Path) -> None:
        import tvm

        path = tmp_path / "kernel.so"
        target.build(tvm.IRModule({"main": doubling(target)}), path)
        assert [file.name for file in tmp_path.iterdir()] == ["kernel.so"]
        x, y = empty((64,), "float32"), empty((64,), "float32")
        x[:] = np.arange(64)
        source, output = (tvm.runtime.tensor(a, target.tvm_device()) for a in (x, y))
        tvm.runtime.load_module(str(path))["main"](source, output)
        assert np.array_equal(output.numpy(), 2 * x)

    def test_peaks_are_measured_once(
        self, target: Target, monkeypatch: Any, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        first = target.peak_flops(), target.bandwidth()
        assert all(value > 1e8 for value in first)
        assert (target.peak_flops(), target.bandwidth()) == first


def doubling(target: Target) -> Any:
    """A parallel, vectorised program for `target` that doubles 64 numbers."""
    from tvm import te
    from tvm.s_tir import Schedule

    a = te.placeholder((64,), name="A")
    b = te.compute((64,), lambda i: a[i] * 2.0, name="B")
    schedule = Schedule(te.create_prim_func([a, b]))
    outer, inner = schedule.split(
        schedule.get_loops(schedule.get_sblock("B"))[0], [None, target.lanes()]
    )
    schedule.parallel(outer)
    schedule.vectorize(inner)
    return schedule.mod["main"]
