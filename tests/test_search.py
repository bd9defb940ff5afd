"""The search on synthetic landscapes, and the seams of explorers and cost models."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from flextensor import cost_models, explorers
from flextensor.errors import InputError
from flextensor.measure import Candidate, FunctionMeasurer
from flextensor.schedulers.space import Space, choice, sizes
from flextensor.search import Budget, Lane, Search
from flextensor.targets import Status, Trial


def space() -> Space:
    knobs = (*(sizes(f"k{i}", range(1, 17)) for i in range(4)), choice("order", ("a", "b")))
    return Space(knobs, seeds=({"k0": 1, "k1": 1, "k2": 1, "k3": 1, "order": "b"},))


def bowl(candidate: Candidate) -> float:
    """One optimum of 1 ms at k = 5, 6, 7, 8, order a."""
    gaps = [math.log2(int(candidate.config[f"k{i}"]) / (5 + i)) for i in range(4)]
    return 1e-3 * (1 + sum(g * g for g in gaps)) * (1 if candidate.config["order"] == "a" else 1.5)


def search(
    explorer: str, model: str, trials: int, fn: Callable[[Candidate], float | Trial] = bowl
) -> Search:
    lane = Lane("direct", space(), explorer, model, 0)
    run = Search([lane], FunctionMeasurer(fn), Budget(trials, 60.0), lambda phase: None)
    run.run({})
    return run


@pytest.mark.parametrize("explorer", explorers.names())
def test_explorers_propose_fresh_legal_distinct_points(explorer: str) -> None:
    member = explorers.create(explorer, space(), np.random.default_rng(0))
    seen: set[tuple[int, ...]] = set()
    for _ in range(5):
        points = member.ask(16)
        assert len(points) == len(set(points)) == 16
        assert not seen & set(points)
        assert all(space().legal(p) for p in points)
        seen |= set(points)
        member.tell(points, [bowl(Candidate("", space().config(p))) for p in points])


@pytest.mark.parametrize("explorer", explorers.names())
def test_explorers_end_when_everything_was_told(explorer: str) -> None:
    tiny = Space((sizes("a", (1, 2)), sizes("b", (1, 2))))
    member = explorers.create(explorer, tiny, np.random.default_rng(0))
    points = member.ask(10)
    member.tell(points, [math.inf] * len(points))
    assert len(points) == 4
    assert member.ask(10) == []


def test_the_default_search_comes_near_the_optimum() -> None:
    assert search("annealing", "xgboost", 160).best < 1.1e-3


def test_the_budget_of_trials_is_kept() -> None:
    assert search("random", "none", 20).trials == 20


def test_failures_are_trials_and_never_win() -> None:
    def fails(candidate: Candidate) -> float | Trial:
        if candidate.config["order"] == "b":
            return Trial("direct", candidate.config, Status.RUN_ERROR, message="SIGSEGV")
        return bowl(candidate)

    run = search("annealing", "xgboost", 96, fails)
    assert math.isfinite(run.best)


@pytest.mark.parametrize("model", cost_models.names())
def test_cost_models_score_every_point(model: str) -> None:
    member = cost_models.create(model, space())
    points = space().sample(np.random.default_rng(0), 64)
    seconds = [bowl(Candidate("", space().config(p))) for p in points]
    member.fit(points, [*seconds[:-1], math.inf])
    scores = member.predict(points)
    assert len(scores) == 64
    assert all(math.isfinite(s) for s in scores)


def test_the_learned_model_ranks_what_it_never_saw() -> None:
    member = cost_models.create("xgboost", space())
    points = space().sample(np.random.default_rng(0), 400)
    seconds = np.array([bowl(Candidate("", space().config(p))) for p in points])
    member.fit(points[:300], seconds[:300].tolist())
    scores = np.array(member.predict(points[300:]))
    first, second = (np.argsort(np.argsort(v)) for v in (scores, seconds[300:]))
    assert np.corrcoef(first, second)[0, 1] > 0.7


@pytest.mark.parametrize("create", [lambda: explorers.create("anealing", space(),
    np.random.default_rng(0)), lambda: cost_models.create("xgbost", space())])  # fmt: skip
def test_an_unknown_name_gets_the_nearest_ones(create: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="did you mean"):
        create()


def test_same_seed_same_proposals_in_a_fresh_process() -> None:
    code = (
        "import numpy as np; from flextensor import explorers;"
        "from flextensor.schedulers.space import Space, sizes;"
        "s = Space(tuple(sizes(f'k{i}', range(1, 17)) for i in range(4)));"
        "e = explorers.create('annealing', s, np.random.default_rng(3));"
        "p = e.ask(8); e.tell(p, [1.0 + i for i in range(8)]); print(p, e.ask(8))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
