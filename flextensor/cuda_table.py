"""Kernels for CUDA architectures without a card: one of each family, modelled and proven.

    python -m flextensor.cuda_table [--arch sm_80,sm_90] [--time 15] [--cases C1] [--out FOLDER]

tunes the first case of the paper of every family by the model, in float32, and on matrix units in
float16 what `HALF` names; writes data.json and README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor import operators
from flextensor.errors import DeviceError, InputError, check_positive, exit_code, unknown
from flextensor.operators.suites import SMOKE, Case
from flextensor.report import duration
from flextensor.results import header, make, write
from flextensor.targets import cuda_emulation, lookup
from flextensor.targets.cuda import CUDA
from flextensor.tuner import tune

HALF = ("gemm", "conv2d")
"""Families that are tuned in float16 too, for matrix units."""
LIMIT = 60.0
"""Seconds that a case may take with everything."""
MATRIX = "wmma::mma_sync"
"""What a kernel says that uses matrix units."""


def run(archs: Sequence[str], seconds: float, names: Sequence[str] | None, out: Path,
        command: Sequence[str]) -> None:  # fmt: skip
    """Tune, and write the folder; `DeviceError` at the end when a case is not as it should be."""
    check_positive("time", seconds)
    targets = [_target(arch) for arch in archs]
    for target in targets:
        target.check()
    cuda_emulation.check()
    chosen = list(_cases(names))
    make(out)
    data: dict[str, Any] = {**header(targets[0], command), "rows": []}
    for target in targets:
        for case, dtype in chosen:
            row = _row(case, dtype, target, seconds)
            data["rows"].append(row)
            print(line(row), file=sys.stderr)
            write(out / "data.json", json.dumps(data, indent=1) + "\n")
            write(out / "README.md", markdown(data))
    wrong = [row for row in data["rows"] if complaint(row)]
    if wrong:
        raise DeviceError(f"{len(wrong)} of {len(data['rows'])} failed, see {out / 'README.md'}")


def _target(arch: str) -> CUDA:
    """The product that stands for an architecture, also where a card is."""
    found = lookup(f"cuda:{arch}") if arch.startswith("sm_") else None
    if not isinstance(found, CUDA):
        raise InputError(f"--arch {arch}: name architectures, as sm_80,sm_90")
    return found.measured_by("model")


def _cases(names: Sequence[str] | None) -> Iterator[tuple[Case, str]]:
    """(case, dtype), those that are named or all."""
    every = operators.cases(SMOKE)
    for name in names or ():
        if name not in (known := [c.name for c in every]):
            raise unknown(f"case of suite {SMOKE}", name, known)
    for case in every:
        if names is None or case.name in names:
            yield case, "float32"
    for family in HALF:
        for case in operators.cases(SMOKE, family, dtype="float16"):
            if names is None or case.name in names:
                yield case, "float16"


def _row(case: Case, dtype: str, target: CUDA, seconds: float) -> dict[str, Any]:
    """What was found for a case, with its kernels; or why nothing was."""
    row: dict[str, Any] = {"case": case.name, "family": case.family, "dtype": dtype}
    row |= {"arch": target.arch, "device": target.device}
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="flextensor-table-") as folder:
            db = Path(folder) / "trials.db"
            result = tune(case.operator, target=target, time=seconds, peers=False, db=db)
    except DeviceError as error:
        return row | {"error": str(error), "seconds": time.monotonic() - begun}
    values = result.json()
    row |= {"seconds": time.monotonic() - begun, "flops": result.workload.flops, **values}
    func = result.workload.prim_func(values["formulation"])
    return row | _compiled(func, target, values["config"])


def _compiled(func: Any, target: CUDA, config: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels of a winner, compiled anew: what ptxas gave each, and what the model says."""
    from flextensor.cost_models import gpu
    from flextensor.schedulers import schedule

    judged = gpu.judge(target, schedule(func, target, config))
    kernels = []
    launches = judged.program.functions["main"].launches
    for launch, own in zip(launches, judged.prediction.kernels, strict=True):
        given = judged.binary.resources[launch.kernel]
        kernels.append(
            {
                "name": launch.kernel, "seconds": own.seconds, "bound": own.bound,
                "registers": given.registers, "occupancy": own.occupancy,
                "spilled_bytes": given.spill_stores + given.spill_loads,
                "shared_bytes": given.shared + launch.shared,
                "blocks": math.prod(launch.grid), "threads": math.prod(launch.block),
            }
        )  # fmt: skip
    return {
        "kernels": kernels,
        "cubin_bytes": len(judged.binary.cubin),
        "matrix_units": MATRIX in judged.program.source,
    }


