"""Several searches share one budget of seconds: a turn goes where most is expected of it.

    begin every job -> a turn of the job with the largest gain per second -> repeat
    -> end a job when it has nothing left to search, the rest when the seconds are spent

The gain is that of Ansor's task scheduler (OSDI 2020, section 6): what the last turns gained, and
what another such time would gain at most. Every eighth turn goes to the job that waited longest.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flextensor.errors import DeviceError, FlexTensorError, InputError
from flextensor.result import Result
from flextensor.search import FINISH

ROUNDS = 2
"""Rounds of a turn: what a job needs to go on, a process and its data, takes half a round."""
AWAKE = 2
"""Jobs that hold processes."""
MOST_KEPT = 0.75
"""Share of a job's equal part that is kept for its end, however long that takes."""
RECENT = 2
"""Turns of a job whose gain tells what the next one may gain."""
HOPEFUL = 2
"""Turns that a job has first where nothing worked."""
TRUST = 0.5
"""Weight of that gain; the rest is for what is open."""
TURN = 8
"""One turn of so many goes to the job that waited longest."""
ENDING = 3.0
"""Seconds that the verification of a job takes, until one has shown it."""

Outcome = Result | FlexTensorError
"""What became of a workload: its result, or why there is none."""


class Job(Protocol):
    """What has a share: a search that runs in turns, each within so many seconds."""

    weight: float
    """How often the workload is called, beside the others."""

    @property
    def seconds(self) -> float:
        """Time that it took in all its turns."""

    @property
    def best(self) -> float:
        """Seconds per call so far, infinite while nothing worked."""

    @property
    def open(self) -> float:
        """The share of `best` that is not known to be needed, above 0 and at most 1."""

    def begin(self, seconds: float) -> None:
        """Prepare, and measure the seeds."""

    def step(self, seconds: float) -> bool:
        """A round; False where there is none any more."""

    def finish(self, seconds: float) -> None:
        """The last steps of the search."""

    def end(self) -> Result:
        """Verify the best."""

    def partial(self) -> Result | None:
        """The best so far, not timed again."""

    def rest(self) -> None:
        """Hold no process until the next turn."""

    def close(self) -> None:
        """Hold nothing any more."""


class AllInterrupted(Exception):
    """Raised on Ctrl-C, after everything was kept; `results` has what is known of each workload:
    its result, the best so far, an error, or None."""

    def __init__(self, results: Sequence[Outcome | None]) -> None:
        super().__init__("interrupted")
        self.results = results


@dataclasses.dataclass
class Standing:
    """Where a job stands after its turns."""

    index: int
    job: Job
    marks: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """(seconds spent, seconds per call) after the seeds and after every turn."""
    last: int = 0
    """The number of its last turn."""

    def mark(self) -> None:
        """Note what a turn brought."""
        self.marks.append((self.job.seconds, self.job.best))

    @property
    def dry(self) -> int:
        """Turns in a row, the last ones, that gained less than 1 %."""
        count = 0
        for (_, before), (_, after) in zip(self.marks[-2::-1], self.marks[:0:-1], strict=True):
            if after < 0.99 * before:
                break
            count += 1
        return count

    @property
    def gain(self) -> float:
        """Weighted seconds per call that a second of search may gain.

        What a job hopes for is what is open, over the time that it took so far; less with every
        turn that brought nothing. Infinite while nothing works, for `HOPEFUL` turns: there is no
        time to improve yet; then 0.
        """
        spent, best = self.marks[-1]
        if not math.isfinite(best):
            return math.inf if self.dry < HOPEFUL else 0.0
        begun, before = self.marks[max(0, len(self.marks) - 1 - RECENT)]
        known = begun < spent and math.isfinite(before)
        recent = (before - best) / (spent - begun) if known else 0.0
        hoped = best * self.job.open / max(spent, 1e-9) / (1 + self.dry)
        return self.job.weight * (TRUST * recent + (1 - TRUST) * hoped)


