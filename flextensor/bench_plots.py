"""What `bench` makes of its data: pictures of the speed-ups and of the roofline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flextensor.bench_page import Case, by_family, compared, geomean, placed, ratios

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""One per family in turn, told apart by the colour-blind too; none is like `SLOWER`."""
SLOWER = "#9a9a9a"


MARKERS = "os^D"
"""One per round of the colours."""


def speedups(cases: Iterable[Case], path: Path) -> None:
    """A bar per case, grouped by family, on a logarithmic axis of speed-up over PyTorch.

    Without a case to show there is no picture; one of an older run is removed.
    """
    families = by_family(compared(cases))
    if not families:
        path.unlink(missing_ok=True)
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    count = sum(map(len, families.values()))
    width = min(max(6.0, 0.1 * count + 0.3 * len(families) + 1.5), 20.0)
    figure, axes = plt.subplots(figsize=(width, 5.0), layout="constrained")
    start, ticks, tops, every = 0.0, [], [], [0.5, 2.0]  # an axis from 0.5x to 2x at least
    for index, (family, members) in enumerate(families.items()):
        own = ratios(members, "torch")
        every += own
        places = [start + i for i in range(len(own))]
        colours = [COLOURS[index % len(COLOURS)] if r >= 1 else SLOWER for r in own]
        axes.bar(places, [r - 1 for r in own], bottom=1, width=0.85, color=colours)
        mean, middle = geomean(own), start + (len(own) - 1) / 2
        axes.hlines(mean, start - 0.5, places[-1] + 0.5, color="black", linewidth=1.2)
        tops.append((middle, max(*own, mean, 1.0), f"{mean:.2g}x"))
        ticks.append((middle, family))
        start += len(own) + 1.5
    for middle, top, text in tops:
        axes.annotate(
            text, (middle, top), (0, 3), textcoords="offset points", ha="center", fontsize=8
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_ylim(min(every) / 1.15, max(every) * 1.4)
    axes.margins(x=0.01)
    axes.set_xticks([t for t, _ in ticks], [n for _, n in ticks], rotation=35, ha="right")
    axes.set_ylabel("speed-up over PyTorch eager")
    axes.set_title("One bar per case; black: geomean of the family; grey: slower", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def roofline(data: Mapping[str, Any], path: Path) -> None:
    """GFLOP/s over FLOP per byte of compulsory traffic, a point per case, under the measured roof
    (Williams, Waterman, Patterson, CACM 2009).

    A point above the slope kept its data in a cache. Without a case to show there is no picture;
    one of an older run is removed.
    """
    cases = placed(data["cases"])
    if not cases:
        path.unlink(missing_ok=True)
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peak, bandwidth = (data["machine"][name] for name in ("peak_gflops", "bandwidth_gbs"))
    figure, axes = plt.subplots(figsize=(9.0, 5.0), layout="constrained")
    for index, (family, members) in enumerate(by_family(cases).items()):
        axes.scatter(
            [c["intensity"] for c in members],
            [c["gflops"] for c in members],
            s=22,
            alpha=0.8,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index // len(COLOURS) % len(MARKERS)],
            label=family,
        )
    ridge = peak / bandwidth
    low = min(ridge, *(c["intensity"] for c in cases)) / 1.5
    high = max(ridge, *(c["intensity"] for c in cases)) * 1.5
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color="black", linewidth=1.0)
    axes.annotate(f"{peak:.0f} GFLOP/s", (high, peak), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"{bandwidth:.0f} GB/s", (low, low * bandwidth), va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of inputs and output")
    axes.set_ylabel("GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
