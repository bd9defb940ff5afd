"""What a database knows of a workload, as a run of some tolerance sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flextensor.database import Database
from flextensor.operators.workload import Workload
from flextensor.result import Result, answers, current
from flextensor.targets import Status, Target, Trial


def kept(
    workload: Workload, target: Target, database: Database, trials: int | None, tolerance: float
) -> Result | None:
    """The database's result of a workload, where it answers what is asked."""
    known = database.result(workload.key, target.fingerprint)
    if known is None or not answers(known, trials, workload.tolerance(tolerance)):
        return None
    if not current(known, workload, target) or not offered(known, workload, tolerance):
        return None
    return Result({**known, "reused": True}, workload, target)


def offered(known: Mapping[str, Any], workload: Workload, tolerance: float) -> bool:
    """Whether a search of this tolerance would consider the formulation of a kept result."""
    return known["formulation"] in (*workload.formulations, *workload.in_terms(tolerance))


def judged(trials: Sequence[Trial], tolerance: float) -> list[Trial]:
    """Trials of an earlier run, as a run of this tolerance sees them: what is less exact is a wrong
    result, and what was one for another tolerance is not known."""
    found = []
    for trial in trials:
        exact = trial.error is None or trial.error <= tolerance
        if trial.status is not Status.WRONG_RESULT:
            found.append(trial if exact else wrong(trial, tolerance))
        elif trial.error is None or not exact:
            found.append(trial)
    return found


def wrong(trial: Trial, tolerance: float) -> Trial:
    """A trial that ran, as a wrong result."""
    message = f"relative error {trial.error:.3g} exceeds the tolerance {tolerance:.3g}"
    return dataclasses.replace(trial, status=Status.WRONG_RESULT, times=(), message=message)