class Shares:
    """Runs jobs within `total` seconds, one at a time; `done` hears of each when it ends.

    A job that raises `DeviceError` or `InputError` has that as its outcome, and the others
    go on. Of the total every job has a part kept for its end.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        total: float,
        done: Callable[[int, Outcome], object] = lambda index, outcome: None,
    ) -> None:
        self.total, self.done = total, done
        self.start = time.monotonic()
        self.jobs = jobs
        self.running = [Standing(index, job) for index, job in enumerate(jobs)]
        self.outcomes: list[Outcome | None] = [None] * len(jobs)
        self.turns = 0
        self._awake: list[Job] = []
        self._ends: list[float] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def ending(self) -> float:
        """Seconds that the verification of one job is expected to take."""
        return sum(self._ends) / len(self._ends) if self._ends else ENDING

    @property
    def left(self) -> float:
        """Seconds left for seeds and rounds: all but what is kept for the ends."""
        each = self.total / max(len(self.jobs), 1)
        kept = min(FINISH * each + self.ending, MOST_KEPT * each)
        return self.total - self.elapsed - kept * len(self.running)

    def run(self) -> list[Outcome]:
        """The outcome of every job, in order; `AllInterrupted` on Ctrl-C."""
        try:
            self._begin()
            while self.running and self.left > 0:
                self._turn(self._next())
            while self.running:
                self._end(next((s for s in self.running if s.job in self._awake), self.running[0]))
        except KeyboardInterrupt:
            for standing in self.running:
                self.outcomes[standing.index] = standing.job.partial()
            raise AllInterrupted(self.outcomes) from None
        finally:
            for job in self.jobs:
                job.close()
        return [outcome for outcome in self.outcomes if outcome is not None]

    def _begin(self) -> None:
        """The seeds of every job, each within an equal part of the time that is left."""
        waiting = list(self.running)
        for place, standing in enumerate(waiting):
            self._wake(standing.job)
            try:
                standing.job.begin(max(self.left, 0.0) / (len(waiting) - place))
            except (DeviceError, InputError) as error:
                self._leave(standing, error)
            else:
                standing.mark()

    def _next(self) -> Standing:
        """The job that a second helps most; every so often the one that waited longest."""
        self.turns += 1
        if self.turns % TURN == 0:
            return min(self.running, key=lambda standing: standing.last)
        return max(self.running, key=lambda standing: standing.gain)

    def _turn(self, standing: Standing) -> None:
        self._wake(standing.job)
        standing.last, goes_on = self.turns, True
        try:
            for _ in range(ROUNDS):
                goes_on = goes_on and self.left > 0 and standing.job.step(self.left)
        except (DeviceError, InputError) as error:
            self._leave(standing, error)
            return
        standing.mark()
        if not goes_on:  # or the time is over, and all end
            self._end(standing)

    def _end(self, standing: Standing) -> None:
        """Let a job finish, in its part of what is left, and verify."""
        self._wake(standing.job)
        part = max(self.total - self.elapsed, 0.0) / len(self.running)
        each = self.total / len(self.jobs)
        seconds = max(min(part, FINISH * each + self.ending) - self.ending, 0.0)
        try:
            standing.job.finish(seconds)
            begun = self.elapsed
            outcome: Outcome = standing.job.end()
            self._ends.append(self.elapsed - begun)
        except (DeviceError, InputError) as error:
            outcome = error
        self._leave(standing, outcome)

    def _leave(self, standing: Standing, outcome: Outcome) -> None:
        self.running.remove(standing)
        self._awake.remove(standing.job)
        self.outcomes[standing.index] = outcome
        standing.job.close()
        self.done(standing.index, outcome)

    def _wake(self, job: Job) -> None:
        """Let the jobs rest that had no turn for longest, where too many hold processes."""
        self._awake = [other for other in self._awake if other is not job]
        while len(self._awake) >= AWAKE:
            self._awake.pop(0).rest()
        self._awake.append(job)
