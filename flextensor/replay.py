"""Replay: searches whose trials are answered by a table of measured ones, without the device.

A space has millions of points and a table hundreds. What does a point outside the table answer?
Two ways are known. The space may be cut down to the table (Kernel Tuner's simulation does so,
with tables that are complete): then every proposal is one of some hundred points that another
search chose, nearly all of them good, and an explorer's neighbourhoods are gone. Or a surrogate
that was fitted to the table answers (NAS-Bench-301; Eggensperger et al., AAAI 2015). A replay does
the latter: a point of the table gives its own median, every other one the mean of a Gaussian
process over the table, in log2 seconds, Matern 3/2 over the knobs' steps, its length and noise by
the likelihood. It has neither the analytic estimate nor the features that the cost model of a
search learns from, and is no trees: a search gets nothing for being built like the landscape.

A point outside fails with the probability of failures near it in the table. Whether it does is
fixed for each point, the same for every search.

What that is worth is said by `Accuracy`, by cross-validation, and by how many answers came from
the table. What no surrogate mends: it is smoother than a device; no answer is faster than the
fastest measured point of the formulation (the process is cut off there), so that a search that
would find a better kernel gets no credit for it; that point is the luckiest of many measured ones,
and the last per cent to it are its noise; where the table has few points, answers are near their
mean; and who collected the table chose where it has many, so that it is best collected by several
explorers, uniform draws without a model among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.answers import Answers
from flextensor.database import Database
from flextensor.errors import InputError, UnsupportedError
from flextensor.measure import Candidate, OnTrial, ignore
from flextensor.ranking import spearman
from flextensor.schedulers.space import Point, Space
from flextensor.targets import Status, Target, Trial

if TYPE_CHECKING:
    import numpy as np

    from flextensor.operators.suites import Case
    from flextensor.operators.workload import Workload

    Array = np.ndarray[Any, np.dtype[np.float64]]

FEWEST = 32
"""Points that worked, below which a formulation is left out: nothing can be learned from fewer."""
NEAREST = 8
"""Points of the table that say whether another one fails."""
FOLDS = 5
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernel, times the root of the number of dimensions."""
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Variance of a measured point, as a share of the table's."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What a table knows of points that it has not seen, by cross-validation."""

    points: int
    failures: int
    spearman: float
    """Rank correlation of held-out seconds and what the rest of the table answers for them."""
    fast: float
    """The same among the faster half, where searches spend their time."""
    factor: float
    """Median of how far an answer is from the held-out seconds, up or down: 1.1 is 10 %."""


class Process:
    """A Gaussian process through (rows, values), which goes back to their mean far from all."""

    def __init__(self, rows: Array, values: Array) -> None:
        import numpy as np

        self._rows = rows
        self._mean, self._scale = float(values.mean()), float(values.std()) or 1.0
        wanted = (values - self._mean) / self._scale
        likeliest = -math.inf
        for length in LENGTHS:
            kernel = matern(rows, rows, length)
            for noise in NOISES:
                lower = np.linalg.cholesky(kernel + noise * np.eye(len(rows)))
                white = np.linalg.solve(lower, wanted)
                fit = -0.5 * len(rows) * math.log(max(float(white @ white), 1e-12) / len(rows))
                likelihood = fit - float(np.log(np.diag(lower)).sum())
                if likelihood > likeliest:
                    likeliest, self.length = likelihood, length
                    self._weights = np.linalg.solve(lower.T, white)

    def predict(self, rows: Array) -> Array:
        """The expected values of rows."""
        near = matern(rows, self._rows, self.length)
        found: Array = self._mean + self._scale * (near @ self._weights)
        return found


def matern(rows: Array, others: Array, length: float) -> Array:
    """Matern 3/2 of the distances of all rows to all others; `length` is one of `LENGTHS`."""
    import numpy as np

    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1)[None, :] - 2 * rows @ others.T
    wide = length * math.sqrt(max(rows.shape[1], 1))
    gaps = math.sqrt(3) / wide * np.sqrt(np.maximum(squares, 0.0))
    kernel: Array = (1 + gaps) * np.exp(-gaps)
    return kernel


