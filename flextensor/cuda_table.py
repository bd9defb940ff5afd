"""Kernels for CUDA architectures without a card: those of a suite, modelled and proven.

    python -m flextensor.cuda_table [--suite paper] [--arch sm_80,sm_90] [--time 15] [--cases C1]

tunes the cases of a suite by the model, by default the first of every family of the paper: in
float32, and in dtypes of matrix units the families of `HALF`; writes data.json and README.md. A
run that was stopped goes on where it stood. A row says when and by which command it was made.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flextensor import operators
from flextensor.errors import DeviceError, InputError, check_positive, exit_code, unknown
from flextensor.operators.suites import SMOKE, Case
from flextensor.report import duration
from flextensor.results import header, make, now, write
from flextensor.targets import cuda_emulation, lookup
from flextensor.targets.cuda import CUDA
from flextensor.tuner import tune

DTYPES = ("float32", "float16", "bfloat16")
HALF = ("gemm", "conv2d")
"""Families that are tuned in dtypes of 16 bits too, for matrix units."""
LIMIT = 60.0
"""Seconds that a case may take with everything."""
MATRIX = re.compile(r"wmma::mma_sync|mma\.sync")
"""What a kernel says that uses matrix units."""


def run(suite: str, archs: Sequence[str], dtypes: Sequence[str], seconds: float,
        names: Sequence[str] | None, out: Path, command: Sequence[str]) -> None:  # fmt: skip
    """Tune, and write the folder after every case. What the folder holds of as long a search with
    the same versions stays, and is not tuned again unless something was wrong with it; what another
    search found goes.

    `InputError` when no case is left, `DeviceError` at the end when one is not as it should be.
    """
    check_positive("time", seconds)
    targets = [_target(arch) for arch in dict.fromkeys(archs)]
    for target in targets:
        target.check()
    cuda_emulation.check()
    cases = dict.fromkeys(_cases(suite, dtypes, names))
    if not cases:
        raise InputError(f"no case has that dtype; in 16 bits there are {' and '.join(HALF)}")
    chosen = [(target, *case) for target in targets for case in cases]
    make(out)
    data: dict[str, Any] = {**header(targets[0], command), "suite": suite}
    keys = [Key(case.name, dtype, target.fingerprint, seconds) for target, case, dtype in chosen]
    rows: dict[Key, dict[str, Any]] = {}
    for key, row in _recorded(out / "data.json", data, seconds).items():
        if key not in keys or not complaint(row):
            rows[key] = row
    others = [key for key in rows if key not in keys]
    for key, (target, case, dtype) in zip(keys, chosen, strict=True):
        if key not in rows:
            made = {"date": now(), "command": data["command"]}
            rows[key] = _row(case, dtype, target, seconds) | made | key._asdict()
            print(line(rows[key]), file=sys.stderr, flush=True)
            _write(out, data | {"rows": [rows[k] for k in (*keys, *others) if k in rows]})
    data["rows"] = [rows[key] for key in (*keys, *others)]
    _write(out, data)
    wrong = [row for row in data["rows"] if complaint(row)]
    if wrong:
        raise DeviceError(f"{len(wrong)} of {len(data['rows'])} failed, see {out / 'README.md'}")


class Key(NamedTuple):
    """What tells one row from another."""

    case: str
    dtype: str
    fingerprint: str
    budget: float
    """Seconds of the search."""


def _recorded(path: Path, today: Mapping[str, Any], seconds: float) -> dict[Key, dict[str, Any]]:
    """The rows of an older `path` that searches of `seconds` made, if they are of the same suite
    and versions."""
    try:
        old = json.loads(path.read_text())
        if any(old[name] != today[name] for name in ("suite", "versions")):
            return {}
        made = {name: old[name] for name in ("date", "command")}  # of rows that do not say
        rows = [made | row for row in old["rows"] if row["budget"] == seconds]
        return {Key(*(row[name] for name in Key._fields)): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(out: Path, data: Mapping[str, Any]) -> None:
    write(out / "data.json", json.dumps(data, indent=1) + "\n")
    write(out / "README.md", markdown(data))


def _target(arch: str) -> CUDA:
    """The product that stands for an architecture, also where a card is."""
    found = lookup(f"cuda:{arch}") if arch.startswith("sm_") else None
    if not isinstance(found, CUDA):
        raise InputError(f"--arch {arch}: name architectures, as sm_80,sm_90")
    return found.measured_by("model")


def _cases(
    suite: str, dtypes: Sequence[str], names: Sequence[str] | None
) -> Iterator[tuple[Case, str]]:
    """(case, dtype), those that are named or all; float32 stands for the dtypes of the suite."""
    every = operators.cases(suite)
    for name in names or ():
        if name not in (known := [c.name for c in every]):
            raise unknown(f"case of suite {suite}", name, known)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        typed = every
        if dtype != DTYPES[0]:
            typed = [c for c in operators.cases(suite, dtype=dtype) if c.family in HALF]
        for case in typed:
            if names is None or case.name in names:
                yield case, getattr(case.operator, "dtype", DTYPES[0])


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
        "matrix_units": bool(MATRIX.search(judged.program.source)),
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
    if row["dtype"] != "float32" and not row["matrix_units"]:
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
        f"# Kernels of the suite {data['suite']}, for architectures without a card",
        "",
        f"`{data['command']}`, {data['date']}; {versions}. {good} of {len(rows)} are as they "
        f"should be: compiled to machine code, no register spilled, verified in emulation, with "
        f"matrix units where elements have 16 bits, in {LIMIT:.0f} s or less; the slowest took "
        f"{slowest:.0f} s.",
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
    lines += ["", "data.json has every config, every kernel, and the command of every row."]
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
    parser.add_argument("--suite", default=SMOKE, help="of cases, e.g. paper")
    parser.add_argument("--arch", default="sm_80,sm_90")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--time", type=float, default=15.0, help="seconds of each search")
    parser.add_argument("--cases", help="of the suite, e.g. C1,GMM1; by default all")
    parser.add_argument("--out", type=Path, help="default results/cuda/modelled, or modelled-SUITE")
    given = parser.parse_args(arguments)
    names = given.cases.split(",") if given.cases else None
    suffix = "" if given.suite == SMOKE else f"-{given.suite}"
    out = given.out or Path(f"results/cuda/modelled{suffix}")
    archs, dtypes = given.arch.split(","), given.dtypes.split(",")
    command = ["python", "-m", "flextensor.cuda_table", *arguments]
    return exit_code(lambda: run(given.suite, archs, dtypes, given.time, names, out, command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
