"""What an engine takes, by synthesis: yosys maps its Verilog to the cells of a part's family."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from flextensor.errors import DeviceError
from flextensor.targets import fpga_rtl
from flextensor.targets.engine import Engine
from flextensor.targets.fpga_parts import PARTS

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
        folder = Path(name)  # yosys splits its script at spaces: names are relative
        (folder / f"{fpga_rtl.TOP}.v").write_text(fpga_rtl.verilog(engine))
        for source in fpga_rtl.sources():
            shutil.copy(source, folder)
        script = f"read_verilog *.v; {PARTS[part].synthesis} -top {fpga_rtl.TOP}; "
        script += "tee -q -o cells.json stat -json"
        done = subprocess.run(
            ["yosys", "-p", script], cwd=folder, capture_output=True, text=True
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no reason"]
            raise DeviceError(f"yosys: {said[0].strip()[:200]}")
        return count((folder / "cells.json").read_text())


def count(statistics: str) -> dict[str, int]:
    """The resources in the statistics of yosys, which are JSON.

    >>> count('{"design": {"num_cells_by_type": {"DSP48E2": 2, "RAMB36E2": 1}}}')["bram18"]
    2
    """
    cells = json.loads(statistics)["design"]["num_cells_by_type"]
    return {
        kind: sum(weight * cells.get(cell, 0) for cell, weight in weights.items())
        for kind, weights in CELLS.items()
    }
