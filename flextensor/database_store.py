"""The tables of a database, below its public methods: records in, rows and records out."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flextensor import database_records as records
from flextensor import database_schema as schema
from flextensor.errors import DatabaseError
from flextensor.targets.base import Trial

_BATCH = 500  # records in one transaction: short enough for other writers to get their turn

_TRIAL = (
    *("id", "created", "version", "session", "seed", "formulation", "config", "status", "times"),
    *("message", "error", "build_seconds", "run_seconds"),
)
_RESULT = ("id", "workload", "target", "created", "version", "result")
_JSON = {"params", "config", "times", "result"}
_REAL = {"created", "error", "build_seconds", "run_seconds"}
_SELECT_TRIAL = (
    f"SELECT t.number, {', '.join(f't.{f}' for f in _TRIAL)}, w.key AS workload, w.target, "
    "w.operator, w.params FROM trials t JOIN workloads w ON w.id = t.workload"
)
_SELECT_RESULT = f"SELECT number, {', '.join(_RESULT)} FROM results"
_SAME = "x.workload = t.workload AND x.formulation = t.formulation AND x.config = t.config"
# A schedule that ever gave a wrong result, or that crashed or hung when it was run again, is out,
# however fast its other trials are.
_SOUND = f"""t.status = 'ok' AND t.seconds IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM trials x WHERE {_SAME} AND (x.status = 'wrong_result'
    OR x.number > t.number AND x.status IN ('run_error', 'timeout')))"""
DROP_FAILED = f"""DELETE FROM trials AS t WHERE t.status NOT IN ('ok', 'wrong_result')
    AND NOT EXISTS (SELECT 1 FROM trials x WHERE {_SAME}
    AND x.number < t.number AND x.status = 'ok')"""
"""All failures but those that put a schedule out."""


class Added(NamedTuple):
    """Records that were stored, and those that were there already."""

    added: int
    duplicates: int


class Store:
    """The open file `path`. Every method raises `DatabaseError` for what SQLite says against it."""

    def __init__(self, path: Path, timeout: float, readonly: bool) -> None:
        self.path, self.timeout, self.readonly = path, timeout, readonly
        self.connection = schema.connect(path, timeout, readonly)
        self.connection.row_factory = sqlite3.Row

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with schema.errors(self.path):
            self.connection.close()

    def query(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with schema.errors(self.path):
            return self.connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all or nothing of what is written inside."""
        if self.readonly:
            raise DatabaseError(f"{self.path}: opened read-only, nothing was stored")
        with schema.errors(self.path), schema.transaction(self.connection):
            yield

    def add(self, new: Iterable[records.Record]) -> Added:
        """Store the records that are not there yet, a batch in a transaction."""
        added, seen, stream = 0, 0, iter(new)
        while batch := list(itertools.islice(stream, _BATCH)):
            try:
                for record in batch:
                    records.check(record)
            except ValueError as error:
                raise DatabaseError(f"{self.path}: cannot store this: {error}") from error
            with self.writing():
                added += sum(map(self._insert, batch))
            seen += len(batch)
        return Added(added, seen - added)

    def trials(self, workload: str, target: str) -> list[Trial]:
        """Every trial of a workload on a target, in the order in which they were stored."""
        query = f"{_SELECT_TRIAL} WHERE w.key = ? AND w.target = ? ORDER BY t.number"
        return [self.trial(row) for row in self.query(query, workload, target)]

    def result(self, workload: str, target: str) -> dict[str, Any] | None:
        """The newest result of a workload on a target."""
        where = "WHERE workload = ? AND target = ? ORDER BY number DESC LIMIT 1"
        rows = self.query(f"{_SELECT_RESULT} {where}", workload, target)
        return self._record("result", rows[0])["result"] if rows else None

    def best(self, workload: str, target: str) -> sqlite3.Row | None:
        """The trial to use: of the schedule that the newest result names, or else the fastest."""
        query = f"{_SELECT_TRIAL} WHERE w.key = ? AND w.target = ? AND {_SOUND}"
        result = self.result(workload, target) or {}
        formulation, config = result.get("formulation"), result.get("config")
        if isinstance(formulation, str) and isinstance(config, dict):
            named = f"{query} AND t.formulation = ? AND t.config = ? ORDER BY t.number DESC LIMIT 1"
            schedule = (records.storable(formulation), records.dump(config))
            if rows := self.query(named, workload, target, *schedule):
                return rows[0]
        rows = self.query(f"{query} ORDER BY t.seconds, t.number LIMIT 1", workload, target)
        return rows[0] if rows else None

    def trial(self, row: sqlite3.Row) -> Trial:
        """The checked trial of a row."""
        return records.to_trial(self._record("trial", row))

    def params(self, row: sqlite3.Row) -> dict[str, Any]:
        """The checked parameters of a row of a workload."""
        try:
            return records.parameters(row["params"])
        except ValueError as error:
            raise DatabaseError(
                f"{self.path}: workload {records.shown(row['key'])}: {error}"
            ) from error

    def everything(self) -> Iterator[records.Record]:
        """Every trial, then every result, as of one moment."""
        with schema.errors(self.path), schema.snapshot(self.connection):
            for row in self.connection.execute(f"{_SELECT_TRIAL} ORDER BY t.number"):
                yield self._record("trial", row)
            for row in self.connection.execute(f"{_SELECT_RESULT} ORDER BY number"):
                yield self._record("result", row)

    def _insert(self, record: records.Record) -> int:
        """1 when the record is new, 0 when its id is already there."""
        values = {name: _column(name, value) for name, value in record.items()}
        if record["record"] == "result":
            names = ", ".join(f":{f}" for f in _RESULT)
            statement = f"INSERT OR IGNORE INTO results ({', '.join(_RESULT)}) VALUES ({names})"
            return self.connection.execute(statement, values).rowcount
        trial = records.to_trial(record)
        values["seconds"] = trial.seconds if trial.ok else None
        self.connection.execute(
            """INSERT OR IGNORE INTO workloads (key, target, operator, params)
            VALUES (:workload, :target, :operator, :params)""",
            values,
        )
        return self.connection.execute(
            f"""INSERT OR IGNORE INTO trials (workload, seconds, {", ".join(_TRIAL)})
            SELECT w.id, :seconds, {", ".join(f":{f}" for f in _TRIAL)}
            FROM workloads w WHERE w.key = :workload AND w.target = :target""",
            values,
        ).rowcount

    def _record(self, kind: str, row: sqlite3.Row) -> records.Record:
        fields = {**row}
        del fields["number"]
        try:
            parsed = {name: records.parse(fields[name]) for name in _JSON & fields.keys()}
            return records.check({"record": kind, **fields, **parsed})
        except ValueError as error:
            raise DatabaseError(
                f"{self.path}: {kind} {records.shown(row['id'])}: {error}"
            ) from error


def _column(name: str, value: Any) -> Any:
    """The value of a record's field as SQLite takes it."""
    if name in _JSON:
        return records.dump(value)
    return float(value) if name in _REAL and value is not None else value
