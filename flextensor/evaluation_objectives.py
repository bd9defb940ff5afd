"""What else the cost model could be: trees that are trained to rank, and several trees' opinion.

The cost model of a search is xgboost on the squared error of log2(seconds / estimate). Beside it
stand here, for `flextensor.evaluation` and for no search: the pairwise ranking objective, an
ensemble's mean, and its mean less its spread, which prefers what it is unsure of.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flextensor.cost_models import Example
from flextensor.cost_models.analytic import guess
from flextensor.cost_models.learned import ENOUGH, FOREIGN, OTHERS, OWN, Learned, examples
from flextensor.schedulers.space import Point, Space

MEMBERS = 4
"""Models of an ensemble, which differ by their seed."""
OWN_POINTS = 12
"""Measured points of the shape itself that a model has learned from after its first trials."""
FEWEST = 28
"""Points of a shape, below which too few are left to rank."""


class Ranked(Learned):
    """Trees on top of the estimate that order the points of each shape, by pairs: never points of
    two shapes, whose times say nothing of a schedule."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__(space, seed)
        self._groups: list[tuple[float, list[Example]]] = []

    def study(self, examples: Sequence[Example]) -> None:
        """Learn from one shape of another operator."""
        self._groups.append((FOREIGN, list(examples)))
        self._stale = True

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Learn from another shape's space."""
        described = [space.describe(space.config(p)) for p in points]
        self._groups.append((OTHERS, examples(described, seconds)))
        self._stale = True

    def _train(self) -> None:
        import xgboost

        self._stale = False
        groups = [g for g in [*self._groups, (OWN, self._own)] if g[1]]
        known = [example for _, own in groups for example in own]
        if len(known) < ENOUGH:
            return
        names = dict.fromkeys(name for described, _ in known for name in described)
        self._columns = {name: place for place, name in enumerate(names)}
        estimates = np.array([guess(described) for described, _ in known])
        times = estimates + np.array([rest for _, rest in known])
        data = xgboost.DMatrix(
            self._matrix([described for described, _ in known]),
            label=times.max() - times,  # the more, the faster
            base_margin=-estimates,
            qid=np.repeat(np.arange(len(groups)), [len(own) for _, own in groups]),
            weight=np.array([weight for weight, _ in groups]),
        )
        settings = {
            "objective": "rank:pairwise", "lambdarank_pair_method": "mean",
            "lambdarank_num_pair_per_sample": 8, "max_depth": 5, "eta": 0.2, "lambda": 1.0,
            "subsample": 0.8, "seed": self._seed, "nthread": 1, "verbosity": 0,
        }  # fmt: skip
        self._trees = xgboost.train(settings, data, num_boost_round=60)

    def predict(self, points: Sequence[Point]) -> list[float]:
        """Scores without a unit, lower is faster."""
        if self._stale:
            self._train()
        described = self._described(points)
        estimates = np.array([guess(d) for d in described])
        if self._trees is None:
            return list(map(float, estimates))
        import xgboost

        data = xgboost.DMatrix(self._matrix(described), base_margin=-estimates)
        return [-float(score) for score in self._trees.predict(data)]


