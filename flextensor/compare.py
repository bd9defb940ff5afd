"""`compare`: explorers on the same workloads, from nothing, seed by seed; curves and a table."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor import compare_page
from flextensor.errors import InputError, unknown
from flextensor.results import header, make, write

if TYPE_CHECKING:
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
) -> int:
    """Every variant on every case with every seed; write OUT/data.json after each run.

    A search starts from nothing: no database, no early stop. Variants take turns, so that a
    drift of the machine meets all of them, and every case has its first seed before any has its
    second, so that an experiment that was stopped says something of all. A run that `data.json`
    holds already, from the same machine and versions, is not repeated. Returns the exit code.
    """
    if trials is None and time is None:
        raise InputError("compare needs a budget: --trials, --time, or both")
    make(out)
    data = {**header(target, command), "trials": trials, "seconds": time, "runs": []}
    data["runs"] = _recorded(out / "data.json", data)
    done = {(r["case"], r["variant"], r["seed"]) for r in data["runs"]}
    for seed in range(seeds):
        for case in cases:
            for variant in variants:
                if (case.full_name, str(variant), seed) in done:
                    continue
                trace = _search(case, variant, seed, trials, time, cost_model, target)
                row = {"case": case.full_name, "variant": str(variant), "seed": seed}
                data["runs"].append({**row, "trace": trace})
                write(out / "data.json", json.dumps(data) + "\n")
                best = min((s for _, s in trace if s is not None), default=math.inf)
                said = f"{best * 1e6:10.1f} us {len(trace):4d} trials {trace[-1][0]:6.1f} s"
                print(f"{case.full_name:16s} {variant!s:32s} {seed} {said}", file=sys.stderr)
    write(out / "README.md", compare_page.markdown(data))
    compare_page.plot(data, out / "curves.png")
    return 0


def _search(
    case: Case,
    variant: Variant,
    seed: int,
    trials: int | None,
    seconds: float | None,
    cost_model: str,
    target: Target,
) -> list[tuple[float, float | None]]:
    """(wall seconds since the start, median seconds per call or None for a failure) per trial."""
    from flextensor import measurers
    from flextensor.operators import Workload
    from flextensor.search import Budget, Options, Search, batch_of, lanes

    workload = Workload(case.operator)
    model = "none" if "no-model" in variant.left_out else cost_model
    trace: list[tuple[float, float | None]] = []

    def record(trial: Trial) -> None:
        value = trial.seconds if math.isfinite(trial.seconds) else None
        trace.append((time.monotonic() - start, value))

    start = time.monotonic()
    own = lanes(workload, target, variant.explorer, model, seed)
    options = Options(
        seeds="no-seeds" not in variant.left_out,
        finish="no-finish" not in variant.left_out,
        patience=math.inf,
        batch=batch_of(target),
        first=target.builders,
    )
    budget = Budget(trials or sys.maxsize, seconds or math.inf, start)
    measurer = measurers.create(workload, target, 1e-4, on_trial=record, seed=seed)
    with contextlib.closing(measurer):
        Search(own, measurer, budget, lambda phase: None, options).run({})
    return trace


def _recorded(path: Path, today: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of an older `path` with the same machine, versions and budget."""
    try:
        old = json.loads(path.read_text())
        same = all(old[k] == today[k] for k in ("versions", "trials", "seconds"))
        here = old["machine"]["fingerprint"] == today["machine"]["fingerprint"]
        return list(old["runs"]) if same and here else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
