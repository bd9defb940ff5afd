"""``flextensor db``: look into the schedule database, and move it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flextensor.cli_options import MeasureOption

if TYPE_CHECKING:
    from flextensor.database import Database

db_app = typer.Typer(help="Look into the schedule database, and move it.", no_args_is_help=True)

DbOption = Annotated[Path | None, typer.Option("--db", help="the schedule database")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def existing(db: Path | None) -> Database:
    """The database to look into; one that is named and missing is an error, not a new file."""
    from flextensor.database import Database

    return Database(db, readonly=True) if db is not None and not db.exists() else Database(db)


@db_app.command("ls")
def ls(db: DbOption = None, as_json: JsonOption = False) -> None:
    """List the workloads: trials, failures, best time."""
    with existing(db) as database:
        rows = database.workloads()
    if as_json:
        print(json.dumps([dataclasses.asdict(r) for r in rows]))
        return
    for row in rows:
        best = f"{row.best_seconds * 1e3:10.4f} ms" if row.best_seconds else "         -   "
        print(f"{best} {row.trials:6d} trials {row.failures:4d} failed  {row.key}")


@db_app.command("best")
def best(
    key: Annotated[str, typer.Argument(metavar="WORKLOAD", help="as `db ls` prints it")],
    target: Annotated[str, typer.Option(help="where it was tuned")] = "llvm",
    threads: Annotated[int | None, typer.Option(help="threads of the kernel")] = None,
    measure: MeasureOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest result of a workload."""
    from flextensor import report
    from flextensor.errors import InputError, unknown
    from flextensor.result import as_target

    device = as_target(target, threads, measure)
    with existing(db) as database:
        result = database.result(key, device.fingerprint)
        known = database.workloads()
    tried = {row.target for row in known if row.key == key}
    if result is None and device.fingerprint in tried:
        raise InputError(f"{key} has trials and no result on {device.device}; tune it to the end")
    if result is None and tried:
        raise InputError(
            f"{key} was not tuned on {device.device}, but on {', '.join(sorted(tried))}"
        )
    if result is None:
        raise unknown("workload", key, [row.key for row in known] or ["nothing yet"])
    if as_json:
        print(report.to_json(result))
    else:
        report.table(key, result)


@db_app.command("stats")
def stats(db: DbOption = None, as_json: JsonOption = False) -> None:
    """Count what the database holds."""
    with existing(db) as database:
        values = dataclasses.asdict(database.stats())
    if as_json:
        print(json.dumps(values))
        return
    status = values.pop("status")
    values["status"] = ", ".join(f"{count} {name}" for name, count in status.items()) or "no trials"
    values["measured_seconds"] = round(values["measured_seconds"], 1)
    for name, value in values.items():
        print(f"{name:18s}{value}")


@db_app.command("export")
def export(path: Path, db: DbOption = None) -> None:
    """Write every trial as one JSON line."""
    with existing(db) as database:
        print(f"exported {database.export(path)} records to {path}")


@db_app.command("import")
def import_(path: Path, db: DbOption = None) -> None:
    """Add the trials of an export."""
    from flextensor.database import Database

    with Database(db) as database:
        added = database.import_(path)
    print(f"imported {added.added} records from {path}, {added.duplicates} were here already")


@db_app.command("merge")
def merge(path: Path, db: DbOption = None) -> None:
    """Add the trials of another database."""
    from flextensor.database import Database

    with Database(db) as database:
        added = database.merge(path)
    print(f"merged {added.added} records from {path}, {added.duplicates} were here already")


@db_app.command("prune")
def prune(
    keep: Annotated[int, typer.Option(help="fastest trials to keep per workload")] = 100,
    db: DbOption = None,
) -> None:
    """Drop failed and slow trials."""
    with existing(db) as database:
        dropped = database.prune(keep=keep)
    print(f"dropped {dropped.failed} failed and {dropped.slow} slow trials")
