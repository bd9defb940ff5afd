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
    from flextensor.targets.cuda import CUDA

    if isinstance(target, CUDA):
        from flextensor.model_measure import ModelMeasurer

        return ModelMeasurer(workload, target, tolerance, on_trial=on_trial, seed=seed)
    from flextensor.engines import Engines
    from flextensor.rtl_measure import RtlMeasurer
    from flextensor.targets.fpga import FPGA

    assert isinstance(target, FPGA)
    if target.measured == "rtl":
        target.check()
        return RtlMeasurer(workload, target, on_trial=on_trial, seed=seed)
    return FunctionMeasurer(Engines(workload, target).seconds, on_trial)


def design(workload: Workload, target: Target, trial: Trial) -> dict[str, Any]:
    """What is said beside the time of a winner that did not run on its device: {"modelled": what
    bounds the kernel}, or {"design": resources, busy units, ...}; else {}."""
    from flextensor.targets.fpga import FPGA

    if isinstance(target, FPGA):
        from flextensor.engines import Engines

        candidate = Candidate(trial.formulation, trial.config)
        return {"design": Engines(workload, target).report(candidate, trial.seconds)}
    return {"modelled": trial.message} if target.measured == "model" else {}


def emulated(measurer: Measurer, trial: Trial) -> float | None:
    """The largest relative error of a kernel in emulation, None where there is none."""
    from flextensor.model_measure import ModelMeasurer

    if not isinstance(measurer, ModelMeasurer):
        return trial.error
    return measurer.verify(Candidate(trial.formulation, trial.config))
