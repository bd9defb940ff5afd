"""tune_all() on this CPU: three tiny workloads in one budget, and one of them twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flextensor
from flextensor.errors import InputError, UnsupportedError
from flextensor.operators import Gemm, Gemv, Operator
from flextensor.result import Result
from flextensor.search import Lane
from flextensor.shares import AllInterrupted
from flextensor.tuner import Progress, Tuning

WORK: list[Operator] = [Gemm(m=37, n=53, k=29), Gemv(m=512, k=512), Gemm(m=8, n=16, k=8)]


def values(outcome: Any) -> dict[str, Any]:
    assert isinstance(outcome, Result)
    return outcome.json()


def test_three_workloads_share_seconds_and_are_verified(tmp_path: Path) -> None:
    db, told, done = tmp_path / "t.db", [], []

    def progress(place: int, p: Progress) -> None:
        told.append((place, p.phase))
        assert p.budget_seconds == 600.0

    found = flextensor.tune_all(
        [*WORK, WORK[0]], total=600.0, trials=12, db=db, peers=False,
        progress=progress, done=lambda place, outcome: done.append(place),
    )  # fmt: skip
    for operator, outcome in zip([*WORK, WORK[0]], found, strict=True):
        assert values(outcome)["workload"] == operator.key()
        assert values(outcome)["verified"] and values(outcome)["trials"] == 12
        assert values(outcome)["stopped"] == "trials spent" and values(outcome)["turns"]
    assert found[0] is found[3]
    assert sorted(done) == [0, 1, 2, 3]
    phases = [phase.partition(" (")[0] for _, phase in told]
    assert phases.index("search") > max(i for i, p in enumerate(phases) if p == "seeds")
    assert phases.count("re-measure") == 3
    assert told[0] == (0, "seeds (3 of 3 workloads open)")
    with flextensor.Database(db) as database:
        assert database.stats().trials == 36
    again = flextensor.tune_all(WORK, total=1.0, db=db)
    assert [values(outcome) for outcome in again] == [
        {**values(outcome), "reused": True} for outcome in found[:3]
    ]


def test_one_that_cannot_be_tuned_does_not_hurt_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Tuning._lanes

    def lanes(self: Tuning, *options: Any) -> list[Lane]:
        if self.workload.operator == WORK[1]:
            raise UnsupportedError("no scheduler takes it")
        return whole(self, *options)

    monkeypatch.setattr(Tuning, "_lanes", lanes)
    db = tmp_path / "t.db"
    first, second, third = flextensor.tune_all(WORK, total=60.0, trials=2, db=db, peers=False)
    assert values(first)["verified"] and values(third)["verified"]
    assert str(second) == "no scheduler takes it"


def test_one_that_makes_no_workload_does_not_hurt_the_others(tmp_path: Path) -> None:
    huge, seen = Gemm(m=2**31 - 1, n=2**31 - 1), []
    work = [huge, WORK[0], WORK[1]]
    none, first, second = flextensor.tune_all(
        work, total=60.0, trials=2, db=tmp_path / "t.db", peers=False, prepacked=True,
        done=lambda place, outcome: seen.append(place),
    )  # fmt: skip
    assert isinstance(none, UnsupportedError) and "GiB, this machine has" in str(none)
    assert values(first)["verified"] and sorted(seen) == [0, 1, 2]
    assert str(second) == "gemv has no weights that could be packed ahead"


def test_ctrl_c_keeps_what_every_workload_has(tmp_path: Path) -> None:
    db = tmp_path / "t.db"

    def interrupt(place: int, p: Progress) -> None:
        if place == 1:
            raise KeyboardInterrupt

    with pytest.raises(AllInterrupted) as stop:
        flextensor.tune_all(WORK, total=60.0, db=db, progress=interrupt)
    first, second, third = stop.value.results
    assert not values(first)["verified"] and not values(second)["verified"]
    assert third is None
    with flextensor.Database(db) as database:
        assert database.stats().trials == values(first)["trials"] + values(second)["trials"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"total": 0.0}, "greater than 0"),
        ({"total": 9.0, "weights": [1.0]}, "as many weights"),
        ({"total": 9.0, "weights": [1.0, -1.0, 1.0]}, "greater than 0"),
        ({"total": 9.0, "explorer": "anealing"}, "did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        flextensor.tune_all(WORK, db=tmp_path / "t.db", **asked)
