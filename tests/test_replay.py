"""Replay: what tables answer, how far they can be trusted, and the same traces anywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import compare
from flextensor.compare import Variant
from flextensor.database import Database
from flextensor.errors import InputError
from flextensor.measure import Candidate
from flextensor.operators import Workload
from flextensor.operators.gemm import Gemm
from flextensor.operators.suites import Case
from flextensor.replay import FEWEST, Landscape, Replay, Table
from flextensor.schedulers import space as space_of
from flextensor.schedulers.space import Point, Space
from flextensor.targets import Status, Trial, lookup
from flextensor.testing import bowl, bowl_space

CASES = [Case("toy", "G", Gemm(m=33, n=35, k=37))]
SPACE = bowl_space()


def trial(space: Space, point: Point, seconds: float, build: float = 0.5) -> Trial:
    """A measured point, or a failed one where the seconds are infinite."""
    config = space.config(point)
    if math.isinf(seconds):
        return Trial("direct", config, Status.RUN_ERROR, message="it failed", build_seconds=build)
    return Trial("direct", config, Status.OK, (seconds,), build_seconds=build, run_seconds=seconds)


def drawn(count: int, seed: int = 0, space: Space = SPACE) -> list[Point]:
    return space.sample(np.random.default_rng(seed), count)


def table(points: Sequence[Point], seconds: Callable[[Point], float]) -> Table:
    return Table(SPACE, [trial(SPACE, p, seconds(p)) for p in points])


def test_a_measured_point_answers_with_its_median() -> None:
    point, *others = drawn(40)
    trials = [trial(SPACE, p, bowl(SPACE, p)) for p in others]
    trials += [trial(SPACE, point, s) for s in (3.0, 9.0, 4.0)]
    assert Table(SPACE, trials).answer(point) == 4.0
    failed = [trial(SPACE, point, math.inf) for _ in range(4)]
    assert Table(SPACE, trials + failed).answer(point) == math.inf


def test_other_points_answer_as_their_neighbours_do() -> None:
    known = table(drawn(200), lambda p: bowl(SPACE, p))
    unseen = [p for p in drawn(300, seed=1) if p not in known.seconds]
    ratios = [known.answer(p) / bowl(SPACE, p) for p in unseen]
    assert 0.9 < np.median(ratios) < 1.1
    assert known.accuracy.spearman > 0.9 and known.accuracy.factor < 1.2
    assert known.accuracy.points == 200 and known.accuracy.failures == 0


def test_a_table_of_noise_says_that_it_is_not_to_be_trusted() -> None:
    rng = np.random.default_rng(5)
    noise = table(drawn(200), lambda p: float(2 ** rng.normal()))
    assert abs(noise.accuracy.spearman) < 0.3 and noise.accuracy.factor > 1.3


def test_no_answer_is_faster_than_what_was_measured() -> None:
    slow = [p for p in drawn(300) if bowl(SPACE, p) > 2.5e-3]
    known = table(slow, lambda p: bowl(SPACE, p))
    best = SPACE.point({"k0": 5, "k1": 6, "k2": 7, "k3": 8, "order": "a"})
    assert min(known.answer(p) for p in [best, *drawn(200, seed=2)]) >= known.fastest


def test_points_fail_where_their_neighbours_failed() -> None:
    points, failing = drawn(300), SPACE.knobs[0]

    def low(point: Point) -> bool:
        return int(SPACE.config(point)[failing.name]) <= 4

    known = table(points, lambda p: math.inf if low(p) else bowl(SPACE, p))
    unseen = [p for p in drawn(400, seed=1) if p not in known.seconds]
    failed = {p for p in unseen if math.isinf(known.answer(p))}
    assert failed == {p for p in unseen if math.isinf(known.answer(p))}
    shares = [np.mean([p in failed for p in unseen if low(p) is side]) for side in (True, False)]
    assert shares[0] > 2 * shares[1] > 0
    sound = table(points, lambda p: bowl(SPACE, p))
    assert all(math.isfinite(sound.answer(p)) for p in unseen)


def test_formulations_with_too_few_points_are_left_out() -> None:
    points = drawn(FEWEST + 8)
    trials = [trial(SPACE, p, bowl(SPACE, p)) for p in points]
    other = [Trial("other", t.config, t.status, t.times) for t in trials[: FEWEST - 1]]
    landscape = Landscape({"direct": SPACE, "other": SPACE}, trials + other)
    assert list(landscape.tables) == ["direct"]
    assert landscape.left_out == {"other": FEWEST - 1}
    assert landscape.fastest == min(bowl(SPACE, p) for p in points)


def test_the_clock_has_the_seconds_of_the_table() -> None:
    points = drawn(40)
    trials = [trial(SPACE, p, 0.25, build=4.0) for p in points]
    replay = Replay(Landscape({"direct": SPACE}, trials), builders=2)
    batch = [Candidate("direct", SPACE.config(p)) for p in points[:4]]
    seen: list[float] = []
    replay.on_trial = lambda _: seen.append(replay.clock())
    found = replay.measure(batch)
    assert [t.seconds for t in found] == [0.25] * 4
    assert seen == [8.25, 8.5, 8.75, 9.0]  # built two at a time, run one at a time
    (unseen,) = (p for p in drawn(60, seed=3)[-1:] if p not in points)
    replay.measure([Candidate("direct", SPACE.config(unseen))])
    assert replay.clock() == pytest.approx(9.0 + 4.25)
    assert replay.recorded == 4


def filled(path: Path, count: int = 60, unit: float = 1e-3) -> Path:
    """A database with made-up trials of the workload: some `unit` seconds, from the knobs alone."""
    target, workload = lookup("llvm"), Workload(CASES[0].operator)
    space = space_of(workload.prim_func("direct"), target)
    with Database(path) as database:
        for point in drawn(count, space=space):
            seconds = unit * (1 + sum(space.encode(point)))
            database.add(
                workload.key, "gemm", workload.params, target.fingerprint,
                trial(space, point, seconds),
            )  # fmt: skip
    return path


def replayed(db: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"seeds": 2, "trials": 24, "time": None, "cost_model": "xgboost"}
    compare.run(
        CASES, [Variant.parse(n) for n in ("annealing", "q-method", "p-method/no-finish")],
        target=lookup("llvm"), out=out, command=["flextensor", "compare"], replay=db,
        **{**options, **changes},
    )  # fmt: skip
    found: dict[str, Any] = json.loads((out / "data.json").read_text())
    return found


def test_searches_are_replayed_and_the_page_says_so(path: Path, tmp_path: Path) -> None:
    data = replayed(filled(path), tmp_path / "out")
    assert len(data["runs"]) == 6
    assert all(len(r["trace"]) == 24 and 0 <= r["recorded"] <= 24 for r in data["runs"])
    assert min(s for r in data["runs"] for _, s in r["trace"]) >= data["replay"]["toy/G"]["fastest"]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "No trial of these searches ran" in page and "| toy/G | direct | 60 | 0 |" in page
    assert "| q-method, no Q-network |" not in page  # p-method did not run whole
    again = replayed(path, tmp_path / "out")
    assert again["runs"] == data["runs"]


def test_a_replay_has_warm_starts(path: Path, tmp_path: Path) -> None:
    other = Workload(Gemm(m=33, n=36, k=37))  # nearer than all that is shipped
    with Database(filled(path, unit=1e-6)) as database:  # as such a product may take
        target, workload = lookup("llvm"), Workload(CASES[0].operator)
        for known in database.trials(workload.key, target.fingerprint):
            database.add(other.key, "gemm", other.params, target.fingerprint, known)
    compare.run(
        CASES, [Variant.parse("random/warm")], seeds=1, trials=8, time=None, cost_model="xgboost",
        target=lookup("llvm"), out=tmp_path / "out", command=[], replay=path, warm=path,
    )  # fmt: skip
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    (run,) = data["runs"]
    assert run["guides"][0] == other.key and workload.key not in run["guides"]
    assert data["replay"]["toy/G"]["fastest"] == run["trace"][0][1]  # the other's best comes first
    assert "known" not in data


def test_seconds_are_those_of_the_table(path: Path, tmp_path: Path) -> None:
    data = replayed(filled(path), tmp_path / "out", trials=None, time=6.0, seeds=1)
    pace = 0.5 / lookup("llvm").builders + 2e-3
    for run in data["runs"]:
        walls = [wall for wall, _ in run["trace"]]
        assert walls == sorted(walls) and walls[-1] < 6.0 + 16 * pace
        assert len(walls) > 0.5 * 6.0 / pace


def test_another_process_has_the_same_traces(path: Path, tmp_path: Path) -> None:
    data = replayed(filled(path), tmp_path / "here", seeds=1)
    code = (
        "import sys; from pathlib import Path; import test_replay as t;"
        "t.replayed(Path(sys.argv[1]), Path(sys.argv[2]), seeds=1)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": _paths()}
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "there")],
        check=True, env=environment, capture_output=True,
    )  # fmt: skip
    there = json.loads((tmp_path / "there" / "data.json").read_text())
    assert there["runs"] == data["runs"]


def _paths() -> str:
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def test_a_database_without_the_workload_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        replayed(tmp_path / "none.db", tmp_path / "out")
    with pytest.raises(InputError, match=f"{FEWEST - 1} trials of toy/G .* needs {FEWEST} points"):
        replayed(filled(path, FEWEST - 1), tmp_path / "out")
    with pytest.raises(InputError, match="a --replay measures nothing"):
        compare.run(
            CASES, [], seeds=1, trials=1, time=None, cost_model="none", target=lookup("llvm"),
            out=tmp_path / "out", command=[], db=path, replay=path,
        )  # fmt: skip
