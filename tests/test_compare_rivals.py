"""compare: the search of another tuner beside ours, and times to the same quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flextensor import compare, compare_beside, metaschedule, rivals
from flextensor.compare import Variant
from flextensor.errors import DeviceError, InputError
from flextensor.measure import Candidate
from flextensor.operators.gemm import Gemm
from flextensor.operators.suites import Case
from flextensor.targets import lookup

CASES = [Case("toy", "G", Gemm(m=24, n=32, k=16))]


def run(out: Path, *names: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "seeds": 1, "trials": 2, "time": None, "cost_model": "none", "target": lookup("llvm", 1),
    }  # fmt: skip
    code = compare.run(
        CASES, [Variant.parse(n) for n in names], out=out, command=["compare"],
        **{**options, **changes},
    )  # fmt: skip
    assert code == 0
    found: dict[str, Any] = json.loads((out / "data.json").read_text())
    return found


def test_a_rival_is_raced_after_ours_and_timed_in_turns_with_them(tmp_path: Path) -> None:
    found = run(tmp_path, "metaschedule", "random")
    ours, rival = found["runs"]
    assert (ours["variant"], rival["variant"]) == ("random", "metaschedule")
    walls = [wall for wall, _ in rival["trace"]]
    assert len(walls) == 2 and walls == sorted(walls) and walls[0] > 0
    assert rival["seconds"] > walls[-1]
    assert set(rival["timed"]) == {"random", "metaschedule"}
    best = {r["variant"]: min(s for _, s in r["trace"] if s is not None) for r in (ours, rival)}
    turns, records = rival["timed"], best["metaschedule"] / best["random"]
    assert turns["metaschedule"] / turns["random"] == pytest.approx(records)
    page = (tmp_path / "README.md").read_text()
    assert "## Beside metaschedule" in page and "| toy/G | random |" in page
    assert "| random | metaschedule |" in page
    assert run(tmp_path, "metaschedule", "random")["runs"] == found["runs"]


def test_a_rival_that_finds_nothing_is_a_failure_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(metaschedule, "TRIAL_SECONDS", 1e-3)
    monkeypatch.setattr(metaschedule, "START_SECONDS", 1e-3)
    (rival,) = run(tmp_path, "metaschedule", trials=2)["runs"]
    ((wall, seconds),) = rival["trace"]
    assert wall > 0 and seconds is None and "no reply within" in rival["failure"]
    page = (tmp_path / "README.md").read_text()
    assert "No kernel of metaschedule: toy/G, seed 0: no reply within" in page


def test_a_kernel_of_ours_that_fails_is_no_failure_of_the_rival() -> None:
    class Measurer:
        def compare(self, kernels: Any, libraries: Any) -> tuple[dict[str, list[float]], Any]:
            if "ours" in kernels:
                raise DeviceError("worker died: SIGSEGV")
            return {name: [2.0] for name in libraries}, {}

    own: Any = {"ours": Candidate("direct", {})}
    rival = {"metaschedule": Path("kernel.so")}
    measurer: Any = Measurer()
    assert rivals._in_turns(measurer, own, rival) == {"metaschedule": [2.0]}


def test_a_rival_is_refused_where_it_cannot_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="a --replay measures nothing"):
        run(out, "metaschedule", replay=tmp_path / "trials.db")
    with pytest.raises(DeviceError, match="on CPUs only"):
        run(out, "metaschedule", target=lookup("fpga:vu9p"))
    monkeypatch.setattr(metaschedule, "_NEEDED", ("no_such_package",))
    with pytest.raises(DeviceError, match="metaschedule needs no_such_package"):
        run(out, "metaschedule")
    assert not out.exists()
    with pytest.raises(InputError, match="a search of its own, without our parts"):
        Variant.parse("metaschedule/no-model")
    with pytest.raises(InputError, match="did you mean metaschedule"):
        Variant.parse("metashedule")


def test_a_rivals_records_are_scaled_by_what_turns_say() -> None:
    timed = {"a": 3.0, "b": 4.0, "other": 8.0}  # a is 1.5, b 2 and c 1 times its record
    assert rivals.scale(timed, {"a": 2.0, "b": 2.0, "other": 8.0}, "other") == 1 / 1.75
    assert rivals.scale({"other": 8.0}, {"other": 2.0}, "other") == 4.0


def traced(variant: str, *trace: tuple[float, float | None], **more: Any) -> dict[str, Any]:
    return {"case": "toy/G", "variant": variant, "seed": 0, "trace": list(trace), **more}


def test_time_to_the_same_quality_is_to_that_of_the_slower_end() -> None:
    q = traced("q-method", (1.0, None), (2.0, 4.0), (3.0, 2.01), (9.0, 1.0))
    p = traced("p-method", (1.0, 8.0), (12.0, 2.0))
    assert compare_beside.to_the_same(q, p) == (3.0, 12.0)  # 2.01 is within 1 % of 2.0
    assert compare_beside.to_the_same(p, q) == (12.0, 3.0)
    assert compare_beside.to_the_same(q, traced("p-method", (1.0, None))) is None
    lines = compare_beside.sections([q, p])
    assert "| q-method | p-method | 25.0% (25.0% to 25.0%) | 1 of 1 |" in lines
    assert compare_beside.sections([q, traced("random", (1.0, 1.0))]) == []


def test_pairs_have_the_same_parts() -> None:
    names = ["p-method", "q-method/no-model", "p-method/no-model", "metaschedule"]
    assert compare_beside.pairs(names) == [
        ("q-method/no-model", "p-method/no-model"),
        *((name, "metaschedule") for name in names[:3]),
    ]


def test_a_race_is_told_at_equal_trials_equal_time_and_at_the_end() -> None:
    ours = traced("random", (1.0, 6.0), (2.0, 3.0), (3.0, 2.0), (4.0, 1.0))
    rival = traced(
        "metaschedule", (10.0, None), (20.0, 6.0), (40.0, 3.0),
        seconds=50.0, factor=0.9, timed={"random": 1.0, "metaschedule": 3.5},
    )  # fmt: skip
    lines = compare_beside.sections([ours, rival])
    # 3 trials: 2 against 3; 4 s: nothing of the rival yet; 3 is reached after 2 s of 50
    assert "| toy/G | random | 1.50 | - | 3.50 | 2.0 | 4.0% |" in lines
    assert any("3 trials in 50 s" in line and "(0.90 to 0.90)" in line for line in lines)
    slower = traced("random", (1.0, 6.0), (60.0, 4.0))
    assert "| toy/G | random | 1.50 | 0.50 | 3.50 | - | - |" in compare_beside.sections(
        [slower, rival]
    )
