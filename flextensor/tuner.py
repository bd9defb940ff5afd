"""`tune()`: from an operator to a verified kernel, through the database."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor import finalists, lessons, measurers
from flextensor.builders import Builders
from flextensor.database import Database
from flextensor.database_records import plain
from flextensor.errors import DeviceError, check_positive, check_whole, unknown
from flextensor.experience import hints, near
from flextensor.explorers import policies
from flextensor.known import judged, kept, peers_of, timed, wrong
from flextensor.measure import Candidate, LocalMeasurer, Measurer, failed
from flextensor.operators.workload import Workload
from flextensor.result import Result, as_target, as_workload, opened, roofline
from flextensor.results import now
from flextensor.search import (
    EFFORTS,
    MODEL_EFFORTS,
    Budget,
    Effort,
    Hints,
    Lane,
    Options,
    Search,
    batch_of,
    lanes,
)
from flextensor.targets import Status, Target, Trial


class Interrupted(Exception):
    """Raised on Ctrl-C, after everything was kept; `result` is the best so far, or None."""

    def __init__(self, result: Result | None) -> None:
        super().__init__("interrupted")
        self.result = result


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a tuning stands, for a live display."""

    trials: int
    budget_trials: int | None
    seconds: float
    budget_seconds: float | None
    best_seconds: float
    gflops: float
    peak_fraction: float
    failures: Mapping[str, int]
    phase: str
    known: int = 0
    """Trials of earlier runs among them."""


