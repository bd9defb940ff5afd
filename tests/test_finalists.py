"""The end of a tuning: what is timed again, when a comparison dies, and what does not verify."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import flextensor
from flextensor import finalists
from flextensor.errors import DeviceError
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.operators import Gemm
from flextensor.targets import Status, Trial, lookup
from flextensor.targets.process import SetupFailed, WorkerDied, WorkerTimeout

KERNELS = {str(way): Candidate("direct", {"way": way}) for way in range(3)}


class Measurer:
    """Compares all but what is broken; counts."""

    def __init__(self, broken: str, error: type[DeviceError] = DeviceError) -> None:
        self.broken, self.error = broken, error
        self.calls: list[list[str]] = []

    def compare(
        self, candidates: Mapping[str, Candidate], peers: Sequence[str] = ()
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        self.calls.append([*candidates, *peers])
        if self.broken in self.calls[-1]:
            raise self.error("worker died: SIGSEGV")
        return {name: [1.0] for name in self.calls[-1]}, {}


def in_turns(measurer: Any) -> tuple[dict[str, list[float]], dict[str, str]]:
    times, missing, failed = finalists.in_turns(measurer, KERNELS, ["torch"])
    assert set(failed) == set(KERNELS) - set(times)
    return times, missing


def test_what_works_is_compared_once() -> None:
    measurer = Measurer("nothing")
    assert set(in_turns(measurer)[0]) == {"0", "1", "2", "torch"} and len(measurer.calls) == 1


@pytest.mark.parametrize("broken, left", [("torch", {"0", "1", "2"}), ("1", {"0", "2"})])
def test_one_that_dies_in_a_comparison_takes_no_other_with_it(broken: str, left: set[str]) -> None:
    times, missing = in_turns(Measurer(broken))
    assert set(times) == left
    assert missing == {"torch": "a comparison failed: worker died: SIGSEGV"}


def test_a_machine_that_is_gone_is_no_fault_of_a_kernel() -> None:
    with pytest.raises(SetupFailed):
        in_turns(Measurer("torch", SetupFailed))


def test_a_schedule_is_known_by_its_latest_trial() -> None:
    slow = Trial("direct", {"a": 1, "b": 2}, Status.OK, (2.0,))
    fast = Trial("direct", {"b": 2, "a": 1}, Status.OK, (1.0,))
    other = Trial("winograd2", {"a": 1, "b": 2}, Status.OK, (3.0,))
    assert finalists.once([slow, other, fast]) == [fast, other]


def test_a_program_is_ranked_once_whatever_the_number_of_its_configs() -> None:
    ran = Trial("direct", {"way": 0}, Status.OK, (2.0,))
    twins = [ran.as_twin("direct", {"way": way}, 0.1) for way in (1, 2)]
    other = Trial("direct", {"way": 3}, Status.OK, (3.0,))
    stranger = Trial("direct", {"way": 4}, Status.OK, (4.0,)).as_twin("direct", {"way": 5}, 0.1)
    ranked = finalists.ranked([twins[0], stranger, other, ran, twins[1]])
    assert ranked == [ran, other, stranger]  # what is not known to have run stays


def test_what_is_refuted_is_so_with_every_config_of_its_program() -> None:
    ran = Trial("direct", {"way": 0}, Status.OK, (2.0, 2.5), "", 1e-7)
    twin, other = ran.as_twin("direct", {"way": 1}, 0.1), Trial("direct", {}, Status.OK, (2.0, 2.4))
    stranger = other.as_twin("direct", {"way": 2}, 0.1)
    now = Trial("direct", {"way": 0}, Status.WRONG_RESULT, (), "far", 0.5)
    found = finalists.revoked(ran, now, [twin, other, ran, stranger])
    assert found == [now, now.as_twin("direct", {"way": 1}, 0.1)]


def rejecting(monkeypatch: pytest.MonkeyPatch, count: int, error: float) -> list[Candidate]:
    """Let the first so many kernels that are verified have an error; all that are, in turn."""
    verify, asked = LocalMeasurer.verify, list[Candidate]()

    def reject(measurer: LocalMeasurer, candidate: Candidate) -> float:
        asked.append(candidate)
        return error if len(asked) <= count else verify(measurer, candidate)

    monkeypatch.setattr(LocalMeasurer, "verify", reject)
    return asked


@pytest.mark.parametrize("rejected", (3, 99))
def test_kernels_that_do_not_verify_leave_their_place_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rejected: int
) -> None:
    asked, gemm = rejecting(monkeypatch, rejected, 1.0), Gemm(m=37, n=53, k=29)
    if rejected == 3:
        values = flextensor.tune(gemm, trials=8, db=tmp_path / "t.db", peers=False).json()
        assert values["verified"] and values["config"] == asked[-1].config and len(asked) == 4
    else:
        with pytest.raises(DeviceError, match="none of . kernels verified"):
            flextensor.tune(gemm, trials=8, db=tmp_path / "t.db", peers=False)
        assert 4 <= len(asked) <= 8


@pytest.mark.parametrize("again", ["compare", "verify"])
@pytest.mark.parametrize(
    "error, status",
    [(WorkerDied("worker died: SIGSEGV"), "run_error"), (WorkerTimeout("no reply"), "timeout")],
)
def test_a_kernel_that_fails_when_it_runs_again_is_a_failure_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str, error: DeviceError, status: str
) -> None:
    action, asked = getattr(LocalMeasurer, again), list[Candidate]()

    def fails(measurer: LocalMeasurer, what: Any, *given: Any) -> Any:
        first = what if again == "verify" else next(iter(what.values()))
        asked.append(first)
        if first == asked[0]:
            raise error
        return action(measurer, what, *given)

    monkeypatch.setattr(LocalMeasurer, again, fails)
    db, gemm = tmp_path / "t.db", Gemm(m=24, n=24, k=24)
    result = flextensor.tune(gemm, trials=6, db=db, peers=False)
    with flextensor.Database(db) as database:
        trials = database.trials(result.workload.key, lookup("llvm").fingerprint)
    first, *twins = [t for t in trials if t.status == status]
    assert first.config == asked[0].config != result.json()["config"]
    assert first.message == str(error) and all(t.twin for t in twins)
    assert result.json()["failures"] == {status: 1 + len(twins)}


@pytest.mark.parametrize("error", [1.0, math.inf])
def test_a_kernel_that_does_not_verify_is_a_wrong_result_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    asked = rejecting(monkeypatch, 1, error)
    db, gemm = tmp_path / "t.db", Gemm(m=24, n=24, k=24)
    result = flextensor.tune(gemm, trials=6, db=db, peers=False)
    values, key = result.json(), result.workload.key
    with flextensor.Database(db) as database:
        trials = database.trials(key, lookup("llvm").fingerprint)
    refuted = [t for t in trials if t.status is Status.WRONG_RESULT]
    assert values["trials"] == 6 and values["failures"] == {"wrong_result": len(refuted)}
    assert refuted[0].config == asked[0].config and len(trials) == 6 + len(refuted)
    (times,) = {t.times for t in trials if t.ok and t.config == asked[0].config}
    twins = [t.config for t in trials if t.twin and t.times == times]
    assert [t.config for t in refuted[1:]] == twins and all(t.twin for t in refuted[1:])
    assert refuted[0].message == f"relative error {error:.3g} exceeds the tolerance 0.0001"
    more = flextensor.tune(gemm, trials=8, db=db, peers=False).json()
    assert more["trials"] == 8
    assert not [c for c in asked[1:] if c.config in [t.config for t in refuted]]


def test_what_took_twice_as_long_is_not_timed_again() -> None:
    trials = [
        Trial("direct", {"way": way}, Status.OK, (seconds,))
        for way, seconds in enumerate([1.0, 1.9, 2.0, 2.5, 5.1, 5.1, 5.1, 5.1])
    ]
    groups = [[t.seconds for t in group] for group in finalists.groups(trials)]
    assert groups == [[1.0, 1.9], [2.0, 2.5], [5.1, 5.1, 5.1], [5.1]]
    assert not list(finalists.groups([]))
    short = [Trial("direct", {"way": n}, Status.OK, (n * 1e-3,)) for n in (1, 3, 4, 6)]
    assert [len(group) for group in finalists.groups(short)] == [3, 1]
