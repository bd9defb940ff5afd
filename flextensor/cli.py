"""The command line. Only typer and rich are imported until a command needs more."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from flextensor import __version__
from flextensor.cli_bundle import bundle
from flextensor.cli_db import DbOption, JsonOption, db_app, existing
from flextensor.cli_export import export
from flextensor.cli_options import (
    CaseOption,
    CasesOption,
    EinsumOption,
    Fields,
    MeasureOption,
    PrepackedOption,
    SuiteOption,
    TargetOption,
    ThreadsOption,
    TimeOption,
    TotalOption,
    TrialsOption,
    What,
    check_numbers,
    split,
    stdout_kept,
    with_weights,
    workloads_of,
)
from flextensor.cli_serve import serve
from flextensor.cli_total import check_total, tune_suite
from flextensor.errors import (
    DeviceError,
    FlexTensorError,
    UnsupportedError,
    unknown,
)

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of output that name no file; others without one are no fault of what a user named."""

app = typer.Typer(
    name="flextensor",
    help="Tune tensor operators for this machine, and keep the schedules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(db_app, name="db")
app.command()(bundle)
app.command()(export)
app.command()(serve)


def run() -> None:
    """Run a command: errors made for people become one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except FlexTensorError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        sys.stdout = None  # as below; who read it has seen enough
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in UNWRITABLE:
            raise
        sys.stdout = None  # Python would fail to flush it once more
        _fail(f"cannot read or write: {error}", 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # typer's own errors have `format_message`; what carries them differs between versions
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(error.format_message(), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"flextensor {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Tune tensor operators for this machine, and keep the schedules."""


@app.command()
def tune(
    what: What = None,
    fields: Fields = None,
    einsum: EinsumOption = None,
    suite: SuiteOption = None,
    case: CaseOption = None,
    target: TargetOption = "llvm",
    trials: TrialsOption = None,
    time: TimeOption = None,
    total: TotalOption = None,
    effort: Annotated[str, typer.Option(help="quick, default or full")] = "default",
    explorer: Annotated[str, typer.Option(help="search strategy")] = "flextensor",
    cost_model: Annotated[
        str, typer.Option(help="xgboost, ranked, ensemble, analytic or none")
    ] = "xgboost",
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    db: DbOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="tune anew")] = False,
    threads: ThreadsOption = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="do not time PyTorch")] = False,
    tolerance: Annotated[float, typer.Option(help="largest relative error")] = 1e-4,
    prepacked: PrepackedOption = False,
    measure: MeasureOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what q-methods learned: read and added to"),
    ] = None,
    synth: Annotated[bool, typer.Option("--synth", help="synthesise an FPGA's design")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest schedule of an operator, verify it, keep it."""
    check_numbers(trials, time, tolerance, seed)
    check_total(total, time, suite, policy)
    from flextensor import report, tuner
    from flextensor.builders import Builders
    from flextensor.lean import import_tvm
    from flextensor.result import as_target, opened

    import_tvm()
    with stdout_kept():
        work = workloads_of(what, fields, einsum, case, suite)
    if prepacked and suite is not None:
        work = with_weights(work)
    show = report.json_line if as_json else report.Rows() if suite is not None else report.table
    failed = False
    device = as_target(target, threads, measure)
    if synth:
        from flextensor.synthesis import as_fpga, synthesised

        as_fpga(device)
    if total is not None:
        with opened(db) as database:
            tune_suite(
                work, total, report.Live(str(suite), quiet=as_json), show,
                lambda result: synthesised(result, database) if synth else result,
                target=device, trials=trials, effort=effort, explorer=explorer,
                cost_model=cost_model, seed=seed, db=database, fresh=fresh, peers=not no_peers,
                tolerance=tolerance, prepacked=prepacked,
            )  # fmt: skip
        return
    with opened(db) as database, Builders(device) as builders:
        for label, operator in work:
            try:
                with report.Live(label, quiet=as_json) as live, stdout_kept():
                    result = tuner.tune(
                        operator, target=device, trials=trials, time=time,
                        effort=effort, explorer=explorer, cost_model=cost_model, seed=seed,
                        db=database, fresh=fresh, peers=not no_peers, tolerance=tolerance,
                        prepacked=prepacked, policy=policy, builders=builders,
                        progress=live.update,
                    )  # fmt: skip
                    if synth:
                        result = synthesised(result, database)
            except tuner.Interrupted as stop:
                if stop.result is not None:
                    show(label, stop.result.json())
                raise typer.Exit(130) from None
            except (DeviceError, UnsupportedError) as error:
                if suite is None:
                    raise
                print(f"error: {label}: {error}", file=sys.stderr)
                failed = True  # and on: the other cases are still worth their time
            else:
                show(label, result.json())
    if failed:
        raise typer.Exit(2)


@app.command()
def ops(
    name: Annotated[str | None, typer.Argument(help="one operator")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the operators with their fields and defaults, or one with its cases."""
    from flextensor import operators, report

    chosen = operators.registry() if name is None else {name: operators.lookup(name)}
    listed = {
        key: {
            f.name: None if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(cls)
        }
        for key, cls in sorted(chosen.items())
    }
    if as_json:
        print(json.dumps(listed))
    elif name is None:
        for key, values in listed.items():
            print(f"{key:24s}" + " ".join(f"{f}={v}" for f, v in values.items()))
    else:
        report.operator(chosen[name])


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """List the targets of this machine with their numbers."""
    from flextensor import targets as family

    found = family.present()
    if as_json:
        rows = {s: {"device": t.device, **dataclasses.asdict(t)} for s, t in found.items()}
        print(json.dumps(rows))
        return
    for spec, t in found.items():
        print(f"{spec:15s}{t.device}\n{'':15s}{t.numbers}")


@app.command()
def explorers(as_json: JsonOption = False) -> None:
    """List the search strategies."""
    from flextensor import explorers as family

    if as_json:
        print(json.dumps(dict(family.names())))
        return
    for name, line in family.names().items():
        print(f"{name:20s}{line}")


@app.command()
def show(
    what: What = None,
    fields: Fields = None,
    einsum: EinsumOption = None,
    case: CaseOption = None,
    target: TargetOption = "llvm",
    threads: ThreadsOption = None,
    db: DbOption = None,
    prepacked: PrepackedOption = False,
    measure: MeasureOption = None,
    source: Annotated[bool, typer.Option("--source", help="print the generated code")] = False,
    tir: Annotated[bool, typer.Option("--tir", help="print the scheduled program")] = False,
) -> None:
    """Show the kept schedule of a workload: config, roofline position, program, code."""
    from flextensor import report
    from flextensor import result as results
    from flextensor.lean import import_tvm

    import_tvm()
    ((label, operator),) = workloads_of(what, fields, einsum, case, None)
    with existing(db) as database:
        result = results.load(
            operator, target=target, threads=threads, db=database, prepacked=prepacked,
            measure=measure,
        )  # fmt: skip
    found = results.show(result)
    if not (source or tir):
        report.table(label, found["result"])
        for knob, value in found["result"]["config"].items():
            print(f"  {knob} = {value}")
    if tir:
        print(found["tir"])
    if source:
        print(found["source"])


@app.command()
def bench(
    suite: Annotated[str, typer.Option(metavar="NAME", help="the cases to run")],
    family: Annotated[str | None, typer.Option(help="only this operator")] = None,
    cases: CasesOption = None,
    target: TargetOption = "llvm",
    time: TimeOption = None,
    trials: TrialsOption = None,
    threads: ThreadsOption = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results")] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="torch, torch-best, torch-tf32, blas, metaschedule, dlight",
        ),
    ] = None,
    peer_trials: Annotated[int, typer.Option(min=1, help="of a peer that searches")] = 64,
    prepacked: PrepackedOption = False,
    dtype: Annotated[str | None, typer.Option(help="of the cases that have one")] = None,
    tolerance: Annotated[float, typer.Option(help="largest relative error")] = 1e-4,
    db: DbOption = None,
) -> None:
    """Tune every case of a suite beside its peers; write raw data, a table and a picture."""
    check_numbers(trials, time, tolerance)
    from flextensor import bench as runner
    from flextensor.lean import import_tvm

    import_tvm()
    code = runner.run(
        suite, family=family, names=split(cases), target=target, time=time, trials=trials,
        threads=threads,
        out=out or runner.folder(suite, target, prepacked, dtype, tolerance), db=db,
        peers=split(peers), peer_trials=peer_trials,
        prepacked=prepacked, dtype=dtype, tolerance=tolerance,
        command=["flextensor", *sys.argv[1:]],
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def compare(
    explorers: Annotated[
        str, typer.Option(metavar="NAMES", help="e.g. flextensor,q-method/no-model,metaschedule")
    ],
    suite: Annotated[str, typer.Option(metavar="NAME", help="the workloads")] = "smoke",
    cases: CasesOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="searches of every explorer")] = 3,
    trials: TrialsOption = None,
    time: TimeOption = None,
    cost_model: Annotated[str, typer.Option(help="what ranks a draft")] = "xgboost",
    target: TargetOption = "llvm",
    threads: ThreadsOption = None,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("results/explorers"),
    db: Annotated[
        Path | None, typer.Option("--db", help="a database that keeps what is measured")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="DB", help="answer from the trials of a database")
    ] = None,
    warm: Annotated[
        Path | None,
        typer.Option(metavar="DB", help="other shapes in it guide explorers named NAME/warm"),
    ] = None,
) -> None:
    """Search the same workloads by several explorers; write raw data, a table and curves."""
    check_numbers(trials, time)
    from flextensor import compare as runner
    from flextensor import cost_models, operators, targets

    if cost_model not in cost_models.names():
        raise unknown("cost model", cost_model, cost_models.names())
    variants = [runner.Variant.parse(name) for name in explorers.split(",")]
    chosen = operators.cases(suite, names=split(cases))
    code = runner.run(
        chosen, variants, seeds=seeds, trials=trials, time=time, cost_model=cost_model,
        target=targets.lookup(target, threads), out=out, command=["flextensor", *sys.argv[1:]],
        db=db, replay=replay, warm=warm,
    )  # fmt: skip
    raise typer.Exit(code)
