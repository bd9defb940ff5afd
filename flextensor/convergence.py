"""How soon searches came near the best kernel known, from the trials that they left behind.

    python -m flextensor.convergence TRIALS.db [--beside OTHER.db ...] [--out FOLDER]

reads what `bench` or `tune --suite` (without `--total`) kept in a database: the first search of
every workload, trial by trial, with the wall time since it began; one that went on where an earlier
one had been killed is left out. The best known kernel of a
workload is the fastest that any search found, in this database or beside it. Writes data.json,
README.md and curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor.bench_plots import COLOURS
from flextensor.curves import at, progress, reached
from flextensor.database import Database
from flextensor.database_records import Record, dump, to_trial
from flextensor.errors import InputError, exit_code
from flextensor.results import header, make, write
from flextensor.targets import lookup

AIMS = ((0.95, 8, math.inf), (0.95, 32, 30.0), (0.99, 64, 60.0))
"""Shares of the best known speed, with the trials and the wall seconds they may take."""

Schedule = tuple[str, str, str]
"""A workload, a formulation and a config."""

SPENT = ("build", "run")
"""What a trial's own seconds go into, on one core and on all."""


def searches(
    records: Iterable[Record], fingerprint: str, newest: bool = False
) -> list[dict[str, Any]]:
    """The first (or the `newest`) search of every workload on a device, whose result was kept. One
    that took turns with others (`tune --total`) is left out: its wall time is not its own.

    {"case": workload, "operator", "variant": "search", "known": schedules that it had from earlier
    runs, "trace": [(wall seconds since the search began, median seconds per call or None)],
    "build", "run": median seconds of its trials, "shares": of the wall time}. What did not work
    when it was run again never did.
    """
    trials: dict[str, list[Record]] = defaultdict(list)
    results: dict[str, Record] = {}
    latest: dict[Schedule, Record] = {}
    for record in records:
        if record["target"] != fingerprint:
            continue
        if record["record"] == "trial":
            trials[record["workload"]].append(record)
            latest[_schedule(record)] = record
        elif record["workload"] not in results or newest and _another(record, results):
            results[record["workload"]] = record
    found = []
    for key, result in results.items():
        if result["result"].get("turns"):
            continue
        begun = result["created"] - result["result"]["tuning_seconds"]
        session = result["result"].get("session")
        own = [t for t in trials[key] if begun <= t["created"] <= result["created"]]
        own = [t for t in own if session in (None, t["session"])]
        fresh = len({_schedule(t) for t in own})
        trace = [
            (
                round(t["created"] - begun, 3),
                _seconds(t) if _seconds(latest[_schedule(t)]) else None,
            )
            for t in own
        ]
        if any(seconds is not None for _, seconds in trace):
            found.append(
                {
                    "case": key, "operator": own[0]["operator"], "variant": "search",
                    "known": max(result["result"].get("trials", 0) - fresh, 0),
                    "trace": trace, "shares": result["result"].get("shares", {}),
                    **{w: statistics.median(t[f"{w}_seconds"] for t in own) for w in SPENT},
                }
            )  # fmt: skip
    return found


def _another(result: Record, known: Mapping[str, Record]) -> bool:
    """Whether a result is of another search than the one known of its workload, and not of the same
    one beside its peers."""
    session = result["result"].get("session")
    return session is None or session != known[result["workload"]]["result"].get("session")


def best_known(records: Iterable[Record], fingerprint: str) -> dict[str, float]:
    """Seconds of the fastest trial of every workload on a device, without those of schedules that
    did not work when they were run again."""
    fastest: dict[Schedule, float] = {}
    for record in records:
        if record["record"] == "trial" and record["target"] == fingerprint:
            schedule, seconds = _schedule(record), _seconds(record)
            known = fastest.pop(schedule, math.inf)
            if seconds is not None:
                fastest[schedule] = min(seconds, known)
    best: dict[str, float] = {}
    for (workload, *_), seconds in fastest.items():
        best[workload] = min(seconds, best.get(workload, math.inf))
    return best


def overtakes(run: Mapping[str, Any], slower: float) -> float | None:
    """Wall seconds after which a search had a kernel that takes at most `slower` times as long as
    its best in the end; None below 1, where it never had one."""
    best = min(seconds for _, seconds in run["trace"] if seconds is not None)
    found = reached(progress(run, best), 1 / slower)
    return None if found is None else found[1]


def _schedule(record: Record) -> Schedule:
    return record["workload"], record["formulation"], dump(record["config"])


def _seconds(record: Record) -> float | None:
    trial = to_trial(record)
    return float(f"{trial.seconds:.5g}") if trial.ok else None


