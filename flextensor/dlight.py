"""TVM's default schedules of GPUs (dlight) as a peer: the first rule that fits, and no search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError

if TYPE_CHECKING:
    from flextensor.targets import Target

RULES: Mapping[str, tuple[str, ...]] = {
    "dlight": ("Matmul", "GEMV", "Reduction", "GeneralReduction", "Fallback"),
    "dlight-fallback": ("Fallback",),
}
"""The rules of every method, those of `tvm.s_tir.dlight.gpu` in the order in which MLC takes them.
The fallback gives every element of a stage to a thread of its own."""
SECONDS = 60.0
"""What scheduling and compiling one program may take."""


def check(target: Target) -> None:
    """Raise `DeviceError` for a device whose threads form no blocks."""
    if not target.threads_per_block:
        raise DeviceError(
            f"dlight: a peer on devices with thread blocks, which {target.kind} lacks"
        )


def limit(trials: int | None, seconds: float | None) -> float:
    """Seconds that it may take; it measures nothing."""
    return SECONDS


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """See `flextensor.peer_libraries`."""
    import tvm
    from tvm.s_tir import dlight

    from flextensor import targets

    target = targets.load(payload["target"])
    func = tvm.ir.load_json(Path(payload["program"]).read_text())
    func = func.with_attrs({"global_symbol": "main", "tirx.noalias": True})
    rules = [getattr(dlight.gpu, name)() for name in RULES[payload["method"]]]
    with target.tvm_target():
        module = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({"main": func}))
    target.build(module, Path(payload["out"]))
    return {}
