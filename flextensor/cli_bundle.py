"""``flextensor bundle``: kernels for a machine with a card and without TVM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flextensor.cli_db import DbOption
from flextensor.cli_options import (
    CaseOption,
    EinsumOption,
    Fields,
    SuiteOption,
    TargetOption,
    TimeOption,
    TrialsOption,
    What,
    check_numbers,
    stdout_kept,
    workloads_of,
)

if TYPE_CHECKING:
    from flextensor.operators.base import Operator


def bundle(
    what: What = None,
    fields: Fields = None,
    einsum: EinsumOption = None,
    suite: SuiteOption = None,
    case: CaseOption = None,
    target: TargetOption = "cuda:sm_90",
    top: Annotated[int, typer.Option(min=1, help="candidates of every workload")] = 16,
    trials: TrialsOption = None,
    time: TimeOption = None,
    db: DbOption = None,
    out: Annotated[Path, typer.Option(help="folder of the bundle")] = Path("bundle"),
) -> None:
    """Compile the most promising kernels, with a script that measures them elsewhere."""
    from flextensor import bundle as bundles
    from flextensor import report, tuner
    from flextensor.errors import DeviceError, InputError, UnsupportedError
    from flextensor.lean import import_tvm
    from flextensor.result import as_workload, opened
    from flextensor.targets import lookup
    from flextensor.targets.cuda import CUDA

    check_numbers(trials, time)
    import_tvm()
    device = lookup(target)
    if not isinstance(device, CUDA):
        raise InputError(f"a bundle is of CUDA kernels (--target cuda:sm_90), not of {target}")
    with stdout_kept():
        named = workloads_of(what, fields, einsum, case, suite)
    chosen: list[tuple[str, Operator]] = []
    with opened(db) as database:
        for label, operator in named:
            try:
                with report.Live(label) as live, stdout_kept():
                    tuner.tune(
                        operator, target=device.measured_by("model"), trials=trials, time=time,
                        db=database, progress=live.update,
                    )  # fmt: skip
            except tuner.Interrupted:
                raise typer.Exit(130) from None
            except (DeviceError, UnsupportedError) as error:
                if len(named) == 1:
                    raise
                print(f"error: {label}: {error}", file=sys.stderr)  # the others are worth carrying
            else:
                chosen.append((label, operator))
        work = [as_workload(operator) for _, operator in chosen]
        counts = bundles.make(work, device, database, top=top, out=out)
    for (label, _), count in zip(chosen, counts, strict=True):
        print(f"{label}: {count} kernels", file=sys.stderr)
    print(f"wrote {out}: copy it to a machine with a {device.arch} card, run `python run.py` there")
