"""The command line. Only typer and rich are imported until a command needs more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flextensor import __version__
from flextensor.errors import FlexTensorError, InputError, unknown

if TYPE_CHECKING:
    from flextensor.operators.base import Operator
    from flextensor.operators.suites import Case

app = typer.Typer(
    name="flextensor",
    help="Tune tensor operators for this machine, and keep the schedules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(help="Look into the schedule database, and move it.", no_args_is_help=True)
app.add_typer(db_app, name="db")

What = Annotated[str | None, typer.Argument(metavar="OPERATOR", help="a name, or file.py:function")]
Fields = Annotated[list[str] | None, typer.Argument(metavar="[field=value ...]")]
TargetOption = Annotated[str, typer.Option(help="where to run")]
DbOption = Annotated[Path | None, typer.Option("--db", help="the schedule database")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]
CaseOption = Annotated[str | None, typer.Option(metavar="SUITE/CASE", help="a case of a suite")]
SuiteOption = Annotated[str | None, typer.Option(metavar="NAME", help="all cases of a suite")]
ThreadsOption = Annotated[int | None, typer.Option(help="threads of the kernel")]
TrialsOption = Annotated[int | None, typer.Option(help="points to measure in all")]
TimeOption = Annotated[float | None, typer.Option(metavar="SECONDS", help="seconds to spend")]


def run() -> None:
    """Run a command: errors made for people become one line on stderr and exit code 2."""
    try:
        app()
    except FlexTensorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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


def parse_fields(fields: list[str]) -> dict[str, str]:
    """``["m=64", "n=32"]`` as a dictionary; `InputError` for what is no field=value."""
    values = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"{text!r} is no field=value")
        values[name] = value
    return values


def operator_of(what: str, fields: list[str]) -> Operator:
    """The operator that a command names, by name or as file.py:function."""
    from flextensor.operators import from_file, parse

    values = parse_fields(fields)
    if ".py:" in what:
        return from_file(what, values)
    return parse(what, values)


def workloads_of(
    what: str | None,
    fields: list[str] | None,
    einsum: str | None,
    case: str | None,
    suite: str | None,
) -> list[tuple[str, Operator]]:
    """What to tune, with a label each: one operator, one case, or the cases of a suite."""
    from flextensor import operators

    given = list(fields or [])
    if einsum is not None:
        given = ([what] if what else []) + given
        return [("einsum", operators.parse("einsum", {"equation": einsum, **parse_fields(given)}))]
    if case is not None or suite is not None:
        if given:
            raise InputError(f"a case has all its fields; {given[0]!r} is one too many")
        if what is not None:
            operators.lookup(what)
        if case is not None:
            return [_agree(what, operators.case(case))]
        found = operators.cases(str(suite), what)
        if not found:
            families = {c.family for c in operators.cases(str(suite))}
            raise unknown(f"operator in suite {suite}", str(what), families)
        return [(c.full_name, c.operator) for c in found]
    if what is None:
        raise InputError(
            "name an OPERATOR, --einsum, --case or --suite; `flextensor ops` lists them"
        )
    return [(what, operator_of(what, given))]


def _agree(what: str | None, case: Case) -> tuple[str, Operator]:
    if what is not None and what != case.family:
        raise InputError(f"case {case.full_name} is a {case.family}, not a {what}")
    return case.full_name, case.operator


@app.command()
def tune(
    what: What = None,
    fields: Fields = None,
    einsum: Annotated[str | None, typer.Option(metavar="EQUATION", help="a contraction")] = None,
    suite: SuiteOption = None,
    case: CaseOption = None,
    target: TargetOption = "llvm",
    trials: TrialsOption = None,
    time: TimeOption = None,
    explorer: Annotated[str, typer.Option(help="search strategy")] = "annealing",
    cost_model: Annotated[str, typer.Option(help="xgboost, analytic or none")] = "xgboost",
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    db: DbOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="tune anew")] = False,
    threads: ThreadsOption = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="do not time PyTorch")] = False,
    tolerance: Annotated[float, typer.Option(help="largest relative error")] = 1e-4,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest schedule of an operator, verify it, keep it."""
    from flextensor import report, tuner

    work = workloads_of(what, fields, einsum, case, suite)
    with tuner.opened(db) as database:
        for label, operator in work:
            with report.Live(label, quiet=as_json) as live:
                try:
                    result = tuner.tune(
                        operator, target=target, threads=threads, trials=trials, time=time,
                        explorer=explorer, cost_model=cost_model, seed=seed, db=database,
                        fresh=fresh, peers=not no_peers, tolerance=tolerance, progress=live.update,
                    )  # fmt: skip
                except tuner.Interrupted as stop:
                    live.stop()
                    if stop.result is not None:
                        _print(label, stop.result.json(), as_json)
                    raise typer.Exit(130) from None
            _print(label, result.json(), as_json)


