"""The search loop: seeds, explorer, cost model, measurement, until the budget is spent.

    seeds -> explorer.ask -> legality -> cost model ranks a large draft -> measure -> tell -> repeat
    -> coordinate descent around the best

Every arrow is a seam that a test replaces by a fake.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flextensor import builders, cost_models, explorers
from flextensor.cost_models import Example
from flextensor.errors import IllegalConfigError
from flextensor.measure import Candidate, Measurer
from flextensor.operators.workload import Workload
from flextensor.schedulers.space import Point, Space
from flextensor.targets import Target, Trial

BATCH = 8
"""Candidates built and measured together: a builder has one each, but the model learns between
two batches, so that they stay small."""
DRAFT = 256
"""Points that the cost model ranks for one batch."""
SEEDS = ((2, math.inf), (8, 2.0), (16, 1.5))
"""Instalments of a formulation's seeds: how many it has after each, and how many times slower than
the best of all it may be to get it. Where a trial takes a second, a batch for each formulation is
the budget. The first instalment has one for every builder, if these are more."""
GUIDED = ((2, math.inf), (4, 1.5))
"""The same where other shapes' configs of the formulation are among them: a model that other shapes
taught proposes better ones than what follows."""
HOPEFUL = math.log2(1.5)
"""How much slower than the best start another shape's config may be, by the model, to be an early
one (log2)."""
FINISH = 0.1
"""Share of the budget that is kept for coordinate descent."""


class Effort(NamedTuple):
    """How long to search, where a user names neither trials nor seconds."""

    trials: int
    seconds: float
    patience: int
    """Trials without a gain of 1 % after which the search stops."""


EFFORTS = {
    "quick": Effort(64, 15.0, 32),
    "default": Effort(192, 60.0, 48),
    "full": Effort(1024, 600.0, 256),
}
MODEL_EFFORTS = {
    "quick": Effort(512, 10.0, 256),
    "default": Effort(2048, 25.0, 512),
    "full": Effort(16384, 240.0, 2048),
}
"""The same where a model answers, in no time."""


@dataclasses.dataclass
class Budget:
    """Trials in all (those already in the database count) and seconds of this run."""

    trials: int
    seconds: float
    start: float = dataclasses.field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    """Seconds from any moment; a replay has its own."""

    @classmethod
    def of(cls, effort: Effort, trials: int | None, seconds: float | None) -> Budget:
        """What a user asked for, the rest from the effort; trials alone take their time."""
        return cls(trials or effort.trials, seconds or (math.inf if trials else effort.seconds))

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.start

    @property
    def late(self) -> bool:
        """Whether what is left of the seconds is for the finish."""
        return self.elapsed >= (1 - FINISH) * self.seconds


class Lane:
    """One formulation under search: its space, explorer, model and history."""

    def __init__(self, name: str, space: Space, explorer: str, model: str, seed: int) -> None:
        self.name, self.space = name, space
        rng = np.random.default_rng([seed, *name.encode()])
        self.explorer = explorers.create(explorer, space, rng)
        self.model = cost_models.create(model, space, seed)
        self.history: dict[Point, float] = {}
        self.exhausted = False

    @property
    def best(self) -> float:
        """Best seconds so far."""
        return min(self.history.values(), default=math.inf)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in trials of this formulation; those of another version's space are left out."""
        points, seconds = [], []
        for trial in trials:
            try:
                point = self.space.point(trial.config)
            except IllegalConfigError:
                continue
            points.append(self.space.representative(point))
            seconds.append(trial.seconds)
        self.history.update(zip(points, seconds, strict=True))
        self.explorer.tell(points, seconds)
        if points:
            self.model.fit(list(self.history), list(self.history.values()))

    def study(self, examples: Sequence[Example]) -> None:
        """Let the model learn from other operators."""
        self.model.study(examples)

    def recall(self, space: Space, trials: Sequence[Trial]) -> None:
        """Let the model learn from trials of another shape."""
        points = [space.point(trial.config) for trial in trials]
        self.model.recall(space, points, [trial.seconds for trial in trials])

    def seeds(self, hints: Sequence[Mapping[str, object]]) -> list[Point]:
        """Legal starts: configs of neighbours, each at the nearest legal point that the model likes
        best, in turns with all others, best by the model first: the schedulers' picks, and
        neighbours' of which it expects little here."""
        near = [self.space.legal_nearby(self.space.project(dict(hint))) for hint in hints]
        warm = [self._ranked(points)[0] for points in near if points]
        picks = [self.space.point(seed) for seed in self.space.seeds]
        picks = [p for p in picks if self.space.legal(p)]
        hopeful = self.promise(warm + picks) + HOPEFUL
        taken = [p for p in warm if self.promise([p]) <= hopeful]
        rest = self._ranked([p for p in warm + picks if p not in taken])
        legal = [p for turn in itertools.zip_longest(taken, rest) for p in turn if p is not None]
        starts = dict.fromkeys(map(self.space.representative, legal))
        return [p for p in starts if p not in self.history]

    def promise(self, points: Sequence[Point]) -> float:
        """The best score that the model sees among points; the most promising lane goes first."""
        return min(self.model.predict(points), default=math.inf)

    def propose(self, count: int) -> list[Point]:
        """The explorer's draft, best by the model first."""
        draft = self.explorer.ask(DRAFT)
        self.exhausted = not draft
        return self._ranked(draft)[:count]

    def around(self, count: int) -> list[Point]:
        """Neighbours of the best point that were not measured yet, best by the model first."""
        start = min(self.history, key=lambda p: self.history[p])
        fresh = [p for p in self.space.neighbours(start) if p not in self.history]
        return self._ranked(fresh)[:count]

    def _ranked(self, points: Sequence[Point]) -> list[Point]:
        scores = self.model.rank(points)
        return [points[i] for i in np.argsort(scores, kind="stable")]


