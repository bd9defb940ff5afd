"""``--measure rtl``: a design's Verilog, simulated cycle by cycle on random integers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.engines import Engines, integers
from flextensor.measure import Candidate, Limits, LocalMeasurer, OnTrial, failed, ignore
from flextensor.targets import Status, Trial
from flextensor.targets.process import WorkerError, run_all

if TYPE_CHECKING:
    from flextensor.buffers import Array
    from flextensor.operators.workload import Workload
    from flextensor.targets.fpga import FPGA

LIMITS = Limits(build_seconds=180.0, run_seconds=600.0)
"""Verilator takes seconds to minutes; a large layer takes minutes of simulation."""


class RtlMeasurer(LocalMeasurer):
    """Builds simulators in worker processes and runs them one by one; times are cycles / clock.

    Every output of every candidate is compared with the operator's reference, exactly: integers
    that wrap at the width of the accumulators.
    """

    def __init__(
        self,
        workload: Workload,
        target: FPGA,
        tolerance: float = 0.0,
        *,
        limits: Limits = LIMITS,
        on_trial: OnTrial = ignore,
        seed: int = 0,
    ) -> None:
        target.check()
        super().__init__(workload, target, tolerance, limits=limits, on_trial=on_trial, seed=seed)
        self.engines = Engines(workload, target)
        self._clock, self._dtype = target.clock, target.dtype

    def start(self) -> None:
        """Start every worker; inputs and outputs are integers, known in this process."""
        self._builders.serve(self.workload)
        self._builders.start()
        self._runner.start()

    @cached_property
    def _known(self) -> tuple[list[Array], Array]:
        """Inputs and the output that they should give."""
        inputs = integers(self.workload, self._dtype, self.seed)
        return inputs, self.workload.reference(inputs)

    def proven(self, trial: Trial) -> float | None:
        """Every output of every trial was compared already."""
        return trial.error

    def details(self, trial: Trial) -> dict[str, Any]:
        """The design."""
        return self.engines.details(trial)

    def _prepare_runner(self) -> None:
        """The worker that runs simulators needs nothing."""

    def _run(self, candidate: Candidate, path: Path, best_seconds: float) -> Trial:
        from flextensor.schedulers.engine_data import same

        inputs, want = self._known
        packing = self.engines.packing(candidate)
        images = packing.images(*self.engines.operands(candidate, inputs))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            files = {name: Path(folder) / name for name in "abc"}
            for name, image in zip("ab", images, strict=True):
                files[name].write_bytes(image)
            paths = {name: str(file) for name, file in files.items()}
            call = {"path": str(path), "limit": self.engines.limit(candidate), **paths}
            calls = [("simulate", call)]
            ((_, reply),) = run_all([self._runner], calls, self.limits.run_seconds)
            if isinstance(reply, WorkerError):
                return failed(candidate, Status.RUN_ERROR, reply)
            sums = files["c"].read_bytes()
        trial = self._trial(candidate, reply)
        if same(self.engines.output(candidate, packing.sums(sums)), want, self._dtype):
            return trial
        wrong = "outputs differ from the integer reference"
        return dataclasses.replace(trial, status=Status.WRONG_RESULT, times=(), message=wrong)

    def _trial(self, candidate: Candidate, reply: Mapping[str, Any]) -> Trial:
        seconds = reply["cycles"] / self._clock
        return Trial(
            candidate.formulation, candidate.config, Status.OK, (seconds,), error=0.0,
            run_seconds=reply["seconds"],
        )  # fmt: skip
