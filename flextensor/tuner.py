"""`tune()`: from an operator to a verified kernel, through the database."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.database import Database
from flextensor.errors import DeviceError, InputError, check_positive, unknown
from flextensor.experience import Experience, near
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.operators.base import Operator
from flextensor.operators.workload import Workload
from flextensor.peers import methods
from flextensor.search import Budget, Lane, Search
from flextensor.targets import Target, Trial, lookup

if TYPE_CHECKING:
    from flextensor.kernel import Kernel

TRIALS, SECONDS = 192, 90.0
"""The budget when none is given."""
FINALISTS = 3
"""Best points that are timed again, interleaved, before the winner is named."""


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


@dataclasses.dataclass(frozen=True)
class Result:
    """What a tuning found. `values` is the JSON object of the command line."""

    values: Mapping[str, Any]
    workload: Workload
    target: Target

    def json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return dict(self.values)

    @cached_property
    def kernel(self) -> Kernel:
        """The tuned kernel, compiled on first use; callable on NumPy arrays and torch tensors."""
        return compile_kernel(self.workload, self.target, self.values)


def compile_kernel(workload: Workload, target: Target, values: Mapping[str, Any]) -> Kernel:
    """Build the kernel of a result, in this process."""
    from flextensor.compiled import build
    from flextensor.kernel import Kernel

    func = workload.prim_func(values["formulation"])
    with tempfile.TemporaryDirectory(prefix="flextensor-kernel-") as folder:
        path = Path(folder) / "kernel.so"
        build(func, target, values["config"], path)
        return Kernel(path, workload.buffers, target.runtime())


def as_workload(what: Any, prepacked: bool = False) -> Workload:
    """The workload of an operator, or of a user's function with its defaults."""
    if isinstance(what, Workload):
        return Workload(what.operator, prepacked=True) if prepacked else what
    if callable(what) and not isinstance(what, Operator):
        from flextensor.operators import FunctionOperator

        what = FunctionOperator(what, {})
    if not isinstance(what, Operator):
        raise InputError(f"tune takes an operator or a function, got {type(what).__name__}")
    return Workload(what, prepacked)


@contextlib.contextmanager
def opened(db: Database | str | Path | None) -> Iterator[Database]:
    """A database by path, closed at the end; one that is open already is left open."""
    if isinstance(db, Database):
        yield db
        return
    with Database(db) as database:
        yield database


