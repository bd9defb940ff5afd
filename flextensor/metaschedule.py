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
    from flextensor.targets import Target

TRIAL_SECONDS = 20.0
"""What one of its trials may take, building and all, before the search is given up."""
_FOREIGN = ("cuda", "rocm", "hexagon", "arm_cpu", "riscv_cpu", "metal")


def check(target: Target) -> None:
    """Raise `DeviceError` for a device with blocks, whose intrinsics it would need, and for one
    elsewhere: it measures in processes of its own."""
    if target.threads_per_block:
        raise DeviceError("metaschedule: a peer on CPUs only")
    if target.remote:
        raise DeviceError("metaschedule: measures on this machine only")


def limit(trials: int) -> float:
    """Seconds that a search may take."""
    return TRIAL_SECONDS * trials


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Search, and build the best; see `flextensor.peer_libraries`. {"trials", "seconds"}."""
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