def complaint(row: Mapping[str, Any]) -> str:
    """What a case lacks of what every one should have; empty when that is nothing."""
    if "error" in row:
        return str(row["error"])
    said = []
    if not row["verified"]:
        said.append("not verified")
    if any(kernel["spilled_bytes"] for kernel in row["kernels"]):
        said.append("registers spilled")
    if row["dtype"] == "float16" and not row["matrix_units"]:
        said.append("no matrix units")
    if row["seconds"] > LIMIT:
        said.append(f"took more than {LIMIT:.0f} s")
    return ", ".join(said)


def line(row: Mapping[str, Any]) -> str:
    """A case in a line for a person who waits."""
    found = "failed" if "error" in row else duration(row["best_seconds"])
    wrong = complaint(row)
    end = f": {wrong}" if wrong else ""
    return f"{row['case']} {row['dtype']} {row['arch']}: {found}, {row['seconds']:.0f} s{end}"


def markdown(data: Mapping[str, Any]) -> str:
    """The page."""
    rows = data["rows"]
    good = sum(not complaint(row) for row in rows)
    slowest = max(row["seconds"] for row in rows)
    versions = ", ".join(f"{p} {v}" for p, v in data["versions"].items() if v)
    lines = [
        "# One kernel of every family, for architectures without a card",
        "",
        f"`{data['command']}`, {data['date']}; {versions}. {good} of {len(rows)} are as they "
        f"should be: compiled to machine code, no register spilled, verified in emulation, with "
        f"matrix units in float16, in {LIMIT:.0f} s or less; the slowest took {slowest:.0f} s.",
        "",
        "Times are a model's, not a card's: they rank kernels, and are a bound from below rather "
        "than a forecast. Registers, spills and shared memory are what ptxas gave. Verified means "
        "that the CUDA C of the winner, at the full size of the case, was run on a CPU and "
        "compared with a reference in higher precision: the largest error relative to the largest "
        "output. Seconds are those of the whole tuning with its verification. Where a call has "
        "several kernels, registers, spills and shared memory are the most of any, occupancy and "
        "bound are of the one that takes longest.",
    ]
    for arch in dict.fromkeys(row["arch"] for row in rows):
        own = [row for row in rows if row["arch"] == arch]
        lines += [
            "",
            f"## {own[0]['device']}",
            "",
            "| case | operator | dtype | modelled | GFLOP/s | kernels | registers | spilled bytes "
            "| occupancy | shared bytes | bound | matrix units | error, in emulation | s |",
            "| --- | --- | --- |" + " ---: |" * 7 + " --- | --- | ---: | ---: |",
            *map(_cells, own),
        ]
    failed = [(row, said) for row in rows if (said := complaint(row))]
    if failed:
        lines += ["", "Not as it should be:", ""]
        lines += [f"- {r['case']} {r['dtype']} {r['arch']}: {said}" for r, said in failed]
    lines += ["", "data.json has every config and every kernel."]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> str:
    head = f"| {row['case']} | {row['family']} | {row['dtype']} |"
    if "error" in row:
        return f"{head} failed |" + " - |" * 9 + f" {row['seconds']:.0f} |"
    kernels = row["kernels"]
    longest = max(kernels, key=lambda kernel: float(kernel["seconds"]))
    most = {k: max(kernel[k] for kernel in kernels) for k in ("registers", "shared_bytes")}
    spilled = sum(kernel["spilled_bytes"] for kernel in kernels)
    error = f"{row['max_rel_error']:.0e}" if row["verified"] else "not verified"
    speed = f"{row['gflops']:.0f}" if row["flops"] else "-"
    return (
        f"{head} {duration(row['best_seconds'])} | {speed} | {len(kernels)} "
        f"| {most['registers']} | {spilled} | {longest['occupancy']:.0%} | {most['shared_bytes']} "
        f"| {longest['bound']} | {'yes' if row['matrix_units'] else 'no'} | {error} "
        f"| {row['seconds']:.0f} |"
    )


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.cuda_table")
    parser.add_argument("--arch", default="sm_80,sm_90")
    parser.add_argument("--time", type=float, default=15.0, help="seconds of each search")
    parser.add_argument("--cases", help="of the suite smoke, e.g. C1,GMM1; by default all")
    parser.add_argument("--out", type=Path, default=Path("results/cuda/modelled"))
    given = parser.parse_args(arguments)
    names = given.cases.split(",") if given.cases else None
    command = ["python", "-m", "flextensor.cuda_table", *arguments]
    return exit_code(lambda: run(given.arch.split(","), given.time, names, given.out, command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
