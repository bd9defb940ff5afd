"""The models that stand beside the search's own: what they learn, and the table of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from flextensor import evaluation
from flextensor import evaluation_objectives as objectives
from flextensor.cost_models import CostModel
from flextensor.cost_models.ensemble import Ensemble
from flextensor.cost_models.learned import Learned
from flextensor.cost_models.ranked import Ranked
from flextensor.errors import InputError
from flextensor.evaluation_objectives import Lessons
from flextensor.ranking import spearman
from flextensor.testing import bowl, bowl_space

SPACE = bowl_space()
POINTS = SPACE.sample(np.random.default_rng(0), 160)
SECONDS = [bowl(SPACE, p) for p in POINTS]


@pytest.mark.parametrize("create", objectives.MODELS.values(), ids=list(objectives.MODELS))
def test_every_model_ranks_what_it_never_saw(create: Callable[..., CostModel]) -> None:
    model = create(SPACE)
    model.fit(POINTS[:120], SECONDS[:120])
    assert spearman(model.rank(POINTS[120:]), SECONDS[120:]) > 0.7


@pytest.mark.parametrize("create", [Learned, Ranked])
def test_no_points_of_two_shapes_are_compared(create: Callable[..., CostModel]) -> None:
    """Another shape is 1000 times as slow: that says nothing of its schedules."""
    scores, levels = [], []
    for slower in (1.0, 1000.0):
        model = create(SPACE)
        for points, times in ((POINTS[:60], 1.0), (POINTS[60:120], slower)):
            model.recall(SPACE, points, [times * bowl(SPACE, p) for p in points])
        scores.append(model.rank(POINTS[120:]))
        levels.append(np.mean(model.predict(POINTS[120:])))
    assert spearman(scores[0], SECONDS[120:]) > 0.7
    if create is Learned:  # it tells times, half of what it knows is of a slower host
        scores = [list(np.subtract(s, level)) for s, level in zip(scores, levels, strict=True)]
        assert levels[1] - levels[0] == pytest.approx(math.log2(1000) / 2, rel=1e-4)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_a_shape_without_estimates_does_not_move_the_guess_of_times() -> None:
    """Of a space that gives no estimate, the whole logarithm of its times is left to learn."""
    guesses = []
    for strange in (0, 1):
        model = Learned(SPACE)
        model.study([({"a": float(i)}, -11.0 + i / 8) for i in range(8 * strange)])
        for level in (0.1, 0.2, 0.3):
            model.study([({"a": float(i)}, level + i / 8) for i in range(8)])
        guesses.append(model.predict(POINTS[:1])[0])
    assert guesses[1] == pytest.approx(guesses[0], abs=0.5)


def test_a_bold_ensemble_prefers_what_its_members_disagree_on() -> None:
    model = Ensemble(SPACE)
    model.fit(POINTS[:40], SECONDS[:40])
    spread = np.std([m.predict(POINTS[40:]) for m in model.members], axis=0)
    difference = np.array(model.predict(POINTS[40:])) - np.array(model.rank(POINTS[40:]))
    assert difference == pytest.approx(spread) and spread.max() > 0


def test_a_chip_of_which_nothing_is_shipped_is_said() -> None:
    with pytest.raises(InputError, match=r"no trials of skylake are shipped; .*znver3"):
        evaluation.main(["out", "skylake"])


def test_only_points_that_were_not_learned_are_ranked() -> None:
    asked: list[int] = []

    def score(guesses: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
        asked.append(len(seconds))
        return evaluation.score(guesses, seconds)

    near = [(SPACE, POINTS[:60], SECONDS[:60])]
    found = objectives.judged(SPACE, POINTS, SECONDS, Lessons([], near), score, 0)
    assert set(asked) == {len(POINTS) - objectives.OWN_POINTS}
    assert set(found) == {"before", "after"} and set(found["after"]) == set(objectives.MODELS)
    rows = [{"objectives": found}, {}]
    lines = objectives.table(rows)
    assert len([line for line in lines if line.startswith("| ")]) == 2 + len(objectives.MODELS)
    assert objectives.table([{}]) == []