class Table:
    """The measured points of one formulation, and what every other point answers."""

    def __init__(self, space: Space, trials: Sequence[Trial]) -> None:
        self.space = space
        points: dict[Point, list[Trial]] = {}
        for trial in trials:
            if space.has(trial.config):
                point = space.representative(space.point(trial.config))
                points.setdefault(point, []).append(trial)
        self.seconds = {p: statistics.median(t.seconds for t in own) for p, own in points.items()}
        self.costs = {
            p: (
                statistics.fmean(t.build_seconds for t in own),
                statistics.fmean(t.run_seconds for t in own),
            )
            for p, own in points.items()
        }
        """Seconds that a point took to build, and to run."""
        self.worked = [p for p, s in self.seconds.items() if math.isfinite(s)]

    @cached_property
    def cost(self) -> tuple[float, float]:
        """Mean seconds to build and to run a point: what one outside the table takes."""
        builds, runs = zip(*self.costs.values(), strict=True)
        return statistics.fmean(builds), statistics.fmean(runs)

    @cached_property
    def fastest(self) -> float:
        """Seconds of the fastest point."""
        return min(self.seconds.values())

    @cached_property
    def _scales(self) -> tuple[Array, Array]:
        """Mean and spread of every number of an encoded point; a knob that the table never turned
        has a small spread, so that to turn it leads far from what is known."""
        import numpy as np

        codes = np.array([self.space.encode(p) for p in self.seconds])
        return codes.mean(0), np.maximum(codes.std(0), 0.1)

    def _rows(self, points: Sequence[Point]) -> Array:
        import numpy as np

        middle, spread = self._scales
        rows: Array = (np.array([self.space.encode(p) for p in points]) - middle) / spread
        return rows

    @cached_property
    def _logs(self) -> Array:
        import numpy as np

        logs: Array = np.log2([self.seconds[p] for p in self.worked])
        return logs

    @cached_property
    def _process(self) -> Process:
        return Process(self._rows(self.worked), self._logs)

    def answer(self, point: Point) -> float:
        """Median seconds per call of a point, infinite for a failure."""
        known = self.seconds.get(point)
        if known is not None:
            return known
        row = self._rows([point])
        if _chance(point) < self._failing(row):
            return math.inf
        seconds = 2.0 ** float(self._process.predict(row)[0])
        # the digits below differ between libraries of linear algebra
        return max(float(f"{seconds:.6g}"), self.fastest)

    @cached_property
    def _failures(self) -> tuple[Array, Array]:
        """Every point as a row, and 1 for each that failed."""
        import numpy as np

        failed = np.array([float(not math.isfinite(s)) for s in self.seconds.values()])
        return self._rows(list(self.seconds)), failed

    def _failing(self, row: Array) -> float:
        """Probability that a point fails: the share among the nearest, a little of the table's."""
        import numpy as np

        rows, failed = self._failures
        nearest = np.argsort(((rows - row) ** 2).sum(1), kind="stable")[:NEAREST]
        return float((failed[nearest].sum() + failed.mean()) / (len(nearest) + 1))

    @cached_property
    def accuracy(self) -> Accuracy:
        """The cross-validated worth of the answers; folds are drawn once and for all."""
        import numpy as np

        rows, logs = self._rows(self.worked), self._logs
        folds = np.random.default_rng(0).permutation(len(rows)) % FOLDS
        guesses = np.empty(len(rows))
        for fold in range(FOLDS):
            rest = folds != fold
            guesses[~rest] = Process(rows[rest], logs[rest]).predict(rows[~rest])
        fast = logs <= np.median(logs)
        return Accuracy(
            len(self.seconds),
            len(self.seconds) - len(self.worked),
            spearman(guesses, logs),
            spearman(guesses[fast], logs[fast]),
            float(2 ** np.median(np.abs(guesses - logs))),
        )


