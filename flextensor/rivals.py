"""Searches of others that `compare` races: their curves, in the scale of our trials.

A rival measures by itself, in its own process and by its own clock. Two things make its curve
comparable. Its last kernel is verified, and timed in turns with the last kernels of the searches
that had the same workload and seed (`LocalMeasurer.compare`). And its records are multiplied by
one factor, after which its best record is to the best trials of these searches as its kernel is to
theirs in turns:

    factor = (its kernel in turns / its best record) / median(ours in turns / our best trial)

so that neither another way to time nor a drift between two searches looks like a better search.
Where none of ours was run before, the factor is its own quotient alone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flextensor import peer_libraries
from flextensor.curves import Run, fastest
from flextensor.errors import DeviceError, InputError
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.operators.workload import Workload
from flextensor.targets.process import RemoteError, SetupFailed

if TYPE_CHECKING:
    from pathlib import Path

    from flextensor.operators.suites import Case
    from flextensor.targets import Target

RIVALS = ("metaschedule",)
"""Methods of `flextensor.peer_libraries` that search, trial by trial."""


def check(names: Iterable[str], target: Target, replayed: bool) -> None:
    """Raise `InputError` for a rival where nothing is measured, and `DeviceError` for one that has
    no way on a target, or lacks a package."""
    found = [name for name in names if name in RIVALS]
    if found and replayed:
        raise InputError(f"{found[0]} measures by itself, and a --replay measures nothing")
    peer_libraries.check(found, target)


def race(
    name: str,
    case: Case,
    seed: int,
    target: Target,
    trials: int | None,
    seconds: float | None,
    beside: Mapping[str, Run],
) -> dict[str, Any]:
    """One search of a rival, beside earlier ones of ours by the name of their variant.

    {"trace": as that of our searches, "seconds": of the whole search, which may go on after its
    last trial, "factor": by which its records were multiplied for the trace, "timed": {variant:
    median seconds of its last kernel, in turns with the others}}; or, where the search brought no
    kernel that works, {"trace": of one failure, "failure": why}.
    """
    workload = Workload(case.operator)
    kernels = {v: Candidate(**run["best"]) for v, run in beside.items() if run.get("best")}
    begun = time.monotonic()
    with LocalMeasurer(workload, target, math.inf, seed=seed) as measurer:
        path = measurer.folder / f"{name}.so"
        try:
            took = peer_libraries.build(name, measurer, trials, path, seconds)
            times = _in_turns(measurer, kernels, {name: path})
        except SetupFailed:
            raise
        except DeviceError as error:
            reason = error.reason if isinstance(error, RemoteError) else str(error)
            return {"trace": [(time.monotonic() - begun, None)], "failure": reason}
    timed = {variant: statistics.median(own) for variant, own in times.items()}
    own = {variant: fastest(run) for variant, run in beside.items()}
    factor = scale(timed, {**own, name: fastest({"trace": took["trace"]})}, name)
    trace = [(s, None if value is None else value * factor) for s, value in took["trace"]]
    length = min(took["seconds"], seconds or math.inf)
    return {"trace": trace, "seconds": length, "factor": factor, "timed": timed}


def _in_turns(
    measurer: LocalMeasurer, kernels: Mapping[str, Candidate], rival: Mapping[str, Path]
) -> dict[str, list[float]]:
    """Seconds of ours and of a rival's kernel, in turns; of its alone where one of ours fails."""
    try:
        return measurer.compare(kernels, libraries=rival)[0]
    except SetupFailed:
        raise
    except DeviceError:
        if not kernels:
            raise
        return measurer.compare({}, libraries=rival)[0]


def scale(timed: Mapping[str, float], recorded: Mapping[str, float], name: str) -> float:
    """The factor of this module's text: seconds of kernels in turns, and as recorded."""
    factors = {variant: seconds / recorded[variant] for variant, seconds in timed.items()}
    own = factors.pop(name)
    return own / statistics.median(factors.values()) if factors else own
