"""Kernels to carry to a machine with a card and without TVM, and what is measured there back.

OUT/manifest.json       workloads, candidates, launches
OUT/w0_c0.cubin, .cu    machine code of each candidate, and its source to read
OUT/w0_reference.npz    sampled float64 outputs
OUT/run.py              `flextensor.bundle_runner`: verifies, times, writes trials.jsonl

bundle -> run.py there -> db import trials.jsonl -> bundle: the next one is of what those trials
taught a cost model, and has nothing twice.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flextensor
from flextensor import bundle_runner, database_schema, results
from flextensor.cost_models import gpu
from flextensor.database import Database
from flextensor.database_records import plain
from flextensor.errors import DeviceError, IllegalConfigError
from flextensor.measure import Candidate
from flextensor.operators.workload import Workload
from flextensor.schedulers.space import Point
from flextensor.search import Lane, lanes
from flextensor.targets import Trial
from flextensor.targets.cuda import CUDA
from flextensor.targets.cuda_compiler import CompileError
from flextensor.worker import one_line

SEED = 0
SAMPLE = 4096
"""Elements of an output that travel as its reference; all of it is looked through for NaN."""


def make(
    work: Sequence[Workload], target: CUDA, database: Database, *, top: int, out: Path,
    tolerance: float = 1e-4,
) -> list[int]:  # fmt: skip
    """Write the bundle of the `top` candidates of every workload; how many each has. One with
    nothing left to measure is not carried; `DeviceError` when that is so of all. An older bundle is
    replaced once the new one is whole."""
    results.make(out)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        part = Path(folder)
        shown, counts, said = [], [], ""
        for number, workload in enumerate(work):
            candidates, said = _built(workload, target, database, number, top, part)
            if said or not candidates:
                print(f"{workload.key}: {len(candidates)} candidates{said}", file=sys.stderr)
            counts.append(len(candidates))
            if candidates:
                data = _data(workload, number, part, tolerance)
                shown.append({**data, "candidates": candidates})
        if not shown:
            raise DeviceError(f"no candidate for {target.arch} is left to measure{said}")
        for old in out.glob("w[0-9]*_*"):
            old.unlink()
        for new in part.iterdir():
            new.replace(out / new.name)
    manifest = {
        "architecture": target.arch,
        "tvm": importlib.metadata.version("apache-tvm"),
        "version": flextensor.__version__,
        "schema": database_schema.SCHEMA,
        "session": uuid.uuid4().hex,
        "workloads": shown,
    }
    results.write(out / "manifest.json", json.dumps(manifest, indent=1))
    results.write(out / "run.py", Path(bundle_runner.__file__).read_text())
    return counts


def _data(workload: Workload, number: int, out: Path, tolerance: float) -> dict[str, Any]:
    """What is needed to verify: how inputs are made, and a sample of the reference."""
    inputs = workload.inputs(SEED)
    own = workload.operator.inputs(np.random.default_rng(SEED)) is not None
    data = f"w{number}_inputs.npz" if own else ""
    if own:  # no draw that the runner could repeat
        bits = [a.view("uint16") if a.dtype.name == "bfloat16" else a for a in inputs]
        named: dict[str, Any] = {f"input{i}": a for i, a in enumerate(bits)}
        np.savez_compressed(out / data, **named)
    reference = workload.reference(inputs).reshape(-1)
    count = min(SAMPLE, reference.size)
    drawn = np.random.default_rng(SEED).choice(reference.size, count, replace=False)
    positions = np.union1d(drawn, (0, reference.size - 1))
    scale = np.abs(reference).max(initial=0.0)
    np.savez_compressed(
        out / f"w{number}_reference.npz",
        positions=positions, values=reference[positions], scale=scale,
    )  # fmt: skip
    return {
        "key": workload.key,
        "operator": workload.operator.name,
        "params": plain(workload.params),
        "buffers": [{"shape": list(b.shape), "dtype": b.dtype} for b in workload.buffers],
        "seed": SEED,
        "data": data,
        "digests": [bundle_runner.digest(a) for a in inputs],
        "reference": f"w{number}_reference.npz",
        "tolerance": workload.tolerance(tolerance),
    }


def _built(
    workload: Workload, target: CUDA, database: Database, number: int, top: int, out: Path
) -> tuple[list[dict[str, Any]], str]:
    """The best candidates that compile without spills, written to `out`. One that fails otherwise
    costs itself only; how many did, and why the first, in words."""
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    for candidate in chosen(workload, target, database, 2 * top):
        name = f"w{number}_c{len(found)}"
        try:
            found.append(_write(workload, target, candidate, out / name))
        except IllegalConfigError:
            continue
        except Exception as error:  # TVM's are of many classes
            if isinstance(error, DeviceError) and not isinstance(error, CompileError):
                raise  # without a compiler all would fail
            failures.append(f"{type(error).__name__}: {one_line(error)}")
        if len(found) == top:
            break
    said = f"; {len(failures)} failed, first {failures[0]}" if failures else ""
    return found, said


def _write(workload: Workload, target: CUDA, candidate: Candidate, path: Path) -> dict[str, Any]:
    from flextensor.schedulers import schedule

    start = time.perf_counter()
    module = schedule(workload.prim_func(candidate.formulation), target, candidate.config)
    judged = gpu.judge(target, module)
    path.with_suffix(".cubin").write_bytes(judged.binary.cubin)
    path.with_suffix(".cu").write_text(judged.program.source)
    return {
        "id": uuid.uuid4().hex,
        "formulation": candidate.formulation,
        "config": dict(candidate.config),
        "file": f"{path.name}.cubin",
        "function": dataclasses.asdict(judged.program.functions["main"]),
        "modelled_seconds": judged.prediction.seconds,
        "build_seconds": time.perf_counter() - start,
    }


def chosen(workload: Workload, target: CUDA, database: Database, count: int) -> list[Candidate]:
    """Candidates that were not measured on a card yet, the most promising first.

    By the model of kernels as long as nothing was measured; then by the cost model that learnt
    from what was, among the best of that model, its own proposals and the neighbours of the best.
    """
    modelled = database.sound(workload.key, target.measured_by("model").fingerprint)
    measured = _measured(workload, target, database)
    made = lanes(workload, target, "flextensor", "xgboost", SEED)
    open_lanes = {lane.name: lane for lane in made}
    ranked = [t for t in modelled if t.ok and t.formulation in open_lanes]
    ranked.sort(key=lambda t: t.seconds)
    if not measured:
        return list(_distinct(ranked, open_lanes))[:count]
    scored: list[tuple[float, int, Candidate]] = []
    for lane in open_lanes.values():
        lane.learn([t for t in measured if t.formulation == lane.name])
        own = [t for t in ranked if t.formulation == lane.name][: 4 * count]
        drafts = [*_points(own, lane), *lane.propose(count)]
        drafts += lane.around(count) if lane.history else []
        fresh = [p for p in dict.fromkeys(drafts) if p not in lane.history]
        for score, point in zip(lane.model.predict(fresh), fresh, strict=True):
            scored.append((score, len(scored), Candidate(lane.name, lane.space.config(point))))
    return [candidate for _, _, candidate in sorted(scored, key=lambda s: s[:2])][:count]


def _measured(workload: Workload, target: CUDA, database: Database) -> list[Trial]:
    """What bundles brought back of the workload, from the card of the architecture with most."""
    own = f"{target.kind}/{target.arch}/"
    rows = [row.target for row in database.workloads() if row.key == workload.key]
    cards = [card for card in rows if card.startswith(own) and card.endswith("/cold")]
    return max((database.sound(workload.key, card) for card in cards), key=len, default=[])


def _points(trials: Sequence[Trial], lane: Lane) -> list[Point]:
    points = [lane.space.point(t.config) for t in trials if lane.space.has(t.config)]
    return [lane.space.representative(p) for p in points]


def _distinct(trials: Sequence[Trial], known: Mapping[str, Lane]) -> list[Candidate]:
    """One candidate for all trials that write the same program."""
    found: dict[tuple[str, Point], Trial] = {}
    for trial in trials:
        for point in _points([trial], known[trial.formulation]):
            found.setdefault((trial.formulation, point), trial)
    return [Candidate(t.formulation, t.config) for t in found.values()]
