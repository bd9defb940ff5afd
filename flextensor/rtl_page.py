"""What `flextensor.rtl_check` found, as a page with a table and a scatter plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor.ranking import spearman

RESOURCES = ("dsp", "bram18", "lut")
Rows = Sequence[Mapping[str, Any]]


def agreement(rows: Rows) -> dict[str, float]:
    """{"count", "wrong", "mean", "worst", "spearman"} of predicted against simulated cycles."""
    right = [r for r in rows if r["status"] == "ok"]
    errors = [abs(r["predicted"] / r["cycles"] - 1) for r in right]
    predicted, cycles = ([r[name] for r in right] for name in ("predicted", "cycles"))
    return {
        "count": len(right), "wrong": len(rows) - len(right), "mean": statistics.mean(errors),
        "worst": max(errors), "spearman": spearman(predicted, cycles),
    }  # fmt: skip


def deviation(rows: Rows, resource: str) -> tuple[float, float]:
    """(mean, worst) of |estimate / synthesised - 1| over the designs that were synthesised."""
    both = [(r["estimate"][resource], r["synthesised"][resource]) for r in rows if r["synthesised"]]
    errors = [abs(a / b - 1) for a, b in both]
    return statistics.mean(errors), max(errors)


def markdown(data: Mapping[str, Any]) -> str:
    """The page."""
    rows = data["rows"]
    found = agreement(rows)
    synthesised = [r for r in rows if r["synthesised"]]
    lines = [
        "# The model of FPGA engines against their RTL",
        "",
        f"`{data['command']}`, {data['date']}, {data['target']}, {data['versions']['verilator']}, "
        f"{data['versions']['yosys']}. No board, no vendor tool and no place-and-route was used: "
        "the memory is the testbench's, and clocks elsewhere are assumptions.",
        "",
        f"{found['count']} random designs, every output of which equals the integer reference "
        f"({found['wrong']} failed). Predicted against simulated cycles: mean error "
        f"{found['mean']:.2%}, worst {found['worst']:.2%}, Spearman {found['spearman']:.5f}.",
        "",
        "![predicted and simulated cycles](scatter.png)",
        "",
        "| workload | designs | mean error | worst | cycles |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for kind in dict.fromkeys(r["kind"] for r in rows):
        own = [r for r in rows if r["kind"] == kind and r["status"] == "ok"]
        errors = [abs(r["predicted"] / r["cycles"] - 1) for r in own]
        cycles = [r["cycles"] for r in own]
        lines.append(
            f"| {kind} | {len(own)} | {statistics.mean(errors):.2%} | {max(errors):.2%} | "
            f"{min(cycles):,} to {max(cycles):,} |"
        )
    if synthesised:
        lines += [
            "",
            f"{len(synthesised)} of them were synthesised by yosys for UltraScale+. The formula of "
            "lookup tables was fitted to such designs, those for DSP blocks and RAM were not:",
            "",
            "| resource | mean error | worst | smallest | largest |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
    for name in RESOURCES if synthesised else ():
        mean, worst = deviation(rows, name)
        sizes = [r["synthesised"][name] for r in synthesised]
        lines.append(f"| {name} | {mean:.2%} | {worst:.2%} | {min(sizes)} | {max(sizes)} |")
    lines += ["", "data.json has every design with its config."]
    return "\n".join(lines) + "\n"


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Predicted over simulated cycles, one colour per workload."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    rows = [r for r in data["rows"] if r["status"] == "ok"]
    for kind in dict.fromkeys(r["kind"] for r in rows):
        own = [r for r in rows if r["kind"] == kind]
        axes.scatter([r["cycles"] for r in own], [r["predicted"] for r in own], s=18, label=kind)
    ends = [min(r["cycles"] for r in rows), max(r["cycles"] for r in rows)]
    axes.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="cycles simulated", ylabel="cycles predicted")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
