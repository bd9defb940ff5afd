"""Engines as simulators: Verilog through Verilator to one executable, and its run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from flextensor.errors import DeviceError
from flextensor.targets import fpga_rtl
from flextensor.targets.engine import Engine

NEEDED = ("verilator", "make", "g++")
TESTBENCH = fpga_rtl.FOLDER / "testbench.cpp"


def check() -> None:
    """Raise `DeviceError`, with what to install, when a tool is missing."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        raise DeviceError(
            f"simulating RTL needs {', '.join(missing)}: apt-get install verilator make g++"
        )


def defines(engine: Engine, latency: int, gap: int) -> dict[str, int]:
    """What the testbench is compiled with: ports in bytes, memory in cycles."""
    return {
        "A_BYTES": engine.a_port, "B_BYTES": engine.b_port, "C_BYTES": engine.c_port,
        "LATENCY": latency, "GAP": gap,
    }  # fmt: skip


def command(engine: Engine, latency: int, gap: int) -> list[str]:
    """Verilator's arguments, the sources left out; it writes ``obj_dir/testbench``."""
    flags = " ".join(f"-D{name}={value}" for name, value in defines(engine, latency, gap).items())
    return [
        "verilator", "--cc", "--exe", "--build", "-j", "1", "-O3", "--x-assign", "fast",
        "-Wno-fatal", "-Wno-lint", "-Wno-UNOPTFLAT", "--top-module", fpga_rtl.TOP,
        "-CFLAGS", f"-O1 {flags}", "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0", "-o", "testbench",
    ]  # fmt: skip


def build(engine: Engine, path: Path, latency: int, gap: int) -> None:
    """Write the simulator of an engine to `path`; `DeviceError` with the reason if that fails."""
    with tempfile.TemporaryDirectory(prefix="rtl-", dir=path.parent) as folder:
        top = Path(folder) / f"{fpga_rtl.TOP}.v"
        top.write_text(fpga_rtl.verilog(engine))
        files = [top, *fpga_rtl.sources(), TESTBENCH]
        done = subprocess.run(
            [*command(engine, latency, gap), *map(str, files)],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "rror" in line] or ["no reason"]
            raise DeviceError(f"verilator: {said[0].strip()[:200]}")
        shutil.move(Path(folder) / "obj_dir" / "testbench", path)


def simulate(path: Path, a: Path, b: Path, c: Path, limit: int) -> int:
    """Run a simulator on images of A and B, at most `limit` cycles; it writes C. The cycles."""
    command = [str(path), str(limit), str(a), str(b), str(c)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise DeviceError(f"simulation: {said[0]}")
    return int(done.stdout)