def lanes(
    workload: Workload,
    target: Target,
    explorer: str,
    model: str,
    seed: int,
    tolerance: float = 1e-4,
) -> list[Lane]:
    """A lane for every formulation of `flextensor.schedulers.spaces`."""
    from flextensor.schedulers import spaces

    found = spaces(workload, target, tolerance)
    return [Lane(name, own, explorer, model, seed) for name, own in found.items()]


Report = Callable[[str], None]
Hints = Mapping[str, Sequence[Mapping[str, object]]]
"""Configs of other shapes by formulation."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Parts of the search that an experiment leaves out."""

    seeds: bool = True
    """Begin with the schedulers' picks, and not with what the explorer asks for."""
    finish: bool = True
    """End with coordinate descent."""
    patience: float = EFFORTS["default"].patience
    """Trials without a gain of 1 % after which the search stops."""
    batch: int = BATCH
    """Candidates built and measured together."""
    first: int = BATCH
    """The same before it is known what one takes."""


def batch_of(target: Target) -> int:
    """The batch that keeps the host's builders of a target busy."""
    return min(max(BATCH, target.builders), builders.MOST)


class Search:
    """Searches the formulations of one workload together, the best one most of the time."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        measurer: Measurer,
        budget: Budget,
        report: Report,
        options: Options | None = None,
    ) -> None:
        self.lanes, self.measurer, self.budget, self.report = lanes, measurer, budget, report
        self.options = options or Options()
        self.since_gain = 0
        self._reason = ""
        self.rounds = 0
        self.exhausted = False
        self._each: float | None = None

    @property
    def trials(self) -> int:
        """Trials known, those of earlier runs included."""
        return sum(len(lane.history) for lane in self.lanes)

    @property
    def best(self) -> float:
        """Best seconds of any formulation."""
        return min((lane.best for lane in self.lanes), default=math.inf)

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self.trials >= self.budget.trials or self.budget.elapsed >= self.budget.seconds

    @property
    def stopped(self) -> str:
        """Why the search ended, in words."""
        return self._reason or self._why()

    def _why(self) -> str:
        """What would be the reason if the search ended now."""
        if self.exhausted:
            return "every point was measured"
        if self.trials >= (1 - FINISH) * self.budget.trials:
            return "trials spent"
        if self.budget.late:
            return "time spent"
        return f"no gain in {self.since_gain} trials"

    def _starts(self, lane: Lane, hints: Sequence[Mapping[str, object]]) -> list[Point]:
        return lane.seeds(hints) if self.options.seeds else lane.explorer.ask(self.options.batch)

    @property
    def _closing(self) -> bool:
        """Whether what is left of the budget is for the finish."""
        if not self.options.finish:
            return self.spent
        return self.budget.late or self.trials >= (1 - FINISH) * self.budget.trials

    def run(self, hints: Hints) -> None:
        """Seeds of every formulation, then rounds, then coordinate descent around the best."""
        self.begin(hints)
        while self.step():
            pass
        self.end()

    def begin(self, hints: Hints) -> None:
        """Measure the seeds of every formulation."""
        starts = {lane.name: self._starts(lane, hints.get(lane.name, ())) for lane in self.lanes}
        ranked = sorted(self.lanes, key=lambda lane: lane.promise(starts[lane.name]))
        plans = {lane.name: self._instalments(bool(hints.get(lane.name))) for lane in ranked}
        opening = [
            [(lane, point) for point in starts[lane.name][: plans[lane.name][0][1]]]
            for lane in ranked
        ]
        turns = itertools.zip_longest(*opening)  # of all, for one may take as long as the budget
        self._measure([pick for turn in turns for pick in turn if pick is not None], "seeds")
        for turn in range(1, len(SEEDS)):
            for lane in ranked:
                for first, last, slowest in plans[lane.name][turn : turn + 1]:
                    if lane.best <= slowest * self.best:  # all, while nothing works
                        self._measure([(lane, p) for p in starts[lane.name][first:last]], "seeds")
        self.since_gain = 0  # seeds are no search

    def _instalments(self, guided: bool) -> list[tuple[int, int, float]]:
        """The first and the last seed of each instalment, and how slow a formulation may be."""
        found, first = [], 0
        for count, slowest in GUIDED if guided else SEEDS:
            last = max(count, min(self.options.first, BATCH))
            found.append((first, last, slowest))
            first = last
        return found

    def step(self) -> bool:
        """One round, if there is one; whether another may follow."""
        if self._closing or self.since_gain >= self.options.patience:
            return False
        chosen = self._next()
        if chosen is None:
            self.exhausted = True
            return False
        points = chosen.propose(self.options.batch)
        self._measure([(chosen, point) for point in points], "search")
        return True

    def end(self) -> None:
        """Coordinate descent around the best."""
        self._reason = self._why()
        if self.options.finish:
            self._descend()

    def _next(self) -> Lane | None:
        """The best formulation three times out of four, else the others within twice its time."""
        open_lanes = [lane for lane in self.lanes if not lane.exhausted]
        if not open_lanes:
            return None
        self.rounds += 1
        ranked = sorted(open_lanes, key=lambda lane: lane.best)
        near = [lane for lane in ranked[1:] if lane.best <= 2 * ranked[0].best]
        if near and self.rounds % 4 == 0:
            return near[self.rounds // 4 % len(near)]
        return ranked[0]

    def _descend(self) -> None:
        """The neighbours of the best point that promise most, until they give no gain of 1 %."""
        while not self.spent:
            lane = min(self.lanes, key=lambda lane: lane.best)
            if not math.isfinite(lane.best):
                return
            batch, before = self.options.batch, lane.best
            near = [(lane, point) for point in lane.around(2 * batch)]
            for first in range(0, len(near), batch):
                self._measure(near[first : first + batch], "finish")
            if lane.best > 0.99 * before:
                return

    def _measure(self, picks: Sequence[tuple[Lane, Point]], phase: str) -> None:
        """Measure points, as many at a time as there is time for; a few in any case where nothing
        is known, for to begin may take longer than the budget."""
        left = self.budget.trials - self.trials
        waiting = list(picks)[: max(left, 0)]
        while waiting and (not self.trials or self.budget.elapsed < self.budget.seconds):
            count = self._fitting(len(waiting))
            now, waiting = waiting[:count], waiting[count:]
            before, begun = self.best, self.budget.elapsed
            candidates = [Candidate(lane.name, lane.space.config(p)) for lane, p in now]
            trials = self.measurer.measure(candidates, before)
            for lane in dict.fromkeys(lane for lane, _ in now):
                lane.learn([t for t in trials if t.formulation == lane.name])
            self._each = (self.budget.elapsed - begun) / len(now)
            self.since_gain = 0 if self.best < 0.99 * before else self.since_gain + len(now)
            self.report(phase)

    def _fitting(self, most: int) -> int:
        """Candidates that the time left is enough for, by what each of the last ones took; one for
        every builder while that is not known, for a trial may take as long as the budget."""
        if math.isinf(self.budget.seconds):
            return most
        if self._each is None:
            return min(most, self.options.first)
        left = self.budget.seconds - self.budget.elapsed
        return max(1, min(most, int(left / max(self._each, 1e-6))))
