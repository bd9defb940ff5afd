"""Engines of one workload on an FPGA: what a config builds, how fast it is, what it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flextensor.answers import FunctionMeasurer
from flextensor.cost_models.engine import Memory, Prediction, predict
from flextensor.measure import Candidate, OnTrial, ignore
from flextensor.schedulers.space import share
from flextensor.targets import Trial
from flextensor.targets.engine import Engine
from flextensor.targets.fpga import FPGA

if TYPE_CHECKING:
    from flextensor.buffers import Array
    from flextensor.operators.workload import Workload
    from flextensor.schedulers.engine import EngineSchedule
    from flextensor.schedulers.engine_data import Packing

PATIENCE = 20
"""A simulation is given up after this many times the predicted cycles."""


class Engines:
    """The engines of every formulation of a workload."""

    def __init__(self, workload: Workload, target: FPGA) -> None:
        self.workload, self.target = workload, target
        self.memory = Memory(target.latency, target.gap)
        self._parts: dict[str, EngineSchedule] = {}

    def part(self, formulation: str) -> EngineSchedule:
        """The engine's part of a formulation."""
        from flextensor.schedulers.engine import engine_part

        if formulation not in self._parts:
            func = self.workload.prim_func(formulation)
            self._parts[formulation] = engine_part(func, self.target)
        return self._parts[formulation]

    def config(self, candidate: Candidate) -> dict[str, Any]:
        """The knobs of the engine alone."""
        return share(candidate.config, self.part(candidate.formulation).stage.name)

    def engine(self, candidate: Candidate) -> Engine:
        """The design of a candidate."""
        return self.part(candidate.formulation).engine(self.config(candidate))

    def predict(self, candidate: Candidate) -> Prediction:
        """Cycles by unit."""
        return predict(self.engine(candidate), self.memory)

    def seconds(self, candidate: Candidate) -> float:
        """Predicted seconds at the assumed clock: what ``--measure model`` asks."""
        return self.predict(candidate).cycles / self.target.clock

    def limit(self, candidate: Candidate) -> int:
        """Cycles after which a simulation is given up."""
        return math.ceil(PATIENCE * self.predict(candidate).cycles) + 10_000

    def packing(self, candidate: Candidate) -> Packing:
        """How the host writes operands and reads results."""
        from flextensor.schedulers.engine_data import Packing

        part, config = self.part(candidate.formulation), self.config(candidate)
        return Packing(part.roles, part.layout(config), part.engine(config))

    def operands(self, candidate: Candidate, inputs: Sequence[Array]) -> tuple[Array, Array]:
        """A and B of the contraction for a workload's inputs."""
        from flextensor.schedulers.engine_data import operand

        part = self.part(candidate.formulation)
        found = part.found
        return (
            operand(part.program, found.a.buffer, inputs),
            operand(part.program, found.b.buffer, inputs),
        )

    def output(self, candidate: Candidate, sums: Array) -> Array:
        """The workload's output from accumulators in the order in which they are done."""
        from flextensor.schedulers.engine_data import result

        part = self.part(candidate.formulation)
        return result(part.program, part.stage, self.packing(candidate).c(sums))

    def details(self, trial: Trial) -> dict[str, Any]:
        """{"design": what a person wants to know of it} of a trial that worked."""
        candidate, seconds = Candidate(trial.formulation, trial.config), trial.seconds
        part, config = self.part(candidate.formulation), self.config(candidate)
        engine, found = part.engine(config), self.predict(candidate)
        cycles = seconds * self.target.clock
        design = {
            "gmacs": self.workload.flops / 2 / seconds / 1e9,
            "clock_mhz": self.target.clock / 1e6,
            "dtype": self.target.dtype,
            "bound": found.bound,
            "cycles": round(cycles),
            "predicted_cycles": round(found.cycles),
            "busy": {name: round(cycles) for name, cycles in found.busy.items()},
            "multipliers": engine.multipliers,
            "array_use": engine.macs / engine.multipliers / cycles,
            "resources": dataclasses.asdict(part.resources(config)),
            "available": available(self.target),
        }
        return {"design": design}


class EngineMeasurer(FunctionMeasurer):
    """``--measure model`` on an FPGA: the model of engines answers, and nothing is computed."""

    def __init__(
        self,
        workload: Workload,
        target: FPGA,
        tolerance: float,
        *,
        on_trial: OnTrial = ignore,
        seed: int = 0,
    ) -> None:
        self.engines = Engines(workload, target)
        super().__init__(self.engines.seconds, on_trial)

    def details(self, trial: Trial) -> dict[str, Any]:
        """The design."""
        return self.engines.details(trial)


def available(target: FPGA) -> Mapping[str, int]:
    """What a design may take."""
    return {"dsp": target.multipliers, "bram18": target.bram18, "lut": target.luts}


def integers(workload: Workload, dtype: str, seed: int) -> list[Array]:
    """Random inputs over the whole range of an integer type, as float64 arrays."""
    import numpy as np

    rng, limits = np.random.default_rng(seed), np.iinfo(dtype)
    return [
        rng.integers(limits.min, limits.max, b.shape, endpoint=True).astype(np.float64)
        for b in workload.buffers[:-1]
    ]
