"""First picks timed in turns: what is timed, what is guessed of it, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flextensor import model_page, seed_check
from flextensor.cost_models.analytic import estimate
from flextensor.operators import Workload, case
from flextensor.schedulers import spaces
from flextensor.targets import lookup


def test_seeds_are_timed_and_judged_best_by_estimate_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert seed_check.main(["--cases", "GRP4", "--most", "3", "--out", str(out)]) == 0
    (row,) = json.loads((out / "data.json").read_text())["rows"]
    own = spaces(Workload(case("paper/GRP4").operator), lookup("llvm"))
    seen: dict[str, list[float]] = {}
    for trial in row["trials"]:
        space = own[trial["formulation"]]
        point = space.representative(space.point(trial["config"]))
        assert point in {space.representative(space.point(seed)) for seed in space.seeds}
        assert trial["estimate"] == estimate(space.features(trial["config"]))
        assert trial["seconds"] > 0 and trial["learned"] > 0
        seen.setdefault(trial["formulation"], []).append(trial["estimate"])
    assert seen and all(1 <= len(guesses) <= 3 for guesses in seen.values())
    assert all(guesses == sorted(guesses) for guesses in seen.values())
    assert model_page.judges(row) == ["estimate", "learned"]
    page = (out / "README.md").read_text()
    assert "The first picks of a search" in page and "By the cost model before" in page
    assert (out / "scatter.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--cases", "C99"], "C99"),
        (["--cases", "C1", "--most", "1"], "--most 1: an order needs two seeds"),
        (["--target", "fpga", "--cases", "GMM1", "--suite", "smoke"], "nothing is timed there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seed_check.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
