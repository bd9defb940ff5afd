"""The schedule database: every trial ever measured, and what finished tunings found.

    with Database("trials.db") as database:
        database.add(workload.key, "gemm", workload.params, target.fingerprint, trial)
        database.best(workload.key, target.fingerprint)

One SQLite file in WAL mode. Trials and results are only ever added (`prune` is the one that
removes), each in a transaction of its own: a killed process loses at most the trial in flight,
and processes that write at once wait for each other. What a file says is data, checked and never
executed: a stranger's database can hold schedules that are wrong for this machine, but no code.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

import flextensor
from flextensor import database_records as records
from flextensor import database_schema as schema
from flextensor.database_store import DROP_FAILED, Added, Store
from flextensor.errors import DatabaseError, InputError
from flextensor.targets.base import Trial

TIMEOUT = 30.0
"""Seconds to wait for another process that is writing."""
KEEP = 100
"""Fastest trials of every workload that `Database.prune` keeps by default."""


def default_path() -> Path:
    """``$XDG_DATA_HOME/flextensor/trials.db``, by default under ``~/.local/share``."""
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        base = given if given.is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise DatabaseError("no home folder to keep a database in; name a file") from error
    return base / "flextensor" / "trials.db"


@dataclasses.dataclass(frozen=True)
class WorkloadRow:
    """One workload on one target: how often it was tried and how fast it got."""

    key: str
    operator: str
    params: Mapping[str, Any]
    target: str
    """The target's fingerprint."""
    trials: int
    failures: int
    best_seconds: float | None
    """Median seconds per call of `Database.best`, None while nothing worked."""
    when: float
    """The newest trial, in seconds since 1970."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a database holds, in numbers."""

    path: str
    schema: int
    file_bytes: int
    workloads: int
    """Pairs of a workload and a target."""
    targets: int
    trials: int
    results: int
    status: Mapping[str, int]
    """Trials by status."""
    measured_seconds: float
    """Time that went into building and running them."""


class Pruned(NamedTuple):
    """Trials that `prune` dropped."""

    failed: int
    slow: int


