"""The model of engines against their RTL: random designs of small workloads, simulated.

    python -m flextensor.rtl_check [--configs N] [--synth N] [--seed N] [--out FOLDER]

writes data.json (every design with its cycles by both), scatter.png and README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flextensor.engines import Engines
from flextensor.errors import DeviceError
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
from flextensor.targets import Status, Trial, lookup
from flextensor.targets.fpga import FPGA

LARGEST, SMALLEST = 128, 2
"""Processing elements of a design that is simulated: more take minutes to compile."""
LONGEST = 200_000
"""Predicted cycles of a design that is simulated."""

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
        Conv2d(in_channels=12, out_channels=16, height=12, width=12, kernel=3, padding=2, dilation=2),
        "direct",
    ),
    "grouped": (
        Conv2d(in_channels=32, out_channels=24, height=9, width=9, kernel=3, groups=4), "direct",
    ),
    "transposed": (
        ConvTranspose2d(in_channels=8, out_channels=12, height=6, width=7, kernel=4, stride=2, padding=1),
        "direct",
    ),
    "sub-pixel": (
        ConvTranspose2d(in_channels=8, out_channels=12, height=6, width=7, kernel=4, stride=2, padding=1),
        "subpixel",
    ),
    "depthwise": (
        DepthwiseConv2d(channels=40, height=14, width=14, kernel=3, padding=1), "direct",
    ),
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
    pools = {kind: iter(_pool(target, kind, rng, -(-count // len(WORKLOADS)))) for kind in WORKLOADS}
    kinds = list(WORKLOADS)
    return [next(pools[kinds[i % len(kinds)]]) for i in range(count)]


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
        "multipliers": engine.multipliers, "build_seconds": trial.build_seconds,
        "run_seconds": trial.run_seconds,
    }  # fmt: skip


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(values)
    first = {v: order.index(v) for v in set(values)}
    count = {v: values.count(v) for v in set(values)}
    return [first[v] + (count[v] - 1) / 2 for v in values]


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{"count", "wrong", "mean", "worst", "spearman"} of predicted against simulated cycles."""
    right = [r for r in rows if r["status"] == Status.OK]
    errors = [abs(r["predicted"] / r["cycles"] - 1) for r in right]
    a, b = (ranks([r[name] for r in right]) for name in ("predicted", "cycles"))
    return {
        "count": len(right), "wrong": len(rows) - len(right), "mean": statistics.mean(errors),
        "worst": max(errors), "spearman": statistics.correlation(a, b),
    }  # fmt: skip


def run(count: int, seed: int, out: Path, spec: str = "fpga:vu9p", builders: int = 1) -> int:
    """Simulate, and write the folder; the exit code."""
    target = lookup(spec)
    assert isinstance(target, FPGA)
    target.check()
    make(out)
    rows = []
    for drawn in draw(target, count, seed):
        rows.append(row(target, drawn, simulate(target, drawn, seed, builders)))
        last = rows[-1]
        off = last["predicted"] / last["cycles"] - 1 if last["cycles"] else math.nan
        print(f"{len(rows):4d} {drawn.kind:12s} {last['status']:12s} {last['cycles']} {off:+.1%}", file=sys.stderr)
        page = {"target": spec, "seed": seed, "date": now(), "rows": rows}
        write(out / "data.json", json.dumps(page, indent=1) + "\n")
    print(agreement(rows))
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.rtl_check")
    parser.add_argument("--configs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fpga"))
    parser.add_argument("--target", default="fpga:vu9p")
    given = parser.parse_args(arguments)
    try:
        return run(given.configs, given.seed, given.out, given.target)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