def _print(label: str, values: dict[str, Any], as_json: bool) -> None:
    from flextensor import report

    if as_json:
        print(json.dumps(values))
    else:
        report.table(label, values)


@app.command()
def ops(
    name: Annotated[str | None, typer.Argument(help="one operator")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the operators with their fields and defaults."""
    import dataclasses

    from flextensor import operators

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
        return
    for key, values in listed.items():
        print(f"{key:24s}" + " ".join(f"{f}={v}" for f, v in values.items()))


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """List the targets of this machine with their numbers."""
    import dataclasses

    from flextensor import targets as family

    found = {kind: family.lookup(kind) for kind in family.available()}
    if as_json:
        rows = {k: {"device": t.device, **dataclasses.asdict(t)} for k, t in found.items()}
        print(json.dumps(rows))
        return
    for kind, t in found.items():
        print(f"{kind:8s}{t.device}")
        caches = ", ".join(f"{size >> 10} KiB" for size in (t.l1_bytes, t.l2_bytes, t.l3_bytes))
        print(f"        {t.vector_bits}-bit vectors x {t.vector_registers}, caches {caches}")


@app.command()
def explorers(as_json: JsonOption = False) -> None:
    """List the search strategies."""
    from flextensor import explorers as family

    if as_json:
        print(json.dumps(dict(family.names())))
        return
    for name, line in family.names().items():
        print(f"{name:12s}{line}")


@app.command()
def show(
    what: What = None,
    fields: Fields = None,
    case: CaseOption = None,
    target: TargetOption = "llvm",
    threads: ThreadsOption = None,
    db: DbOption = None,
    source: Annotated[bool, typer.Option("--source", help="print the generated code")] = False,
    tir: Annotated[bool, typer.Option("--tir", help="print the scheduled program")] = False,
) -> None:
    """Show the kept schedule of a workload: config, roofline position, program, code."""
    from flextensor import report, tuner

    ((label, operator),) = workloads_of(what, fields, None, case, None)
    result = tuner.load(operator, target=target, threads=threads, db=db)
    found = tuner.show(result)
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
    target: TargetOption = "llvm",
    time: TimeOption = None,
    trials: TrialsOption = None,
    threads: ThreadsOption = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results")] = None,
    db: DbOption = None,
) -> None:
    """Tune every case of a suite beside PyTorch; write raw data, a table and a picture."""
    from flextensor import bench as runner

    failed = runner.run(
        suite, family=family, target=target, time=time, trials=trials, threads=threads,
        out=out or Path("results") / suite, db=db, command=sys.argv[1:],
    )  # fmt: skip
    raise typer.Exit(1 if failed else 0)


@db_app.command("ls")
def db_ls(db: DbOption = None, as_json: JsonOption = False) -> None:
    """List the workloads: trials, failures, best time."""
    import dataclasses

    from flextensor.database import Database

    with Database(db) as database:
        rows = database.workloads()
    if as_json:
        print(json.dumps([dataclasses.asdict(r) for r in rows]))
        return
    for row in rows:
        best = f"{row.best_seconds * 1e3:10.4f} ms" if row.best_seconds else "         -   "
        print(f"{best} {row.trials:6d} trials {row.failures:4d} failed  {row.key}")


@db_app.command("best")
def db_best(key: str, db: DbOption = None, target: TargetOption = "llvm") -> None:
    """Print the newest result of a workload key as JSON."""
    from flextensor.database import Database
    from flextensor.targets import lookup

    with Database(db) as database:
        result = database.result(key, lookup(target).fingerprint)
        known = [row.key for row in database.workloads()]
    if result is None:
        raise unknown("workload", key, known or ["nothing yet"])
    print(json.dumps(dict(result)))


@db_app.command("stats")
def db_stats(db: DbOption = None, as_json: JsonOption = False) -> None:
    """Count what the database holds."""
    import dataclasses

    from flextensor.database import Database

    with Database(db) as database:
        values = dataclasses.asdict(database.stats())
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name:18s}{value}")


@db_app.command("export")
def db_export(path: Path, db: DbOption = None) -> None:
    """Write every trial as one JSON line."""
    from flextensor.database import Database

    with Database(db) as database:
        print(f"exported {database.export(path)} records to {path}")


@db_app.command("import")
def db_import(path: Path, db: DbOption = None) -> None:
    """Add the trials of an export."""
    from flextensor.database import Database

    with Database(db) as database:
        print(f"imported {database.import_(path)} from {path}")


@db_app.command("merge")
def db_merge(path: Path, db: DbOption = None) -> None:
    """Add the trials of another database."""
    from flextensor.database import Database

    with Database(db) as database:
        print(f"merged {database.merge(path)} from {path}")


@db_app.command("prune")
def db_prune(
    keep: Annotated[int, typer.Option(help="fastest trials to keep per workload")] = 100,
    db: DbOption = None,
) -> None:
    """Drop failed and slow trials."""
    from flextensor.database import Database

    with Database(db) as database:
        print(f"dropped {database.prune(keep=keep)}")
