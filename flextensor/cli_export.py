"""``flextensor export``: what was tuned for a GPU or an FPGA, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextensor.cli_db import DbOption, existing
from flextensor.cli_options import (
    CaseOption,
    EinsumOption,
    Fields,
    MeasureOption,
    TargetOption,
    What,
    workloads_of,
)


def export(
    out: Annotated[
        Path, typer.Option(help="folder to write; for cuda also a library, as kernel.so")
    ],
    what: What = None,
    fields: Fields = None,
    einsum: EinsumOption = None,
    case: CaseOption = None,
    target: TargetOption = "fpga",
    measure: MeasureOption = None,
    db: DbOption = None,
) -> None:
    """Write a tuned kernel with a host (cuda, opencl) or as a library with a C header (cuda), or an
    FPGA design with a testbench."""
    from flextensor import export as writer
    from flextensor.lean import import_tvm
    from flextensor.result import load

    import_tvm()
    ((_, operator),) = workloads_of(what, fields, einsum, case, None)
    with existing(db) as database:
        result = load(operator, target=target, db=database, measure=measure)
    for path in writer.write(result, out):
        print(path)
