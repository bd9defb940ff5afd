"""TVM's MetaSchedule as a peer: the same program, its own search, a library to time beside ours."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError

if TYPE_CHECKING:
    from flextensor.measure import LocalMeasurer

TRIAL_SECONDS = 20.0
"""What one of its trials may take, building and all, before the search is given up."""
_FOREIGN = ("cuda", "rocm", "hexagon", "arm_cpu", "riscv_cpu", "metal")


def search(measurer: LocalMeasurer, trials: int, path: Path) -> dict[str, Any]:
    """Let MetaSchedule tune the plain formulation of a workload, in a process of its own.

    Writes the best library to `path`; {"trials": measured, "seconds": of the search, its build
    included}. Raises `DeviceError` with its reason when it finds nothing.
    """
    if measurer.target.threads_per_block:
        raise DeviceError("metaschedule: a peer on CPUs only")
    import tvm

    from flextensor.targets import dump
    from flextensor.targets.process import Worker, WorkerError

    program = path.with_suffix(".tir")
    program.write_text(tvm.ir.save_json(measurer.workload.prim_func()))
    payload = {
        "program": str(program), "target": dump(measurer.target), "trials": trials,
        "folder": str(path.with_suffix(".search")), "out": str(path), "seed": measurer.seed,
    }  # fmt: skip
    worker = Worker((), {"TVM_NUM_THREADS": str(measurer.target.cores)}, 0)
    try:
        return worker.call("metaschedule", payload, TRIAL_SECONDS * trials)
    except WorkerError as error:
        raise DeviceError(f"metaschedule: {error}") from error
    finally:
        worker.kill()


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's side of `search`."""
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
    start = time.perf_counter()
    database = ms.tune_tir(
        func,
        target.tvm_target(),
        work_dir=payload["folder"],
        max_trials_global=payload["trials"],
        num_trials_per_iter=16,
        seed=payload["seed"] + 1,
        num_tuning_cores=target.cores,
        builder=ms.builder.LocalBuilder(
            max_workers=target.cores, timeout_sec=30, f_build=build_candidate
        ),
        runner=ms.runner.LocalRunner(timeout_sec=30, evaluator_config=evaluator),
    )
    best = ms.tir_integration.compile_tir(database, func, target.tvm_target())
    if best is None:
        raise DeviceError("the search found no schedule that works")
    target.build(best.mod, Path(payload["out"]))
    seconds = time.perf_counter() - start
    return {"trials": len(database.get_all_tuning_records()), "seconds": seconds}


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
