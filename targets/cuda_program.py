"""What `CUDA.build` writes: a program, its machine code, and what its kernels take."""

from __future__ import annotations

import base64
import dataclasses
import json
import math

from flextensor.errors import DeviceError
from flextensor.targets.cuda_architectures import MOST_BLOCKS, MOST_THREADS, SIDE_THREADS
from flextensor.targets.cuda_compiler import Binary, Resources
from flextensor.targets.launches import AXES, Program


@dataclasses.dataclass(frozen=True)
class CudaProgram:
    """CUDA C with its launches, and its cubin; without one, a program is only emulated."""

    program: Program
    binary: Binary | None

    def dumps(self) -> str:
        """The program as JSON, the cubin in base 64."""
        values = {"program": self.program.dumps()}
        if self.binary is not None:
            values["cubin"] = base64.b64encode(self.binary.cubin).decode()
            kernels = {k: dataclasses.asdict(r) for k, r in self.binary.resources.items()}
            values["resources"] = json.dumps(kernels)
        return json.dumps(values)

    @classmethod
    def loads(cls, text: str) -> CudaProgram:
        """What `dumps` wrote; `ValueError` or `KeyError` for anything else."""
        values = json.loads(text)
        program = Program.loads(values["program"])
        if "cubin" not in values:
            return cls(program, None)
        resources = {k: Resources(**v) for k, v in json.loads(values["resources"]).items()}
        return cls(program, Binary(base64.b64decode(values["cubin"]), resources))


def check_launches(program: Program) -> None:
    """Raise `DeviceError` for a launch that no card takes, whatever its kernel does."""
    for launch in (x for function in program.functions.values() for x in function.launches):
        for axis, blocks, most in zip(AXES, launch.grid, MOST_BLOCKS, strict=True):
            if blocks > most:
                raise DeviceError(f"{launch.kernel}: {blocks} blocks along {axis}, limit {most}")
        for axis, threads, most in zip(AXES, launch.block, SIDE_THREADS, strict=True):
            if threads > most:
                raise DeviceError(f"{launch.kernel}: {threads} threads along {axis}, limit {most}")
        if (threads := math.prod(launch.block)) > MOST_THREADS:
            raise DeviceError(f"{launch.kernel}: {threads} threads a block, limit {MOST_THREADS}")
