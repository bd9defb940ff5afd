"""The model of engines against their RTL: random designs of small workloads, simulated.

    python -m flextensor.rtl_check [--configs N] [--synth N] [--seed N] [--jobs N] [--out FOLDER]

writes data.json (every design with its cycles by both), scatter.png and README.md.
``--again`` lets the model speak anew of the designs that FOLDER/data.json has, without tools.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flextensor import rtl_page
from flextensor.engines import Engines
from flextensor.errors import exit_code
from flextensor.measure import Candidate
from flextensor.operators import (
    Conv2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Gemm,
    Operator,
    Workload,
)
from flextensor.results import make, now, write
from flextensor.rtl_measure import LIMITS, RtlMeasurer
from flextensor.schedulers import space
from flextensor.synthesis import resources
from flextensor.targets import Trial, lookup, yosys
from flextensor.targets.engine_resources import resources as estimate
from flextensor.targets.fpga import FPGA
from flextensor.targets.rounding import ceil_div

LARGEST, SMALLEST = 128, 2
"""Processing elements of a design that is simulated: more take minutes to compile."""
SYNTHESISED = 64
"""Processing elements of a design that is synthesised at most."""
LONGEST = 200_000
"""Predicted cycles of a design that is simulated."""

TRANSPOSED = ConvTranspose2d(
    in_channels=8, out_channels=12, height=6, width=7, kernel=4, stride=2, padding=1
)
WORKLOADS: dict[str, tuple[Operator, str]] = {
    "gemm": (Gemm(m=50, n=37, k=72), "direct"),
    "conv2d 3x3": (
        Conv2d(in_channels=16, out_channels=24, height=11, width=13, kernel=3, padding=1),
        "direct",
    ),
    "strided": (
        Conv2d(in_channels=3, out_channels=16, height=21, width=21, kernel=5, padding=2, stride=2),
        "direct",
    ),
    "dilated": (
        Conv2d(
            in_channels=12, out_channels=16, height=12, width=12, kernel=3, padding=2, dilation=2
        ),
        "direct",
    ),
    "grouped": (
        Conv2d(in_channels=32, out_channels=24, height=9, width=9, kernel=3, groups=4), "direct",
    ),
    "transposed": (TRANSPOSED, "direct"),
    "sub-pixel": (TRANSPOSED, "subpixel"),
    "depthwise": (DepthwiseConv2d(channels=40, height=14, width=14, padding=1), "direct"),
}  # fmt: skip
"""Small workloads of every kind, with their formulations; none divides well."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A random design with what the model says of it."""

    kind: str
    workload: Workload
    candidate: Candidate
    predicted: float