class Database:
    """The schedule database in the file `path`; made when missing, with its folder.

    For one thread; other processes may use the file at the same time. A file that cannot be
    written is opened for reading. Every method raises `DatabaseError` when the file cannot be
    read or written, is of another program or of a newer flextensor, or stays locked `timeout`
    seconds.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        readonly: bool = False,
        timeout: float = TIMEOUT,
    ) -> None:
        self.path = default_path() if path is None else Path(path)
        self.readonly = readonly or not schema.writable(self.path)
        self._store = Store(self.path, timeout, self.readonly)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r})"

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._store.close()

    def add(
        self,
        workload_key: str,
        operator: str,
        params: Mapping[str, Any],
        target_fingerprint: str,
        trial: Trial,
        *,
        session: str = "",
        seed: int | None = None,
    ) -> str:
        """Store one trial and return its unique id; when it returns, the trial is safe.

        `session` names the tuning that measured it, `seed` is that tuning's seed.
        """
        record = {
            **self._stamp("trial", workload_key, target_fingerprint),
            "operator": operator,
            "params": records.plain(params),
            "session": session,
            "seed": seed,
            **records.of_trial(trial),
        }
        self._store.add([record])
        return str(record["id"])

    def add_result(
        self, workload_key: str, target_fingerprint: str, result: Mapping[str, Any]
    ) -> str:
        """Store the JSON object that a finished tuning printed, and return its unique id.

        When it has ``formulation`` and ``config``, `best` follows it; the newest result counts.
        """
        record = self._stamp("result", workload_key, target_fingerprint)
        self._store.add([{**record, "result": dict(result)}])
        return str(record["id"])

    def trials(self, workload_key: str, target_fingerprint: str) -> list[Trial]:
        """Every trial of the workload on the target, in the order in which they were stored."""
        return self._store.trials(workload_key, target_fingerprint)

    def sound(self, workload_key: str, target_fingerprint: str) -> list[Trial]:
        """Of every schedule of the workload on the target the latest trial: one that failed when it
        was run or verified again is a failure, whatever was measured of it before."""
        trials = self.trials(workload_key, target_fingerprint)
        return list({(t.formulation, records.dump(t.config)): t for t in trials}.values())

    def best(self, workload_key: str, target_fingerprint: str) -> Trial | None:
        """The schedule to use: that of the newest result, or else of the fastest trial.

        Schedules with a trial that gave a wrong result, or that crashed or hung after it had
        worked, do not count. None when nothing worked.
        """
        row = self._store.best(workload_key, target_fingerprint)
        return None if row is None else self._store.trial(row)

    def result(self, workload_key: str, target_fingerprint: str) -> dict[str, Any] | None:
        """The newest result of the workload on the target, as it was added."""
        return self._store.result(workload_key, target_fingerprint)

    def workloads(self) -> list[WorkloadRow]:
        """Every pair of a workload and a target with trials, the most recent last."""
        query = """SELECT w.key, w.target, w.operator, w.params, count(*) AS trials,
            sum(t.status != 'ok') AS failures, max(t.created) AS "when"
            FROM workloads w JOIN trials t ON t.workload = w.id
            GROUP BY w.id ORDER BY "when", w.id"""
        found = []
        for row in self._store.query(query):
            best = self.best(row["key"], row["target"])
            params = self._store.params(row)
            values = {k: row[k] for k in ("key", "target", "operator", "trials", "failures")}
            seconds = best.seconds if best else None
            found.append(
                WorkloadRow(**values, params=params, best_seconds=seconds, when=row["when"])
            )
        return found

    def neighbours(
        self,
        operator: str,
        params: Mapping[str, Any],
        target_fingerprint: str,
        limit: int = 8,
        among: Callable[[str, Mapping[str, Any]], bool] = lambda key, params: True,
    ) -> list[tuple[dict[str, Any], Trial]]:
        """(parameters, best trial) of up to `limit` other workloads of the operator, nearest first.

        Near is a small distance between the logarithms of the integer parameters; workloads with
        other text parameters, or without a trial that worked, are no neighbours, and `among` says
        by key and parameters which may be one.
        """
        wanted = records.plain(params)
        near = []
        query = "SELECT key, params FROM workloads WHERE operator = ? AND target = ? ORDER BY key"
        for row in self._store.query(query, operator, target_fingerprint):
            theirs = self._store.params(row)
            gap = records.distance(wanted, theirs)
            if gap is not None and theirs != wanted:
                near.append((gap, row["key"], theirs))
        near.sort(key=lambda entry: entry[:2])
        bests = (
            (theirs, self.best(key, target_fingerprint))
            for _, key, theirs in near
            if among(key, theirs)
        )
        working = ((theirs, best) for theirs, best in bests if best is not None)
        return list(itertools.islice(working, limit))

    def stats(self) -> Stats:
        """What the database holds, in numbers."""
        (row,) = self._store.query("""SELECT
            (SELECT count(DISTINCT workload) FROM trials) AS workloads,
            (SELECT count(DISTINCT target) FROM workloads) AS targets,
            (SELECT count(*) FROM trials) AS trials, (SELECT count(*) FROM results) AS results,
            (SELECT total(build_seconds + run_seconds) FROM trials) AS measured_seconds,
            (SELECT page_count * page_size FROM pragma_page_count, pragma_page_size) AS file_bytes
            """)
        status = self._store.query(
            "SELECT status, count(*) FROM trials GROUP BY status ORDER BY status"
        )
        return Stats(str(self.path), schema.SCHEMA, status=dict(map(tuple, status)), **dict(row))

    def everything(self) -> Iterator[records.Record]:
        """Every trial, then every result, in the order in which they came, as of one moment."""
        return self._store.everything()

    def export(self, file: str | Path | TextIO) -> int:
        """Write every trial and result as JSON lines below a header line; returns their number.
        An older file is replaced once all is written."""
        if not isinstance(file, str | Path):
            return self._export(file)
        target = Path(file)
        try:
            if target.exists() and target.samefile(self.path):
                raise DatabaseError(f"{target}: an export would overwrite the database itself")
            if target.exists() and not target.is_file():  # a pipe
                with target.open("w", encoding="utf-8") as stream:
                    return self._export(stream)
            return self._replace(target.resolve())
        except (OSError, ValueError) as error:
            raise DatabaseError(f"{target}: cannot write: {_reason(error)}") from error

    def import_(self, path: str | Path) -> Added:
        """Add the records of an export; those already here are skipped.

        Every line is checked before the first is stored. `DatabaseError` with ``file:line`` and
        the reason for the first that is not exactly a record.
        """
        source = Path(path)
        if source.exists() and not (source.is_file() or source.is_dir()):
            raise DatabaseError(f"{path}: is no regular file; an import reads it twice")
        for _ in records.read_lines(source, schema.SCHEMA):
            pass
        return self._store.add(records.read_lines(source, schema.SCHEMA))

    def merge(self, path: str | Path) -> Added:
        """Add the records of another database; those already here are skipped."""
        with Database(path, readonly=True, timeout=self._store.timeout) as other:
            return self._store.add(other.everything())

    def prune(self, keep: int = KEEP) -> Pruned:
        """Drop failed trials, and of every workload all but the `keep` fastest; shrink the file.

        What `best` gives stays, and so do results and the trials that gave a wrong result or failed
        after the same schedule had worked: without these, it could become the best again.
        """
        if keep < 1:
            raise InputError(f"at least 1 trial of every workload is kept, got {keep}")
        ranked = """SELECT number FROM (SELECT number, row_number() OVER
            (PARTITION BY workload ORDER BY seconds, number) AS rank
            FROM trials WHERE status = 'ok') WHERE rank > ?"""
        with self._store.writing():
            keys = self._store.query("SELECT key, target FROM workloads")
            rows = [self._store.best(row["key"], row["target"]) for row in keys]
            bests = {row["number"] for row in rows if row is not None}
            slow = [row for row in self._store.query(ranked, keep) if row["number"] not in bests]
            failed = self._store.connection.execute(DROP_FAILED).rowcount
            self._store.connection.executemany("DELETE FROM trials WHERE number = ?", slow)
        with schema.errors(self.path):
            schema.shrink(self._store.connection, self._store.timeout)
        return Pruned(failed, len(slow))

    def _stamp(self, kind: str, workload_key: str, target_fingerprint: str) -> records.Record:
        return {
            "record": kind,
            "id": uuid.uuid4().hex,
            "workload": workload_key,
            "target": target_fingerprint,
            "created": time.time(),
            "version": flextensor.__version__,
        }

    def _replace(self, target: Path) -> int:
        """Export to a part beside `target` that becomes it, or is removed."""
        part = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with part.open("w", encoding="utf-8") as stream:
                count = self._export(stream)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return count

    def _export(self, stream: TextIO) -> int:
        stream.write(records.dump(records.header(schema.SCHEMA)) + "\n")
        count = 0
        for record in self.everything():
            stream.write(records.dump(record) + "\n")
            count += 1
        return count


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