def tune(
    what: Any,
    *,
    target: str | Target = "llvm",
    threads: int | None = None,
    trials: int | None = None,
    time: float | None = None,
    effort: str = "default",
    explorer: str = "flextensor",
    cost_model: str = "xgboost",
    seed: int = 0,
    db: Database | str | Path | None = None,
    fresh: bool = False,
    peers: bool = True,
    tolerance: float = 1e-4,
    prepacked: bool = False,
    measure: str | None = None,
    policy: str | Path | None = None,
    builders: Builders | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Find, verify and keep the fastest schedule of an operator on a target.

    `trials` bounds measured points (those already in the database count), `time` the seconds of
    this run; what is not given comes from the `effort`: quick, default or full. A workload that
    was solved before is answered from the database, unless `fresh`, or `trials` asks for more
    than it had; its kernel is timed beside the `peers` that were not measured then. `tolerance`
    bounds max|y - y64| / max|y64|. `prepacked` packs the weights once, ahead of all calls, and
    compares with PyTorch that does so too. `measure` names how a candidate's time is learnt, one of
    the target's `measures`, or ``remote:HOST:PORT`` to run it on a device of the machine that
    serves there. `policy` is a file of what earlier q-methods learned, which this one starts from
    and adds to. `builders` of the target compile for one workload after another, and are the
    caller's to close. Raises `InputError`, `DeviceError`, `DatabaseError`, and `Interrupted` on
    Ctrl-C.
    """
    check_positive("trials", trials)
    check_whole("trials", trials, 1)
    check_whole("seed", seed, 0)
    check_positive("time", time)
    check_positive("tolerance", tolerance)
    check_names(effort, explorer, cost_model)
    policies.check(policy, explorer)
    workload = as_workload(what, prepacked)
    device = as_target(target, threads, measure)
    with opened(db) as database:
        asked = workload, device, database, trials, tolerance, peers, builders
        if not fresh and (known := kept(*asked)):
            return known
        chosen = efforts(device)[effort]
        budget = Budget.of(chosen, trials, time)
        run = Tuning(workload, device, database, budget, tolerance, peers, progress)
        parts = options(chosen, device)
        with run.open(explorer, cost_model, seed, fresh, parts, builders) as starts:
            with policies.followed([lane.explorer for lane in run.search.lanes], policy):
                return run.run(starts)


def efforts(target: Target) -> Mapping[str, Effort]:
    """What the names of efforts mean where a target is measured as it is."""
    return MODEL_EFFORTS if target.measured == "model" else EFFORTS


def options(effort: Effort, target: Target) -> Options:
    """Those of a search on a target."""
    return Options(patience=effort.patience, batch=batch_of(target), first=target.builders)


def check_names(effort: str, explorer: str, cost_model: str) -> None:
    """Raise `InputError` for a name that is none, with the nearest ones."""
    from flextensor import cost_models, explorers

    for what, name, names in (
        ("effort", effort, EFFORTS),
        ("explorer", explorer, explorers.names()),
        ("cost model", cost_model, cost_models.names()),
    ):
        if name not in names:
            raise unknown(what, name, names)


class Tuning:
    """One run of the tuner on one workload; `run` says which parts it has."""

    search: Search
    measurer: Measurer

    def __init__(
        self,
        workload: Workload,
        target: Target,
        database: Database,
        budget: Budget,
        tolerance: float,
        peers: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.workload, self.target, self.database = workload, target, database
        self.budget, self.tolerance, self.peers = budget, tolerance, peers
        self.progress = progress
        self.trials: list[Trial] = []
        self.known = 0
        self.session, self.seed = uuid.uuid4().hex, 0
        self.ended: dict[str, Any] = {}

    def run(self, starts: Hints) -> Result:
        """Search, finish, verify, keep; once it is open."""
        try:
            self.search.run(starts)
            return self.end()
        except KeyboardInterrupt:
            raise Interrupted(self.partial()) from None

    @contextlib.contextmanager
    def open(
        self,
        explorer: str,
        cost_model: str,
        seed: int,
        fresh: bool,
        options: Options,
        builders: Builders | None = None,
    ) -> Iterator[Hints]:
        """Make `search`, which may begin with these configs, and `measurer`, closed at the end."""
        self.seed = seed
        self.measurer = measurers.create(
            self.workload, self.target, self.tolerance,
            on_trial=self._keep, seed=seed, builders=builders,
        )  # fmt: skip
        with contextlib.closing(self.measurer):
            self.measurer.start()  # while the spaces are made
            own = self._lanes(explorer, cost_model, seed, fresh)
            others = near(self.database, self.workload, self.target)
            lessons.teach(own, self.workload, self.target, others)
            self.search = Search(own, self.measurer, self.budget, self._report, options)
            yield hints(others)

    def end(self) -> Result:
        """Verify what the search found, keep it."""
        self.ended |= {"stopped": self.search.stopped, "shares": self._shares()}
        return self._finish()

    def _shares(self) -> dict[str, float]:
        """The shares of the wall time so far that went into builds, runs and the search itself."""
        wall = self.budget.elapsed
        shares = {name: spent / wall for name, spent in self.measurer.seconds.items()}
        return {**shares, "search": 1 - sum(shares.values())}

    def _lanes(self, explorer: str, cost_model: str, seed: int, fresh: bool) -> list[Lane]:
        """A lane for every formulation, with what is known of it unless it is tuned `fresh`."""
        known: list[Trial] = []
        if not fresh:
            stored = self.database.trials(self.workload.key, self.target.fingerprint)
            known = finalists.once(judged(stored, self._bound))
        if not any(trial.ok for trial in known):
            known = []  # what failed, a driver or a version ago, may work by now
        made = lanes(self.workload, self.target, explorer, cost_model, seed, self.tolerance)
        for lane in made:
            own = [t for t in known if t.formulation == lane.name and lane.space.has(t.config)]
            lane.learn(own)
            self.trials += own
        self.known = len(self.trials)
        return made

    def _keep(self, trial: Trial) -> None:
        self.trials.append(trial)
        w = self.workload
        self.database.add(
            w.key, w.operator.name, w.params, self.target.fingerprint, trial,
            session=self.session, seed=self.seed,
        )  # fmt: skip

    def _report(self, phase: str) -> None:
        if self.progress is None:
            return
        first = min(self.trials, key=lambda t: t.seconds, default=None)
        best, name = (first.seconds, first.formulation) if first else (math.inf, "direct")
        share, _ = roofline(self.workload, self.target, best, name)
        self.progress(
            Progress(
                len(self.trials), self.budget.trials, self.budget.elapsed,
                self.budget.seconds if math.isfinite(self.budget.seconds) else None,
                best, self.workload.flops / best / 1e9, share, self._failures(), phase, self.known,
            )
        )  # fmt: skip

    def _failures(self) -> dict[str, int]:
        return dict(Counter(str(t.status) for t in self.trials if not t.ok))

    def _refute(self, trial: Trial, error: float) -> None:
        """Keep that a trial which worked gives wrong results on other inputs."""
        refuted = wrong(dataclasses.replace(trial, error=error), self._bound)
        finite = error if math.isfinite(error) else None  # NaN is no number of a database
        self._revoke(trial, dataclasses.replace(refuted, error=finite))

    def _fail(self, trial: Trial, error: DeviceError) -> None:
        """Keep that a trial which worked crashed or hung when it ran again; raises the error when
        the worker or its machine is gone, whatever the kernel."""
        again = Candidate(trial.formulation, trial.config)
        self._revoke(trial, failed(again, Status.RUN_ERROR, error))

    def _revoke(self, trial: Trial, now: Trial) -> None:
        """Keep what a trial that worked is now, with all others of its program."""
        for known in finalists.revoked(trial, now, self.trials):
            self._keep(known)
        self.trials = finalists.once(self.trials)

    @property
    def _bound(self) -> float:
        """The relative error that the workload may have."""
        return self.workload.tolerance(self.tolerance)

    def partial(self) -> Result | None:
        """The best so far of an interrupted run: measured and checked, not timed again."""
        ranked = finalists.ranked(self.trials)
        if not ranked:
            return None
        best = ranked[0]
        return self._result(best, best.times, {}, best.error, False)

    def _finish(self) -> Result:
        """Time the best few again in turns, with PyTorch; verify the winner; keep the result.

        What is modelled or simulated gives the same time again, and was checked if it can be.
        """
        ranked = finalists.ranked(self.trials)
        if not ranked:
            reasons = Counter(t.message for t in self.trials if not t.ok).most_common(1)
            reason = f", most often: {reasons[0][0]}" if reasons else ""
            raise DeviceError(f"{self.workload.key}: no candidate worked{reason}")
        if self.target.measured != "run":
            return self._kept(self._unrun(ranked))
        for group in finalists.groups(ranked):
            result = self._timed(group)
            if result is not None:
                return self._kept(result)
        raise DeviceError(f"{self.workload.key}: none of {len(ranked)} kernels verified")

    def _timed(self, ranked: Sequence[Trial]) -> Result | None:
        """The best that verifies of a few that are timed in turns, with PyTorch; None where none
        does: on other inputs, a kernel at the edge of the tolerance may be beyond it."""
        assert isinstance(self.measurer, LocalMeasurer)
        kernels = {str(i): Candidate(t.formulation, t.config) for i, t in enumerate(ranked)}
        peers = peers_of(self.workload) if self.peers else ()
        self._report("re-measure")
        times, missing, died = finalists.in_turns(self.measurer, kernels, peers)
        self.ended |= {"missing": missing} if missing else {}
        for name, fault in died.items():
            self._fail(ranked[int(name)], fault)
        worked = [name for name in kernels if name in times]
        for name in sorted(worked, key=lambda n: statistics.median(times[n])):
            reason, error = self._proven(ranked[int(name)])
            if reason is None:
                theirs = {p: times[p] for p in peers if p in times}
                return self._result(ranked[int(name)], times[name], theirs, error, True)
        return None

    def _unrun(self, ranked: Sequence[Trial]) -> Result:
        """The best of what did not run on the device, proven where that can be done; a proof may
        take minutes: after `finalists.MOST` without an answer it is for the next run to go on."""
        self._report("verify")
        reasons, silent = list[str](), 0
        for trial in ranked:
            reason, error = self._proven(trial)
            if reason is None:
                return self._result(trial, trial.times, {}, error, error is not None)
            reasons.append(reason)
            silent += error is None
            if silent == finalists.MOST:
                break
        none = f"none of the best {len(reasons)} kernels verified"
        raise DeviceError(f"{self.workload.key}: {none}, the last: {reasons[-1]}")

    def _proven(self, trial: Trial) -> tuple[str | None, float | None]:
        """Why a trial that worked does not verify, None where it does; its error, if it has one."""
        try:
            error = self.measurer.proven(trial)
        except DeviceError as fault:
            self._fail(trial, fault)
            return str(fault), None
        if error is None or error <= self._bound:
            return None, error
        self._refute(trial, error)
        return f"relative error {error:.3g}", error

    def _kept(self, result: Result) -> Result:
        self.database.add_result(self.workload.key, self.target.fingerprint, result.json())
        return result

    def _result(
        self,
        trial: Trial,
        times: Sequence[float],
        peers: Mapping[str, Sequence[float]],
        error: float | None,
        verified: bool,
    ) -> Result:
        values = {
            "workload": self.workload.key,
            "operator": self.workload.operator.name,
            "params": plain(self.workload.params),
            "target": self.target.kind,
            "device": self.target.device,
            "measured": self.target.measured,
            "prepacked": self.workload.prepacked,
            "formulation": trial.formulation,
            "config": dict(trial.config),
            **timed(self.workload, self.target, trial.formulation, times, peers),
            "intensity": self.workload.flops / self.target.traffic(self.workload.buffers),
            "trials": len(self.trials),
            "asked": len(self.trials) if self.budget.late else self.budget.trials,
            "failures": self._failures(),
            "twins": sum(t.twin for t in self.trials),
            "tuning_seconds": self.budget.elapsed,
            "date": now(),
            "session": self.session,
            **self.ended,
            "reused": False,
            "verified": verified,
            "max_rel_error": error,
            **self.measurer.details(trial),
        }
        return Result(values, self.workload, self.target)
