"""The paper's YOLO layers on an FPGA, beside the numbers that the paper gives for its VU9P.

    python -m flextensor.fpga_table [--part vu9p] [--dtypes int8,int16,float32] [--out FOLDER]

tunes C1 to C15 by the model for every data type; writes data.json and README.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor import operators
from flextensor.errors import exit_code
from flextensor.results import header, make, write
from flextensor.targets import lookup
from flextensor.tuner import tune

PAPER = {"FlexTensor, as published": 178.0, "hand-written baseline of the paper": 110.0}
"""GMAC/s on a VU9P, averages over C1 to C15: Figure 6c of the paper."""


def run(part: str, dtypes: Sequence[str], out: Path, command: Sequence[str]) -> None:
    """Tune, and write the folder."""
    make(out)
    data = {**header(lookup(f"fpga:{part}"), command), "part": part, "rows": []}
    with tempfile.TemporaryDirectory(prefix="flextensor-table-") as folder:
        for case in operators.cases("paper", "conv2d"):
            for dtype in dtypes:
                target = f"fpga:{part},dtype={dtype}"
                values = tune(case.operator, target=target, db=Path(folder) / "trials.db").json()
                row = {"case": case.name, "dtype": dtype, **values}
                data["rows"].append(row)
                print(f"{case.name} {dtype} {row['design']['gmacs']:.1f} GMAC/s", file=sys.stderr)
    write(out / "data.json", json.dumps(data, indent=1) + "\n")
    write(out / "README.md", markdown(data))


def markdown(data: Mapping[str, Any]) -> str:
    """The page."""
    rows = data["rows"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    design = rows[0]["design"]
    slowest = max(row["tuning_seconds"] for row in rows)
    lines = [
        f"# YOLO layers on {data['part']}",
        "",
        f"`{data['command']}`, {data['date']}. Predicted by the analytic model at an assumed "
        f"{design['clock_mhz']:.0f} MHz, not run on a board; float32 is in the model and the HLS "
        f"source only. Each layer was tuned in {slowest:.0f} s or less.",
        "",
        "| layer | " + " | ".join(f"{d}: GMAC/s | DSP | 18 Kb RAM | bound" for d in dtypes) + " |",
        "| --- |" + " ---: | ---: | ---: | --- |" * len(dtypes),
    ]
    for name in dict.fromkeys(row["case"] for row in rows):
        cells = [_cells(row["design"]) for row in rows if row["case"] == name]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| who | data type | clock | DSP used | GMAC/s, average of C1 to C15 |",
        "| --- | --- | --- | --- | ---: |",
    ]
    for dtype in dtypes:
        own = [row["design"] for row in rows if row["dtype"] == dtype]
        used = [d["resources"]["dsp"] for d in own]
        mean = statistics.mean(d["gmacs"] for d in own)
        clock = f"{design['clock_mhz']:.0f} MHz, assumed"
        lines.append(
            f"| this model | {dtype} | {clock} | {min(used)} to {max(used)} | {mean:.0f} |"
        )
    lines += [
        f"| {who} | not known to us | not known to us | not known to us | {g:.0f} |"
        for who, g in PAPER.items()
    ]
    lines += [
        "",
        "How the paper's numbers were taken is not known to us, nor are its assumptions; ours are "
        "predictions for engines of our own, by a model that agrees with simulated RTL (see "
        "[the comparison](../README.md)). The table puts them side by side and does not say who "
        "is faster. In float32 the model is optimistic: it takes adders that need one cycle.",
    ]
    return "\n".join(lines) + "\n"


def _cells(design: Mapping[str, Any]) -> str:
    needs = design["resources"]
    return f"{design['gmacs']:.0f} | {needs['dsp']} | {needs['bram18']} | {design['bound']}"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.fpga_table")
    parser.add_argument("--part", default="vu9p")
    parser.add_argument("--dtypes", default="int8,int16,float32")
    parser.add_argument("--out", type=Path, default=Path("results/fpga/yolo"))
    given = parser.parse_args(arguments)
    command = ["python", "-m", "flextensor.fpga_table", *map(shlex.quote, arguments)]
    return exit_code(lambda: run(given.part, given.dtypes.split(","), given.out, command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
