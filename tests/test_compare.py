"""compare: what it records, resumes and says; the page and curves from known traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import compare, compare_page, curves
from flextensor.compare import Variant
from flextensor.database import Database
from flextensor.errors import InputError
from flextensor.operators import Workload
from flextensor.operators.gemm import Gemm
from flextensor.operators.suites import Case
from flextensor.schedulers import space as space_of
from flextensor.targets import Status, Trial, lookup

CASES = [Case("toy", "G", Gemm(m=33, n=35, k=37))]


def test_variants_are_explorers_without_some_parts() -> None:
    variant = Variant.parse("q-method/no-finish/no-seeds")
    assert variant.explorer == "q-method"
    assert str(variant) == "q-method/no-seeds/no-finish"
    with pytest.raises(InputError, match="did you mean q-method"):
        Variant.parse("q-metod")
    with pytest.raises(InputError, match="unknown part of the search 'no-sed'"):
        Variant.parse("random/no-sed")
    assert str(Variant.parse("random/warm/no-model")) == "random/no-model/warm"
    with pytest.raises(InputError, match="one start, shipped or warm"):
        Variant.parse("random/warm/shipped")


def run(out: Path, *names: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"seeds": 2, "trials": 10, "time": None, "cost_model": "xgboost"}
    code = compare.run(
        CASES, [Variant.parse(n) for n in names], target=lookup("llvm"), out=out,
        command=["flextensor", "compare"], **{**options, **changes},
    )  # fmt: skip
    assert code == 0
    found: dict[str, Any] = json.loads((out / "data.json").read_text())
    return found


def test_every_run_is_recorded_once_and_resumed(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    first = run(tmp_path, "random/no-seeds", "annealing", db=db)
    assert [(r["variant"], r["seed"]) for r in first["runs"]] == [
        ("random/no-seeds", 0), ("annealing", 0), ("random/no-seeds", 1), ("annealing", 1),
    ]  # fmt: skip
    for r in first["runs"]:
        walls = [wall for wall, _ in r["trace"]]
        assert len(walls) == 10 and walls == sorted(walls)
    with Database(db, readonly=True) as database:
        kept = database.trials(Workload(CASES[0].operator).key, lookup("llvm").fingerprint)
    traced = [s for r in first["runs"] for _, s in r["trace"]]
    assert [t.seconds if t.ok else None for t in kept] == traced
    again = run(tmp_path, "random/no-seeds", "annealing", "coordinate-descent/no-model")
    assert again["runs"][:4] == first["runs"]
    assert len(again["runs"]) == 6
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    page = (tmp_path / "README.md").read_text()
    assert "1 workloads, 2 seeds" in page and "| coordinate-descent/no-model |" in page


def test_a_budget_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a budget"):
        run(tmp_path, "random", trials=None)


def other_shapes(path: Path) -> Path:
    """A database with trials of the case, and of two other shapes of its operator."""
    target = lookup("llvm")
    with Database(path) as database:
        for n in (35, 40, 64):
            workload = Workload(Gemm(m=33, n=n, k=37))
            space = space_of(workload.prim_func(), target)
            for point in space.sample(np.random.default_rng(0), 12):
                seconds = 1e-3 * (1 + sum(space.encode(point)))
                database.add(
                    workload.key, "gemm", workload.params, target.fingerprint,
                    Trial("direct", space.config(point), Status.OK, (seconds,)),
                )  # fmt: skip
    return path


def test_a_warm_start_knows_other_shapes_and_never_its_own(tmp_path: Path) -> None:
    warm, names = other_shapes(tmp_path / "warm.db"), ("random", "random/shipped", "random/warm")
    held = warm.read_bytes()
    found = run(tmp_path, *names, seeds=1, trials=6, warm=warm)
    assert warm.read_bytes() == held
    nothing, shipped, guided = found["runs"]
    own, *others = (Workload(Gemm(m=33, n=n, k=37)).key for n in (35, 40, 64))
    assert "guides" not in nothing
    assert set(others) <= set(guided["guides"]) and len(guided["guides"]) >= 4
    assert len(shipped["guides"]) == 4 and not {own, *others} & set(shipped["guides"])
    assert own not in guided["guides"]
    with Database(warm, readonly=True) as database:
        said = {t.seconds for t in database.trials(own, lookup("llvm").fingerprint)}
    assert found["known"]["toy/G"] > 0 and found["known"]["toy/G"] not in said  # measured again
    page = (tmp_path / "README.md").read_text()
    assert "36 trials of 3 workloads" in page and "| 95% within 8 trials |" in page
    again = run(tmp_path, *names, seeds=1, trials=6, warm=warm)
    assert (again["runs"], again["known"]) == (found["runs"], found["known"])


def test_what_was_refuted_is_no_best_known(tmp_path: Path) -> None:
    case, target = CASES[0], lookup("llvm")
    workload = Workload(case.operator)
    config = space_of(workload.prim_func(), target).seeds[0]
    with Database(tmp_path / "warm.db") as database:
        for trial in (
            Trial("direct", config, Status.OK, (1e-9,)),
            Trial("direct", config, Status.TIMEOUT, message="no reply"),
        ):
            key, params = workload.key, workload.params
            database.add(key, "gemm", params, target.fingerprint, trial)
        assert compare._again(case, database, target) is None


def test_a_warm_start_and_its_database_need_each_other(tmp_path: Path) -> None:
    warm = other_shapes(tmp_path / "warm.db")
    with pytest.raises(InputError, match="need each other"):
        run(tmp_path, "random/warm")
    with pytest.raises(InputError, match="need each other"):
        run(tmp_path, "random", warm=warm)
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path, "random/warm", warm=tmp_path / "none.db")
    with pytest.raises(InputError, match="warm the next search"):
        run(tmp_path, "random/warm", warm=warm, db=warm)
    with Database(tmp_path / "empty.db"):
        pass
    with pytest.raises(InputError, match="no trial on"):
        run(tmp_path, "random/warm", warm=tmp_path / "empty.db")


def traced(variant: str, *times: float | None, seed: int = 0) -> dict[str, Any]:
    trace = [(float(i), t) for i, t in enumerate(times, 1)]
    return {"case": "toy/G", "variant": variant, "seed": seed, "trace": trace}


def test_shares_are_of_the_best_that_any_run_found() -> None:
    slow, fast = traced("a", None, 4.0, 2.0), traced("b", 1.0)
    best = curves.best_known([slow, fast])
    assert best == {"toy/G": 1.0}
    rows = curves.progress(slow, 1.0)
    assert rows == [(1.0, 0.0), (2.0, 0.25), (3.0, 0.5)]
    assert curves.reached(rows, 0.5) == (3, 3.0)
    assert curves.reached(rows, 0.9) is None


def test_bands_are_of_seeds_within_workloads() -> None:
    rng = np.random.default_rng(0)
    groups = [level + 0.1 * rng.random((9, 3)) for level in (0.2, 0.5, 0.8)]
    middle, low, high = curves.band(groups)
    assert np.all((low <= middle) & (middle <= high))
    assert np.all((low > 0.5) & (high < 0.6))  # workloads differ by more, and are not drawn anew
    single = curves.band([g[:1] for g in groups])
    assert np.array_equal(single[1], single[2])


def page(*runs: dict[str, Any]) -> str:
    data = {"runs": runs, "machine": {"device": "a machine"}, "command": "compare", "date": "today"}
    return compare_page.markdown(data)


def test_a_start_is_judged_by_its_first_trials() -> None:
    cold = [traced("annealing", *[4.0] * 9, 1.0, seed=s) for s in range(2)]
    warm = [traced("annealing/warm", 2.0, 1.02, *[3.0] * 8, seed=s) for s in range(2)]
    found = page(*cold, *warm)
    assert "| toy/G | 25%, 25%, 100%; 10 trials | 50%, 98%, 98%; 2 trials |" in found
    assert "| 95% within 8 trials | 0% | 100% |" in found
    assert "| 95% within 16 trials | 100% | 100% |" in found
    assert "What a start is worth" not in page(*cold)
    assert "## What a part is worth" not in found  # a start is no part that is left out


def test_an_ablation_is_against_the_same_seed_of_the_whole() -> None:
    whole = [traced("annealing", t, seed=s) for s, t in enumerate((1.0, 4.0))]
    without = [traced("annealing/no-model", 2 * t, seed=s) for s, t in enumerate((1.0, 4.0))]
    alone = traced("random/no-seeds", 1.0)
    found = page(*whole, *without, alone, traced("p-method", 2.0), traced("q-method", 1.0))
    assert "| annealing, no model | 0.500 | 0.500 to 0.500 |" in found
    assert "| q-method, no Q-network | 0.500 | 0.500 to 0.500 |" in found
    assert "random, no seeds" not in found
    assert "## What a part is worth" not in page(*whole)
