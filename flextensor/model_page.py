"""What `flextensor.model_check` or `flextensor.seed_check` found, as a page with a table and a
scatter plot."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flextensor import operators
from flextensor.bench_page import geomean
from flextensor.ranking import regret, spearman
from flextensor.results import write

Row = Mapping[str, Any]

JUDGES = {
    "estimate": "the schedulers' estimate",
    "kernels": "the model of kernels",
    "learned": "the cost model before the first trial",
}
PICKS = 8
FEWEST = PICKS + 1
"""Programs of a workload below which any order would find the fastest."""
DRAWS = 100
"""Orders of equal guesses over which a regret is the mean."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How a judge ranks the measured programs of a workload."""

    spearman: float
    top1: float
    """Time of its first pick, over the fastest."""
    top8: float
    """Time of the fastest of its first eight, likewise."""
    scale: float
    """Measured over guessed seconds, the median: what calibrates it."""
    refused: int
    """Programs that ran and that it holds for illegal; it ranks them last."""


def score(row: Row, judge: str) -> Score:
    """The score of a judge on a workload."""
    seconds = [t["seconds"] for t in row["trials"]]
    guesses = [math.inf if t[judge] is None else t[judge] for t in row["trials"]]
    scales = [s / g for s, g in zip(seconds, guesses, strict=True) if 0 < g < math.inf]
    top1, top8 = (_expected(guesses, seconds, picks) for picks in (1, PICKS))
    return Score(
        spearman(guesses, seconds), top1, top8,
        statistics.median(scales) if scales else math.nan, guesses.count(math.inf),
    )  # fmt: skip


def _expected(guesses: Sequence[float], seconds: Sequence[float], picks: int) -> float:
    """The mean regret when equal guesses, which an estimate often gives, come in random order."""
    rng = np.random.default_rng(0)
    orders = (rng.permutation(len(seconds)) for _ in range(DRAWS))
    own, times = np.array(guesses), np.array(seconds)
    return statistics.mean(regret(own[order], times[order], picks) for order in orders)


def judges(row: Row) -> list[str]:
    """Who judged the programs of a workload."""
    return [judge for judge in JUDGES if judge in row["trials"][0]]


def line(row: Row) -> str:
    """A workload in a line for a person who waits."""
    said = (f"{judge} {score(row, judge).spearman:.2f}" for judge in judges(row))
    return f"{row['workload']}: {len(row['trials'])} programs, rank correlation {', '.join(said)}"


def save(data: Mapping[str, Any], out: Path) -> None:
    """Write data.json, README.md and scatter.png into a folder."""
    write(out / "data.json", json.dumps(data, allow_nan=False) + "\n")
    write(out / "README.md", markdown(data))
    plot(data, out / "scatter.png")


def markdown(data: Mapping[str, Any]) -> str:
    """The page."""
    rows = data["rows"]
    devices = sorted({row["device"] for row in rows})
    programs = sum(len(row["trials"]) for row in rows)
    versions = ", ".join(f"{p} {v}" for p, v in data["versions"].items() if v)
    title = (
        "The first picks of a search"
        if "seeds" in data
        else "What guides a search on blocks of threads"
    )
    lines = [
        f"# {title}, against what was measured",
        "",
        f"`{data['command']}`, {data['date']}; {versions}. {programs} programs of {len(rows)}"
        f" workloads, measured on {', '.join(f'`{d}`' for d in devices)}. {_about(data)}",
        "",
        f"rho: Spearman's rank correlation. Top 1, top {PICKS}: measured time of the guess's first"
        f" pick, and of the best of its first {PICKS}, over that of the fastest program,"
        f" equal guesses in random order (mean of {DRAWS}). Scale:"
        " measured over guessed seconds, the median of the programs; - where no guess is given, so"
        " that the picks are chance's.",
        "",
        "![measured and guessed seconds](scatter.png)",
    ]
    for judge in judges(rows[0]):
        lines += ["", f"## By {JUDGES[judge]}", "", *_table(rows, judge, len(devices) > 1)]
    lines += ["", "data.json has every program with its config."]
    return "\n".join(lines) + "\n"


