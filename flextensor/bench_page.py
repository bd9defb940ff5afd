"""What `bench` makes of its data: a Markdown page, and a picture of the speed-ups."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor.peers import PEERS

Case = Mapping[str, Any]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""One per family in turn, told apart by the colour-blind too; none is like `SLOWER`."""
SLOWER = "#9a9a9a"


def geomean(values: Sequence[float]) -> float:
    """Geometric mean; 0 when a value is."""
    return 0.0 if 0 in values else math.exp(sum(map(math.log, values)) / len(values))


def by_family(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by operator, in the order in which the operators come up."""
    families: dict[str, list[Case]] = {}
    for case in cases:
        families.setdefault(case["operator"], []).append(case)
    return families


def compared(cases: Iterable[Case]) -> list[Case]:
    """The cases that were measured beside PyTorch."""
    return [c for c in cases if c.get("speedup")]


def peers_of(cases: Iterable[Case]) -> list[str]:
    """Peers other than PyTorch eager that any case was measured beside."""
    named = (peer for c in cases for peer in c.get("beside", {}).get("peers", {}))
    return [peer for peer in dict.fromkeys(named) if peer != "torch"]


def ratios(cases: Iterable[Case], peer: str) -> list[float]:
    """How many times faster the kernels are than a peer, where it was measured."""
    if peer == "torch":
        return [float(c["speedup"]) for c in compared(cases)]
    found = (c.get("beside", {}).get("peers", {}).get(peer) for c in cases)
    return [float(entry["ratio"]) for entry in found if entry]


def markdown(suite: str, data: Mapping[str, Any]) -> str:
    """The results as a page: a summary by family, then a table of every family's cases."""
    machine, families = data["machine"], by_family(data["cases"])
    versions = ", ".join(f"{p} {v}" for p, v in data["versions"].items() if v)
    lines = [
        f"# Suite {suite}",
        "",
        f"`{data['command']}` on {machine['device']}, {data['date']}; {versions}.",
        "",
        f"Measured peak {machine['peak_gflops']:.0f} GFLOP/s, memory {machine['bandwidth_gbs']:.1f}"
        " GB/s; the share is of the one that binds, and above 100 % where data stays in caches."
        f" Speed-up: {_baseline(data)} over FlexTensor, medians, timed in turns in one process on"
        f" the same inputs ({machine.get('conditions', 'warm caches')}, {_counted(data)})."
        " Every kernel is verified against a float64 reference; error is max abs(y - y64) / max"
        " abs(y64).",
        "",
        *_summary(families, "torch"),
    ]
    for peer in peers_of(data["cases"]):
        lines += ["", f"Over the fastest method of `{peer}`, each as it likes its data:", ""]
        lines += _summary(families, peer)
        lines += _methods(data["cases"], peer)
        lines += _search(data["cases"], peer)
    for c in data["cases"]:
        for method, reason in c.get("beside", {}).get("missing", {}).items():
            lines += ["", f"{c['case']}: `{method}` failed, {reason.rstrip('.')}."]
    for family, cases in families.items():
        lines += ["", f"## {family}", "", *_table(cases)]
    return "\n".join(lines) + "\n"


def _baseline(data: Mapping[str, Any]) -> str:
    prepacked = "the fastest of PyTorch with weights packed ahead"
    return prepacked if data.get("prepacked") else "PyTorch eager"


def _counted(data: Mapping[str, Any]) -> str:
    plain = "plain layouts, everything counted"
    return "packing of weights left out" if data.get("prepacked") else plain


def _summary(families: Mapping[str, Sequence[Case]], peer: str) -> list[str]:
    lines = [
        "| family | cases | geomean | worst | best | wins | losses | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    means, every = [], []
    for family, cases in families.items():
        own = ratios(cases, peer)
        failed = sum("failure" in c for c in cases)
        figures = ["-"] * 3
        if own:
            means.append(geomean(own))
            every += own
            figures = [f"{means[-1]:.2f}", f"{min(own):.2f}", f"{max(own):.2f}"]
        wins = sum(r >= 1 for r in own)
        cells = [family, len(cases), *figures, wins, len(own) - wins, failed]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if every:
        wins = sum(r >= 1 for r in every)
        lines += [
            "",
            f"All families: geomean of their geomeans {geomean(means):.2f}, geomean of all"
            f" {len(every)} cases {geomean(every):.2f}, {wins} wins, {len(every) - wins} losses.",
        ]
    return lines


def _methods(cases: Iterable[Case], peer: str) -> list[str]:
    """What the kernels are worth beside each method of a peer that has several."""
    found: dict[str, list[float]] = {method: [] for method in PEERS.get(peer, ())}
    for beside in (c["beside"] for c in cases if "beside" in c):
        for method, seconds in beside["methods"].items():
            if method in found:
                found[method].append(seconds / beside["seconds"])
    measured = {method: own for method, own in found.items() if own}
    if len(measured) < 2:
        return []
    worth = (
        f"`{method}` {statistics.median(own):.2f} (geomean {geomean(own):.2f}, {len(own)} cases)"
        for method, own in measured.items()
    )
    return ["", f"Medians over each method, where it was measured: {', '.join(worth)}."]


def _search(cases: Iterable[Case], peer: str) -> list[str]:
    """What a peer that searches took for it, beside our own search."""
    both = [
        (found["trials"], found["seconds"], c["tuning_seconds"])
        for c in cases
        if (found := c.get("beside", {}).get("searches", {}).get(peer))
    ]
    if not both:
        return []
    trials, theirs, ours = (statistics.median(values) for values in zip(*both, strict=True))
    return [
        "",
        f"Medians: its search measured {trials:.0f} candidates in {theirs:.0f} s, FlexTensor's"
        f" took {ours:.0f} s.",
    ]


def _table(cases: Sequence[Case]) -> list[str]:
    peers = peers_of(cases)
    titles = ["case", "ms", "spread", "GFLOP/s", "share of roof", "speed-up", "error", "trials",
              "s", *(f"over {peer}" for peer in peers)]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for c in cases:
        if "failure" in c:
            reason = c["failure"].replace("|", "\\|")
            lines.append(f"| {c['case']} | failed: {reason} |" + " |" * (len(titles) - 2))
            continue
        roof = "peak" if c["bound"] == "compute" else "bandwidth"
        cells = [
            c["case"],
            f"{c['best_seconds'] * 1e3:.4g}",
            f"{c['spread']:.1%}",
            f"{c['gflops']:.1f}",
            f"{c['peak_fraction']:.0%} {roof}",
            f"{c['speedup']:.2f}" if c["speedup"] else "-",
            "-" if c["max_rel_error"] is None else f"{c['max_rel_error']:.1e}",
            f"{c['trials']}",
            f"{c['tuning_seconds']:.0f}",
        ]
        for peer in peers:
            entry = c.get("beside", {}).get("peers", {}).get(peer)
            cells.append(f"{entry['ratio']:.2f} ({entry['method']})" if entry else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(cases: Iterable[Case], path: Path) -> None:
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
