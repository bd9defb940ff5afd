"""Measurers that need no worker: what they have in common, and functions; records of trials are of
`flextensor.replay`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from flextensor.measure import Candidate, OnTrial, ignore
from flextensor.targets import Status, Trial


def config_key(candidate: Candidate | Trial) -> str:
    """Formulation and configuration as one string, whatever the order of the knobs."""
    return f"{candidate.formulation} {json.dumps(candidate.config, sort_keys=True, default=list)}"


class Answers:
    """What measurers that need no worker have in common."""

    def __init__(self, on_trial: OnTrial) -> None:
        self.on_trial = on_trial
        self.seconds: dict[str, float] = {}

    def proven(self, trial: Trial) -> float | None:
        """Nothing is computed anew."""
        return trial.error

    def details(self, trial: Trial) -> dict[str, Any]:
        """Nothing more is known."""
        return {}

    def start(self) -> None:
        """Nothing to start."""

    def rest(self) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Nothing to stop."""


class FunctionMeasurer(Answers):
    """A synthetic landscape: `fn(candidate)` gives seconds, or a `Trial` for full control."""

    def __init__(
        self, fn: Callable[[Candidate], float | Trial], on_trial: OnTrial = ignore
    ) -> None:
        super().__init__(on_trial)
        self._fn = fn

    def measure(
        self, candidates: Sequence[Candidate], best_seconds: float = math.inf
    ) -> list[Trial]:
        """What the function says about every candidate, in order."""
        trials = []
        for candidate in candidates:
            value = self._fn(candidate)
            if not isinstance(value, Trial):
                value = Trial(candidate.formulation, candidate.config, Status.OK, (value,))
            trials.append(value)
            self.on_trial(value)
        return trials