class Ensemble:
    """The mean opinion of `MEMBERS` models, less `boldness` times their spread."""

    def __init__(self, space: Space, boldness: float = 0.0) -> None:
        self.members = [Learned(space, seed) for seed in range(MEMBERS)]
        self.boldness = boldness

    def study(self, examples: Sequence[Example]) -> None:
        """Let every member learn from other operators."""
        for member in self.members:
            member.study(examples)

    def recall(self, space: Space, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Let every member learn from another shape's space."""
        for member in self.members:
            member.recall(space, points, seconds)

    def fit(self, points: Sequence[Point], seconds: Sequence[float]) -> None:
        """Let every member learn from points of its own space."""
        for member in self.members:
            member.fit(points, seconds)

    def predict(self, points: Sequence[Point]) -> list[float]:
        """log2 of seconds."""
        said = np.array([member.predict(points) for member in self.members])
        return [float(v) for v in said.mean(0) - self.boldness * said.std(0)]


MODELS: Mapping[str, Callable[[Space], Any]] = {
    "squared error of log time": Learned,
    "pairwise ranking": Ranked,
    f"squared error, mean of {MEMBERS}": Ensemble,
    f"squared error, mean of {MEMBERS} less their spread": lambda space: Ensemble(space, 1.0),
}
"""What is compared; the first is the search's own."""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a model may learn before it ranks a shape, one entry a shape."""

    foreign: Sequence[Sequence[Example]]
    near: Sequence[tuple[Space, Sequence[Point], Sequence[float]]]


def judged(
    space: Space,
    points: Sequence[Point],
    seconds: Sequence[float],
    taught: Lessons,
    score: Callable[[Sequence[float], Sequence[float]], Mapping[str, float]],
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Every model's score and the seconds it took to learn and to rank, by what it has measured
    of the shape: nothing, or `OWN_POINTS`; only points that it has not are ranked."""
    order = np.random.default_rng(seed).permutation(len(points)).tolist()
    own, rest = order[:OWN_POINTS], order[OWN_POINTS:]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for when, learned in (("before", []), ("after", own)):
        found[when] = {}
        for name, create in MODELS.items():
            begun = time.perf_counter()
            model = create(space)
            for lesson in taught.foreign:
                model.study(lesson)
            for shape in taught.near:
                model.recall(*shape)
            if learned:
                model.fit([points[i] for i in learned], [seconds[i] for i in learned])
            guesses = model.predict([points[i] for i in rest])
            spent = time.perf_counter() - begun
            told = score(guesses, [seconds[i] for i in rest])
            found[when][name] = {**told, "seconds": spent}
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section of the page: one row for every model."""
    own = [row["objectives"] for row in rows if row.get("objectives")]
    if not own:
        return []
    lines = [
        "",
        "## Other models",
        "",
        f"{len(own)} of the formulations, those with {FEWEST} points. Each model learns from near"
        f" shapes and other operators without twins, then ranks the shape's points but for"
        f" {OWN_POINTS} at random; first before it has measured any of the shape, then after it has"
        f" learned those {OWN_POINTS} too. Pairs that are ranked are of one shape. s: to learn and"
        " to rank once, on one core, median. The first is what a search uses; in brackets by"
        " how much the others' rho and top 1 differ from its own, means and two standard errors.",
        "",
        f"| model | before: rho, top 1, top 8 | after {OWN_POINTS} trials: rho, top 1, top 8 | s |",
        "| --- | ---: | ---: | ---: |",
    ]
    first, *_ = own[0]["after"]
    for name in own[0]["after"]:
        cells = [cell([row[when][name] for row in own]) for when in ("before", "after")]
        if name != first:
            gains = [_gain(own, when, name, first) for when in ("before", "after")]
            cells = [f"{c} ({gain})" for c, gain in zip(cells, gains, strict=True)]
        spent = statistics.median(row["after"][name]["seconds"] for row in own)
        lines.append(f"| {name} | {' | '.join(cells)} | {spent:.2f} |")
    return lines


def _gain(rows: Sequence[Mapping[str, Any]], when: str, name: str, first: str) -> str:
    """How much better a model's rho and first pick are than the first's, shape by shape."""
    said = []
    for what, label in (("spearman", "rho"), ("top1", "top 1")):
        more = [row[when][name][what] - row[when][first][what] for row in rows]
        error = 2 * statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else 0.0
        said.append(f"{label} {statistics.mean(more):+.3f} ± {error:.3f}")
    return ", ".join(said)


def cell(scores: Sequence[Mapping[str, float]]) -> str:
    """Mean rank correlation; median speeds of the first pick and of the best of eight."""
    if not scores:
        return "-"
    rho = statistics.mean(s["spearman"] for s in scores)
    top1, top8 = (statistics.median(s[t] for s in scores) for t in ("top1", "top8"))
    return f"{rho:.2f}, {top1:.0%}, {top8:.0%}"
