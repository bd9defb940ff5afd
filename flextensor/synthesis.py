"""``--synth``: what a design takes of its part, from yosys in a worker that may hang or die."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from flextensor.database import Database
from flextensor.errors import InputError
from flextensor.measure import Candidate
from flextensor.result import Result
from flextensor.targets import Target, yosys
from flextensor.targets.engine import Engine
from flextensor.targets.fpga import FPGA
from flextensor.targets.process import Worker

SECONDS = 1800.0
"""An array of 256 multipliers takes about a minute, one of thousands may take hours."""


def as_fpga(target: Target) -> FPGA:
    """The target, or `InputError` when designs are nothing that it has."""
    if not isinstance(target, FPGA):
        raise InputError(f"{target.kind} runs programs; only a design for an FPGA is synthesised")
    if target.dtype == "float32":
        raise InputError("there is no RTL in float32; choose dtype=int8 or dtype=int16")
    return target


def resources(engine: Engine, part: str, seconds: float = SECONDS) -> dict[str, int]:
    """{"dsp", "bram18", "lut", "ff"} of an engine; `DeviceError` when yosys fails or hangs."""
    yosys.check()
    with tempfile.TemporaryDirectory(prefix="flextensor-synth-") as folder:
        worker = Worker(env={"TMPDIR": str(Path(folder))})
        try:
            payload = {"engine": dataclasses.asdict(engine), "part": part}
            return {k: int(v) for k, v in worker.call("synthesise", payload, seconds).items()}
        finally:
            worker.kill()


def synthesised(result: Result, database: Database) -> Result:
    """The result with what yosys says of its design, which the database keeps."""
    from flextensor.engines import Engines

    target, design = as_fpga(result.target), dict(result.values["design"])
    if "synthesised" in design:
        return result
    candidate = Candidate(result.values["formulation"], result.values["config"])
    engine = Engines(result.workload, target).engine(candidate)
    design["synthesised"] = resources(engine, target.part)
    values = {**result.values, "design": design}
    database.add_result(result.workload.key, target.fingerprint, {**values, "reused": False})
    return Result(values, result.workload, target)
