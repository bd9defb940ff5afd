"""The search on synthetic landscapes, and the seams of explorers and cost models."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from flextensor import cost_models, explorers
from flextensor.answers import FunctionMeasurer
from flextensor.errors import InputError
from flextensor.explorers import policies
from flextensor.explorers.q_method import QMethod
from flextensor.measure import Candidate
from flextensor.schedulers.space import Space, choice, sizes
from flextensor.search import Budget, Lane, Options, Search
from flextensor.targets import Status, Trial
from flextensor.testing import CostModelCase, ExplorerCase, bowl, bowl_space

SPACE = bowl_space()


def seconds(candidate: Candidate) -> float:
    return bowl(SPACE, SPACE.point(candidate.config))


def search(
    explorer: str,
    model: str,
    trials: int,
    fn: Callable[[Candidate], float | Trial] = seconds,
) -> Search:
    lane = Lane("direct", SPACE, explorer, model, 0)
    run = Search([lane], FunctionMeasurer(fn), Budget(trials, math.inf), lambda phase: None)
    run.run({})
    return run


class TestExplorers(ExplorerCase):
    @pytest.fixture(params=explorers.names())
    def create(self, request: pytest.FixtureRequest) -> Callable[..., explorers.Explorer]:
        return functools.partial(explorers.create, request.param)


class TestCostModels(CostModelCase):
    @pytest.fixture(params=cost_models.names())
    def create(self, request: pytest.FixtureRequest) -> Callable[..., cost_models.CostModel]:
        return functools.partial(cost_models.create, request.param)


def test_the_default_search_comes_near_the_optimum() -> None:
    assert search("flextensor", "xgboost", 160).best < 1.1e-3


def test_the_default_explorer_looks_around_the_best_when_nothing_was_gained() -> None:
    explorer = explorers.create("flextensor", SPACE, np.random.default_rng(0))
    best, *others = SPACE.sample(np.random.default_rng(1), 3)
    explorer.tell([best, *others], [1.0, 2.0, 3.0])  # seeds, which nobody asked for
    near = set(SPACE.neighbours(best))

    def told(seconds: float) -> set[tuple[int, ...]]:
        asked = explorer.ask(64)
        explorer.tell(asked[:2], [seconds] * 2)
        return set(asked)

    assert not told(5.0) <= near
    assert told(5.0) <= near  # after a round without a gain
    assert not told(5.0) <= near  # and not twice
    assert told(0.5) <= near
    assert not told(0.2) <= near  # gained: as before


def explored(name: str, seed: int) -> float:
    """Seconds of the best of 200 points that an explorer asks for, without a model."""
    explorer, best = explorers.create(name, SPACE, np.random.default_rng(seed)), math.inf
    for _ in range(25):
        points = explorer.ask(8)
        times = [bowl(SPACE, p) for p in points]
        explorer.tell(points, times)
        best = min(best, *times)
    return best


@pytest.mark.parametrize("explorer", sorted(set(explorers.names()) - {"random"}))
def test_explorers_beat_chance(explorer: str) -> None:
    found, chance = ([explored(name, s) for s in range(5)] for name in (explorer, "random"))
    assert np.median(found) < np.median(chance)


def test_a_policy_is_saved_and_starts_another_search(tmp_path: Path) -> None:
    first = QMethod(SPACE, np.random.default_rng(0))
    for _ in range(12):
        points = first.ask(8)
        first.tell(points, [bowl(SPACE, p) for p in points])
    path = tmp_path / "policies.pt"
    assert policies.start([first], path) == 0  # there is none yet
    policies.keep([first], path)
    second = QMethod(SPACE, np.random.default_rng(1))
    assert second.weights == {}
    other = QMethod(dataclasses.replace(SPACE, knobs=SPACE.knobs[:3]), np.random.default_rng(0))
    assert policies.start([second, other, explorers.create("random", SPACE, second.rng)], path) == 1
    points = SPACE.sample(np.random.default_rng(2), 16)
    assert second.values(points) == first.values(points)

    asked = other.ask(8)
    other.tell(asked, [1e-3 * (1 + n) for n in range(8)])
    for point in [p for p in asked for p in other.space.neighbours(p)][:8]:
        other.tell([point], [1e-3])
    policies.keep([other], path)  # beside those of the first
    assert policies.start([second, other], path) == 2

    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="not saved policies"):
        policies.start([second], tmp_path / "junk.pt")
    with pytest.raises(InputError, match="cannot write"):
        policies.keep([first], tmp_path / "absent" / "policies.pt")


def test_the_q_method_takes_one_direction_from_each_start() -> None:
    explorer = QMethod(SPACE, np.random.default_rng(0))
    known = SPACE.sample(np.random.default_rng(1), 3)
    explorer.tell(known, [1e-3, 1.1e-3, 1.2e-3])
    asked = explorer.ask(256)
    assert 1 <= len(asked) <= 3
    assert all(any(p in SPACE.neighbours(start) for start in known) for p in asked)


def lowering(seed: int) -> float:
    """The share of points with k0 = 16, far above its best 5, where Q-method would lower k0."""
    explorer = QMethod(SPACE, np.random.default_rng(seed))
    for _ in range(40):
        points = explorer.ask(8)
        explorer.tell(points, [bowl(SPACE, p) for p in points])
    far = [(15, *p[1:]) for p in SPACE.sample(np.random.default_rng(5), 64)]
    return float(np.mean([row[0] > row[1] for row in explorer.values(far)]))


def test_the_network_learns_which_way_is_good() -> None:
    assert np.median([lowering(seed) for seed in range(5)]) > 0.9


def test_the_budget_of_trials_is_kept() -> None:
    assert search("random", "none", 20).trials == 20


def test_failures_are_trials_and_never_win() -> None:
    def fails(candidate: Candidate) -> float | Trial:
        if candidate.config["order"] == "b":
            return Trial("direct", candidate.config, Status.RUN_ERROR, message="SIGSEGV")
        return seconds(candidate)

    run = search("flextensor", "xgboost", 96, fails)
    assert math.isfinite(run.best)


def test_the_learned_model_ranks_what_it_never_saw() -> None:
    member = cost_models.create("xgboost", SPACE)
    points = SPACE.sample(np.random.default_rng(0), 400)
    times = np.array([bowl(SPACE, p) for p in points])
    member.fit(points[:300], times[:300].tolist())
    scores = np.array(member.predict(points[300:]))
    first, second = (np.argsort(np.argsort(v)) for v in (scores, times[300:]))
    assert np.corrcoef(first, second)[0, 1] > 0.7


def test_the_learned_model_ranks_by_what_another_shape_taught() -> None:
    """A space with other extents, of which nothing was measured."""
    member = cost_models.create("xgboost", SPACE)
    knobs = (*(sizes(f"k{i}", range(1, 13)) for i in range(4)), choice("order", ("b", "a")))
    other = Space(knobs)
    theirs = other.sample(np.random.default_rng(0), 300)
    member.recall(other, theirs, [bowl(other, p) for p in theirs])
    points = SPACE.sample(np.random.default_rng(1), 100)
    points = [p for p in points if max(p[:4]) < 12]
    times = np.array([bowl(SPACE, p) for p in points])
    scores = np.array(member.predict(points))
    first, second = (np.argsort(np.argsort(v)) for v in (scores, times))
    assert np.corrcoef(first, second)[0, 1] > 0.7


@pytest.mark.parametrize("create", [lambda: explorers.create("anealing", SPACE,
    np.random.default_rng(0)), lambda: cost_models.create("xgbost", SPACE)])  # fmt: skip
def test_an_unknown_name_gets_the_nearest_ones(create: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="did you mean"):
        create()


@pytest.mark.parametrize("explorer", ["flextensor", "q-method"])
def test_same_seed_same_proposals_in_a_fresh_process(explorer: str) -> None:
    code = (
        "import numpy as np; from flextensor import explorers;"
        "from flextensor.schedulers.space import Space, sizes;"
        "s = Space(tuple(sizes(f'k{i}', range(1, 17)) for i in range(4)));"
        f"e = explorers.create('{explorer}', s, np.random.default_rng(3));"
        "p = e.ask(8); e.tell(p, [1.0 + i for i in range(8)]); print(p, e.ask(8))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_batch_is_no_longer_than_the_time_left() -> None:
    now, sizes = [0.0], []

    class Slow(FunctionMeasurer):
        """A candidate takes three seconds."""

        def measure(
            self, candidates: Sequence[Candidate], best_seconds: float = math.inf
        ) -> list[Trial]:
            now[0] += 3.0 * len(candidates)
            sizes.append(len(candidates))
            return super().measure(candidates, best_seconds)

    lane = Lane("bowl", bowl_space(), "random", "none", 0)
    options = Options(seeds=False, first=2)
    budget = Budget(1000, 32.0, 0.0, lambda: now[0])
    Search([lane], Slow(seconds), budget, lambda phase: None, options).run({})
    assert sizes[:2] == [2, 6]  # the first batch in two, since nothing was known of it
    assert now[0] <= 32.0 + 3.0


def seeded(count: int) -> Space:
    """The space of the landscape, with so many seeds."""
    points = SPACE.sample(np.random.default_rng(0), count)
    return dataclasses.replace(SPACE, seeds=tuple(map(SPACE.config, points)))


def test_a_few_seeds_are_measured_however_late_it_is() -> None:
    lane = Lane("direct", seeded(20), "random", "none", 0)
    budget = Budget(1000, 1e-9)
    run = Search([lane], FunctionMeasurer(seconds), budget, lambda phase: None, Options(first=2))
    run.run({})
    assert (run.trials, run.stopped) == (2, "time spent")
    assert math.isfinite(run.best)


def test_while_no_seed_works_the_others_are_measured() -> None:
    def fails_at_first(candidate: Candidate) -> float | Trial:
        tried.append(candidate)
        if len(tried) > 2:
            return seconds(candidate)
        return Trial(candidate.formulation, candidate.config, Status.BUILD_ERROR, message="no")

    tried: list[Candidate] = []
    lane = Lane("direct", seeded(20), "random", "none", 0)
    options = Options(patience=0, finish=False, first=2)
    measurer, budget = FunctionMeasurer(fails_at_first), Budget(1000, math.inf)
    Search([lane], measurer, budget, lambda phase: None, options).run({})
    assert len(tried) == 16


def test_while_nothing_works_every_formulation_has_rounds() -> None:
    def fails(candidate: Candidate) -> Trial:
        return Trial(candidate.formulation, candidate.config, Status.BUILD_ERROR, message="no")

    found = [Lane(name, SPACE, "random", "none", 0) for name in ("direct", "other")]
    budget, options = Budget(200, math.inf), Options(patience=100, seeds=False, finish=False)
    run = Search(found, FunctionMeasurer(fails), budget, lambda phase: None, options)
    run.run({})
    assert len(found[1].history) >= 3 * options.batch  # its seeds, and one round of four


@pytest.mark.parametrize(
    ("guided", "counts_wanted"),
    [
        ((), (16, 8, 2)),
        (("fast", "near", "far"), (4, 2, 2)),
        (("near",), (16, 2, 2)),  # what no other shape guides begins with the scheduler's picks
    ],
)
def test_a_slow_formulation_gets_few_seeds(
    guided: tuple[str, ...], counts_wanted: tuple[int, ...]
) -> None:
    slower = {"fast": 1.0, "near": 1.8, "far": 3.0}
    counts = dict.fromkeys(slower, 0)

    def even(candidate: Candidate) -> float:
        counts[candidate.formulation] += 1
        return slower[candidate.formulation] * 1e-3

    space = seeded(20)
    lanes = [Lane(name, space, "random", "none", 0) for name in slower]
    options = Options(patience=0, finish=False, first=2)
    budget = Budget(1000, math.inf)
    hint = space.config(space.sample(np.random.default_rng(1), 1)[0])
    hints = {name: [hint] for name in guided}
    run = Search(lanes, FunctionMeasurer(even), budget, lambda phase: None, options)
    run.run(hints)
    assert tuple(counts.values()) == counts_wanted


def test_formulations_take_turns_with_their_first_seeds() -> None:
    """Where a trial of one takes the whole budget, the others were tried too."""
    tried: list[str] = []

    def log(candidate: Candidate) -> float:
        tried.append(candidate.formulation)
        return 1e-3

    lanes = [Lane(name, seeded(20), "random", "none", 0) for name in ("a", "b", "c")]
    options = Options(patience=0, finish=False, first=2)
    Search(lanes, FunctionMeasurer(log), Budget(5, math.inf), lambda phase: None, options).run({})
    assert tried == ["a", "b", "c", "a", "b"]


def test_a_hint_of_a_cpu_with_more_registers_begins_nearby() -> None:
    """Its tile has no room here; of those a knob away the search takes what the model likes."""
    knobs = (sizes("rows", (1, 2, 4, 8, 12)), sizes("vectors", (1, 2, 4)))
    small = Space(
        knobs,
        (lambda c: "crowded" if int(c["rows"]) * int(c["vectors"]) > 8 else None,),
        features=lambda c: {"estimate": 1.0 / (int(c["rows"]) * int(c["vectors"]))},
    )
    lane = Lane("direct", small, "annealing", "analytic", 0)
    (first,) = lane.seeds([{"rows": 12, "vectors": 2}])
    assert small.config(first) == {"rows": 4, "vectors": 2}


def test_hints_and_picks_take_turns_and_a_hopeless_hint_waits() -> None:
    """A neighbour's config of which the model expects twice the time here is no early seed."""
    knob = sizes("tile", range(1, 9))
    rated = Space(
        (knob,),
        seeds=({"tile": 8}, {"tile": 6}),
        features=lambda c: {"estimate": 9.0 - int(c["tile"])},
    )
    lane = Lane("direct", rated, "annealing", "analytic", 0)
    order = [rated.config(p)["tile"] for p in lane.seeds([{"tile": 1}, {"tile": 7}])]
    assert order == [8, 7, 6, 1]
    rated = dataclasses.replace(rated, features=lambda c: {"estimate": 20.0 - int(c["tile"])})
    lane = Lane("direct", rated, "annealing", "analytic", 0)
    order = [rated.config(p)["tile"] for p in lane.seeds([{"tile": 5}, {"tile": 7}])]
    assert order == [5, 8, 7, 6]
