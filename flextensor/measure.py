"""The measuring seam: candidates in, trials out. A test replaces it by a fake or a replay."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from flextensor import compiled
from flextensor.builders import MEMORY_BYTES, Builders
from flextensor.errors import DeviceError
from flextensor.folders import private_folder, remove
from flextensor.targets import Status, Target, Trial, dump, remote
from flextensor.targets.process import (
    SetupFailed,
    WorkerError,
    WorkerTimeout,
    run_all,
)

if TYPE_CHECKING:
    from flextensor.operators.workload import Workload

PREPARE_SECONDS = 120.0
"""What a method of a peer may take to pack its weights or to compile."""
SEEN, LONG_BUILD, LEAST_BUILD_SECONDS = 16, 8.0, 3.0
"""Once so many builds were seen, one may take so many times as long as nine in ten of them, and
this in any case."""
TURN_CALLS = 2
"""Calls of one turn of a comparison when each takes long: one to warm up, one to time."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A point to measure: a formulation and a configuration of its space."""

    formulation: str
    config: Mapping[str, Any]


class Measurer(Protocol):
    """Builds and times candidates. Never raises for a bad candidate: that is a `Trial`."""

    seconds: dict[str, float]
    """Wall time that `measure` took so far, by what it was spent on, where that is known."""

    def measure(self, candidates: Sequence[Candidate], best_seconds: float) -> list[Trial]:
        """One trial per candidate, in order.

        A candidate clearly slower than `best_seconds` (median, may be inf) is abandoned early:
        its trial is ``ok`` with fewer times.
        """

    def proven(self, trial: Trial) -> float | None:
        """The largest relative error of a winner, checked once more where that can be done; None
        where nothing was computed. `DeviceError` when it cannot be computed."""

    def details(self, trial: Trial) -> dict[str, Any]:
        """What a result says of a winner beside its time, as JSON values."""

    def start(self) -> None:
        """Start what takes time to start; returns at once."""

    def rest(self) -> None:
        """Stop the processes that serve this workload alone, until the next use."""

    def close(self) -> None:
        """Stop every worker process."""


CALLS = 4
"""Of a kernel in a run, where a call takes long."""
SLOW = 20e9
"""FLOP/s of one thread that a run is given time for, however long the workload takes."""

OnTrial = Callable[[Trial], object]


def ignore(trial: Trial) -> None:
    """The `on_trial` of a measurer whose caller waits for the whole batch."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a candidate may use before it is given up: seconds and bytes.

    A build or a run that takes longer is a ``timeout``; that of a build shrinks to what builds of
    the workload take (`build_limit`), that of a run grows where arithmetic alone takes longer.
    Memory counts per process, without the workload's own buffers. `builders` is the number of
    parallel builds (0: the target's).
    """

    build_seconds: float = 15.0
    run_seconds: float = 10.0
    memory_bytes: int = MEMORY_BYTES
    builders: int = 0


