"""Peers that schedule with TVM: what they build is verified, and timed beside ours as we time ours.

Each method is written by a module with three functions:

    check(target)   raises `DeviceError` where the method has no way to compute anything
    limit(trials, seconds)
                    seconds that it may take, where a search has so many trials, so many seconds,
                    or both
    run(payload)    {"method", "program", "target", "trials", "seconds", "seed", "folder", "out"} ->
                    what a search took, else {}; writes the library ``out``
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError

if TYPE_CHECKING:
    from flextensor.measure import LocalMeasurer
    from flextensor.targets import Target

_HOME: Mapping[str, str] = {
    "metaschedule": "flextensor.metaschedule",
    "dlight": "flextensor.dlight",
    "dlight-fallback": "flextensor.dlight",
}


def built(methods: Iterable[str]) -> tuple[str, ...]:
    """The methods that build a library; the others are calls of `flextensor.peers`."""
    return tuple(method for method in methods if method in _HOME)


def check(methods: Iterable[str], target: Target) -> None:
    """Raise `DeviceError` for the first method that has no way on a target."""
    for method in built(methods):
        _home(method).check(target)


def build(
    method: str,
    measurer: LocalMeasurer,
    trials: int | None,
    path: Path,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Let a method schedule the plain formulation of a workload, in a process of its own.

    Writes the library `path`, and verifies it on fresh inputs. A search ends after `trials`, or
    when `seconds` are over. {"trials": measured, "seconds": of the search, its build included,
    "trace": [(seconds since it began, its seconds per call or None), ...] by trial} of one that
    searches, else {}. Raises `DeviceError` with its reason, in one line.
    """
    home, target = _home(method), measurer.target
    home.check(target)
    import tvm

    from flextensor.targets import dump
    from flextensor.targets.process import Worker
    from flextensor.timing import PEER_TOLERANCE

    program = path.with_suffix(".tir")
    program.write_text(tvm.ir.save_json(measurer.workload.prim_func()))
    payload = {
        "method": method, "program": str(program), "target": dump(target), "trials": trials,
        "seconds": seconds, "seed": measurer.seed,
        "folder": str(path.with_suffix(".search")), "out": str(path),
    }  # fmt: skip
    worker = Worker((), target.environment(measurer.folder), 0)
    try:
        took = worker.call("library", payload, home.limit(trials, seconds))
        error = measurer.error_of(path)
    finally:
        worker.kill()
    if not error <= measurer.workload.tolerance(PEER_TOLERANCE):
        what = f"relative error {error:.3g}" if math.isfinite(error) else "not finite everywhere"
        raise DeviceError(f"the result is wrong, {what}")
    return took


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's side of `build`."""
    took: dict[str, Any] = _home(payload["method"]).run(payload)
    return took


def _home(method: str) -> Any:
    return importlib.import_module(_HOME[method])
