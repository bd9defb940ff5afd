"""The first picks of a search, timed in turns, against what orders them.

    python -m flextensor.seed_check --cases C5,GMM5 [--suite paper] [--target llvm] [--out FOLDER]

builds the schedulers' seeds of every formulation of a case, at most `--most` of each, those first
that estimates like best, and times them in one process, one after the other again and again: a
host that is faster in one minute than in the next is so for all of them. They are judged by the
schedulers' estimate, and by the cost model as it stands before the first trial of a shape that
nobody has measured. Writes data.json, README.md and scatter.png.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flextensor import lessons, measurers, model_page, operators
from flextensor.bench import TOLERANCE
from flextensor.cost_models.analytic import estimate
from flextensor.errors import DeviceError, InputError, exit_code
from flextensor.experience import near
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.operators import Case, Workload
from flextensor.results import header, make
from flextensor.search import Lane
from flextensor.search import lanes as lanes_of
from flextensor.targets import Target, lookup

MOST = 24
"""Seeds of a formulation that are timed."""
ROUNDS = 5


def check(case: Case, target: Target, most: int = MOST) -> dict[str, Any]:
    """What the seeds of a case take, seconds, and what was guessed of each, in the form of
    `model_check.check`; those that fail are left out."""
    workload = Workload(case.operator)
    measurer = measurers.create(workload, target, TOLERANCE)
    if not isinstance(measurer, LocalMeasurer):
        raise InputError(f"--target {target.kind}: nothing is timed there")
    with contextlib.closing(measurer):
        lanes = lanes_of(workload, target, "flextensor", "xgboost", seed=0, tolerance=TOLERANCE)
        lessons.teach(lanes, workload, target, near(None, workload, target), aliases=False)
        seeds = [seed for lane in lanes for seed in _seeds(lane, most)]
        candidates = [Candidate(seed["formulation"], seed["config"]) for seed in seeds]
        ran = measurer.measure(candidates)
        working = {str(i): candidates[i] for i, trial in enumerate(ran) if trial.ok}
        if not working:
            raise DeviceError(f"{case.full_name}: no seed works on {target.device}")
        times, _ = measurer.compare(working, rounds=ROUNDS)
    rows = [seeds[int(i)] | {"seconds": statistics.median(own)} for i, own in times.items()]
    return {
        "workload": workload.key, "operator": case.family, "device": target.fingerprint,
        "trials": rows,
    }  # fmt: skip


def _seeds(lane: Lane, most: int) -> list[dict[str, Any]]:
    """Seeds that write different programs, best by estimate first, and what is guessed of them."""
    space = lane.space
    points = list(dict.fromkeys(space.representative(space.point(seed)) for seed in space.seeds))
    estimates = {p: estimate(space.features(space.config(p))) for p in points}
    points = sorted(points, key=lambda p: estimates[p])[:most]
    return [
        {
            "formulation": lane.name, "config": space.config(point),
            "estimate": estimates[point], "learned": 2.0**guess,
        }
        for point, guess in zip(points, lane.model.predict(points), strict=True)
    ]  # fmt: skip


def run(given: argparse.Namespace, command: Sequence[str]) -> None:
    """Time the seeds of every case; write the folder after each."""
    target = lookup(given.target)
    if given.most < 2:
        raise InputError(f"--most {given.most}: an order needs two seeds or more")
    cases = operators.cases(given.suite, names=given.cases.split(",") if given.cases else None)
    out = given.out or Path("results") / target.kind / "seeds"
    make(out)
    rows: list[dict[str, Any]] = []
    for case in cases:
        row = check(case, target, given.most)
        if len(row["trials"]) < 2:
            print(f"{case.full_name}: one seed, nothing to order", file=sys.stderr)
            continue
        rows.append(row)
        print(model_page.line(row), file=sys.stderr)
        data = {
            **header(target, ["python", "-m", "flextensor.seed_check", *command]),
            "seeds": given.most, "rows": rows,
        }  # fmt: skip
        model_page.save(data, out)


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.seed_check")
    parser.add_argument("--suite", default="paper", help="of cases, e.g. paper")
    parser.add_argument("--cases", help="of the suite, e.g. C5,GMM5; by default all")
    parser.add_argument("--target", default="llvm", help="llvm, opencl, ...")
    parser.add_argument("--most", type=int, default=MOST, help="seeds of a formulation")
    parser.add_argument("--out", type=Path, help="folder, by default results/KIND/seeds")
    given = parser.parse_args(arguments)
    return exit_code(lambda: run(given, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
