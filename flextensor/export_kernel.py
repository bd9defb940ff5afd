"""A tuned kernel of a device with thread blocks as files, for programs that have no TVM.

OUT/kernel.cl                   OpenCL C; or
OUT/kernel.cu, .cubin, .ptx     CUDA C, machine code of the architecture, and PTX for later ones
OUT/launch.json                 buffers, workspaces, and what to launch on them
OUT/run.py                      a short host: pyopencl, or CuPy, and NumPy
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from flextensor import hosts
from flextensor.errors import InputError
from flextensor.result import Result
from flextensor.results import make
from flextensor.schedulers import schedule
from flextensor.targets import cuda_compiler
from flextensor.targets.cuda import CUDA
from flextensor.targets.opencl import OpenCL


def write(result: Result, target: CUDA | OpenCL, out: Path) -> list[Path]:
    """Write a result for its `target` into a folder; the paths. `InputError` for weights that are
    packed ahead."""
    workload = result.workload
    if workload.prepacked:
        raise InputError("a kernel whose weights are packed ahead cannot be exported yet")
    make(out)
    func = workload.prim_func(result.values["formulation"])
    program = target.program(schedule(func, target, result.values["config"]))
    function = program.functions["main"]
    info: dict[str, Any] = {
        "workload": workload.key,
        "device": target.device,
        "seconds": result.values["best_seconds"],
        "measured": target.measured,
        "buffers": [dataclasses.asdict(b) for b in workload.buffers],
        "sizes": list(function.sizes),
        "launches": [dataclasses.asdict(launch) for launch in function.launches],
    }
    if isinstance(target, CUDA):
        info |= {"source": "kernel.cu", "binary": "kernel.cubin"}
        binary = cuda_compiler.compile_cuda(program.source, target.arch)
        (out / "kernel.cubin").write_bytes(binary.cubin)
        (out / "kernel.ptx").write_text(cuda_compiler.ptx(program.source, target.arch))
        source = cuda_compiler.self_contained(program.source)
    else:
        info["source"] = "kernel.cl"
        source = program.source
    (out / info["source"]).write_text(source)
    (out / "launch.json").write_text(json.dumps(info, indent=1) + "\n")
    host = Path(hosts.__file__).with_name(
        f"{target.kind}_host.py"
    )  # it imports its driver's package
    (out / "run.py").write_text(host.read_text())
    return sorted(path for path in out.iterdir() if path.is_file())
