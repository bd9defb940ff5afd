"""Who measures: the device itself, a model of it, or a simulation of its design."""

from __future__ import annotations

from typing import Any

from flextensor.measure import (
    Candidate,
    FunctionMeasurer,
    LocalMeasurer,
    Measurer,
    OnTrial,
    ignore,
)
from flextensor.operators.workload import Workload
from flextensor.targets import Target, Trial


def create(
    workload: Workload,
    target: Target,
    tolerance: float,
    *,
    on_trial: OnTrial = ignore,
    seed: int = 0,
) -> Measurer:
    """The measurer that `target.measured` names; `DeviceError` when what it needs is missing."""
    if target.measured == "run":
        return LocalMeasurer(workload, target, tolerance, on_trial=on_trial, seed=seed)
    from flextensor.engines import Engines
    from flextensor.rtl_measure import RtlMeasurer
    from flextensor.targets.fpga import FPGA

    assert isinstance(target, FPGA)
    if target.measured == "rtl":
        target.check()
        return RtlMeasurer(workload, target, on_trial=on_trial, seed=seed)
    return FunctionMeasurer(Engines(workload, target).seconds, on_trial)


def design(workload: Workload, target: Target, trial: Trial) -> dict[str, Any]:
    """{"design": resources, busy units, ...} of a winner on a target of designs, else {}."""
    from flextensor.targets.fpga import FPGA

    if not isinstance(target, FPGA):
        return {}
    from flextensor.engines import Engines

    candidate = Candidate(trial.formulation, trial.config)
    return {"design": Engines(workload, target).report(candidate, trial.seconds)}