def _about(data: Mapping[str, Any]) -> str:
    if "seeds" in data:
        return (
            f"Up to {data['seeds']} of the schedulers' seeds of every formulation, timed in turns."
            " Each is judged by the estimate that its scheduler gives without lowering it, and by"
            " the cost model as it stands before the first trial: it has learned from what the"
            " package ships of other shapes and operators, and of no alias of the workload."
        )
    few = (
        f"Workloads with fewer than {FEWEST} programs are left out. A search that follows a guess"
        " measures few points that look poor to it, so that these are harder to rank than random"
        " ones. "
    )
    if data["modelled"]:
        return few + (
            "Each program is judged by the estimate that its scheduler gives without lowering it,"
            " and by the model of kernels, which compiles it for the very card. Where the latter"
            " refuses a program that ran (`refused`), it ranks it last."
        )
    return few + (
        "The model of kernels knows CUDA architectures only; here a search is guided by the"
        " estimate that a scheduler gives without lowering the program, and so it is what is"
        " judged."
    )


def _table(rows: Sequence[Row], judge: str, several: bool) -> list[str]:
    names = {c.operator.key(): c.full_name for s in ("extra", "paper") for c in operators.cases(s)}
    scores = [score(row, judge) for row in rows]
    lines = [
        f"| workload | programs | rho | top 1 | top {PICKS} | scale | refused |",
        "| --- |" + " ---: |" * 6,
    ]
    for row, own in zip(rows, scores, strict=True):
        name = names.get(row["workload"], row["workload"])
        place = f" on {row['device']}" if several else ""
        lines.append(_line(f"{name}{place}", len(row["trials"]), own, str(own.refused)))
    for label, mean in (("median", statistics.median), ("geomean", geomean)):
        lines.append(_line(label, "", _over(scores, mean), ""))
    return lines


def _line(label: str, programs: int | str, own: Score, refused: str) -> str:
    rho, scale = f"{own.spearman:.2f}", f"{own.scale:.3g}"
    cells = [label, programs, rho, f"{own.top1:.2f}", f"{own.top8:.2f}", scale, refused]
    return "| " + " | ".join("-" if cell == "nan" else str(cell) for cell in cells) + " |"


def _over(scores: Sequence[Score], mean: Callable[[Sequence[float]], float]) -> Score:
    """The mean of every figure; a correlation, which may be negative, has only a median."""
    scales = [s.scale for s in scores if not math.isnan(s.scale)]
    return Score(
        mean([s.spearman for s in scores]) if mean is statistics.median else math.nan,
        mean([s.top1 for s in scores]), mean([s.top8 for s in scores]),
        mean(scales) if scales else math.nan, sum(s.refused for s in scores),
    )  # fmt: skip


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Guessed over measured seconds, a panel for each judge and a colour for each operator."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    rows, shown = data["rows"], judges(data["rows"][0])
    families = list(dict.fromkeys(row["operator"] for row in rows))
    measured = [t["seconds"] for row in rows for t in row["trials"]]
    ends = min(measured), max(measured)
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(5.5 * len(shown) + 2.5, 5.5), squeeze=False, layout="constrained"
    )
    for axes, judge in zip(panels[0], shown, strict=True):
        for number, family in enumerate(families):
            own = [t for row in rows if row["operator"] == family for t in row["trials"]]
            known = [t for t in own if t[judge]]
            axes.scatter(
                [t["seconds"] for t in known], [t[judge] for t in known], s=8, linewidths=0.8,
                label=family, color=f"C{number % 10}", marker="ox"[number // 10 % 2],
            )  # fmt: skip
        axes.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", title=JUDGES[judge])
        axes.xaxis.set_minor_formatter(NullFormatter())  # they would lie upon each other
        axes.set(xlabel="seconds measured", ylabel="seconds guessed")
    figure.legend(
        handles=panels[0][0].get_legend_handles_labels()[0], loc="outside right upper", fontsize=8
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
