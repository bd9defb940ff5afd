"""TVM's own tuner as a peer: it really searches, and its library is timed beside ours."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import flextensor
from flextensor import bench, metaschedule
from flextensor.errors import DeviceError
from flextensor.measure import LocalMeasurer
from flextensor.operators import Gemm, Workload
from flextensor.targets import lookup

GEMM = Gemm(m=24, n=32, k=16)


def test_it_searches_and_is_timed_in_turns(tmp_path: Path) -> None:
    result = flextensor.tune(GEMM, trials=2, db=tmp_path / "t.db", peers=False)
    found = bench.beside(result, ("metaschedule",), 2)
    assert found["missing"] == {}
    assert 1 <= found["searches"]["metaschedule"]["trials"] <= 2
    assert found["searches"]["metaschedule"]["seconds"] > 0
    peer = found["peers"]["metaschedule"]
    assert peer["method"] == "metaschedule"
    assert peer["ratio"] == peer["seconds"] / found["seconds"]


def test_it_is_no_peer_of_a_device_with_blocks(tmp_path: Path) -> None:
    with LocalMeasurer(Workload(GEMM), lookup("opencl"), math.inf) as measurer:
        with pytest.raises(DeviceError, match="on CPUs only"):
            metaschedule.search(measurer, 2, tmp_path / "kernel.so")


def test_a_search_that_ends_badly_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metaschedule, "TRIAL_SECONDS", 1e-3)
    with LocalMeasurer(Workload(GEMM), lookup("llvm", 2), math.inf) as measurer:
        with pytest.raises(DeviceError, match="metaschedule: "):
            metaschedule.search(measurer, 2, tmp_path / "kernel.so")
