"""convergence: what it reads from a database, and what its page says of known searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flextensor import convergence
from flextensor.database import Database
from flextensor.targets import Status, Trial, lookup

HERE = lookup("llvm").fingerprint


def trial(tile: int, seconds: float | None) -> Trial:
    if seconds is None:
        return Trial("direct", {"tile": tile}, Status.RUN_ERROR, message="it crashed")
    return Trial("direct", {"tile": tile}, Status.OK, (seconds,), error=1e-7)


def searched(
    path: Path, clock: Any, n: int, *times: float | None, result: bool = True, turns: bool = False
) -> str:
    """A search of a second a trial, kept as `tune` keeps it; the workload's key."""
    key = f"gemm(m={n}, n={n}, k={n})"
    with Database(path) as database:
        for tile, seconds in enumerate(times):
            clock.now += 1
            params = {"m": n, "n": n, "k": n}
            database.add(key, "gemm", params, HERE, trial(tile, seconds))
        if result:
            clock.now += 1
            spent = {"build": 0.5, "run": 0.3, "search": 0.2}
            values: dict[str, Any] = {"tuning_seconds": len(times) + 1.0, "shares": spent}
            values |= {"turns": True} if turns else {}
            database.add_result(key, HERE, values)
    return key


class Clock:
    now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("flextensor.database.time", made)
    return made


def test_the_first_search_of_every_workload_is_read_with_its_wall_time(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "t.db"
    first = searched(path, clock, 8, 4.0, None, 2.0)
    searched(path, clock, 8, 1.0)  # later, and warm: no part of the first
    searched(path, clock, 9, 1.0, result=False)  # killed before it ended
    searched(path, clock, 10, 1.0, turns=True)  # beside others
    with Database(path) as database:
        (run,) = convergence.searches(database.everything(), HERE)
        best = convergence.best_known(database.everything(), HERE)
        assert convergence.searches(database.everything(), "elsewhere") == []
        (later,) = convergence.searches(database.everything(), HERE, newest=True)
    assert run["case"] == first and run["operator"] == "gemm"
    assert run["trace"] == [(1.0, 4.0), (2.0, None), (3.0, 2.0)]
    assert later["case"] == first and later["trace"] == [(1.0, 1.0)]
    assert best[first] == 1.0


def test_a_search_has_its_own_trials_alone(tmp_path: Path, clock: Clock) -> None:
    """Two at the same time on one database: by what the trials say of themselves."""
    key, params = "gemm(m=8, n=8, k=8)", {"m": 8, "n": 8, "k": 8}
    with Database(tmp_path / "t.db") as database:
        for tile, session in enumerate(("one", "other", "one")):
            clock.now += 1
            database.add(key, "gemm", params, HERE, trial(tile, 1.0 + tile), session=session)
        database.add_result(key, HERE, {"tuning_seconds": 3.0, "session": "one"})
        (run,) = convergence.searches(database.everything(), HERE)
    assert [seconds for _, seconds in run["trace"]] == [1.0, 3.0]


def test_what_was_refuted_was_never_the_best(tmp_path: Path, clock: Clock) -> None:
    key, path = "gemm(m=8, n=8, k=8)", tmp_path / "t.db"
    searched(path, clock, 8, 4.0, 1.0, 2.0, 3.0, result=False)
    with Database(path) as database:
        for found in (
            Trial("direct", {"tile": 1}, Status.WRONG_RESULT, message="far"),
            trial(3, 5.0),
        ):
            clock.now += 1
            database.add(key, "gemm", {"m": 8, "n": 8, "k": 8}, HERE, found)
        database.add_result(key, HERE, {"tuning_seconds": 6.0})
        (run,) = convergence.searches(database.everything(), HERE)
        assert convergence.best_known(database.everything(), HERE) == {key: 2.0}
    assert [seconds for _, seconds in run["trace"]] == [4.0, None, 2.0, 3.0, None, 5.0]


def test_a_result_beside_peers_is_no_other_search(tmp_path: Path, clock: Clock) -> None:
    key = "gemm(m=8, n=8, k=8)"
    with Database(tmp_path / "t.db") as database:
        for session, seconds in (("one", 2.0), ("two", 1.0), ("two", None)):
            clock.now += 10
            if seconds:
                found = trial(0, seconds)
                database.add(key, "gemm", {"m": 8, "n": 8, "k": 8}, HERE, found, session=session)
            database.add_result(key, HERE, {"tuning_seconds": 3.0, "session": session})
        (run,) = convergence.searches(database.everything(), HERE, newest=True)
    assert [seconds for _, seconds in run["trace"]] == [1.0]


def test_a_search_overtakes_when_it_has_a_kernel_as_fast() -> None:
    run = {"case": "g", "trace": [(1.0, None), (2.0, 4.0), (3.0, 1.5), (4.0, 1.0)]}
    assert [convergence.overtakes(run, r) for r in (0.9, 1.0, 1.5, 2.0, 9.0)] == [
        None, 4.0, 3.0, 3.0, 2.0,
    ]  # fmt: skip


def main(*arguments: object) -> int:
    return convergence.main([str(a) for a in arguments])


def test_the_page_counts_the_searches_that_met_an_aim(tmp_path: Path, clock: Clock) -> None:
    own, other = tmp_path / "own.db", tmp_path / "other.db"
    searched(own, clock, 8, 1.0, *[1.0] * 9)  # at once
    searched(own, clock, 16, *[2.0] * 19, 1.0)  # after 20 trials and seconds
    searched(own, clock, 32, *[2.0] * 39, 1.0)  # after 40: too late but for 99 %
    searched(own, clock, 64, 2.0, 1.0)  # of what is known elsewhere, half
    searched(other, clock, 64, 0.5, result=False)
    assert main(own, "--beside", other, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| gemm |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["gemm", "4", "50%", "100%"]
    assert cells[6:] == ["25%", "50%", "75%"]
    assert "build 50%, run 30%, search 20%" in page
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert len(data["runs"]) == 4 and min(data["best"].values()) == 0.5
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_a_search_that_went_on_where_another_was_killed_is_left_out(
    tmp_path: Path, clock: Clock
) -> None:
    path, key, params = tmp_path / "t.db", "gemm(m=8, n=8, k=8)", {"m": 8, "n": 8, "k": 8}
    searched(path, clock, 16, 2.0, 1.0)
    with Database(path) as database:
        for tile, session in enumerate(("killed", "killed", "second", "second")):
            clock.now += 10
            database.add(key, "gemm", params, HERE, trial(tile, 2.0 - tile / 8), session=session)
        found = trial(3, None)  # of a schedule that it has: no trial more in its result
        database.add(key, "gemm", params, HERE, found, session="second")
        values = {"tuning_seconds": 15.0, "session": "second", "trials": 4}
        database.add_result(key, HERE, values)
        known = {
            run["case"]: run["known"] for run in convergence.searches(database.everything(), HERE)
        }
    assert known == {"gemm(m=16, n=16, k=16)": 0, key: 2}
    assert main(path, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "1 workloads, one search each" in page
    assert "Left out, for they went on from an earlier run's trials: 1." in page
    (run,) = json.loads((tmp_path / "out" / "data.json").read_text())["runs"]
    assert run["case"] == "gemm(m=16, n=16, k=16)"


def test_without_a_search_there_is_one_line(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path / "none.db", "--out", tmp_path) == 2
    searched(tmp_path / "t.db", clock, 8, 1.0, result=False)
    assert main(tmp_path / "t.db", "--out", tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "none.db: no such database" in lines[0] and "no finished search" in lines[1]
