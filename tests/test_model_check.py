"""The models of devices with blocks against measured trials: what is judged, reused and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import model_check, model_page
from flextensor.cost_models.analytic import estimate
from flextensor.database import Database
from flextensor.model_measure import ModelMeasurer
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import space
from flextensor.targets import Status, Target, Trial, lookup

GEMM = Workload(Gemm(m=64, n=96, k=32))
COUNT = 18
CARD = "cuda/sm_80/NVIDIA A100 PCIe/100/tvm-0.27.0/cold"


def fill(
    path: Path, target: Target, fingerprint: str, seconds: Callable[[float], float], count: int
) -> None:
    """Add programs that took what is a function of the scheduler's estimate."""
    own = space(GEMM.prim_func(), target)
    with Database(path) as database:
        for point in own.sample(np.random.default_rng(0), count):
            config = own.config(point)
            times = (seconds(estimate(own.features(config))),)
            trial = Trial("direct", config, Status.OK, times)
            database.add(GEMM.key, "gemm", GEMM.params, fingerprint, trial)


def run(out: Path, path: Path, target: str) -> dict[str, Any]:
    assert model_check.main(["--db", str(path), "--target", target, "--out", str(out)]) == 0
    data: dict[str, Any] = json.loads((out / "data.json").read_text())
    return data


def test_what_follows_the_estimate_is_ranked_perfectly(path: Path, tmp_path: Path) -> None:
    target = lookup("opencl")
    fill(path, target, target.fingerprint, lambda guess: 3 * guess, COUNT)
    fill(path, target, "opencl/another device", lambda guess: 1.0, COUNT)
    fill(path, target, target.fingerprint, lambda guess: 3 * guess, 2)  # measured once more
    (row,) = run(tmp_path / "out", path, "opencl")["rows"]
    assert (row["device"], len(row["trials"])) == (target.fingerprint, COUNT)
    found = model_page.score(row, "estimate")
    assert found.spearman == pytest.approx(1)
    assert (found.top1, found.top8) == (1, 1)
    assert found.scale == pytest.approx(3)
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"| {GEMM.key} | {COUNT} | 1.00 | 1.00 | 1.00 | 3 | 0 |" in page
    assert "knows CUDA architectures only" in page
    assert (tmp_path / "out" / "scatter.png").stat().st_size > 1000


def test_a_card_is_judged_by_both_and_nothing_twice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = lookup("cuda:sm_80")
    card = target.named(CARD)
    assert card is not None and card.cores == 100
    fill(path, card, CARD, lambda guess: guess, COUNT)
    fill(path, target, target.measured_by("model").fingerprint, lambda guess: 1.0, COUNT)
    (row,) = run(tmp_path / "out", path, "cuda:sm_80")["rows"]
    assert row["device"] == CARD
    assert any(trial["kernels"] for trial in row["trials"])
    assert all(trial["estimate"] == trial["seconds"] for trial in row["trials"])
    with Database(path) as database:
        (kept,) = [r for r in database.workloads() if "PCIe/100/" in r.target and r.target != CARD]
    assert kept.trials == COUNT
    monkeypatch.setattr(ModelMeasurer, "measure", lambda *_: pytest.fail("judged again"))
    assert run(tmp_path / "out", path, "cuda:sm_80")["rows"] == [row]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "## By the schedulers' estimate" in page and "## By the model of kernels" in page


def test_equal_guesses_are_worth_what_chance_picks_and_refused_programs_come_last() -> None:
    trials = [{"seconds": s, "estimate": 1.0, "kernels": k} for s, k in ((1, None), (3, 2), (4, 4))]
    found = model_page.score({"trials": trials}, "estimate")
    assert 1.5 < found.top1 < 3.5 and found.top8 == 1
    found = model_page.score({"trials": trials}, "kernels")
    assert (found.top1, found.refused, found.scale) == (3, 1, 1.25)
    assert found.spearman < 0
    none = [{"seconds": s, "kernels": None} for s in (1, 2)]
    assert math.isnan(model_page.score({"trials": none}, "kernels").scale)


@pytest.mark.parametrize(
    ("spec", "said"),
    [("llvm", "its threads form no blocks"), ("opencl", "no workload has 9 programs measured on")],
)
def test_what_cannot_be_judged_is_one_line(
    spec: str, said: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Database(path).close()
    arguments = ["--db", str(path), "--target", spec, "--out", str(tmp_path / "out")]
    assert model_check.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert model_check.main(["--db", str(tmp_path / "none.db"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.db'}: no such database\n"
