"""The schedule database: one SQLite file of append-only trials and results.

Every value that is read back is checked as data; nothing in a database is ever executed, so one
from a stranger can hold wrong schedules, never code.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flextensor.errors import DatabaseError
from flextensor.targets import Status, Trial

APPLICATION_ID = 0x464C5854
VERSION = 1
SCHEMA = """
CREATE TABLE trials (
    id TEXT PRIMARY KEY, workload TEXT NOT NULL, operator TEXT NOT NULL, params TEXT NOT NULL,
    fingerprint TEXT NOT NULL, formulation TEXT NOT NULL, config TEXT NOT NULL,
    status TEXT NOT NULL, times TEXT NOT NULL, seconds REAL, message TEXT NOT NULL, error REAL,
    build_seconds REAL NOT NULL, run_seconds REAL NOT NULL, at REAL NOT NULL);
CREATE INDEX trials_of ON trials (workload, fingerprint);
CREATE TABLE results (
    id TEXT PRIMARY KEY, workload TEXT NOT NULL, fingerprint TEXT NOT NULL,
    result TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX results_of ON results (workload, fingerprint);
"""
COLUMNS = (
    "id", "workload", "operator", "params", "fingerprint", "formulation", "config", "status",
    "times", "seconds", "message", "error", "build_seconds", "run_seconds", "at",
)  # fmt: skip
INSERT = f"INSERT OR IGNORE INTO trials VALUES ({', '.join('?' * len(COLUMNS))})"


def default_path() -> Path:
    """``~/.local/share/flextensor/trials.db``, or below ``$XDG_DATA_HOME``."""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "flextensor" / "trials.db"


class Database:
    """Trials and results by workload key and target fingerprint.

    Several processes may write one file at once. Each trial is one transaction: a killed process
    loses at most the trial in flight. Raises `DatabaseError`, one line, for whatever goes wrong.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        with self._errors("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        owner = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and owner != APPLICATION_ID:
            raise DatabaseError(f"{self.path} is another program's SQLite file; name another --db")
        if version > VERSION:
            raise DatabaseError(
                f"{self.path} has schema {version}, this flextensor knows up to {VERSION}; upgrade it"
            )
        if version == VERSION:
            return
        self._db.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            if not self._db.execute("PRAGMA user_version").fetchone()[0]:
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise DatabaseError(f"cannot {what} database {self.path}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add(
        self, workload: str, operator: str, params: Mapping[str, Any], fingerprint: str, trial: Trial
    ) -> None:
        """Append one trial; it is safe on disk, whatever is killed, when this returns."""
        seconds = trial.seconds if math.isfinite(trial.seconds) else None
        row = (
            uuid.uuid4().hex, workload, operator, json.dumps(dict(params)), fingerprint,
            trial.formulation, json.dumps(dict(trial.config)), str(trial.status),
            json.dumps(list(trial.times)), seconds, trial.message, _finite(trial.error),
            trial.build_seconds, trial.run_seconds, time.time(),
        )  # fmt: skip
        with self._errors("write to"), self._transaction():
            self._db.execute(INSERT, row)

    def trials(self, workload: str, fingerprint: str) -> list[Trial]:
        """Every trial of a workload on a target, oldest first."""
        query = "SELECT * FROM trials WHERE workload = ? AND fingerprint = ? ORDER BY at, rowid"
        with self._errors("read"):
            rows = self._db.execute(query, (workload, fingerprint)).fetchall()
        return [self._trial(row) for row in rows]

    def _trial(self, row: tuple[Any, ...]) -> Trial:
        try:
            return trial_of(dict(zip(COLUMNS, row, strict=True)))
        except (ValueError, TypeError) as error:
            raise DatabaseError(f"{self.path}: trial {row[0]} is malformed: {error}") from error

    def best(self, workload: str, fingerprint: str) -> Trial | None:
        """The fastest trial, or None."""
        ok = [t for t in self.trials(workload, fingerprint) if t.ok]
        return min(ok, key=lambda t: t.seconds, default=None)

    def add_result(self, workload: str, fingerprint: str, result: Mapping[str, Any]) -> None:
        """Append what a finished tuning found; the newest result of a workload counts."""
        row = (uuid.uuid4().hex, workload, fingerprint, json.dumps(dict(result)), time.time())
        with self._errors("write to"), self._transaction():
            self._db.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?)", row)

    def result(self, workload: str, fingerprint: str) -> dict[str, Any] | None:
        """The newest result of a workload on a target, or None."""
        query = (
            "SELECT result FROM results WHERE workload = ? AND fingerprint = ? "
            "ORDER BY at DESC, rowid DESC LIMIT 1"
        )
        with self._errors("read"):
            row = self._db.execute(query, (workload, fingerprint)).fetchone()
        if row is None:
            return None
        value = json.loads(row[0])
        return value if isinstance(value, dict) else None

    def workloads(self) -> list[dict[str, Any]]:
        """Every workload and target: counts, best seconds, when it was last measured."""
        query = (
            "SELECT workload, operator, params, fingerprint, count(*), sum(status != 'ok'),"
            " min(seconds), max(at) FROM trials GROUP BY workload, fingerprint ORDER BY max(at)"
        )
        names = ("workload", "operator", "params", "fingerprint", "trials", "failures",
                 "best_seconds", "at")  # fmt: skip
        with self._errors("read"):
            rows = self._db.execute(query).fetchall()
        return [
            dict(zip(names, row, strict=True)) | {"params": json.loads(row[2])} for row in rows
        ]

    def neighbours(
        self, operator: str, params: Mapping[str, Any], fingerprint: str, limit: int = 4
    ) -> list[Trial]:
        """Best trials of the nearest other workloads of an operator, by log2 of their sizes."""

        def distance(row: Mapping[str, Any]) -> float:
            return sum(
                abs(math.log2((v or 1) / (row["params"].get(k) or 1)))
                for k, v in params.items()
                if isinstance(v, int) and isinstance(row["params"].get(k), int)
            )

        rows = [
            row
            for row in self.workloads()
            if row["operator"] == operator
            and row["fingerprint"] == fingerprint
            and row["params"] != dict(params)
            and row["best_seconds"]
        ]
        near = sorted(rows, key=distance)[:limit]
        found = (self.best(row["workload"], fingerprint) for row in near)
        return [trial for trial in found if trial]

    def stats(self) -> dict[str, Any]:
        """Counts of workloads, trials by status, results, and bytes on disk."""
        with self._errors("read"):
            status = dict(self._db.execute("SELECT status, count(*) FROM trials GROUP BY status"))
            results = self._db.execute("SELECT count(*) FROM results").fetchone()[0]
        return {
            "path": str(self.path),
            "workloads": len(self.workloads()),
            "trials": sum(status.values()),
            "status": status,
            "results": results,
            "bytes": self.path.stat().st_size,
        }

    def export(self, path: str | Path) -> int:
        """Write every trial as one JSON line; the number written."""
        with self._errors("read"):
            rows = self._db.execute("SELECT * FROM trials ORDER BY at, rowid").fetchall()
        with self._errors(f"export to {path} from"), Path(path).open("w") as file:
            file.write(json.dumps({"flextensor": VERSION}) + "\n")
            for row in rows:
                file.write(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n")
        return len(rows)

    def import_(self, path: str | Path) -> int:
        """Add the trials of an export that are not here yet; the number added.

        `DatabaseError` names the line of whatever is malformed, and nothing is added then.
        """
        with self._errors(f"import {path} into"):
            lines = Path(path).read_text().splitlines()
        rows = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                values = json.loads(line)
                trial_of(values)
                rows.append(tuple(values[c] for c in COLUMNS))
            except (ValueError, TypeError, KeyError) as error:
                raise DatabaseError(f"{path}:{number} is no trial: {error!r}") from error
        if not lines or not lines[0].startswith('{"flextensor"'):
            raise DatabaseError(f"{path}:1 is no flextensor export")
        return self._insert(rows)

    def merge(self, path: str | Path) -> int:
        """Add the trials of another database; the number added."""
        if not Path(path).is_file():
            raise DatabaseError(f"no database at {path}")
        with Database(path) as other, self._errors("read"):
            rows = other._db.execute("SELECT * FROM trials ORDER BY at, rowid").fetchall()
        return self._insert(rows)

    def _insert(self, rows: list[tuple[Any, ...]]) -> int:
        with self._errors("write to"), self._transaction():
            before = self._db.total_changes
            self._db.executemany(INSERT, rows)
            return self._db.total_changes - before

    def prune(self, keep: int = 32) -> int:
        """Keep the `keep` fastest trials of every workload, drop the rest; the number dropped."""
        query = (
            "DELETE FROM trials WHERE id NOT IN (SELECT id FROM (SELECT id, row_number() OVER "
            "(PARTITION BY workload, fingerprint ORDER BY seconds IS NULL, seconds) AS place "
            "FROM trials) WHERE place <= ?)"
        )
        with self._errors("write to"), self._transaction():
            return self._db.execute(query, (max(keep, 1),)).rowcount


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def trial_of(values: Mapping[str, Any]) -> Trial:
    """A trial from the columns of a row; `ValueError` or `TypeError` when they hold none."""
    config, times = json.loads(values["config"]), json.loads(values["times"])
    if not isinstance(config, dict) or not all(isinstance(v, int | str) for v in config.values()):
        raise ValueError("a config holds integers and strings by name")
    if not all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times):
        raise ValueError("times are positive seconds")
    return Trial(
        str(values["formulation"]), config, Status(values["status"]), tuple(times),
        str(values["message"]), values["error"], float(values["build_seconds"]),
        float(values["run_seconds"]),
    )  # fmt: skip
