"""Who measures: the device itself, a model of it, or a simulation of its design."""

from __future__ import annotations

import importlib

from flextensor.builders import Builders
from flextensor.measure import LocalMeasurer, Measurer, OnTrial, ignore
from flextensor.operators.workload import Workload
from flextensor.targets import Target

_HOME = {
    ("cuda", "model"): ("flextensor.model_measure", "ModelMeasurer"),
    ("fpga", "model"): ("flextensor.engines", "EngineMeasurer"),
    ("fpga", "rtl"): ("flextensor.rtl_measure", "RtlMeasurer"),
}
"""Who measures on a kind of target in another way than by running on it."""


def create(
    workload: Workload,
    target: Target,
    tolerance: float,
    *,
    on_trial: OnTrial = ignore,
    seed: int = 0,
    builders: Builders | None = None,
) -> Measurer:
    """The measurer that `target.measured` names; `DeviceError` when what it needs is missing.

    What runs on the device is compiled by `builders`, if they are given.
    """
    if target.measured == "run":
        return LocalMeasurer(
            workload, target, tolerance, on_trial=on_trial, seed=seed, builders=builders
        )
    module, name = _HOME[target.kind, target.measured]
    found = getattr(importlib.import_module(module), name)
    measurer: Measurer = found(workload, target, tolerance, on_trial=on_trial, seed=seed)
    return measurer
