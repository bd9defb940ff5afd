"""`tune_all()`: several workloads tuned within one budget, which goes where most is gained."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flextensor.builders import Builders
from flextensor.database import Database
from flextensor.errors import InputError, check_positive, check_whole
from flextensor.known import kept
from flextensor.operators.workload import Workload
from flextensor.result import Result, as_target, as_workload, opened, roofline
from flextensor.search import Budget
from flextensor.shares import AllInterrupted, Outcome, Shares
from flextensor.targets import Target
from flextensor.tuner import Progress, Tuning, check_names, efforts, options

OPEN = 0.1
"""The share that is open at least: data in a cache may be faster than the roof."""


@dataclasses.dataclass
class Slice(Budget):
    """The budget of one of several workloads: its clock runs in its turns only."""

    held: float | None = 0.0
    over: bool = False
    """Whether no other round is to come, for want of time."""

    @property
    def elapsed(self) -> float:
        """Seconds of all turns."""
        return time.monotonic() - self.start if self.held is None else self.held

    @property
    def late(self) -> bool:
        """Who shares the total keeps the time of the finish."""
        return self.over

    @contextlib.contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """Let the clock run, for so many seconds more."""
        spent = self.elapsed
        self.start, self.held, self.seconds = time.monotonic() - spent, None, spent + seconds
        try:
            yield
        finally:
            self.held = time.monotonic() - self.start


class TuningJob:
    """One workload's tuning as a job of `Shares`; see `flextensor.shares.Job`."""

    def __init__(
        self, tuning: Tuning, budget: Slice, weight: float, opening: Callable[[Tuning], Any]
    ) -> None:
        self.tuning, self.budget, self.weight = tuning, budget, weight
        self._opening, self._stack = opening, contextlib.ExitStack()
        self._stopped = False

    @property
    def seconds(self) -> float:
        """Time of all its turns."""
        return self.budget.elapsed

    @property
    def best(self) -> float:
        """Seconds per call so far."""
        return self.tuning.search.best

    @property
    def open(self) -> float:
        """What the best is away from its roof."""
        search, workload = self.tuning.search, self.tuning.workload
        first = min(search.lanes, key=lambda lane: lane.best)
        share, _ = roofline(workload, self.tuning.target, first.best, first.name)
        return max(1 - share, OPEN)

    def begin(self, seconds: float) -> None:
        """Make the spaces, measure the seeds."""
        with self.budget.turn(seconds):
            starts = self._stack.enter_context(self._opening(self.tuning))
            self.tuning.search.begin(starts)

    def step(self, seconds: float) -> bool:
        """A round of the search."""
        with self.budget.turn(seconds):
            self._stopped = not self.tuning.search.step()
            return not self._stopped

    def finish(self, seconds: float) -> None:
        """Coordinate descent around the best."""
        self.budget.over = not self._stopped
        with self.budget.turn(seconds):
            self.tuning.search.end()

    def end(self) -> Result:
        """Verify, keep; "turns" says that `tuning_seconds` were not in one piece."""
        self.tuning.ended["turns"] = True
        with self.budget.turn(math.inf):
            return self.tuning.end()

    def partial(self) -> Result | None:
        """The best so far; None where the workload had no turn yet."""
        return self.tuning.partial() if hasattr(self.tuning, "measurer") else None

    def rest(self) -> None:
        """Stop its runner; inputs and the reference stay on disk."""
        if hasattr(self.tuning, "measurer"):
            self.tuning.measurer.rest()

    def close(self) -> None:
        """Stop its processes, remove its files."""
        self._stack.close()


def tune_all(
    workloads: Sequence[Any],
    *,
    total: float,
    weights: Sequence[float] | None = None,
    target: str | Target = "llvm",
    threads: int | None = None,
    trials: int | None = None,
    effort: str = "default",
    explorer: str = "flextensor",
    cost_model: str = "xgboost",
    seed: int = 0,
    db: Database | str | Path | None = None,
    fresh: bool = False,
    peers: bool = True,
    tolerance: float = 1e-4,
    prepacked: bool = False,
    measure: str | None = None,
    progress: Callable[[int, Progress], None] | None = None,
    done: Callable[[int, Outcome], object] | None = None,
) -> list[Outcome]:
    """Tune several workloads within `total` seconds; their results in order.

    The seconds go where they gain most of the sum of weight x seconds per call: `weights` say how
    often each workload is called (once). Every workload gets its seeds, and the time to verify
    what was found is part of the total (less than about ten seconds for each are exceeded). One
    that cannot be tuned has its `DeviceError` or `InputError` in its place. Workloads that
    are the same are tuned once. `trials` bounds each, as in `tune`, whose other arguments mean the
    same here. `progress` and `done` get the place of the workload. Raises `InputError`,
    `DatabaseError`, and `AllInterrupted` on Ctrl-C.
    """
    check_positive("total", total)
    check_positive("trials", trials)
    check_whole("trials", trials, 1)
    check_whole("seed", seed, 0)
    check_positive("tolerance", tolerance)
    check_names(effort, explorer, cost_model)
    times = [1.0] * len(workloads) if weights is None else list(weights)
    if len(times) != len(workloads):
        raise InputError(f"{len(workloads)} workloads need as many weights, got {len(times)}")
    for weight in times:
        check_positive("a weight", weight)
    device = as_target(target, threads, measure)
    made: dict[int, Workload] = {}
    places: dict[str, list[int]] = {}
    found: dict[int, Outcome] = {}

    def told_of(place: int, outcome: Outcome) -> None:
        found[place] = outcome
        if done is not None:
            done(place, outcome)

    def ended(first: int, outcome: Outcome) -> None:
        for place in places[made[first].key]:
            told_of(place, outcome)

    for place, what in enumerate(workloads):
        try:
            made[place] = as_workload(what, prepacked)
        except InputError as error:
            told_of(place, error)
        else:
            places.setdefault(made[place].key, []).append(place)
    with opened(db) as database, Builders(device) as builders:
        firsts: list[int] = []
        for first, *_ in places.values():
            known = None if fresh else kept(made[first], device, database, trials, tolerance)
            if known is not None:
                ended(first, known)
            else:
                firsts.append(first)
        chosen = efforts(device)[effort]

        def opening(tuning: Tuning) -> Any:
            parts = options(chosen, device)
            return tuning.open(explorer, cost_model, seed, fresh, parts, builders)

        def job(first: int) -> TuningJob:
            def told(p: Progress) -> None:
                if progress is not None:
                    progress(first, _of_all(p, shares))

            workload: Workload = made[first]
            budget = Slice(trials or chosen.trials, math.inf)
            tuning = Tuning(workload, device, database, budget, tolerance, peers, told)
            weight = sum(times[place] for place in places[workload.key])
            return TuningJob(tuning, budget, weight, opening)

        shares = Shares(
            [job(first) for first in firsts], total, lambda n, outcome: ended(firsts[n], outcome)
        )
        try:
            shares.run()
        except AllInterrupted as stop:
            for first, outcome in zip(firsts, stop.results, strict=True):
                for place in places[made[first].key]:
                    if outcome is not None:
                        found[place] = outcome
            raise AllInterrupted([found.get(place) for place in range(len(times))]) from None
    return [found[place] for place in range(len(times))]


def _of_all(p: Progress, shares: Shares) -> Progress:
    """Progress of one workload, with the time of all."""
    phase = f"{p.phase} ({len(shares.running)} of {len(shares.jobs)} workloads open)"
    return dataclasses.replace(
        p, budget_trials=None, seconds=shares.elapsed, budget_seconds=shares.total, phase=phase
    )
