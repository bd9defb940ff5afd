"""What `bench` makes of its data: a Markdown page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flextensor.peers import PEERS

Case = Mapping[str, Any]


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
    """The cases that were measured beside PyTorch, and did not fail beside other peers."""
    return [c for c in cases if c.get("speedup") and "failure" not in c]


def placed(cases: Iterable[Case]) -> list[Case]:
    """The cases whose place under the roof is known."""
    return [c for c in cases if c.get("intensity")]


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
        f"`{data['command']}` on {machine['device']}, {data['date']}; {versions}." + _earlier(data),
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
    lines += _formulations(data)
    if compared(data["cases"]):
        lines += ["", "![speed-up over PyTorch, one bar per case](speedup.png)"]
    if placed(data["cases"]):
        lines += ["", "![GFLOP/s under the measured roof](roofline.png)"]
    for family, cases in families.items():
        lines += ["", f"## {family}", "", *_table(cases)]
    return "\n".join(lines) + "\n"


def _earlier(data: Mapping[str, Any]) -> str:
    """How many cases were measured before the command that the page names."""
    dates = [c["date"] for c in data["cases"] if "date" in c]
    old = sorted(date for date in dates if date < data["date"])
    if not old:
        return ""
    return (
        f" {len(old)} of the {len(data['cases'])} cases were tuned before, the first on {old[0]},"
        " by the same versions on the same machine or as the database had them; data.json has the"
        " date of each."
    )


def _formulations(data: Mapping[str, Any]) -> list[str]:
    """What the kernels compute as, and how far from the reference that is."""
    found: dict[str, list[float]] = {}
    for c in data["cases"]:
        if c.get("max_rel_error") is not None:
            found.setdefault(c["formulation"], []).append(c["max_rel_error"])
    if not found:
        return []
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    named = (
        f"`{name}` {len(errors)} times (error up to {max(errors):.1e})" for name, errors in ranked
    )
    return [
        "",
        f"Formulations, within a tolerance of {data.get('tolerance', 1e-4):g}, or of what rounding"
        f" to the output's dtype needs: {', '.join(named)}.",
    ]


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
        if peer != "torch" and not own:
            continue
        failed = sum("failure" in c for c in cases)
        figures = ["-"] * 3
        if own:
            means.append(geomean(own))
            every += own
            figures = [f"{means[-1]:.2f}", f"{min(own):.2f}", f"{max(own):.2f}"]
        wins = sum(r >= 1 for r in own)
        count = len(cases) if peer == "torch" else len(own) + failed
        cells = [family, count, *figures, wins, len(own) - wins, failed]
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
        (c, found) for c in cases if (found := c.get("beside", {}).get("searches", {}).get(peer))
    ]
    if not both:
        return []
    rows = [
        (found["trials"], found["seconds"], c["tuning_seconds"], found.get("overtaken", "-"))
        for c, found in both
    ]
    trials, theirs, ours = (statistics.median(r[i] for r in rows) for i in range(3))
    lines = [
        "",
        f"Medians: its search measured {trials:.0f} candidates in {theirs:.0f} s, FlexTensor's"
        f" took {ours:.0f} s. As fast after: when FlexTensor's search had a kernel as fast as the"
        " one that the other ended with; - where that is not known.",
        "",
        f"| case | {peer}: trials | s | FlexTensor: s | as fast after s | share of its time |",
        "| --- |" + " ---: |" * 5,
    ]
    for (c, _), (count, seconds, own, after) in zip(both, rows, strict=True):
        when = [after or "never", "-"]
        if isinstance(after, float):
            when = [f"{after:.1f}", f"{after / seconds:.1%}"]
        cells = [c["case"], str(count), f"{seconds:.0f}", f"{own:.0f}", *when]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _table(cases: Sequence[Case]) -> list[str]:
    peers = peers_of(cases)
    titles = ["case", "ms", "spread", "GFLOP/s", "share of roof", "speed-up", "error",
              "formulation", "trials", "s", *(f"over {peer}" for peer in peers)]  # fmt: skip
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
            c["formulation"],
            f"{c['trials']}",
            f"{c['tuning_seconds']:.0f}",
        ]
        for peer in peers:
            entry = c.get("beside", {}).get("peers", {}).get(peer)
            cells.append(f"{entry['ratio']:.2f} ({entry['method']})" if entry else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