def draw(target: FPGA, count: int, seed: int) -> list[Drawn]:
    """`count` random legal designs, the workloads in turn, small enough to simulate."""
    rng = np.random.default_rng(seed)
    each = ceil_div(count, len(WORKLOADS))
    pools = [_pool(target, kind, rng, each) for kind in WORKLOADS]
    return [pools[i % len(pools)][i // len(pools)] for i in range(count)]


def _pool(target: FPGA, kind: str, rng: np.random.Generator, count: int) -> list[Drawn]:
    operator, formulation = WORKLOADS[kind]
    workload = Workload(operator)
    engines, found = Engines(workload, target), space(workload.prim_func(formulation), target)
    drawn: list[Drawn] = []
    known: set[tuple[int, ...]] = set()
    while len(drawn) < count:
        (point,) = found.sample(rng, 1, known)
        known.add(point)
        candidate = Candidate(formulation, found.config(point))
        predicted = engines.predict(candidate).cycles
        size = engines.engine(candidate).multipliers
        if SMALLEST <= size <= LARGEST and predicted <= LONGEST:
            drawn.append(Drawn(kind, workload, candidate, predicted))
    return drawn


def simulate(target: FPGA, drawn: Drawn, seed: int, builders: int) -> Trial:
    """The trial of one design."""
    limits = dataclasses.replace(LIMITS, builders=builders)
    with RtlMeasurer(drawn.workload, target, limits=limits, seed=seed) as measurer:
        (trial,) = measurer.measure([drawn.candidate])
    return trial


def row(target: FPGA, drawn: Drawn, trial: Trial) -> dict[str, Any]:
    """One design as JSON values."""
    engine = Engines(drawn.workload, target).engine(drawn.candidate)
    cycles = round(trial.seconds * target.clock) if trial.ok else None
    return {
        "kind": drawn.kind, "workload": drawn.workload.key,
        "config": dict(drawn.candidate.config), "status": str(trial.status),
        "message": trial.message, "predicted": drawn.predicted, "cycles": cycles,
        "estimate": dataclasses.asdict(estimate(engine, target.lut_inputs)),
        "multipliers": engine.multipliers, "build_seconds": trial.build_seconds,
        "run_seconds": trial.run_seconds,
    }  # fmt: skip


def again(out: Path) -> None:
    """Predict and estimate anew what OUT/data.json has, and write the page."""
    data = json.loads((out / "data.json").read_text())
    target = lookup(data["target"])
    assert isinstance(target, FPGA)
    for found in data["rows"]:
        operator, formulation = WORKLOADS[found["kind"]]
        engines = Engines(Workload(operator), target)
        candidate = Candidate(formulation, found["config"])
        found["predicted"] = engines.predict(candidate).cycles
        needs = estimate(engines.engine(candidate), target.lut_inputs)
        found["estimate"] = dataclasses.asdict(needs)
    write_pages(data, out)


def write_pages(data: Mapping[str, Any], out: Path) -> None:
    """data.json, README.md and scatter.png."""
    write(out / "data.json", json.dumps(data, indent=1) + "\n")
    write(out / "README.md", rtl_page.markdown(data))
    rtl_page.plot(data, out / "scatter.png")


def run(given: argparse.Namespace, command: Sequence[str]) -> None:
    """Simulate and synthesise; write the folder, data.json after every design."""
    target = lookup(given.target)
    assert isinstance(target, FPGA)
    target.check()
    yosys.check()
    make(given.out)
    data: dict[str, Any] = {
        "target": given.target, "seed": given.seed, "date": now(),
        "command": shlex.join(["python", "-m", "flextensor.rtl_check", *command]),
        "versions": {tool: version(tool) for tool in ("verilator", "yosys")}, "rows": [],
    }  # fmt: skip
    left = given.synth
    for drawn in draw(target, given.configs, given.seed):
        found = row(target, drawn, simulate(target, drawn, given.seed, given.jobs))
        found["synthesised"] = None
        if left and found["multipliers"] <= SYNTHESISED:
            engine = Engines(drawn.workload, target).engine(drawn.candidate)
            found["synthesised"] = resources(engine, target.part)
            left -= 1
        data["rows"].append(found)
        print(line(found), file=sys.stderr)
        write(given.out / "data.json", json.dumps(data, indent=1) + "\n")
    write_pages(data, given.out)


def line(found: Mapping[str, Any]) -> str:
    """One design in a line for a person who waits."""
    off = found["predicted"] / found["cycles"] - 1 if found["cycles"] else math.nan
    return f"{found['kind']:12s} {found['status']:12s} {found['cycles']} cycles, model {off:+.2%}"


def version(tool: str) -> str:
    """What a tool says of itself, without its copyright."""
    said = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
    return " ".join(said.split()[:2])


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.rtl_check")
    parser.add_argument("--configs", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fpga"))
    parser.add_argument("--synth", type=int, default=16, help="designs to synthesise, too")
    parser.add_argument("--jobs", type=int, default=0, help="simulators to build at once")
    parser.add_argument("--target", default="fpga:vu9p")
    parser.add_argument("--again", action="store_true", help="model anew what OUT has")
    given = parser.parse_args(arguments)
    return exit_code(lambda: again(given.out) if given.again else run(given, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