class Landscape:
    """The tables of a workload: one for every formulation of which enough is known."""

    def __init__(self, spaces: Mapping[str, Space], trials: Sequence[Trial]) -> None:
        every = {
            name: Table(space, [t for t in trials if t.formulation == name])
            for name, space in spaces.items()
        }
        self.tables = {name: t for name, t in every.items() if len(t.worked) >= FEWEST}
        self.left_out = {n: len(t.worked) for n, t in every.items() if n not in self.tables}
        """Points that worked, of formulations that no search is offered."""

    @property
    def fastest(self) -> float:
        """Seconds of the fastest point of any formulation."""
        return min(table.fastest for table in self.tables.values())

    def describe(self) -> dict[str, Any]:
        """How far it can be trusted, as JSON values."""
        tables = {
            name: {
                **dataclasses.asdict(table.accuracy),
                "build_seconds": table.cost[0],
                "run_seconds": table.cost[1],
            }
            for name, table in self.tables.items()
        }
        return {"fastest": self.fastest, "tables": tables, "left_out": self.left_out}


class Replay(Answers):
    """Measures by a landscape, on a clock of its own.

    The clock has the seconds that the table says of building (by `builders` at a time) and of
    running, and none for the search itself: its own time is this machine's, and not in the table.
    """

    def __init__(self, landscape: Landscape, builders: int = 1, on_trial: OnTrial = ignore) -> None:
        super().__init__(on_trial)
        self.landscape, self.builders = landscape, max(builders, 1)
        self.recorded = 0
        """Answers that were measured points of a table."""
        self._now = 0.0

    def clock(self) -> float:
        """Seconds that building and running took so far."""
        return self._now

    def measure(
        self, candidates: Sequence[Candidate], best_seconds: float = math.inf
    ) -> list[Trial]:
        """What the tables say of every candidate, in order."""
        trials = [self._trial(candidate) for candidate in candidates]
        builds = [trial.build_seconds for trial in trials]
        self._now += max(sum(builds) / self.builders, max(builds, default=0.0))
        for trial in trials:
            self._now += trial.run_seconds
            self.on_trial(trial)
        return trials

    def _trial(self, candidate: Candidate) -> Trial:
        table = self.landscape.tables[candidate.formulation]
        point = table.space.representative(table.space.point(candidate.config))
        self.recorded += point in table.seconds
        seconds = table.answer(point)
        build, run = table.costs.get(point, table.cost)
        worked = math.isfinite(seconds)
        return Trial(
            candidate.formulation,
            candidate.config,
            Status.OK if worked else Status.RUN_ERROR,
            (seconds,) if worked else (),
            "" if worked else "failed in the table, or as its neighbours there",
            build_seconds=build,
            run_seconds=run,
        )


def landscapes_of(path: Path, cases: Sequence[Case], target: Target) -> dict[str, Landscape]:
    """The landscape of every case, by its name, from the trials of a database on a target.

    `InputError` for a case of which the database has too few trials there.
    """
    from flextensor.operators import Workload

    if not path.exists():
        raise InputError(f"--replay {path}: no such file")
    found = {}
    with Database(path, readonly=True) as database:
        for case in cases:
            workload = Workload(case.operator)
            trials = database.trials(workload.key, target.fingerprint)
            found[case.full_name] = Landscape(spaces_of(workload, target), trials)
            if not found[case.full_name].tables:
                raise InputError(
                    f"{path}: {len(trials)} trials of {case.full_name} on {target.device}, and a"
                    f" replay needs {FEWEST} points of a formulation that worked; measure some"
                    f" with flextensor compare --db {path}"
                )
    return found


def spaces_of(workload: Workload, target: Target) -> dict[str, Space]:
    """The space of every formulation that the target's schedulers take."""
    from flextensor.schedulers import space

    found = {}
    for name in workload.formulations:
        with contextlib.suppress(UnsupportedError):
            found[name] = space(workload.prim_func(name), target)
    return found


def _chance(point: Point) -> float:
    """A number in [0, 1) that looks random and is the same for a point in every process."""
    digest = hashlib.sha256(repr(tuple(map(int, point))).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
