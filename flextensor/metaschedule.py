"""TVM's MetaSchedule as a peer: the same program, its own search, a library to time beside ours."""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError

if TYPE_CHECKING:
    from flextensor.targets import Target

START_SECONDS = 60.0
"""What its processes may take to begin on a busy machine: every one of them imports TVM."""
TRIAL_SECONDS = 20.0
"""What one of its trials may take, building and all, before the search is given up."""
BATCH = 16
"""Trials that it builds, and then runs, together."""
ENDLESS = 1 << 20
"""Trials of a search whose budget is time alone."""
_NEEDED = ("cloudpickle", "psutil", "xgboost")
_FOREIGN = ("cuda", "rocm", "hexagon", "arm_cpu", "riscv_cpu", "metal")


def check(target: Target) -> None:
    """Raise `DeviceError` for a device with blocks, whose intrinsics it would need, for one
    elsewhere, since it measures in processes of its own, and where a package is missing."""
    if target.threads_per_block or target.measured != "run":
        raise DeviceError("metaschedule: a peer on CPUs only")
    if target.remote:
        raise DeviceError("metaschedule: measures on this machine only")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DeviceError(
            f"metaschedule needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def limit(trials: int | None, seconds: float | None) -> float:
    """Seconds that a search may take."""
    of_trials = TRIAL_SECONDS * trials if trials else math.inf
    # it looks at the clock between two batches
    of_time = seconds + TRIAL_SECONDS * BATCH if seconds else math.inf
    return START_SECONDS + min(of_trials, of_time)


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Search, and build the best; see `flextensor.peer_libraries`.

    {"trials": measured, "seconds": with the build of the best, "trace": [(seconds since the search
    began, its own seconds per call or None for a failure), ...] of every trial}.
    """
    _skip_foreign_intrinsics()
    import tvm
    from tvm.s_tir import meta_schedule as ms

    from flextensor import targets

    target = targets.load(payload["target"])
    func = tvm.ir.load_json(Path(payload["program"]).read_text())
    func = func.with_attrs({"global_symbol": "main", "tirx.noalias": True})
    evaluator = ms.runner.EvaluatorConfig(
        number=3, repeat=1, min_repeat_ms=100, enable_cpu_cache_flush=False
    )
    record = Record(payload["seconds"] or math.inf)
    builder = ms.builder.LocalBuilder(
        max_workers=target.cores, timeout_sec=30, f_build=build_candidate
    )
    runner = ms.runner.LocalRunner(timeout_sec=30, evaluator_config=evaluator)
    database = ms.database.MemoryDatabase()
    build, run, end = _recorded(ms, record, builder, runner)
    try:
        ms.tune_tir(
            func,
            target.tvm_target(),
            work_dir=payload["folder"],
            max_trials_global=payload["trials"] or ENDLESS,
            num_trials_per_iter=BATCH,
            seed=payload["seed"] + 1,
            num_tuning_cores=target.cores,
            builder=build,
            runner=run,
            database=database,
            measure_callbacks=[*ms.measure_callback.MeasureCallback.create("default"), end],
        )
    except RuntimeError:  # TVM keeps no class of an error that is not its own
        if not record.over:
            raise
    best = ms.tir_integration.compile_tir(database, func, target.tvm_target())
    if best is None:
        tried = f"{len(record.trace)} trials and {record.elapsed:.0f} s"
        raise DeviceError(f"the search found no schedule that works, in {tried}")
    target.build(best.mod, Path(payload["out"]))
    return {"trials": len(record.trace), "seconds": record.elapsed, "trace": record.trace}


class Record:
    """The trials of a search as they end, which is over after `seconds` (may be inf). What was not
    run by then is no trial."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.trace: list[tuple[float, float | None]] = []
        self.over = False
        """Whether `ended` raised."""
        self._seconds, self._clock, self._start = seconds, clock, clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return self._clock() - self._start

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return self.elapsed >= self._seconds

    def built(self, results: Sequence[Any]) -> Sequence[Any]:
        """Take in what a builder says of a batch: who fails here is never run."""
        if not self.late:
            self.trace += [(self.elapsed, None) for r in results if r.error_msg is not None]
        return results

    def ran(
        self, run: Callable[[Any], Any], refused: Callable[[], Any], inputs: Sequence[Any]
    ) -> list[Any]:
        """Run a batch, one after another; `refused` is what those get for whom it is too late."""
        futures = []
        for one in inputs:
            if self.late:
                futures.append(refused())
                continue
            futures.append(run(one))
            times = futures[-1].result().run_secs
            self.trace.append(
                (self.elapsed, statistics.median(map(float, times)) if times else None)
            )
        return futures

    def ended(self) -> None:
        """Take in that a batch is in the database; raises when the time is over, which ends the
        search."""
        self.over = self.late
        if self.over:
            raise RuntimeError("time spent")


def _recorded(ms: Any, record: Record, builder: Any, runner: Any) -> tuple[Any, Any, Any]:
    """MetaSchedule's builder and runner, which record their trials, and a callback that ends the
    search when its time is over."""
    from tvm.ir.utils import derived_object

    derived: Callable[[Any], Any] = derived_object

    class Build(ms.builder.PyBuilder):  # type: ignore[misc]
        def build(self, inputs: Sequence[Any]) -> Sequence[Any]:
            return record.built(builder.build(inputs))

    class Run(ms.runner.PyRunner):  # type: ignore[misc]
        def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
            return record.ran(lambda one: runner.run([one])[0], self._refused, inputs)

        def _refused(self) -> Any:
            return ms.runner.LocalRunnerFuture(res=None, error_message="out of time")

    class End(ms.measure_callback.PyMeasureCallback):  # type: ignore[misc]
        def apply(self, *_: Any) -> None:
            record.ended()

    return derived(Build)(), derived(Run)(), derived(End)()


def build_candidate(module: Any, target: Any, _: Any) -> Any:
    """TVM's own build without its import of every device's intrinsics, which takes 30 s."""
    from tvm.driver import build
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    return build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)


def _skip_foreign_intrinsics() -> None:
    """Keep MetaSchedule from parsing the intrinsics of other devices when it is imported."""
    for name in _FOREIGN:
        module = f"tvm.s_tir.tensor_intrin.{name}"
        sys.modules.setdefault(module, types.ModuleType(module))
