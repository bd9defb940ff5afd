"""What was tuned as files: for an FPGA RTL with a testbench, OpenCL for HLS, and a report; a kernel
of a GPU with a host (`flextensor.export_kernel`), or as a library (`flextensor.export_library`).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flextensor import export_kernel, export_library
from flextensor.engines import Engines, integers
from flextensor.errors import InputError
from flextensor.measure import Candidate
from flextensor.report import rows
from flextensor.result import Result
from flextensor.results import make
from flextensor.targets import fpga_hls, fpga_rtl, verilator
from flextensor.targets.cuda import CUDA
from flextensor.targets.fpga import FPGA
from flextensor.targets.opencl import OpenCL

MAKEFILE = """\
# `make run` simulates the engine on a.bin and b.bin, writes c.bin and prints the cycles.
run: obj_dir/testbench
\t./obj_dir/testbench {limit} a.bin b.bin c.bin

obj_dir/testbench: testbench.cpp $(wildcard *.v)
\t{command} testbench.cpp $(wildcard *.v)

.PHONY: run
"""


def write(result: Result, out: Path) -> list[Path]:
    """Write a result into a folder, or for CUDA into a library and its header where `out` ends in
    .so; the paths. `InputError` for a CPU's, which is a library of this machine."""
    target = result.target
    if out.suffix == ".so":
        return export_library.write(result, out)
    if isinstance(target, CUDA | OpenCL):
        return export_kernel.write(result, target, out)
    if not isinstance(target, FPGA):
        raise InputError(
            f"a {target.kind} kernel is a library of this machine: call it from Python, or print"
            " its code (`show --source`); --target cuda, opencl and fpga are exported"
        )
    make(out)
    engines = Engines(result.workload, target)
    candidate = Candidate(result.values["formulation"], result.values["config"])
    engine = engines.engine(candidate)
    files = {"engine.cl": fpga_hls.kernel(engine), "report.md": report(result.values)}
    if target.dtype != "float32":
        files |= {"engine.v": fpga_rtl.verilog(engine), "Makefile": _makefile(engines, candidate)}
        _write_data(engines, candidate, out)
        for source in (*fpga_rtl.sources(), verilator.TESTBENCH):
            shutil.copy(source, out)
    for name, text in files.items():
        (out / name).write_text(text)
    return sorted(path for path in out.iterdir() if path.is_file())


def _makefile(engines: Engines, candidate: Candidate) -> str:
    target = engines.target
    command = verilator.command(engines.engine(candidate), target.latency, target.gap)
    return MAKEFILE.format(limit=engines.limit(candidate), command=shlex.join(command))


def _write_data(engines: Engines, candidate: Candidate, out: Path) -> None:
    """Random operands as memory images, for the testbench."""
    inputs = integers(engines.workload, engines.target.dtype, seed=0)
    images = engines.packing(candidate).images(*engines.operands(candidate, inputs))
    for name, image in zip(("a.bin", "b.bin"), images, strict=True):
        (out / name).write_bytes(image)


def report(values: Mapping[str, Any]) -> str:
    """Time, resources, roofline and config of a design, as Markdown."""
    lines = ["# FPGA design", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows(values)]
    lines += ["", "Config:", ""]
    lines += [f"- `{knob}` = {value}" for knob, value in values["config"].items()]
    lines += [
        "",
        "Nothing was run on a board, and no vendor tool was used: the clock is an assumption, the "
        "time a model's or a simulation's (`measured`), block RAM and lookup tables estimates.",
    ]
    return "\n".join(lines) + "\n"
