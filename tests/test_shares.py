"""How several searches share seconds, on fakes whose clock is the test's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from flextensor.errors import DeviceError, InputError
from flextensor.result import Result
from flextensor.shares import AWAKE, ROUNDS, TURN, AllInterrupted, Outcome, Shares, Standing

Curve = Callable[[int], float]
"""Seconds per call after so many rounds."""


class Clock:
    """What `time.monotonic` says."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("flextensor.shares.time.monotonic", lambda: made.now)
    return made


class Fake:
    """A job of one second per turn, that gains as a curve says and leaves after `most` rounds."""

    def __init__(
        self, clock: Clock, curve: Curve, *, weight: float = 1.0, most: int = 10**6
    ) -> None:
        self.clock, self.curve, self.weight, self.most = clock, curve, weight, most
        self.seconds, self.rounds, self.open = 0.0, 0, 0.5
        self.awake = self.closed = False

    @property
    def best(self) -> float:
        return min(self.curve(n) for n in range(self.rounds + 1))

    def _spend(self, seconds: float) -> None:
        self.awake = True
        self.clock.now += seconds
        self.seconds += seconds

    def begin(self, seconds: float) -> None:
        self._spend(1.0)

    def step(self, seconds: float) -> bool:
        self._spend(1.0)
        self.rounds += 1
        return self.rounds < self.most

    def finish(self, seconds: float) -> None:
        self._spend(seconds)

    def end(self) -> Result:
        self._spend(2.0)
        return Result({"best_seconds": self.best}, None, None)  # type: ignore[arg-type]

    def partial(self) -> Result | None:
        return self.end() if self.seconds else None

    def rest(self) -> None:
        self.awake = False

    def close(self) -> None:
        self.awake, self.closed = False, True


def flat(n: int) -> float:
    return 1.0


def gaining(n: int) -> float:
    return 1.0 - 0.005 * n


def best(outcomes: Sequence[Outcome | None]) -> list[float | str | None]:
    """The seconds of every outcome, or what went wrong."""

    def said(outcome: Outcome | None) -> float | str | None:
        if isinstance(outcome, Result):
            return float(outcome.values["best_seconds"])
        return None if outcome is None else str(outcome)

    return [said(outcome) for outcome in outcomes]


def test_who_gains_gets_the_rounds_and_none_starves(clock: Clock) -> None:
    jobs = [Fake(clock, flat), Fake(clock, gaining), Fake(clock, flat)]
    assert len(Shares(jobs, 120.0).run()) == 3
    rounds = [job.rounds for job in jobs]
    assert rounds[1] > 2 * max(rounds[0], rounds[2])
    assert min(rounds) >= sum(rounds) // (TURN * len(jobs))


def test_what_gained_once_and_is_stuck_gets_no_more_than_its_turns(clock: Clock) -> None:
    stuck, other = Fake(clock, lambda n: 0.7 ** min(n, 5)), Fake(clock, gaining)
    Shares([stuck, other], 300.0).run()
    turns = (stuck.rounds + other.rounds) / ROUNDS
    assert stuck.rounds <= 5 + 2 * ROUNDS * turns / TURN
    assert stuck.rounds >= 5 + ROUNDS * (turns // TURN - 4)


def test_the_total_is_kept_with_finish_and_verification(clock: Clock) -> None:
    for count, total in ((1, 60.0), (3, 60.0), (5, 400.0)):
        clock.now = 0.0
        jobs = [Fake(clock, gaining) for _ in range(count)]
        Shares(jobs, total).run()
        assert 0.85 * total <= clock.now <= total + 1
        assert all(job.closed for job in jobs)


def test_weights_draw_rounds(clock: Clock) -> None:
    light, heavy = Fake(clock, gaining), Fake(clock, gaining, weight=20.0)
    Shares([light, heavy], 60.0).run()
    assert heavy.rounds > 2 * light.rounds


def test_what_is_through_leaves_its_time_to_the_others(clock: Clock) -> None:
    early, late = Fake(clock, flat, most=2), Fake(clock, gaining)
    told: list[int] = []
    Shares([late, early], 100.0, lambda index, outcome: told.append(index)).run()
    assert told == [1, 0]
    assert early.rounds == 2 and late.rounds > 60


def test_few_jobs_at_a_time_hold_processes(clock: Clock) -> None:
    jobs: list[Fake] = []
    most = []

    def watched(n: int) -> float:
        most.append(sum(job.awake for job in jobs))
        return gaining(n)

    jobs += [Fake(clock, watched) for _ in range(20)]
    Shares(jobs, 400.0).run()
    assert max(most) == AWAKE


class Broken(Fake):
    """Fails in one of its turns."""

    def __init__(self, clock: Clock, where: str, error: type[Exception]) -> None:
        super().__init__(clock, gaining)
        self.error = error
        setattr(self, where, self.fail)

    def fail(self, *_: float) -> bool:
        raise self.error("it broke")


@pytest.mark.parametrize("error", [DeviceError, InputError])
@pytest.mark.parametrize("where", ["begin", "step", "finish", "end"])
def test_an_error_is_the_outcome_of_its_job_alone(
    where: str, error: type[Exception], clock: Clock
) -> None:
    jobs = [Fake(clock, gaining), Broken(clock, where, error), Fake(clock, gaining)]
    first, broken, last = best(Shares(jobs, 60.0).run())
    assert broken == "it broke"
    assert isinstance(first, float) and isinstance(last, float) and max(first, last) < 1
    assert all(job.closed for job in jobs)


def test_ctrl_c_gives_what_each_has_so_far(clock: Clock) -> None:
    def interrupted(n: int) -> float:
        if n > 3:
            raise KeyboardInterrupt
        return 1.0

    done, stopped = Fake(clock, flat, most=1), Fake(clock, interrupted)
    stopped.end = lambda: Result({"best_seconds": 1.0}, None, None)  # type: ignore
    with pytest.raises(AllInterrupted) as stop:
        Shares([done, stopped], 60.0).run()
    assert best(stop.value.results) == [1.0, 1.0]
    assert done.closed and stopped.closed


def test_ctrl_c_during_the_seeds_leaves_nothing_of_those_that_had_no_turn(clock: Clock) -> None:
    class Stopped(Fake):
        def begin(self, seconds: float) -> None:
            raise KeyboardInterrupt

    jobs = [Fake(clock, flat), Stopped(clock, flat), Fake(clock, flat)]
    with pytest.raises(AllInterrupted) as stop:
        Shares(jobs, 60.0).run()
    assert best(stop.value.results) == [1.0, None, None]


def test_what_never_works_does_not_hold_up_the_others(clock: Clock) -> None:
    hopeless, other = Fake(clock, lambda n: math.inf, most=6), Fake(clock, gaining)
    Shares([hopeless, other], 60.0).run()
    assert hopeless.rounds == 6 and other.rounds > 30


def test_there_is_hope_for_two_turns_where_nothing_works(clock: Clock) -> None:
    standing = Standing(0, Fake(clock, flat))
    gains = []
    for second in range(4):
        standing.marks.append((float(second), math.inf))
        gains.append(standing.gain)
    assert gains == [math.inf, math.inf, 0.0, 0.0]
