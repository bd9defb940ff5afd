"""What a database knows of a workload, as a run of some tolerance sees it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flextensor import finalists
from flextensor.builders import Builders
from flextensor.database import Database
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.operators.workload import Workload
from flextensor.peers import methods
from flextensor.result import Result, answers, current, roofline
from flextensor.results import now
from flextensor.targets import Status, Target, Trial
from flextensor.timing import spread


def kept(
    workload: Workload,
    target: Target,
    database: Database,
    trials: int | None,
    tolerance: float,
    peers: bool = False,
    builders: Builders | None = None,
) -> Result | None:
    """The database's result of a workload, where it answers what is asked: also, where `peers` are
    wanted that were not when it was tuned, how fast these are."""
    known = database.result(workload.key, target.fingerprint)
    if known is None or not answers(known, trials, workload.tolerance(tolerance)):
        return None
    if not current(known, workload, target) or not offered(known, workload, tolerance):
        return None
    result = Result({**known, "reused": True}, workload, target)
    asked = known.get("peers") or "missing" in known
    if asked or not peers or not peers_of(workload) or target.measured != "run":
        return result
    return beside(result, database, builders)


def peers_of(workload: Workload) -> tuple[str, ...]:
    """The methods of PyTorch that a workload is compared with."""
    peer = "torch-prepacked" if workload.prepacked else "torch"
    return methods([peer]) if workload.operator.has_peer else ()


def beside(known: Result, database: Database, builders: Builders | None = None) -> Result | None:
    """A kept result whose kernel is timed again in turns with its peers, and kept so; None where
    the kernel fails."""
    workload, target, peers = known.workload, known.target, peers_of(known.workload)
    own = Candidate(known.values["formulation"], known.values["config"])
    with LocalMeasurer(workload, target, math.inf, builders=builders) as measurer:
        times, missing, died = finalists.in_turns(measurer, {"": own}, peers)
    if died:
        return None
    found = timed(workload, target, own.formulation, times.pop(""), times)
    values = {**known.values, **found, "missing": missing, "date": now()}
    if not database.readonly:
        database.add_result(workload.key, target.fingerprint, {**values, "reused": False})
    return Result(values, workload, target)


def timed(
    workload: Workload,
    target: Target,
    formulation: str,
    times: Sequence[float],
    peers: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What a result says of the seconds per call of its kernel, and of its peers."""
    best = statistics.median(times)
    share, bound = roofline(workload, target, best, formulation)
    medians = {peer: statistics.median(own) for peer, own in peers.items()}
    return {
        "best_seconds": best,
        "spread": spread(times),
        "gflops": workload.flops / best / 1e9,
        "peak_fraction": share,
        "bound": bound,
        "peers": medians,
        "peer_spreads": {peer: spread(own) for peer, own in peers.items()},
        "speedup": min(medians.values()) / best if medians else None,
    }


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