def markdown(data: Mapping[str, Any]) -> str:
    """The page: how many searches met each aim, and how they went, by operator."""
    runs, best, machine = data["runs"], data["best"], data["machine"]
    wall = [run["shares"] for run in runs if run["shares"]]
    lines = [
        "# How soon a search is near the best",
        "",
        f"`{data['command']}` on {machine['device']}, {data['date']}. {len(runs)} workloads, one"
        " search each, as a user's: it knows what the database had of other shapes by then, and the"
        " trials of others that the package ships."
        f"{_left_out(data)} The best known kernel"
        " of a workload is the fastest trial in these databases; trials are medians of short runs,"
        " on a machine where one differs from the next by a few per cent, so that the fastest of"
        " many is a little too fast, and 99 % of it is hard to reach for any search. First trial,"
        " last: the share of the best known speed that was reached, medians; seconds a trial are"
        " of wall time, with everything, and so is the wall time of the aims.",
        "",
        "| operator | n | first trial | last | trials | s a trial | "
        + " | ".join(map(_title, AIMS))
        + " |",
        "| --- |" + " ---: |" * (5 + len(AIMS)),
    ]
    by_operator: dict[str, list[Any]] = defaultdict(list)
    for run in runs:
        by_operator[run["operator"]].append(progress(run, best[run["case"]]))
    groups = {**by_operator, "all": [rows for own in by_operator.values() for rows in own]}
    for name, own in groups.items():
        first, last = (statistics.median(rows[place][1] for rows in own) for place in (0, -1))
        trials = statistics.median(map(len, own))
        pace = statistics.median(rows[-1][0] / len(rows) for rows in own)
        cells = [name, str(len(own)), f"{first:.0%}", f"{last:.0%}", f"{trials:.0f}"]
        cells += [f"{pace:.2f}", *(_met(own, *aim) for aim in AIMS)]
        lines.append("| " + " | ".join(cells) + " |")
    build, ran = (statistics.median(run[w] for run in runs) for w in SPENT)
    lines += [
        "",
        f"To build a candidate takes {build:.2f} s of a core, to run it {ran:.2f} s (medians).",
    ]
    if wall:
        spent = (f"{name} {statistics.median(w[name] for w in wall):.0%}" for name in wall[0])
        lines += ["", f"Shares of the wall time, medians: {', '.join(spent)}."]
    lines += ["", "![curves](curves.png)"]
    return "\n".join(lines) + "\n"


def _left_out(data: Mapping[str, Any]) -> str:
    """How many searches the page does not count, and why."""
    count = data.get("resumed", 0)
    return f" Left out, for they went on from an earlier run's trials: {count}." if count else ""


def _title(aim: tuple[float, int, float]) -> str:
    share, trials, seconds = aim
    when = f" and {seconds:.0f} s" if math.isfinite(seconds) else ""
    return f"{share:.0%} within {trials} trials{when}"


def _met(
    own: Sequence[Sequence[tuple[float, float]]], share: float, trials: int, most: float
) -> str:
    found = [reached(rows, share) for rows in own]
    hits = sum(f is not None and f[0] <= trials and f[1] <= most for f in found)
    return f"{hits / len(own):.0%}"


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Share of the best known speed over trials and over wall time: median and quartiles of the
    workloads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    own = [progress(run, data["best"][run["case"]]) for run in data["runs"]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, axis in zip(axes, ("trials", "seconds"), strict=True):
        last = max(len(rows) if axis == "trials" else rows[-1][0] for rows in own)
        places = [last * (i + 1) / 100 for i in range(100)]
        shares = np.array([[at(rows, axis, p) for p in places] for rows in own])
        low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75), axis=0)
        panel.plot(places, middle, color=COLOURS[0], label="median")
        panel.fill_between(
            places, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="quartiles"
        )
        panel.set_xlabel("trials" if axis == "trials" else "wall time (s)")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("speed, as a share of the best known")
    axes[0].set_ylim(0, 1.02)
    axes[1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(given: argparse.Namespace, command: Sequence[str]) -> None:
    """Read the databases; write the folder."""
    target = lookup(given.target)
    runs: list[dict[str, Any]] = []
    best: dict[str, float] = {}
    for path in [given.trials, *given.beside]:
        if not path.is_file():
            raise InputError(f"{path}: no such database")
        with Database(path, readonly=True) as database:
            if path == given.trials:
                runs = searches(database.everything(), target.fingerprint)
            for key, seconds in best_known(database.everything(), target.fingerprint).items():
                best[key] = min(seconds, best.get(key, math.inf))
    whole = [run for run in runs if not run["known"]]
    if not whole:
        raise InputError(
            f"{given.trials}: no finished search on {target.device} from its first trial on"
        )
    data = {
        **header(target, ["python", "-m", "flextensor.convergence", *command]),
        "best": {run["case"]: best[run["case"]] for run in whole}, "runs": whole,
        "resumed": len(runs) - len(whole),
    }  # fmt: skip
    make(given.out)
    write(given.out / "data.json", json.dumps(data, allow_nan=False) + "\n")
    write(given.out / "README.md", markdown(data))
    plot(data, given.out / "curves.png")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flextensor.convergence")
    parser.add_argument("trials", type=Path, help="the database that the searches left")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="databases that may know better kernels"
    )
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--out", type=Path, default=Path("results/convergence"))
    given = parser.parse_args(arguments)
    return exit_code(lambda: run(given, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
