"""tune() for a CUDA architecture without a card: modelled, compiled, proven in emulation, kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flextensor
from flextensor import result as results
from flextensor.errors import DeviceError
from flextensor.measure import Candidate
from flextensor.model_measure import ModelMeasurer
from flextensor.operators import Conv2d, Gemm
from flextensor.targets import cuda_driver
from flextensor.targets.process import WorkerTimeout

GEMM = Gemm(m=37, n=53, k=29, bias=True, relu=True)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "cards", lambda: [])


def test_tune_models_proves_and_keeps(tmp_path: Path, no_card: None) -> None:
    db = tmp_path / "trials.db"
    result = flextensor.tune(GEMM, target="cuda:sm_80", measure="model", trials=12, db=db)
    values = result.json()
    assert (values["target"], values["measured"], values["trials"]) == ("cuda", "model", 12)
    assert values["verified"] and 0 < values["max_rel_error"] < 1e-5
    assert "occupancy" in values["modelled"] and "registers" in values["modelled"]
    assert values["peers"] == {} and values["speedup"] is None
    assert 1e-6 < values["best_seconds"] < 1e-3
    again = flextensor.tune(GEMM, target="cuda:sm_80", measure="model", trials=12, db=db)
    assert again.json()["reused"]
    with pytest.raises(DeviceError, match="no CUDA device of sm_80 found"):
        _ = again.kernel
    with pytest.raises(flextensor.FlexTensorError, match="was never tuned on NVIDIA A100"):
        flextensor.load(GEMM, target="cuda:sm_80", db=db)  # nothing was measured on a card
    kept = flextensor.load(GEMM, target="cuda:sm_80", measure="model", db=db)
    assert "__global__ void" in results.show(kept)["source"]


def test_formulations_of_several_kernels_compete(tmp_path: Path, no_card: None) -> None:
    conv = Conv2d(in_channels=8, out_channels=16, height=8, width=8, kernel=3, padding=1)
    values = flextensor.tune(
        conv, target="cuda:sm_90", measure="model", trials=10, db=tmp_path / "t.db"
    ).json()
    assert values["verified"]
    assert values["device"] == "NVIDIA H100 80GB HBM3 (sm_90), no card here"


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """A command on a machine without a card, whatever this one has."""
    command = [sys.executable, "-m", "flextensor", *map(str, args)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def test_no_card_is_one_line_that_says_what_can_be_done() -> None:
    for target in ("cuda", "cuda:sm_90"):
        done = run("tune", "gemm", "--target", target)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: no CUDA device")
        for way in ("--measure model", "--measure remote:HOST:PORT", "flextensor bundle"):
            assert way in done.stderr


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    for args, said in {
        ("tune", "gemm", "--target", "cuda:sm_70", "--measure", "model"): "sm_70 is gone from CUDA",
        ("tune", "gemm", "--measure", "model"): "unknown measure of llvm 'model'; known: run",
        ("bundle", "gemm", "--target", "llvm"): "a bundle is of CUDA kernels",
        ("bundle", "--suite", "nothing"): "unknown suite 'nothing'",
    }.items():
        done = run(*args)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr


def test_the_command_line_models_and_bundles(tmp_path: Path) -> None:
    db = ("--db", tmp_path / "t.db")
    gemm = ("gemm", "m=24", "n=32", "k=16")
    options = ("--measure", "model", "--trials", "6", "--json")
    done = run("tune", *gemm, "--target", "cuda:sm_90", *options, *db)
    assert json.loads(done.stdout)["verified"], done.stderr
    out = tmp_path / "bundle"
    done = run("bundle", *gemm, "--trials", "6", "--top", "2", *db, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "run `python run.py` there" in done.stdout
    assert len(list(out.glob("*.cubin"))) == len(list(out.glob("*.cu"))) == 2


def test_kernels_whose_proof_ends_without_an_answer_leave_their_place_to_others(
    tmp_path: Path, no_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, asked = ModelMeasurer.verify, list[object]()

    def late(measurer: ModelMeasurer, candidate: Candidate) -> float:
        asked.append(candidate.config)
        if len(asked) <= 3:
            raise WorkerTimeout("no reply within 60 s")
        return verify(measurer, candidate)

    def tune() -> flextensor.Result:
        return flextensor.tune(
            Gemm(m=24, n=24, k=24), target="cuda:sm_80", measure="model", trials=12,
            db=tmp_path / "t.db",
        )  # fmt: skip

    monkeypatch.setattr(ModelMeasurer, "verify", late)
    with pytest.raises(
        DeviceError, match="none of the best 3 kernels verified, the last: no reply"
    ):
        tune()
    values = tune().json()
    assert values["verified"] and values["failures"]["timeout"] == 3
    assert values["config"] == asked[3] and asked[3] not in asked[:3]


def test_a_kernel_that_does_not_verify_is_no_result(
    tmp_path: Path, no_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelMeasurer, "verify", lambda self, candidate: 0.5)
    with pytest.raises(DeviceError, match="none of the best .* verified, the last: relative err"):
        flextensor.tune(
            Gemm(m=8, n=8, k=8), target="cuda:sm_80", measure="model", trials=4,
            db=tmp_path / "t.db",
        )  # fmt: skip
    with flextensor.Database(tmp_path / "t.db") as database:
        assert database.stats().results == 0
