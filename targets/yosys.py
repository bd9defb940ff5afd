"""What an engine takes, by synthesis: yosys maps its Verilog to the cells of a part's family."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from flextensor.errors import DeviceError
from flextensor.targets import fpga_rtl
from flextensor.targets.engine import Engine

FAMILIES = {
    "vu9p": "synth_xilinx -family xcup -flatten -noiopad -noclkbuf",
    "zu9eg": "synth_xilinx -family xcup -flatten -noiopad -noclkbuf",
    "ecp5-85k": "synth_ecp5",
}
"""The synthesis of a part; xcup is UltraScale+."""
CELLS = {
    "dsp": {"DSP48E2": 1, "MULT18X18D": 1},
    "bram18": {"RAMB18E2": 1, "RAMB36E2": 2, "DP16KD": 1},
    "lut": {**{f"LUT{n}": 1 for n in range(1, 7)}, "CCU2C": 2},
    "ff": {"FDRE": 1, "FDSE": 1, "TRELLIS_FF": 1},
}
"""Cells of each resource with their weights; the carry chains of ECP5 are made of its tables."""


def check() -> None:
    """Raise `DeviceError`, with what to install, when yosys is missing."""
    if shutil.which("yosys") is None:
        raise DeviceError("synthesis needs yosys: apt-get install yosys")


def synthesise(engine: Engine, part: str) -> dict[str, int]:
    """{"dsp", "bram18", "lut", "ff"} of an engine on a part; `DeviceError` when yosys fails."""
    check()
    with tempfile.TemporaryDirectory(prefix="synth-") as name:
        folder = Path(name)
        (folder / f"{fpga_rtl.TOP}.v").write_text(fpga_rtl.verilog(engine))
        files = " ".join(map(str, [folder / f"{fpga_rtl.TOP}.v", *fpga_rtl.sources()]))
        script = f"read_verilog {files}; {FAMILIES[part]} -top {fpga_rtl.TOP}; stat"
        done = subprocess.run(["yosys", "-p", script], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no reason"]
        raise DeviceError(f"yosys: {said[0].strip()[:200]}")
    return count(done.stdout)


def count(report: str) -> dict[str, int]:
    """The resources in the last statistics of a yosys report.

    >>> count("Number of cells: 3\\n  DSP48E2   2\\n  RAMB36E2   1\\n")["bram18"]
    2
    """
    statistics = report[report.rindex("Number of cells") :]
    cells = {name: int(n) for name, n in re.findall(r"^\s+(\w+)\s+(\d+)$", statistics, re.M)}
    return {
        kind: sum(weight * cells.get(cell, 0) for cell, weight in weights.items())
        for kind, weights in CELLS.items()
    }
