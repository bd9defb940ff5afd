"""Peers that schedule with TVM: what they build is verified, and timed in turns with ours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flextensor
from flextensor import bench, dlight, metaschedule, peer_libraries
from flextensor.errors import DeviceError
from flextensor.measure import LocalMeasurer
from flextensor.operators import Conv2d, Gemm, Operator, Workload, parse
from flextensor.targets import Target, lookup

GEMM = Gemm(m=24, n=32, k=16)
CONV = Conv2d(in_channels=8, height=9, width=11, out_channels=16, padding=1, stride=2, bias=True)
CIRCULANT = parse("block_circulant_matrix", {"rows": "32", "cols": "32", "block": "8"})


def emulated() -> Target:
    """A card that kernels of CUDA run for on this machine's CPU."""
    return dataclasses.replace(lookup("cuda:sm_80"), emulated=True)  # type: ignore[call-arg]


def build(method: str, operator: Operator, target: Target, folder: Path) -> dict[str, Any]:
    with LocalMeasurer(Workload(operator), target, math.inf) as measurer:
        return peer_libraries.build(method, measurer, 2, folder / "kernel.so")


def test_metaschedule_searches_and_is_timed_in_turns(tmp_path: Path) -> None:
    result = flextensor.tune(GEMM, threads=1, trials=2, db=tmp_path / "t.db", peers=False)
    found = bench.beside(result, ("metaschedule",), 2)
    assert found["missing"] == {}
    assert 1 <= found["searches"]["metaschedule"]["trials"] <= 2
    assert found["searches"]["metaschedule"]["seconds"] > 0
    peer = found["peers"]["metaschedule"]
    assert peer["method"] == "metaschedule"
    assert peer["ratio"] == peer["seconds"] / found["seconds"]


def test_both_methods_of_dlight_are_timed_and_the_faster_counts(tmp_path: Path) -> None:
    result = flextensor.tune(GEMM, target="opencl", trials=2, db=tmp_path / "t.db", peers=False)
    found = bench.beside(result, ("dlight",), 2)
    assert (found["missing"], found["searches"]) == ({}, {})
    assert set(found["methods"]) == {"dlight", "dlight-fallback"}
    assert found["peers"]["dlight"]["seconds"] == min(found["methods"].values())


@pytest.mark.parametrize("method", dlight.RULES)
@pytest.mark.parametrize("operator", [GEMM, CONV])
def test_dlight_computes_the_operator_on_cuda(
    method: str, operator: Operator, tmp_path: Path
) -> None:
    assert build(method, operator, emulated(), tmp_path) == {}


def test_what_dlight_cannot_schedule_is_missing_and_the_rest_is_timed(tmp_path: Path) -> None:
    result = flextensor.tune(
        CIRCULANT, target="opencl", trials=2, db=tmp_path / "t.db", peers=False
    )
    found = bench.beside(result, ("dlight",), 2)
    assert set(found["methods"]) == {"dlight-fallback"}
    assert found["missing"]["dlight"].startswith("ScheduleError: ")
    assert len(found["missing"]["dlight"].splitlines()) == 1


def test_a_wrong_result_is_no_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(LocalMeasurer, "error_of", lambda measurer, path: 0.5)
    with pytest.raises(DeviceError, match="the result is wrong, relative error 0.5"):
        build("dlight", GEMM, lookup("opencl"), tmp_path)


@pytest.mark.parametrize(
    ("method", "spec", "said"),
    [("metaschedule", "opencl", "on CPUs only"), ("dlight", "llvm", "which llvm lacks")],
)
def test_a_peer_of_other_devices_is_known_before_anything_is_tuned(
    method: str, spec: str, said: str, tmp_path: Path
) -> None:
    given: Mapping[str, Any] = {
        "names": None, "time": None, "trials": 1, "threads": None, "db": None,
    }  # fmt: skip
    with pytest.raises(DeviceError, match=said):
        bench.run(
            "smoke", family="gemm", target=spec, out=tmp_path / "out", peers=(method,),
            command=["flextensor"], **given,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(DeviceError, match=said):
        build(method, GEMM, lookup(spec), tmp_path)


def test_a_search_that_ends_badly_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metaschedule, "TRIAL_SECONDS", 1e-3)
    monkeypatch.setattr(metaschedule, "START_SECONDS", 1e-3)
    with pytest.raises(DeviceError, match="no reply within"):
        build("metaschedule", GEMM, lookup("llvm", 2), tmp_path)


def test_metaschedule_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaschedule, "_NEEDED", ("cloudpickle", "no_such_package"))
    with pytest.raises(DeviceError, match="needs no_such_package: pip install no_such_package$"):
        metaschedule.check(lookup("llvm"))
    with pytest.raises(DeviceError, match="on CPUs only"):
        metaschedule.check(lookup("fpga:vu9p"))


def test_a_search_of_metaschedule_is_recorded_until_its_time_is_over() -> None:
    now = iter(range(0, 1000, 10)).__next__  # ten seconds between any two looks at the clock

    def result(*times: float, error: str | None = None) -> Any:
        told = SimpleNamespace(run_secs=times, error_msg=error)
        return SimpleNamespace(error_msg=error, result=lambda: told)

    record = metaschedule.Record(75.0, now)
    record.built([result(), result(error="too large")])
    record.ended()
    futures = record.ran(
        lambda one: result(*one), lambda: "refused", [(3.0, 1.0, 2.0), (), (1.0,), (1.0,)]
    )
    assert record.trace == [(20.0, None), (50.0, 2.0), (70.0, None)]
    assert futures[2:] == ["refused", "refused"]
    record.built([result(error="never mind")])
    assert len(record.trace) == 3
    assert not record.over
    with pytest.raises(RuntimeError):
        record.ended()
    assert record.over


def test_a_search_has_as_long_as_its_trials_and_its_seconds_need() -> None:
    assert metaschedule.limit(4, None) - metaschedule.limit(3, None) == metaschedule.TRIAL_SECONDS
    assert 60.0 < metaschedule.limit(None, 60.0) < metaschedule.limit(1000, 1e4)
    assert metaschedule.limit(4, 60.0) == metaschedule.limit(4, None)
