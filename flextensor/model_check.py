"""The models that guide searches on devices with thread blocks, against what was measured there.

    python -m flextensor.model_check --target TARGET [--db FILE] [--out FOLDER]

judges every trial of the database that worked on the target: by the schedulers' own estimate, and
on CUDA by the model of kernels, for the very card that measured it. Writes data.json, README.md
and scatter.png. What the model of kernels says is kept in the database as trials, those that
tuning by the model has left there are taken, and a second run compiles only what took too long.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flextensor import measurers, model_page
from flextensor.cost_models.analytic import estimate
from flextensor.database import Database, default_path
from flextensor.errors import InputError, exit_code
from flextensor.experience import workload_of
from flextensor.measure import Candidate
from flextensor.model_page import FEWEST
from flextensor.operators.workload import Workload
from flextensor.results import header, make
from flextensor.schedulers import spaces as spaces_of
from flextensor.schedulers.space import Point, Space
from flextensor.targets import Status, Target, Trial, lookup

Program = tuple[str, Point]
"""A formulation, and the point that stands for all which write the same program."""


def check(database: Database, target: Target) -> Iterator[dict[str, Any]]:
    """Every workload with enough measured programs: who measured it, and what was measured and
    guessed of each, seconds; None where the model of kernels refuses what ran."""
    for row in database.workloads():
        device, workload = target.named(row.target), workload_of(row)
        if device is None or workload is None:
            continue
        spaces = spaces_of(workload, device)
        measured = _seconds(database.trials(row.key, row.target), spaces)
        if len(measured) < FEWEST:
            continue
        guesses: dict[str, Sequence[float | None]] = {
            "estimate": [_estimate(spaces, program) for program in measured]
        }
        if "model" in device.measures:
            guesses["kernels"] = _modelled(database, workload, device, spaces, list(measured))
        trials = [
            {"formulation": name, "config": spaces[name].config(point), "seconds": seconds}
            for (name, point), seconds in measured.items()
        ]
        for judge, own in guesses.items():
            for trial, guess in zip(trials, own, strict=True):
                trial[judge] = guess
        yield {
            "workload": row.key, "operator": row.operator, "device": row.target, "trials": trials,
        }  # fmt: skip


def _seconds(trials: Sequence[Trial], spaces: dict[str, Space]) -> dict[Program, float]:
    """The median time of every program that worked and that this version can write."""
    found: dict[Program, list[float]] = {}
    for trial in trials:
        if trial.ok and (program := _program(trial, spaces)) is not None:
            found.setdefault(program, []).append(trial.seconds)
    return {program: statistics.median(times) for program, times in found.items()}


def _program(trial: Trial, spaces: dict[str, Space]) -> Program | None:
    own = spaces.get(trial.formulation)
    if own is None or not own.has(trial.config):
        return None
    return trial.formulation, own.representative(own.point(trial.config))


def _estimate(spaces: dict[str, Space], program: Program) -> float:
    own = spaces[program[0]]
    return estimate(own.features(own.config(program[1])))


def _modelled(
    database: Database,
    workload: Workload,
    device: Target,
    spaces: dict[str, Space],
    programs: Sequence[Program],
) -> list[float | None]:
    """Seconds by the model of kernels; what the database does not know is judged, and kept."""
    target = device.measured_by("model")
    known: dict[Program, Trial] = {}

    def learn(trial: Trial) -> None:
        program = _program(trial, spaces)
        if program is not None and trial.status in (Status.OK, Status.ILLEGAL, Status.BUILD_ERROR):
            known[program] = trial

    def keep(trial: Trial) -> None:
        learn(trial)
        if trial.status is not Status.TIMEOUT and not database.readonly:
            w = workload
            database.add(w.key, w.operator.name, w.params, target.fingerprint, trial)

    for trial in database.trials(workload.key, target.fingerprint):
        learn(trial)
    wanted = [Candidate(n, spaces[n].config(p)) for n, p in programs if (n, p) not in known]
    if wanted:
        measurer = measurers.create(workload, target, math.inf, on_trial=keep)
        with contextlib.closing(measurer):
            measurer.measure(wanted, math.inf)
    judged = [known.get(program) for program in programs]
    return [trial.seconds if trial is not None and trial.ok else None for trial in judged]


def run(given: argparse.Namespace, command: Sequence[str]) -> None:
    """Judge what the database has; write the folder."""
    target = lookup(given.target)
    if not target.threads_per_block:
        raise InputError(
            f"--target {given.target}: its threads form no blocks; name opencl or cuda"
        )
    path = given.db or default_path()
    if not path.is_file():
        raise InputError(f"{path}: no such database")
    rows = []
    with Database(path) as database:
        for row in check(database, target):
            rows.append(row)
            print(model_page.line(row), file=sys.stderr)
        if not rows:
            others = sorted({row.target for row in database.workloads()})
            raise InputError(
                f"{path}: no workload has {FEWEST} programs measured on {target.device}"
                f"; it has trials of {', '.join(others) or 'nothing'}"
            )
    data = {
        **header(target, ["python", "-m", "flextensor.model_check", *command]),
        "modelled": "model" in target.measures, "rows": rows,
    }  # fmt: skip
    out = given.out or Path("results") / target.kind / "model"
    make(out)
    model_page.save(data, out)


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.model_check")
    parser.add_argument("--db", type=Path, help="trials of the device, by default the user's own")
    parser.add_argument("--target", default="opencl", help="opencl, cuda:sm_90, ...")
    parser.add_argument("--out", type=Path, help="folder, by default results/KIND/model")
    given = parser.parse_args(arguments)
    return exit_code(lambda: run(given, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
