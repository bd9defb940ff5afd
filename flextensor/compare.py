"""`compare`: explorers on the same workloads, seed by seed; curves and tables.

A search starts from nothing, or from what other shapes taught (`STARTS`). It may be another's
(`flextensor.rivals`).
"""

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

from flextensor import compare_page, lessons, measurers, rivals
from flextensor.compare_page import STARTS
from flextensor.database import Database
from flextensor.errors import InputError, unknown
from flextensor.experience import hints, near
from flextensor.measure import Candidate
from flextensor.operators.workload import Workload
from flextensor.replay import Landscape, Replay, landscapes_of
from flextensor.result import opened
from flextensor.results import header, make, write
from flextensor.rivals import RIVALS

if TYPE_CHECKING:
    from flextensor.operators.suites import Case
    from flextensor.targets import Target, Trial

LEFT_OUT = ("no-seeds", "no-model", "no-finish")
"""What a variant may leave out, e.g. ``flextensor/no-seeds/no-model``."""

AGAIN = 3
"""Fastest configs of a warm database that are measured again, for the best known of a workload."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """An explorer, the parts of the search that it runs without, and what it starts from; or a
    rival, which has neither."""

    explorer: str
    left_out: frozenset[str]
    start: str | None = None
    """One of `STARTS`; None is nothing."""

    @classmethod
    def parse(cls, text: str) -> Variant:
        """A variant written ``EXPLORER[/no-seeds][/no-model][/no-finish][/shipped or /warm]``."""
        from flextensor import explorers

        explorer, *parts = text.strip().split("/")
        if explorer in RIVALS and parts:
            raise InputError(f"{text}: {explorer} is a search of its own, without our parts")
        if explorer not in (*explorers.names(), *RIVALS):
            raise unknown("explorer", explorer, (*explorers.names(), *RIVALS))
        for part in parts:
            if part not in LEFT_OUT + STARTS:
                raise unknown("part of the search", part, LEFT_OUT + STARTS)
        starts = [s for s in STARTS if s in parts]
        if len(starts) > 1:
            raise InputError(f"{text}: a search has one start, {' or '.join(STARTS)}")
        return cls(explorer, frozenset(parts) - set(STARTS), *starts)

    def __str__(self) -> str:
        left_out = [part for part in LEFT_OUT if part in self.left_out]
        return "/".join([self.explorer, *left_out, *([self.start] if self.start else [])])


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
    warm: Database | None = None
    """Trials that searches with a warm start know, but for those of their own workload."""


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
    warm: Path | None = None,
) -> int:
    """Every variant on every case with every seed; write OUT/data.json after each run.

    A search knows no earlier trial of its workload, and has no early stop; of other workloads it
    knows what its variant says (`STARTS`). Variants take turns, so that a drift of the machine
    meets all of them, and every case has its first seed before any has its second, so that an
    experiment that was stopped says something of all; rivals come last, for their kernels are timed
    in turns with those of the searches before. A run that `data.json` holds already, from the same
    machine and versions, is not repeated.

    `db` is a database that keeps every trial of ours; `replay` is one whose trials answer instead
    of the device, see `flextensor.replay`; `warm` is one that guides the warm starts, and is never
    written to. What it knows of the cases themselves guides nobody, but its fastest configs of each
    are measured again: searches of few trials need a best known kernel to be held against. Returns
    the exit code.
    """
    check(variants, trials, time, db, replay, warm)
    rivals.check([v.explorer for v in variants], target, replay is not None)
    landscapes = None if replay is None else landscapes_of(replay, cases, target)
    make(out)
    data = {
        **header(target, command), "trials": trials, "seconds": time, "cost_model": cost_model,
        "runs": [],
    }  # fmt: skip
    if landscapes is not None:
        data["replay"] = {name: found.describe() for name, found in landscapes.items()}
    with contextlib.ExitStack() as stack:
        database = None if db is None else stack.enter_context(opened(db))
        known = None if warm is None else stack.enter_context(Database(warm, readonly=True))
        if known is not None:
            data["warm"] = _contents(known, target)
        data |= _recorded(out / "data.json", data)
        setting = Setting(trials, time, cost_model, target, database, landscapes, known)
        _run(cases, variants, seeds, setting, data, out / "data.json")
    write(out / "data.json", json.dumps(data) + "\n")
    write(out / "README.md", compare_page.markdown(data))
    compare_page.plot(data, out / "curves.png")
    return 0


def check(
    variants: Sequence[Variant],
    trials: int | None,
    time: float | None,
    db: Path | None,
    replay: Path | None,
    warm: Path | None,
) -> None:
    """Raise `InputError` for a budget that is missing, and for databases that do not fit."""
    if trials is None and time is None:
        raise InputError("compare needs a budget: --trials, --time, or both")
    if db is not None and replay is not None:
        raise InputError("--db keeps what is measured, and a --replay measures nothing")
    if any(variant.start == "warm" for variant in variants) != (warm is not None):
        raise InputError("a start like flextensor/warm and --warm DB need each other")
    if warm is None:
        return
    if not warm.is_file():
        raise InputError(f"--warm {warm}: no such file")
    if db is not None and db.is_file() and db.samefile(warm):
        raise InputError("--db adds what is measured, which would warm the next search: name two")


def _contents(database: Database, target: Target) -> dict[str, int]:
    """What a warm database holds of a device."""
    rows = [row for row in database.workloads() if row.target == target.fingerprint]
    if not rows:
        raise InputError(f"--warm {database.path}: no trial on {target.device}")
    return {"workloads": len(rows), "trials": sum(row.trials for row in rows)}


def _run(
    cases: Sequence[Case],
    variants: Sequence[Variant],
    seeds: int,
    setting: Setting,
    data: dict[str, Any],
    path: Path,
) -> None:
    """Add to the data, and to its file, the runs that are missing."""
    done = {(r["case"], r["variant"], r["seed"]): r for r in data["runs"]}
    ordered = sorted(variants, key=lambda variant: variant.explorer in RIVALS)
    for seed, case, variant in itertools.product(range(seeds), cases, ordered):
        if (case.full_name, str(variant), seed) in done:
            continue
        if setting.warm is not None and setting.landscapes is None:
            best = data.setdefault("known", {})
            if case.full_name not in best:
                best[case.full_name] = _again(case, setting.warm, setting.target)
        if variant.explorer in RIVALS:
            ours = {
                name: run
                for (of, name, n), run in done.items()
                if (of, n) == (case.full_name, seed)
            }
            found = rivals.race(
                variant.explorer, case, seed, setting.target, setting.trials, setting.seconds, ours
            )
        else:
            found = _search(case, variant, seed, setting)
        row = {"case": case.full_name, "variant": str(variant), "seed": seed, **found}
        data["runs"].append(row)
        done[case.full_name, str(variant), seed] = row
        write(path, json.dumps(data) + "\n")
        trace = found["trace"]
        best = min((s for _, s in trace if s is not None), default=math.inf)
        said = f"{best * 1e6:10.1f} us {len(trace):4d} trials {trace[-1][0]:6.1f} s"
        print(f"{case.full_name:16s} {variant!s:32s} {seed} {said}", file=sys.stderr)


def _search(case: Case, variant: Variant, seed: int, setting: Setting) -> dict[str, Any]:
    """The trace of one search: seconds since its start, and the median seconds per call or None
    for a failure, of every trial; and the fastest ("best"). Of a replay not that, but how many of
    the trials were in the table; of a start that is not from nothing the workloads that guide it.
    """
    from flextensor.search import Budget, Options, Search, batch_of, lanes

    workload, target = Workload(case.operator), setting.target
    model = "none" if "no-model" in variant.left_out else setting.cost_model
    trace: list[tuple[float, float | None]] = []
    worked: list[Trial] = []

    def record(trial: Trial) -> None:
        worked.extend([trial] if trial.ok else [])
        value = trial.seconds if math.isfinite(trial.seconds) else None
        trace.append((budget.elapsed, value))
        if setting.database is not None:
            setting.database.add(
                workload.key, workload.operator.name, workload.params, target.fingerprint, trial,
                session=f"compare {variant}", seed=seed,
            )  # fmt: skip

    budget = Budget(setting.trials or sys.maxsize, setting.seconds or math.inf)
    own = lanes(workload, target, variant.explorer, model, seed)
    others = [] if variant.start is None else near(
        setting.warm if variant.start == "warm" else None, workload, target
    )  # fmt: skip
    if variant.start is not None:
        lessons.teach(own, workload, target, others, aliases=False)
    guides = list(dict.fromkeys(o.workload.key for o in others))
    found = {} if variant.start is None else {"guides": guides}
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
            Search(own, measurer, budget, lambda phase: None, options).run(hints(others))
        return {"trace": trace, "best": _fastest(worked), **found}
    replayed = Replay(setting.landscapes[case.full_name], target.builders, record)
    budget = dataclasses.replace(budget, start=0.0, clock=replayed.clock)
    known = [lane for lane in own if lane.name in replayed.landscape.tables]
    Search(known, replayed, budget, lambda phase: None, options).run(hints(others))
    return {"trace": trace, "recorded": replayed.recorded, **found}


def _fastest(worked: Sequence[Trial]) -> dict[str, Any] | None:
    """Formulation and config of the fastest of trials that worked, as JSON values."""
    if not worked:
        return None
    best = min(worked, key=lambda trial: trial.seconds)
    return {"formulation": best.formulation, "config": dict(best.config)}


def _again(case: Case, database: Database, target: Target) -> float | None:
    """Median seconds of the fastest of a database's best configs of a case, measured now; None
    where it has none that works."""
    from flextensor.schedulers import spaces as spaces_of

    workload = Workload(case.operator)
    spaces = spaces_of(workload, target)
    known = [
        t
        for t in database.sound(workload.key, target.fingerprint)
        if t.ok and t.formulation in spaces and spaces[t.formulation].has(t.config)
    ]
    best = sorted(known, key=lambda t: t.seconds)[:AGAIN]
    if not best:
        return None
    with contextlib.closing(measurers.create(workload, target, 1e-4)) as measurer:
        found = measurer.measure([Candidate(t.formulation, t.config) for t in best], math.inf)
    return min((t.seconds for t in found if t.ok), default=None)


def _recorded(path: Path, today: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of an older `path` with the same machine, versions, budget, cost model and tables,
    and the best known of its cases."""
    try:
        old = json.loads(path.read_text())
        same = all(old[k] == today[k] for k in ("versions", "trials", "seconds"))
        same = same and all(old.get(k) == today.get(k) for k in ("cost_model", "replay", "warm"))
        here = old["machine"]["fingerprint"] == today["machine"]["fingerprint"]
        return {k: old[k] for k in ("runs", "known") if k in old} if same and here else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
