"""What `compare` makes of its data: a table of how fast variants get near, and their curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor.bench_page import geomean
from flextensor.bench_plots import COLOURS

SHARES = (0.90, 0.95, 0.99)
"""Shares of the best known speed that are waited for."""

Run = Mapping[str, Any]


def best_known(runs: Iterable[Run]) -> dict[str, float]:
    """Seconds of the fastest kernel of every case, by whichever run found it."""
    best: dict[str, float] = {}
    for run in runs:
        found = min((s for _, s in run["trace"] if s is not None), default=math.inf)
        best[run["case"]] = min(best.get(run["case"], math.inf), found)
    return best


def progress(run: Run, best: float) -> list[tuple[float, float]]:
    """(wall seconds, best speed so far as a share of the best known) after every trial."""
    top, rows = math.inf, []
    for seconds, value in run["trace"]:
        top = min(top, value if value is not None else math.inf)
        rows.append((seconds, best / top if math.isfinite(top) else 0.0))
    return rows


def reached(rows: Sequence[tuple[float, float]], share: float) -> tuple[int, float] | None:
    """(trials, wall seconds) until a share was reached; None when it never was."""
    for number, (seconds, value) in enumerate(rows, 1):
        if value >= share:
            return number, seconds
    return None


def markdown(data: Mapping[str, Any]) -> str:
    """The experiment as a page: for every variant how near it came, and how soon."""
    runs, machine = data["runs"], data["machine"]
    best = best_known(runs)
    seeds = len({r["seed"] for r in runs})
    lines = [
        "# Explorers",
        "",
        f"`{data['command']}` on {machine['device']}, {data['date']}. {len(best)} workloads,"
        f" {seeds} seeds; every search starts from nothing and runs to its budget. The best"
        " known kernel of a workload is the fastest that any run found. Medians over workloads"
        " and seeds, but for the geomean and the seconds of wall time a trial; in brackets how"
        " many of the runs got there; a median counts those that did not as never.",
        "",
        "| variant | share of best | geomean | first trial | s a trial | "
        + " | ".join(f"to {s:.0%}" for s in SHARES)
        + " |",
        "| --- |" + " ---: |" * (4 + len(SHARES)),
    ]
    for variant in dict.fromkeys(r["variant"] for r in runs):
        own = [progress(r, best[r["case"]]) for r in runs if r["variant"] == variant]
        ends = [rows[-1][1] for rows in own]
        first = statistics.median(rows[0][1] for rows in own)
        pace = sum(rows[-1][0] for rows in own) / sum(map(len, own))
        cells = [variant, f"{statistics.median(ends):.1%}", f"{geomean(ends):.3f}"]
        cells += [f"{first:.0%}", f"{pace:.2f}"]
        for share in SHARES:
            found = [reached(rows, share) for rows in own]
            hits = sum(f is not None for f in found)
            trials = statistics.median(f[0] if f else math.inf for f in found)
            seconds = statistics.median(f[1] if f else math.inf for f in found)
            when = f"{trials:.0f} trials, {seconds:.0f} s" if math.isfinite(trials) else "never"
            cells.append(f"{when} ({hits}/{len(own)})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "![curves](curves.png)"]
    return "\n".join(lines) + "\n"


def _at(rows: Sequence[tuple[float, float]], axis: str, place: float) -> float:
    """The share reached at a number of trials or wall seconds."""
    value = 0.0
    for number, (seconds, share) in enumerate(rows, 1):
        if (number if axis == "trials" else seconds) > place:
            break
        value = share
    return value


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Share of the best known speed, of these runs or said, over trials and over wall time: median
    and quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = data["runs"]
    best = data.get("best") or best_known(runs)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, axis in zip(axes, ("trials", "seconds"), strict=True):
        for index, variant in enumerate(dict.fromkeys(r["variant"] for r in runs)):
            own = [progress(r, best[r["case"]]) for r in runs if r["variant"] == variant]
            last = max(len(rows) if axis == "trials" else rows[-1][0] for rows in own)
            places = [last * (i + 1) / 100 for i in range(100)]
            bands = [sorted(_at(rows, axis, p) for rows in own) for p in places]
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(places, [statistics.median(b) for b in bands], color=colour, label=variant)
            low = [b[len(b) // 4] for b in bands]
            high = [b[(3 * len(b)) // 4] for b in bands]
            panel.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set_xlabel("trials" if axis == "trials" else "wall time (s)")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("speed, as a share of the best known")
    axes[0].set_ylim(0, 1.02)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