class LocalMeasurer:
    """Builds on this machine, and measures on it or on the target's `remote` machine, in worker
    processes that may crash and hang.

    A batch is built in parallel, then run one candidate at a time, so that no build overlaps a
    timing. A program that was run before, by another config, is not run again: the trial has the
    same outcome, and says so (`Trial.twin`). `tolerance` bounds max|y - y64| / max|y64| of every
    checked output (integers: exact). `on_trial` gets every trial as soon as it is known. `builders`
    are another's, or its own.
    `DeviceError` when no worker can start or a compiler is missing.
    """

    def __init__(
        self,
        workload: Workload,
        target: Target,
        tolerance: float,
        *,
        limits: Limits | None = None,
        on_trial: OnTrial = ignore,
        seed: int = 0,
        module: str = "flextensor.worker",
        builders: Builders | None = None,
    ) -> None:
        self.workload, self.target, self.limits = workload, target, limits or Limits()
        self.tolerance, self.on_trial, self.seed = tolerance, on_trial, seed
        self.folder = private_folder()
        self._number = itertools.count()
        buffers = sum(buffer.nbytes for buffer in workload.buffers)
        memory = self.limits.memory_bytes
        most = memory and memory + 16 * buffers
        self._runner = remote.runner(target, self.folder, most, module)
        self._shared = builders is not None
        self._builders = builders or Builders(target, self.limits.builders, memory, module)
        self._transfer_seconds = buffers / 1e8
        self.seconds = {"build": 0.0, "run": 0.0}
        self._builds: list[float] = []
        self._outcomes: dict[str, Trial] = {}
        self._libraries: dict[str, Path] = {}
        self._pool = ThreadPoolExecutor(1)
        self._loading: Future[dict[str, Any]] | None = None

    def measure(
        self, candidates: Sequence[Candidate], best_seconds: float = math.inf
    ) -> list[Trial]:
        """One trial per candidate, in order; see `Measurer`."""
        self.start()
        begun = time.monotonic()
        trials: dict[int, Trial] = {}
        built: dict[int, tuple[str, float]] = {}
        paths = [self._path() for _ in candidates]
        for index, reply in self._build(candidates, paths):
            failure = build_failure(candidates[index], reply)
            if failure:
                trials[index] = failure
                self.on_trial(failure)
            elif isinstance(reply, dict):
                built[index] = reply["digest"], reply["seconds"]
                self._builds.append(reply["seconds"])
        running = time.monotonic()
        self.seconds["build"] += running - begun
        for index, (digest, seconds) in sorted(built.items()):
            candidate = candidates[index]
            if known := self._outcomes.get(digest):
                trial = known.as_twin(candidate.formulation, candidate.config, seconds)
            else:
                trial = self._run(candidate, paths[index], best_seconds)
                trial = dataclasses.replace(trial, build_seconds=seconds)
                self._outcomes[digest] = trial
            compiled.remove(paths[index])
            trials[index] = trial
            self.on_trial(trial)
            best_seconds = min(best_seconds, trial.seconds)
        self.seconds["run"] += time.monotonic() - running
        return [trials[index] for index in range(len(candidates))]

    def built(self, candidates: Sequence[Candidate]) -> list[Path]:
        """The libraries of candidates, built in parallel, each at its first use, and kept until
        `close`; `DeviceError` when one cannot be built."""
        names = [json.dumps([c.formulation, dict(c.config)], sort_keys=True) for c in candidates]
        missing = {
            name: (candidate, self._path())
            for name, candidate in zip(names, candidates, strict=True)
            if name not in self._libraries
        }
        wanted, paths = [c for c, _ in missing.values()], [path for _, path in missing.values()]
        failures = [build_failure(wanted[i], reply) for i, reply in self._build(wanted, paths)]
        for failure in filter(None, failures):
            raise DeviceError(f"{self.workload.key}: {failure.message}")
        self._libraries |= dict(zip(missing, paths, strict=True))
        return [self._libraries[name] for name in names]

    def compare(
        self,
        candidates: Mapping[str, Candidate],
        methods: Sequence[str] = (),
        rounds: int = 7,
        most: int = 21,
        libraries: Mapping[str, Path] | None = None,
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Seconds per call of every candidate, of every kernel that others built (`libraries`),
        and of every method of `flextensor.peers` that has a way to compute the operator, timed in
        turns in one process on the same inputs, for `rounds` (fewer of long calls) and, while times
        scatter, up to `most` of them; and why a method failed, by method. Where the times of one
        are void, all are timed once more, in a fresh process. Raises `DeviceError` when a candidate
        fails.
        """
        from flextensor import timing

        paths = self.built(list(candidates.values()))
        kernels = {name: str(path) for name, path in zip(candidates, paths, strict=True)}
        kernels |= {name: str(path) for name, path in (libraries or {}).items()}
        payload = {
            "kernels": kernels,
            "peers": list(methods),
            "operator": self.workload.operator.name,
            "params": dict(self.workload.params) if methods else {},
            "rounds": rounds,
            "warm": 0.05,
            "most": most,
        }
        calls = TURN_CALLS * rounds * (len(kernels) + len(methods))
        limit = calls * self._run_limit(math.inf) + PREPARE_SECONDS * len(methods)
        reply = self._ask("interleave", payload, limit)
        if any(map(timing.void, reply["times"].values())):
            self._runner.kill()
            reply = self._ask("interleave", payload, limit)
        return reply["times"], reply["missing"]

    def verify(self, candidate: Candidate, seed: int | None = None) -> float:
        """The relative error of one candidate on fresh inputs, see `error_of`."""
        (path,) = self.built([candidate])
        return self.error_of(path, seed)

    def error_of(self, path: Path, seed: int | None = None) -> float:
        """The relative error of a built kernel on fresh inputs (another seed), output poisoned.

        Infinite when the output holds NaN or inf; `DeviceError` when it cannot be computed.
        """
        seed = self.seed + 1 + next(self._number) if seed is None else seed
        payload = {"path": str(path), **self._data(seed)}
        error = self._ask("verify", payload, self._run_limit(math.inf))["error"]
        return math.inf if error is None else float(error)

    def proven(self, trial: Trial) -> float | None:
        """The relative error on fresh inputs."""
        return self.verify(Candidate(trial.formulation, trial.config))

    def details(self, trial: Trial) -> dict[str, Any]:
        """A kernel needs no more words."""
        return {}

    def rest(self) -> None:
        """Stop every worker process but those of others; inputs and references are kept."""
        self._runner.kill()
        if not self._shared:
            self._builders.rest()

    def close(self) -> None:
        """Stop every worker process but those of others, and remove the temporary files."""
        self._pool.shutdown(cancel_futures=True)
        self._runner.kill()
        if not self._shared:
            self._builders.close()
        remove(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start every worker at once, for each needs seconds; none starts during a timing. The
        reference is computed meanwhile."""
        self._builders.serve(self.workload)
        self._builders.start()
        if self._loading is None:
            try:
                self._loading = self._pool.submit(self._data, self.seed)
            except RuntimeError as error:
                raise SetupFailed(f"the system starts no thread: {error}") from error
        self._runner.start()

    def _path(self) -> Path:
        return self.folder / f"kernel{next(self._number)}.so"

    def _build(
        self, candidates: Sequence[Candidate], paths: Sequence[Path]
    ) -> Iterable[tuple[int, dict[str, Any] | WorkerError]]:
        self._builders.serve(self.workload)
        formulations = [c.formulation for c in candidates]
        payloads = [
            {"config": dict(c.config), "out": str(path)}
            for c, path in zip(candidates, paths, strict=True)
        ]
        seconds = build_limit(self._builds, self.limits.build_seconds)
        return self._builders.call("build", formulations, payloads, seconds)

    def _data(self, seed: int) -> dict[str, Any]:
        """Write the inputs of `seed` and their reference; the payload that names them."""
        from flextensor import timing

        inputs, output = self.workload.inputs(seed), self.workload.buffers[-1]
        folder = self.folder / f"data{next(self._number)}"
        reference = self.workload.reference(inputs)
        try:
            files = timing.write(folder, inputs, reference)
        except OSError as error:
            reason = error.strerror or error
            raise SetupFailed(
                f"cannot write inputs to {folder} ({reason}): set TMPDIR to a folder that has room"
            ) from error
        return {**files, "shape": list(output.shape), "dtype": output.dtype}

    def _prepare_runner(self) -> None:
        if not self._runner.setup:
            tolerance = self.workload.tolerance(self.tolerance)
            data = self._loading.result() if self._loading else self._data(self.seed)
            payload = {"target": dump(self.target), "tolerance": tolerance, **data}
            self._runner.add_setup("load", payload)

    def _run_limit(self, best_seconds: float) -> float:
        """Seconds that a run may take: plenty for what is expected, and never the whole cap."""
        extra = self._transfer_seconds + self.target.first_call_seconds
        slow = CALLS * self.workload.flops / (SLOW * self.target.host_threads)
        most = max(self.limits.run_seconds, slow)
        return min(most, 2.0 + 200 * best_seconds) + extra

    def _ask(self, method: str, payload: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The runner's reply; after an error the next call has a new process, as in `_run`."""
        self._prepare_runner()
        try:
            return self._runner.call(method, payload, seconds)
        except WorkerError:
            self._runner.kill()
            raise

    def _run(self, candidate: Candidate, path: Path, best_seconds: float) -> Trial:
        self._prepare_runner()
        best = best_seconds if math.isfinite(best_seconds) else None
        limit = self._run_limit(best_seconds)
        ((_, reply),) = run_all([self._runner], [("run", {"path": str(path), "best": best})], limit)
        if isinstance(reply, WorkerError):
            self._runner.kill()  # an error of a card stays with the process that had it
            return failed(candidate, Status.RUN_ERROR, reply)
        return Trial(
            candidate.formulation,
            candidate.config,
            Status(reply["status"]),
            tuple(reply["times"]),
            reply["message"],
            reply["error"],
            run_seconds=reply["seconds"],
        )


def build_limit(seen: Sequence[float], most: float) -> float:
    """Seconds that the next build may take, by what others of the workload took: one that takes
    far longer has a body that nobody wants, and holds up its whole batch."""
    if len(seen) < SEEN:
        return most
    usual = statistics.quantiles(seen, n=10)[-1]
    return min(most, max(LEAST_BUILD_SECONDS, LONG_BUILD * usual))


def failed(candidate: Candidate, status: Status, error: DeviceError) -> Trial:
    """The trial of a candidate whose worker gave no result; a time-out has its own status.

    Raises the error when it is no fault of the candidate.
    """
    if isinstance(error, SetupFailed):
        raise error
    if isinstance(error, WorkerTimeout):
        status = Status.TIMEOUT
    return Trial(candidate.formulation, candidate.config, status, message=str(error))


def build_failure(candidate: Candidate, reply: Mapping[str, Any] | WorkerError) -> Trial | None:
    """The trial of a candidate that could not be built, or None."""
    if isinstance(reply, WorkerError):
        return failed(candidate, Status.BUILD_ERROR, reply)
    if reply["status"] == "ok":
        return None
    return Trial(
        candidate.formulation,
        candidate.config,
        Status(reply["status"]),
        message=reply["message"],
        build_seconds=reply["seconds"],
    )
