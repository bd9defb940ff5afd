"""What else the cost model could be: trees that are trained to rank, and several trees' opinion.

xgboost on the squared error of log2(seconds / estimate), beside trees on the pairwise ranking
objective, an ensemble's mean, and its mean less its spread, which prefers what it is unsure of.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flextensor.cost_models import CostModel, Example
from flextensor.cost_models.ensemble import MEMBERS, Ensemble
from flextensor.cost_models.learned import Learned
from flextensor.cost_models.ranked import Ranked
from flextensor.schedulers.space import Point, Space

OWN_POINTS = 12
"""Measured points of the shape itself that a model has learned from after its first trials."""
FEWEST = 28
"""Points of a shape, below which too few are left to rank."""


MODELS: Mapping[str, Callable[[Space], CostModel]] = {
    "squared error of log time": Learned,
    "pairwise ranking": Ranked,
    f"squared error, mean of {MEMBERS}": functools.partial(Ensemble, boldness=0.0),
    f"squared error, mean of {MEMBERS} less their spread": Ensemble,
}
"""What is compared; the others are held against the first."""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a model may learn before it ranks a shape, one entry a shape."""

    foreign: Sequence[Sequence[Example]]
    near: Sequence[tuple[Space, Sequence[Point], Sequence[float]]]

    def teach(self, model: CostModel) -> CostModel:
        """The model, when it has learned them."""
        for lesson in self.foreign:
            model.study(lesson)
        for shape in self.near:
            model.recall(*shape)
        return model


def judged(
    space: Space,
    points: Sequence[Point],
    seconds: Sequence[float],
    taught: Lessons,
    score: Callable[[Sequence[float], Sequence[float]], Mapping[str, float]],
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Every model's score and the seconds of a core that it took to learn and to rank, by what it
    has measured of the shape: nothing, or `OWN_POINTS`; only points that it has not are ranked."""
    order = np.random.default_rng(seed).permutation(len(points)).tolist()
    own, rest = order[:OWN_POINTS], order[OWN_POINTS:]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for when, learned in (("before", []), ("after", own)):
        found[when] = {}
        for name, create in MODELS.items():
            begun = time.process_time()
            model = taught.teach(create(space))
            if learned:
                model.fit([points[i] for i in learned], [seconds[i] for i in learned])
            guesses = model.rank([points[i] for i in rest])
            spent = time.process_time() - begun
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
        f" shapes and other operators without aliases, then ranks the shape's points but for"
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
