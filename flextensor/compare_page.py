"""What `compare` makes of its data: a table of how fast variants get near, and their curves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor import compare_beside
from flextensor.bench_page import geomean
from flextensor.bench_plots import COLOURS
from flextensor.curves import (
    Run,
    at,
    band,
    best_known,
    geomean_band,
    grouped,
    progress,
    reached,
)

SHARES = (0.90, 0.95, 0.99)
"""Shares of the best known speed that are waited for."""

STARTS = ("shipped", "warm")
"""What a search may know of other shapes when it begins, e.g. ``flextensor/warm``: what the package
ships, as with an empty database; or also the trials of a database. In both, what is shipped of
other operators, and never a trial of the workload's own."""

FIRST = (1, 8, 16)
"""Trials after which starts are compared."""
AIM = 0.95
"""The share of the best known that a start is to come to."""

LEAST = 1e-3
"""The share of the best known of a search in which nothing worked, where a ratio is wanted."""


def known(data: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the fastest kernel of every case: by any run, by a config of a warm database that
    was measured again, or in the table of a replay."""
    if "replay" in data:
        return {case: told["fastest"] for case, told in data["replay"].items()}
    again = {case: math.inf if s is None else s for case, s in data.get("known", {}).items()}
    return {case: min(s, again.get(case, s)) for case, s in best_known(data["runs"]).items()}


def markdown(data: Mapping[str, Any]) -> str:
    """The experiment as a page: for every variant how near it came, and how soon."""
    runs, machine = data["runs"], data["machine"]
    best = known(data)
    count = len({r["seed"] for r in runs})
    seeds = f"{count} seed{'s' * (count != 1)}"
    whose = "that any run found" if "replay" not in data else "of its table"
    if "known" in data:
        whose += " or the warm database had, which was measured again"
    starts = ", but for what its name says below," if _starts(data) else ""
    lines = [
        "# Explorers" if "replay" not in data else "# Explorers, replayed",
        "",
        f"`{data['command']}` on {machine['device']}, {data['date']}. {len(best)} workloads,"
        f" {seeds}; every search starts from nothing{starts} and runs to its budget. The"
        f" best known kernel of a workload is the fastest {whose}. Medians over workloads"
        " and seeds, but for the geomean and the seconds of wall time a trial. In brackets: after"
        " a share the 95 % confidence interval of the median, by a bootstrap over seeds; after"
        " trials and seconds how many of the runs got there; a median counts those that did not"
        " as never.",
        "",
        "| variant | share of best | geomean | first trial | s a trial | "
        + " | ".join(f"to {s:.0%}" for s in SHARES)
        + " |",
        "| --- |" + " ---: |" * (4 + len(SHARES)),
    ]
    lines += [_row(variant, cases) for variant, cases in grouped(runs, best).items()]
    lines += _starts(data)
    lines += _ablation(runs, best)
    lines += compare_beside.sections(runs)
    if "replay" in data:
        lines += _replay(data)
    lines += ["", "![curves](curves.png)"]
    return "\n".join(lines) + "\n"


def _row(variant: str, cases: Mapping[str, Sequence[Any]]) -> str:
    import numpy as np

    own = [rows for group in cases.values() for rows in group]
    ends = [np.array([[rows[-1][1]] for rows in group]) for group in cases.values()]
    share, low, high = (float(bound[0]) for bound in band(ends))
    first = statistics.median(rows[0][1] for rows in own)
    pace = sum(rows[-1][0] for rows in own) / sum(map(len, own))
    cells = [variant, f"{share:.1%} ({low:.1%} to {high:.1%})"]
    cells += [f"{geomean([rows[-1][1] for rows in own]):.3f}", f"{first:.0%}", f"{pace:.2f}"]
    for wanted in SHARES:
        found = [reached(rows, wanted) for rows in own]
        hits = sum(f is not None for f in found)
        trials = statistics.median(f[0] if f else math.inf for f in found)
        seconds = statistics.median(f[1] if f else math.inf for f in found)
        when = f"{trials:.0f} trials, {seconds:.0f} s" if math.isfinite(trials) else "never"
        cells.append(f"{when} ({hits}/{len(own)})")
    return "| " + " | ".join(cells) + " |"


def _starts(data: Mapping[str, Any]) -> list[str]:
    """What a start is worth in the first trials, case by case; nothing where all are the same."""
    runs = grouped(data["runs"], known(data))
    if not any(start in variant.split("/") for variant in runs for start in STARTS):
        return []
    warm = data.get("warm")
    holds = f", {warm['trials']} trials of {warm['workloads']} workloads" if warm else ""
    lines = [
        "",
        "## What a start is worth",
        "",
        f"Share of the best known after {', '.join(map(str, FIRST))} trials, and trials to"
        f" {AIM:.0%}; medians over seeds. /shipped: the four nearest other shapes of each chip that"
        " the package ships give their trials to the model and their best configs to the search,"
        " as in a `tune` with an empty database. On the machine that they come from, that is a"
        f" warm start too. /warm: also those of a database of this device{holds}, instead of its"
        " chip's where they are nearer. Both also learn from other operators, by shipped trials."
        " No search is given a trial of its own workload, by any of these ways.",
        "",
        "| workload | " + " | ".join(runs) + " |",
        "| --- |" + " ---: |" * len(runs),
    ]
    cases = dict.fromkeys(case for own in runs.values() for case in own)
    for case in cases:
        lines.append(f"| {case} | " + " | ".join(_first(runs[v].get(case, [])) for v in runs))
        lines[-1] += " |"
    every = [[rows for group in own.values() for rows in group] for own in runs.values()]
    lines.append("| all | " + " | ".join(map(_first, every)) + " |")
    for trials in FIRST[1:]:
        met = [f"{sum(_within(rows, trials) for rows in own) / len(own):.0%}" for own in every]
        lines.append(f"| {AIM:.0%} within {trials} trials | " + " | ".join(met) + " |")
    return lines


def _within(rows: Sequence[tuple[float, float]], trials: int) -> bool:
    found = reached(rows, AIM)
    return found is not None and found[0] <= trials


def _first(own: Sequence[Sequence[tuple[float, float]]]) -> str:
    if not own:
        return "-"
    shares = [statistics.median(at(rows, "trials", place) for rows in own) for place in FIRST]
    found = [reached(rows, AIM) for rows in own]
    trials = statistics.median(f[0] if f else math.inf for f in found)
    when = f"{trials:.0f} trials" if math.isfinite(trials) else "never"
    return ", ".join(f"{share:.0%}" for share in shares) + f"; {when}"


def ablations(variants: Sequence[str]) -> list[tuple[str, str, str]]:
    """(variant, what it lacks, the variant that has it) of all that can be compared."""
    found = []
    for variant in variants:
        explorer, *parts = variant.split("/")
        lacking = [p for p in parts if p not in STARTS]
        whole = "/".join([explorer, *(p for p in parts if p in STARTS)])
        if lacking and whole in variants:
            found.append((variant, ", ".join(p.replace("-", " ") for p in lacking), whole))
    if {"p-method", "q-method"} <= set(variants):
        found.append(("p-method", "no Q-network", "q-method"))
    return found


def _ablation(runs: Sequence[Run], best: Mapping[str, float]) -> list[str]:
    """What the kernels found lose without one part, search by search of the same seed."""
    ends = {
        (r["variant"], r["case"], r["seed"]): max(progress(r, best[r["case"]])[-1][1], LEAST)
        for r in runs
    }
    lines = []
    for variant, lacking, whole in ablations(list(dict.fromkeys(r["variant"] for r in runs))):
        groups: dict[str, list[float]] = defaultdict(list)
        for name, case, seed in ends:
            if name == variant and (whole, case, seed) in ends:
                ratio = ends[variant, case, seed] / ends[whole, case, seed]
                groups[case].append(math.log2(ratio))
        if groups:
            speed, low, high = geomean_band(groups.values())
            lines.append(f"| {whole}, {lacking} | {speed:.3f} | {low:.3f} to {high:.3f} |")
    if not lines:
        return []
    return [
        "",
        "## What a part is worth",
        "",
        "Speed of the kernel found without a part, over that found with it by the same seed:"
        " geomean, and its 95 % confidence interval over seeds.",
        "",
        "| without | speed | interval |",
        "| --- | ---: | ---: |",
        *lines,
    ]


def _replay(data: Mapping[str, Any]) -> list[str]:
    """What answered the trials, and how far it can be trusted."""
    runs = data["runs"]
    trials = sum(len(r["trace"]) for r in runs)
    recorded = sum(r["recorded"] for r in runs)
    lines = [
        "",
        "## What answered",
        "",
        f"No trial of these searches ran. {recorded / trials:.0%} of the {trials} answers are"
        " measured points; the others are what a Gaussian process over the knobs expects from the"
        " measured points of the formulation (`flextensor/replay.py`). Below: rank correlation"
        " with held-out points by cross-validation (of all, and of the faster half), and by what"
        " factor the median answer is off. The landscape is smoother than the device's, and none"
        " of its points is faster than the fastest measured one, which is the luckiest of many:"
        " the last per cent are noise, and differences between explorers that are smaller than"
        " that factor are not shown to hold on the device. Wall time is what"
        " the trials took to build and to run when they were measured, the mean for points"
        " outside the table; the time of the search itself is left out.",
        "",
        "| workload | formulation | points | failed | rank correlation | of the fast half"
        " | off by | s to build | to run |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for case, told in data["replay"].items():
        for name, t in told["tables"].items():
            lines.append(
                f"| {case} | {name} | {t['points']} | {t['failures']} | {t['spearman']:.2f} |"
                f" {t['fast']:.2f} | {t['factor']:.2f} | {t['build_seconds']:.2f} |"
                f" {t['run_seconds']:.2f} |"
            )
    left = [
        f"{case} {name} ({count})"
        for case, told in data["replay"].items()
        for name, count in told["left_out"].items()
    ]
    if left:
        lines += ["", f"Left out, with too few points that worked: {', '.join(left)}."]
    return lines


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Share of the best known speed over trials and over wall time: the median, with the
    confidence band of `band`."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = grouped(data["runs"], known(data))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, axis in zip(axes, ("trials", "seconds"), strict=True):
        for index, (variant, cases) in enumerate(runs.items()):
            own = [rows for group in cases.values() for rows in group]
            last = max(len(rows) if axis == "trials" else rows[-1][0] for rows in own)
            places = [last * (i + 1) / 100 for i in range(100)]
            shares = [
                np.array([[at(rows, axis, p) for p in places] for rows in group])
                for group in cases.values()
            ]
            colour = COLOURS[index % len(COLOURS)]
            middle, low, high = band(shares)
            panel.plot(places, middle, color=colour, label=variant)
            panel.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set_xlabel("trials" if axis == "trials" else "wall time (s)")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("speed, as a share of the best known")
    axes[0].set_ylim(0, 1.02)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