def tune(
    what: Any,
    *,
    target: str | Target = "llvm",
    threads: int | None = None,
    trials: int | None = None,
    time: float | None = None,
    explorer: str = "annealing",
    cost_model: str = "xgboost",
    seed: int = 0,
    db: Database | str | Path | None = None,
    fresh: bool = False,
    peers: bool = True,
    tolerance: float = 1e-4,
    prepacked: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Find, verify and keep the fastest schedule of an operator on a target.

    `trials` bounds measured points (those already in the database count), `time` the seconds of
    this run. A workload that was solved before is answered from the database, unless `fresh`, or
    `trials` asks for more than it had. `tolerance` bounds max|y - y64| / max|y64|. `prepacked`
    packs the weights once, ahead of all calls, and compares with PyTorch that does so too. Raises
    `InputError`, `DeviceError`, `DatabaseError`, and `Interrupted` on Ctrl-C.
    """
    check_positive("trials", trials)
    check_positive("time", time)
    check_positive("tolerance", tolerance)
    _check_names(explorer, cost_model)
    workload = as_workload(what, prepacked)
    device = lookup(target, threads) if isinstance(target, str) else target
    with opened(db) as database:
        known = database.result(workload.key, device.fingerprint)
        usable = known is not None and answers(known, trials, tolerance)
        if known is not None and usable and not fresh and current(known, workload, device):
            return Result({**known, "reused": True}, workload, device)
        budget = Budget(trials or TRIALS, time or (math.inf if trials else SECONDS))
        run = Tuning(workload, device, database, budget, tolerance, peers, progress)
        return run.run(explorer, cost_model, seed, fresh)


def answers(known: Mapping[str, Any], trials: int | None, tolerance: float) -> bool:
    """Whether a kept result is whole, exact enough, and from as many trials as are wanted."""
    numbers = (known.get("trials"), known.get("max_rel_error"), known.get("best_seconds"))
    if not all(isinstance(n, int | float) for n in numbers) or not known.get("verified"):
        return False
    enough = trials is None or trials <= known["trials"]
    return bool(enough and known["max_rel_error"] <= tolerance)


def current(known: Mapping[str, Any], workload: Workload, target: Target) -> bool:
    """Whether this version can still write the schedule of a kept result."""
    from flextensor.schedulers import space

    formulation, config = known.get("formulation"), known.get("config")
    if formulation not in workload.formulations or not isinstance(config, Mapping):
        return False
    return space(workload.prim_func(str(formulation)), target).has(config)


def _check_names(explorer: str, cost_model: str) -> None:
    from flextensor import cost_models, explorers

    for what, name, names in (
        ("explorer", explorer, explorers.names()),
        ("cost model", cost_model, cost_models.names()),
    ):
        if name not in names:
            raise unknown(what, name, names)


class Tuning:
    """One run of the tuner on one workload."""

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

    def run(self, explorer: str, cost_model: str, seed: int, fresh: bool) -> Result:
        """Search, finish, verify, keep."""
        measurer = LocalMeasurer(
            self.workload, self.target, self.tolerance, on_trial=self._keep, seed=seed
        )
        with measurer:
            measurer.start()  # while the spaces are made
            lanes = self._lanes(explorer, cost_model, seed, fresh)
            others = near(self.database, self.workload, self.target)
            for lane in lanes:
                for other in others:
                    self._recall(lane, other)
            search = Search(lanes, measurer, self.budget, self._report)
            try:
                search.run(hints(others))
                return self._finish(measurer)
            except KeyboardInterrupt:
                raise Interrupted(self._partial()) from None

    def _lanes(self, explorer: str, cost_model: str, seed: int, fresh: bool) -> list[Lane]:
        """A lane for every formulation, with what is known of it unless it is tuned `fresh`."""
        from flextensor.schedulers import space

        known: list[Trial] = []
        if not fresh:
            known = self.database.trials(self.workload.key, self.target.fingerprint)
        lanes = []
        for name in self.workload.formulations:
            found = space(self.workload.prim_func(name), self.target)
            lane = Lane(name, found, explorer, cost_model, seed)
            own = [t for t in known if t.formulation == name and found.has(t.config)]
            lane.learn(own)
            self.trials += own
            lanes.append(lane)
        return lanes

    def _keep(self, trial: Trial) -> None:
        self.trials.append(trial)
        w = self.workload
        self.database.add(w.key, w.operator.name, w.params, self.target.fingerprint, trial)

    def _recall(self, lane: Lane, other: Experience) -> None:
        """Let the model of a lane learn from another shape."""
        from flextensor.schedulers import space

        if lane.name in other.workload.formulations:
            theirs = space(other.workload.prim_func(lane.name), self.target)
            own = [t for t in other.trials if t.formulation == lane.name and theirs.has(t.config)]
            lane.recall(theirs, own)

    def _report(self, phase: str) -> None:
        if self.progress is None:
            return
        best = min((t.seconds for t in self.trials), default=math.inf)
        share, _ = roofline(self.workload, self.target, best)
        self.progress(
            Progress(
                len(self.trials), self.budget.trials, self.budget.elapsed,
                self.budget.seconds if math.isfinite(self.budget.seconds) else None,
                best, self.workload.flops / best / 1e9, share, self._failures(), phase,
            )
        )  # fmt: skip

    def _failures(self) -> dict[str, int]:
        return dict(Counter(str(t.status) for t in self.trials if not t.ok))

    def _ranked(self) -> list[Trial]:
        return sorted((t for t in self.trials if t.ok), key=lambda t: t.seconds)

    def _partial(self) -> Result | None:
        """The best so far of an interrupted run: measured and checked, not timed again."""
        ranked = self._ranked()
        if not ranked:
            return None
        return self._result(ranked[0], list(ranked[0].times), {}, ranked[0].error, False)

    def _finish(self, measurer: LocalMeasurer) -> Result:
        """Time the best few again in turns, with PyTorch; verify the winner; keep the result."""
        ranked = self._ranked()
        if not ranked:
            reasons = Counter(t.message for t in self.trials if not t.ok).most_common(1)
            reason = f", most often: {reasons[0][0]}" if reasons else ""
            raise DeviceError(f"{self.workload.key}: no candidate worked{reason}")
        finalists = {
            str(i): Candidate(t.formulation, t.config) for i, t in enumerate(ranked[:FINALISTS])
        }
        peer = "torch-prepacked" if self.workload.prepacked else "torch"
        peers = methods([peer]) if self.peers and self.workload.operator.has_peer else ()
        self._report("re-measure")
        times, _ = measurer.compare(finalists, peers)
        for name in sorted(finalists, key=lambda n: statistics.median(times[n])):
            with contextlib.suppress(DeviceError):
                error = measurer.verify(finalists[name])
                if error <= self.workload.tolerance(self.tolerance):
                    medians = {p: statistics.median(times[p]) for p in peers if p in times}
                    result = self._result(ranked[int(name)], times[name], medians, error, True)
                    w = self.workload
                    self.database.add_result(w.key, self.target.fingerprint, result.json())
                    return result
        raise DeviceError(
            f"{self.workload.key}: none of the best {len(finalists)} kernels verified"
        )

    def _result(
        self,
        trial: Trial,
        times: list[float],
        peers: Mapping[str, float],
        error: float | None,
        verified: bool,
    ) -> Result:
        best = statistics.median(times)
        low, high = _quartiles(times)
        share, bound = roofline(self.workload, self.target, best)
        values = {
            "workload": self.workload.key,
            "operator": self.workload.operator.name,
            "params": dict(self.workload.params),
            "target": self.target.kind,
            "device": self.target.device,
            "prepacked": self.workload.prepacked,
            "formulation": trial.formulation,
            "config": dict(trial.config),
            "best_seconds": best,
            "spread": (high - low) / best,
            "gflops": self.workload.flops / best / 1e9,
            "peak_fraction": share,
            "bound": bound,
            "trials": len(self.trials),
            "failures": self._failures(),
            "tuning_seconds": self.budget.elapsed,
            "reused": False,
            "verified": verified,
            "max_rel_error": error,
            "peers": dict(peers),
            "speedup": min(peers.values()) / best if peers else None,
        }
        return Result(values, self.workload, self.target)


def hints(others: Sequence[Experience]) -> dict[str, list[Mapping[str, Any]]]:
    """The best configs of other shapes by formulation, those of the nearest shape first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for other in others:
        for formulation, config in other.best.items():
            found.setdefault(formulation, []).append(config)
    return found


def _quartiles(times: list[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4)
    return low, high


def roofline(workload: Workload, target: Target, seconds: float) -> tuple[float, str]:
    """Share of the roof that binds, and which: ``compute`` or ``memory``.

    The roof is measured on this device: FLOP/s in float32, and bytes/s of main memory
    over the compulsory traffic. A share above 1 means that the data stayed in a cache.
    """
    compute = workload.flops / target.peak_flops("float32")
    memory = workload.bytes / target.bandwidth()
    return max(compute, memory) / seconds, "compute" if compute >= memory else "memory"


def load(
    what: Any,
    *,
    target: str | Target = "llvm",
    threads: int | None = None,
    db: Database | str | Path | None = None,
    prepacked: bool = False,
) -> Result:
    """The kept result of a workload, from the database; `InputError` when it was never tuned."""
    workload = as_workload(what, prepacked)
    device = lookup(target, threads) if isinstance(target, str) else target
    with opened(db) as database:
        known = database.result(workload.key, device.fingerprint)
    if known is None or not current(known, workload, device):
        when = "never" if known is None else "not by this version"
        raise InputError(f"{workload.key} was {when} tuned on {device.device}; tune it first")
    return Result({**known, "reused": True}, workload, device)


def show(result: Result) -> dict[str, Any]:
    """The schedule of a result: its config, scheduled TIR, source and roofline position."""
    from flextensor.schedulers import schedule

    func = result.workload.prim_func(result.values["formulation"])
    module = schedule(func, result.target, result.values["config"])
    return {
        "result": result.json(),
        "tir": module.script(),
        "source": result.target.source(module),
    }
