"""What `compare` says of searches side by side: time to the same quality, and a rival's search."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from flextensor.bench_page import geomean
from flextensor.curves import Run, at, fastest, geomean_band, progress, reached
from flextensor.rivals import RIVALS

SAME = 0.99
"""The share of a speed from which on two kernels are as fast: less than 1 % is no gain."""

Key = tuple[str, str, int]
"""Variant, case and seed."""


def sections(runs: Sequence[Run]) -> list[str]:
    """The lines of both sections, of those that the runs have something for."""
    by_key = {(r["variant"], r["case"], r["seed"]): r for r in runs}
    return [*_same_quality(by_key), *_rivals(by_key)]


def pairs(variants: Iterable[str]) -> list[tuple[str, str]]:
    """(variant, the one that it is to overtake): a Q-network against all directions, with the same
    parts, and every search of ours against every rival."""
    names = list(dict.fromkeys(variants))
    found = []
    for name in names:
        other = name.replace("q-method", "p-method")
        if other != name and other in names:
            found.append((name, other))
    ours = [name for name in names if name not in RIVALS]
    return found + [(name, rival) for rival in RIVALS if rival in names for name in ours]


def to_the_same(run: Run, other: Run) -> tuple[float, float] | None:
    """Seconds after which each of two searches had a kernel as fast as the last one of the search
    that ended slower; None where one had no kernel that works, or no time passes."""
    goal = max(fastest(run), fastest(other))
    if not math.isfinite(goal):
        return None
    found = [reached(progress(each, goal), SAME) for each in (run, other)]
    first, second = (f[1] for f in found if f is not None)  # both end there or beyond
    return (first, second) if first and second else None


def _both(by_key: Mapping[Key, Run], name: str, other: str) -> list[tuple[str, Run, Run]]:
    """(case, run, run of the other) of every case and seed that both had."""
    return [
        (case, run, by_key[other, case, seed])
        for (variant, case, seed), run in by_key.items()
        if variant == name and (other, case, seed) in by_key
    ]


def _same_quality(by_key: Mapping[Key, Run]) -> list[str]:
    lines = []
    for name, other in pairs(variant for variant, _, _ in by_key):
        groups: dict[str, list[float]] = defaultdict(list)
        sooner = 0
        for case, run, its in _both(by_key, name, other):
            if found := to_the_same(run, its):
                groups[case].append(math.log2(found[0] / found[1]))
                sooner += found[0] < found[1]
        if groups:
            share, low, high = geomean_band(groups.values())
            told = f"{share:.1%} ({low:.1%} to {high:.1%})"
            count = sum(map(len, groups.values()))
            lines.append(f"| {name} | {other} | {told} | {sooner} of {count} |")
    if not lines:
        return []
    return [
        "",
        "## Time to the same quality",
        "",
        "Of two searches with the same workload and seed: the wall time until the first has a"
        f" kernel as fast (to {1 - SAME:.0%}) as the last one of that search of the two which ended"
        " slower, as a share of the second's. Geomean, and its 95 % confidence interval over seeds."
        " The paper has 27.6 % for its q-method against its p-method.",
        "",
        "| search | against | share of its time | sooner in |",
        "| --- | --- | ---: | ---: |",
        *lines,
    ]


def _rivals(by_key: Mapping[Key, Run]) -> list[str]:
    names = list(dict.fromkeys(variant for variant, _, _ in by_key))
    lines = []
    for rival in RIVALS:
        if rival in names:
            ours = [name for name in names if name not in RIVALS]
            lines += _rival(by_key, rival, ours)
    return lines


def _rival(by_key: Mapping[Key, Run], rival: str, ours: Sequence[str]) -> list[str]:
    """The section of one rival."""
    own = {(case, seed): run for (name, case, seed), run in by_key.items() if name == rival}
    failures = [
        f"{case}, seed {seed}: {run['failure']}"
        for (case, seed), run in own.items()
        if "failure" in run
    ]
    factors = [run["factor"] for run in own.values() if "factor" in run]
    trials = statistics.median(len(run["trace"]) for run in own.values())
    seconds = statistics.median(length(run) for run in own.values())
    lines = [
        "",
        f"## Beside {rival}",
        "",
        f"`{rival}` is the search of another tuner for the same program, in a process of its own:"
        f" {trials:.0f} trials in {seconds:.0f} s (medians; the imports of its process are not"
        " counted). It times its trials by itself. Its curve has these records times one factor a"
        " search"
        + (f" ({min(factors):.2f} to {max(factors):.2f})" if factors else "")
        + ", so that its best record is to our best trials as its last kernel is to ours when they"
        " are timed in turns in one process. Factors far apart say that single timings on this"
        " machine differ as much.",
        "",
        f"Speed over {rival}, geomeans over seeds, above 1 where we are faster: of the best so far"
        " after as many trials, and after as many seconds, as the shorter of the two searches has;"
        " and of the last kernels, timed in turns. As fast after: wall time until a search had a"
        f" kernel as fast as the last one of {rival}, and the share that this is of the whole"
        f" search of {rival}; medians over seeds. - where a search has nothing by then, or never.",
        "",
        "| workload | search | at equal trials | at equal time | last, in turns | as fast after s |"
        " share of its time |",
        "| --- | --- |" + " ---: |" * 5,
    ]
    for name in ours:
        found = _both(by_key, name, rival)
        cases = dict.fromkeys(case for case, _, _ in found)
        for case in cases:
            lines.append(_race_row(case, name, rival, [f for f in found if f[0] == case]))
        if len(cases) > 1:
            lines.append(_race_row("all", name, rival, found))
    if failures:
        lines += ["", f"No kernel of {rival}: {'; '.join(failures)}."]
    return lines


def _race_row(label: str, name: str, rival: str, found: Sequence[tuple[str, Run, Run]]) -> str:
    """One row of the table, of (case, our run, the rival's) each."""
    races = [(run, its) for _, run, its in found]
    timed = [
        its["timed"][rival] / its["timed"][name] for _, its in races if name in its.get("timed", {})
    ]
    cells = [
        _ratio([_ahead(run, its, "trials") for run, its in races]),
        _ratio([_ahead(run, its, "seconds") for run, its in races]),
        _ratio(timed),
    ]
    after = [_overtakes(run, its) for run, its in races]
    seconds = statistics.median(s for s, _ in after)
    share = statistics.median(s for _, s in after)
    cells += [f"{seconds:.1f}", f"{share:.1%}"] if math.isfinite(seconds) else ["-", "-"]
    return f"| {label} | {name} | " + " | ".join(cells) + " |"


def _ratio(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{geomean(known):.2f}" if known else "-"


def _ahead(run: Run, other: Run, axis: str) -> float | None:
    """How many times as fast the best so far of one search is as that of another, where the shorter
    of the two ends; None where either has nothing yet."""
    ends = [len(r["trace"]) if axis == "trials" else length(r) for r in (run, other)]
    place = min(ends)
    mine, its = (at(progress(each, 1.0), axis, place) for each in (run, other))
    return mine / its if mine and its else None


def _overtakes(run: Run, other: Run) -> tuple[float, float]:
    """Seconds until a search had a kernel as fast as another's last, and their share of all the
    seconds of the other; infinite where it never had."""
    last = fastest(other)
    found = reached(progress(run, last), 1.0) if math.isfinite(last) else None
    seconds = math.inf if found is None else found[1]
    return seconds, seconds / length(other)


def length(run: Run) -> float:
    """Seconds of a whole search: of ours until its last trial."""
    return float(run.get("seconds", run["trace"][-1][0]))
