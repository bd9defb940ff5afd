"""`bench`: every case of a suite beside its peers, as raw data, a table and a picture."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flextensor.errors import FlexTensorError, InputError
from flextensor.report import duration

PACKAGES = ("flextensor", "apache-tvm", "apache-tvm-ffi", "torch", "xgboost", "numpy")


def run(
    suite: str,
    *,
    family: str | None,
    target: str,
    time: float | None,
    trials: int | None,
    threads: int | None,
    out: Path,
    db: Path | None,
    command: Sequence[str],
) -> int:
    """Tune every case; write OUT/data.json after each, then the table and the picture.

    A case that fails is recorded with its reason. A run that was killed goes on where it stood:
    what is solved answers from the database. Returns the number of failed cases.
    """
    from flextensor import operators, tuner
    from flextensor.targets import lookup

    chosen = operators.cases(suite, family)
    if not chosen:
        raise InputError(f"suite {suite} has no case of {family}")
    device = lookup(target, threads)
    out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "machine": {
            "device": device.device, "fingerprint": device.fingerprint,
            "system": platform.platform(),
            "peak_gflops": device.peak_flops() / 1e9, "bandwidth_gbs": device.bandwidth() / 1e9,
        },
        "command": " ".join(["flextensor", *command]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "cases": [],
    }  # fmt: skip
    failed = 0
    with tuner.opened(db) as database:
        for case in chosen:
            try:
                result = tuner.tune(
                    case.operator, target=device, trials=trials, time=time, db=database
                )
                values = {**result.json(), "case": case.full_name}
                print(f"{case.full_name:14s}{summary(values)}", file=sys.stderr, flush=True)
            except FlexTensorError as error:
                failed += 1
                values = {"case": case.full_name, "operator": case.family, "failure": str(error)}
                print(f"{case.full_name:14s}failed: {error}", file=sys.stderr, flush=True)
            data["cases"].append(values)
            write(out / "data.json", json.dumps(data, indent=1) + "\n")
    write(out / "README.md", markdown(suite, data))
    plot(data["cases"], out / "speedup.png")
    return failed


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    os.replace(part, path)


def summary(values: dict[str, Any]) -> str:
    """One case as one line."""
    speedup = f"{values['speedup']:.2f}x" if values["speedup"] else "-"
    return (
        f"{duration(values['best_seconds']):>10s} {values['gflops']:8.1f} GFLOP/s {speedup:>8s}"
        f" {values['trials']:4d} trials {values['tuning_seconds']:6.1f} s"
    )


def geomean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def by_family(cases: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cases that were measured beside PyTorch, by operator."""
    families: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if case.get("speedup"):
            families.setdefault(case["operator"], []).append(case)
    return families


def markdown(suite: str, data: dict[str, Any]) -> str:
    """The results as a page: per family a summary, then every case."""
    machine, families = data["machine"], by_family(data["cases"])
    lines = [
        f"# Suite {suite}",
        "",
        f"`{data['command']}` on {machine['device']}, {data['date']}.",
        f"Measured peak {machine['peak_gflops']:.0f} GFLOP/s, memory {machine['bandwidth_gbs']:.1f}"
        " GB/s. Speed-up: PyTorch eager over FlexTensor, medians, timed in turns in one process on"
        " the same inputs (warm caches, plain layouts, everything counted). Every kernel verified.",
        "",
        "| family | cases | geomean | worst | best | wins |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    means = []
    for family, cases in families.items():
        ratios = [c["speedup"] for c in cases]
        means.append(geomean(ratios))
        lines.append(
            f"| {family} | {len(ratios)} | {means[-1]:.2f} | {min(ratios):.2f} |"
            f" {max(ratios):.2f} | {sum(r >= 1 for r in ratios)} |"
        )
    if means:
        lines += ["", f"Geomean of the families' geomeans: {geomean(means):.2f}.", ""]
    lines += [
        "| case | latency | spread | GFLOP/s | share of roof | bound | speed-up | error | trials"
        " | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in data["cases"]:
        if "failure" in c:
            lines.append(f"| {c['case']} | failed: {c['failure']} |" + " |" * 8)
            continue
        speedup = f"{c['speedup']:.2f}" if c["speedup"] else "-"
        lines.append(
            f"| {c['case']} | {duration(c['best_seconds'])} | {c['spread']:.1%} |"
            f" {c['gflops']:.1f} | {c['peak_fraction']:.0%} | {c['bound']} | {speedup} |"
            f" {c['max_rel_error']:.1e} |"
            f" {c['trials']} | {c['tuning_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar per case, grouped by family, on a logarithmic axis of speed-up over PyTorch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = by_family(cases)
    if not families:
        return
    count = sum(map(len, families.values()))
    figure, axes = plt.subplots(figsize=(max(6.0, 0.16 * count + 2), 4.2))
    colours = plt.get_cmap("tab20")
    start, ticks = 0.0, []
    for index, (family, members) in enumerate(families.items()):
        places = [start + i for i in range(len(members))]
        axes.bar(places, [c["speedup"] - 1 for c in members], bottom=1, color=colours(index % 20))
        ticks.append((start + (len(members) - 1) / 2, family))
        start += len(members) + 1.5
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%gx"))
    axes.set_xticks([t for t, _ in ticks], [n for _, n in ticks], rotation=35, ha="right")
    axes.set_ylabel("speed-up over PyTorch eager")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
