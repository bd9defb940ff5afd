"""What a tuning found: kept in the database, compiled on first use, shown, on the roofline."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.database import Database
from flextensor.errors import DeviceError, InputError, UnsupportedError
from flextensor.operators.base import Operator
from flextensor.operators.workload import PRODUCTS, Workload
from flextensor.targets import Target, lookup, remote

if TYPE_CHECKING:
    from flextensor.kernel import Kernel


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
    """Build the kernel of a result, in this process; `DeviceError` when its device is elsewhere,
    or the system has no room for it."""
    from flextensor.compiled import build
    from flextensor.kernel import Kernel

    if target.remote:
        raise DeviceError(
            f"a kernel for {target.device} runs where that is, at {target.remote}: load it there, "
            "from this database (flextensor db export, import)"
        )
    runtime = target.runtime()  # before the build, which is for nothing where nothing runs
    func = workload.prim_func(values["formulation"])
    try:
        with tempfile.TemporaryDirectory(prefix="flextensor-kernel-") as folder:
            path = Path(folder) / "kernel.so"
            build(func, target, values["config"], path)
            return Kernel(path, workload.buffers, runtime)
    except OSError as error:
        raise DeviceError(f"cannot build the kernel: {error}") from error


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


def as_target(target: str | Target, threads: int | None, measure: str | None) -> Target:
    """The target of a specification, or `target` itself, which has its threads, measured as asked
    or as it is; for ``remote:HOST:PORT`` a device of that machine."""
    where = remote.address(measure)
    if where is not None:
        if not isinstance(target, str):
            raise InputError(f"{measure} needs a target in words, as 'llvm': its device is there")
        return remote.lookup(target, threads, where)
    if isinstance(target, str):
        return lookup(target, threads).measured_by(measure)
    if threads is not None:
        raise InputError("threads go with a target in words, as 'llvm': the one given has its own")
    return target.measured_by(measure or target.measured)


@contextlib.contextmanager
def opened(db: Database | str | Path | None) -> Iterator[Database]:
    """A database by path, closed at the end; one that is open already is left open."""
    if isinstance(db, Database):
        yield db
        return
    with Database(db) as database:
        yield database


def answers(known: Mapping[str, Any], trials: int | None, tolerance: float) -> bool:
    """Whether a kept result is whole, exact enough, and from a search for as many trials as are
    wanted, though it may have ended before for lack of a gain or of points."""
    numbers = [known.get("trials"), known.get("best_seconds")]
    if known.get("measured") != "model":  # which computes nothing that could be wrong
        numbers.append(known.get("max_rel_error") if known.get("verified") else None)
    if not all(isinstance(n, int | float) for n in numbers):
        return False
    enough = trials is None or trials <= max(known["trials"], known.get("asked") or 0)
    return bool(enough and (known["max_rel_error"] or 0.0) <= tolerance)


def current(known: Mapping[str, Any], workload: Workload, target: Target) -> bool:
    """Whether this version can still write the schedule of a kept result."""
    from flextensor.schedulers import space

    formulation, config = known.get("formulation"), known.get("config")
    if not workload.has(formulation) or not isinstance(config, Mapping):
        return False
    try:
        return space(workload.prim_func(str(formulation)), target).has(config)
    except UnsupportedError:
        return False


def roofline(
    workload: Workload, target: Target, seconds: float, formulation: str = "direct"
) -> tuple[float, str]:
    """Share of the roof that binds, and which: ``compute`` or ``memory``.

    The roof is measured on this device: FLOP/s in float32, or of what multiplies the inputs' own
    dtype faster, and bytes/s of main memory over the compulsory traffic. A formulation in terms of
    bfloat16 computes in that, several products for one. A share above 1 means that the data stayed
    in a cache. On a device that is only modelled the roof is the data sheet's.
    """
    terms = workload.terms(formulation)
    dtype = "bfloat16" if terms > 1 else target.bound(workload.buffers[0].dtype)
    compute = PRODUCTS[terms] * workload.flops / target.peak_flops(dtype)
    memory = target.traffic(workload.buffers) / target.bandwidth()
    return max(compute, memory) / seconds, "compute" if compute >= memory else "memory"


def load(
    what: Any,
    *,
    target: str | Target = "llvm",
    threads: int | None = None,
    db: Database | str | Path | None = None,
    prepacked: bool = False,
    measure: str | None = None,
) -> Result:
    """The kept result of a workload, from the database; `InputError` when it was never tuned."""
    workload = as_workload(what, prepacked)
    device = as_target(target, threads, measure)
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
