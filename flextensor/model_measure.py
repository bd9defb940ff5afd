"""Measuring by a model of kernels: compiled and judged in workers, never run on a card.

The best are proven: `verify` runs the very same CUDA C in emulation, at full size.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flextensor.measure import (
    Candidate,
    Limits,
    LocalMeasurer,
    OnTrial,
    build_failure,
    ignore,
)
from flextensor.operators.workload import Workload
from flextensor.targets import Status, Trial, cuda_compiler, cuda_emulation
from flextensor.targets.cuda import CUDA

LIMITS = Limits(build_seconds=20.0, run_seconds=60.0)
"""An emulated call takes seconds where a card takes microseconds."""


class ModelMeasurer(LocalMeasurer):
    """Judges candidates for `target` by `flextensor.cost_models.gpu`, in parallel.

    `DeviceError` when there is no CUDA compiler, or no g++ for the emulation.
    """

    def __init__(
        self,
        workload: Workload,
        target: CUDA,
        tolerance: float,
        *,
        on_trial: OnTrial = ignore,
        seed: int = 0,
    ) -> None:
        cuda_compiler.check()
        cuda_emulation.check()
        emulated = dataclasses.replace(target, emulated=True)
        super().__init__(workload, emulated, tolerance, limits=LIMITS, on_trial=on_trial, seed=seed)

    def start(self) -> None:
        """Start the builders; the emulation is only started for a winner."""
        self._builders.serve(self.workload)
        self._builders.start()

    def measure(
        self, candidates: Sequence[Candidate], best_seconds: float = math.inf
    ) -> list[Trial]:
        """One trial per candidate, in order: its modelled seconds, and what bounds it."""
        self.start()
        begun = time.monotonic()
        formulations = [c.formulation for c in candidates]
        payloads = [{"config": dict(c.config)} for c in candidates]
        trials: dict[int, Trial] = {}
        for index, reply in self._builders.call(
            "model", formulations, payloads, self.limits.build_seconds
        ):
            failure = build_failure(candidates[index], reply)
            if failure is None and isinstance(reply, dict):
                trials[index] = _modelled(candidates[index], reply)
            elif failure is not None:
                trials[index] = failure
            self.on_trial(trials[index])
        self.seconds["build"] += time.monotonic() - begun
        return [trials[index] for index in range(len(candidates))]

    def details(self, trial: Trial) -> dict[str, Any]:
        """{"modelled": what bounds the kernel}."""
        return {"modelled": trial.message}


def _modelled(candidate: Candidate, reply: Mapping[str, Any]) -> Trial:
    return Trial(
        candidate.formulation,
        candidate.config,
        Status.OK,
        (reply["time"],),
        reply["message"],
        build_seconds=reply["seconds"],
    )
