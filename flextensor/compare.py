"""`compare`: explorers on the same workloads, from nothing, seed by seed; curves and a table."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor import compare_page, measurers
from flextensor.errors import InputError, unknown
from flextensor.replay import Landscape, Replay, landscapes_of
from flextensor.result import opened
from flextensor.results import header, make, write

if TYPE_CHECKING:
    from flextensor.database import Database
    from flextensor.operators.suites import Case
    from flextensor.targets import Target, Trial

LEFT_OUT = ("no-seeds", "no-model", "no-finish")
"""What a variant may leave out, e.g. ``annealing/no-seeds/no-model``."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """An explorer, and the parts of the search that it runs without."""

    explorer: str
    left_out: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Variant:
        """A variant written ``EXPLORER[/no-seeds][/no-model][/no-finish]``."""
        from flextensor import explorers

        explorer, *parts = text.strip().split("/")
        if explorer not in explorers.names():
            raise unknown("explorer", explorer, explorers.names())
        for part in parts:
            if part not in LEFT_OUT:
                raise unknown("part of the search", part, LEFT_OUT)
        return cls(explorer, frozenset(parts))

    def __str__(self) -> str:
        return "/".join([self.explorer, *(p for p in LEFT_OUT if p in self.left_out)])


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all searches of an experiment have in common."""

    trials: int | None
    seconds: float | None
    cost_model: str
    target: Target
    database: Database | None
    """Keeps every measured trial."""
    landscapes: Mapping[str, Landscape] | None
    """What answers instead of the target, by the name of the case."""


def run(
    cases: Sequence[Case],
    variants: Sequence[Variant],
    *,
    seeds: int,
    trials: int | None,
    time: float | None,
    cost_model: str,
    target: Target,
    out: Path,
    command: Sequence[str],
    db: Path | None = None,
    replay: Path | None = None,
) -> int:
    """Every variant on every case with every seed; write OUT/data.json after each run.

    A search starts from nothing: it knows no earlier trial, and has no early stop. Variants take
    turns, so that a drift of the machine meets all of them, and every case has its first seed
    before any has its second, so that an experiment that was stopped says something of all. A run
    that `data.json` holds already, from the same machine and versions, is not repeated. `db` is a
    database that keeps every trial; `replay` is one whose trials answer instead of the device, see
    `flextensor.replay`. Returns the exit code.
    """
    if trials is None and time is None:
        raise InputError("compare needs a budget: --trials, --time, or both")
    if db is not None and replay is not None:
        raise InputError("--db keeps what is measured, and a --replay measures nothing")
    landscapes = None if replay is None else landscapes_of(replay, cases, target)
    make(out)
    data = {**header(target, command), "trials": trials, "seconds": time, "runs": []}
    if landscapes is not None:
        data["replay"] = {name: found.describe() for name, found in landscapes.items()}
    data["runs"] = _recorded(out / "data.json", data)
    with contextlib.ExitStack() as stack:
        database = None if db is None else stack.enter_context(opened(db))
        setting = Setting(trials, time, cost_model, target, database, landscapes)
        _run(cases, variants, seeds, setting, data, out / "data.json")
    write(out / "README.md", compare_page.markdown(data))
    compare_page.plot(data, out / "curves.png")
    return 0


def _run(
    cases: Sequence[Case],
    variants: Sequence[Variant],
    seeds: int,
    setting: Setting,
    data: dict[str, Any],
    path: Path,
) -> None:
    """Add to the data, and to its file, the runs that are missing."""
    done = {(r["case"], r["variant"], r["seed"]) for r in data["runs"]}
    for seed, case, variant in itertools.product(range(seeds), cases, variants):
        if (case.full_name, str(variant), seed) in done:
            continue
        found = _search(case, variant, seed, setting)
        row = {"case": case.full_name, "variant": str(variant), "seed": seed}
        data["runs"].append({**row, **found})
        write(path, json.dumps(data) + "\n")
        trace = found["trace"]
        best = min((s for _, s in trace if s is not None), default=math.inf)
        said = f"{best * 1e6:10.1f} us {len(trace):4d} trials {trace[-1][0]:6.1f} s"
        print(f"{case.full_name:16s} {variant!s:32s} {seed} {said}", file=sys.stderr)


def _search(case: Case, variant: Variant, seed: int, setting: Setting) -> dict[str, Any]:
    """The trace of one search: seconds since its start, and the median seconds per call or None
    for a failure, of every trial. Of a replay also how many of the trials were in the table."""
    from flextensor.operators import Workload
    from flextensor.search import Budget, Options, Search, batch_of, lanes

    workload, target = Workload(case.operator), setting.target
    model = "none" if "no-model" in variant.left_out else setting.cost_model
    trace: list[tuple[float, float | None]] = []

    def record(trial: Trial) -> None:
        value = trial.seconds if math.isfinite(trial.seconds) else None
        trace.append((budget.elapsed, value))
        if setting.database is not None:
            setting.database.add(
                workload.key, workload.operator.name, workload.params, target.fingerprint, trial,
                session=f"compare {variant}", seed=seed,
            )  # fmt: skip

    budget = Budget(setting.trials or sys.maxsize, setting.seconds or math.inf)
    own = lanes(workload, target, variant.explorer, model, seed)
    options = Options(
        seeds="no-seeds" not in variant.left_out,
        finish="no-finish" not in variant.left_out,
        patience=math.inf,
        batch=batch_of(target),
        first=target.builders,
    )
    if setting.landscapes is None:
        measurer = measurers.create(workload, target, 1e-4, on_trial=record, seed=seed)
        with contextlib.closing(measurer):
            Search(own, measurer, budget, lambda phase: None, options).run({})
        return {"trace": trace}
    replayed = Replay(setting.landscapes[case.full_name], target.builders, record)
    budget = dataclasses.replace(budget, start=0.0, clock=replayed.clock)
    known = [lane for lane in own if lane.name in replayed.landscape.tables]
    Search(known, replayed, budget, lambda phase: None, options).run({})
    return {"trace": trace, "recorded": replayed.recorded}


def _recorded(path: Path, today: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of an older `path` with the same machine, versions and budget."""
    try:
        old = json.loads(path.read_text())
        same = all(old[k] == today[k] for k in ("versions", "trials", "seconds"))
        same = same and old.get("replay") == today.get("replay")
        here = old["machine"]["fingerprint"] == today["machine"]["fingerprint"]
        return list(old["runs"]) if same and here else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
