"""Who measures: the device itself, or a model of it."""

from __future__ import annotations

from typing import Any

from flextensor.measure import (
    Candidate,
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
    from flextensor.model_measure import ModelMeasurer
    from flextensor.targets.cuda import CUDA

    assert isinstance(target, CUDA)
    return ModelMeasurer(workload, target, tolerance, on_trial=on_trial, seed=seed)


def design(workload: Workload, target: Target, trial: Trial) -> dict[str, Any]:
    """{"modelled": what bounds it} of a winner that a model of kernels judged, else {}."""
    from flextensor.targets.cuda import CUDA

    modelled = isinstance(target, CUDA) and target.measured == "model"
    return {"modelled": trial.message} if modelled else {}


def emulated(measurer: Measurer, trial: Trial) -> float | None:
    """The largest relative error of a kernel in emulation, None where there is none."""
    from flextensor.model_measure import ModelMeasurer

    if not isinstance(measurer, ModelMeasurer):
        return trial.error
    return measurer.verify(Candidate(trial.formulation, trial.config))
