"""The file under a database: opening it, its schema and migrations, and its errors in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from flextensor.errors import DatabaseError

APPLICATION_ID = 0x464C5854
"""``FLXT`` in the header of the file: a schedule database and no other SQLite file."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE workloads (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            target TEXT NOT NULL,
            operator TEXT NOT NULL,
            params TEXT NOT NULL,
            UNIQUE (key, target)
        )""",
        """CREATE TABLE trials (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            workload INTEGER NOT NULL REFERENCES workloads (id),
            created REAL NOT NULL,
            version TEXT NOT NULL,
            session TEXT NOT NULL,
            seed INTEGER,
            formulation TEXT NOT NULL,
            config TEXT NOT NULL,
            status TEXT NOT NULL,
            times TEXT NOT NULL,
            message TEXT NOT NULL,
            error REAL,
            build_seconds REAL NOT NULL,
            run_seconds REAL NOT NULL,
            seconds REAL
        )""",
        """CREATE TABLE results (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            workload TEXT NOT NULL,
            target TEXT NOT NULL,
            created REAL NOT NULL,
            version TEXT NOT NULL,
            result TEXT NOT NULL
        )""",
        "CREATE INDEX trials_by_speed ON trials (workload, seconds)",
        "CREATE INDEX trials_by_config ON trials (workload, formulation, config)",
        "CREATE INDEX results_by_workload ON results (workload, target)",
    ),
)
"""``MIGRATIONS[n]`` are the statements that bring schema n to schema n + 1.

Never edit an entry that was released: append one, and add its asset (tests/assets/README.md).
"""

SCHEMA = len(MIGRATIONS)
"""The schema that this version writes."""

_REASONS = {
    sqlite3.SQLITE_NOTADB: "not a SQLite file",
    sqlite3.SQLITE_CORRUPT: "the file is corrupt; restore a copy or an export",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_FULL: "the disk is full, nothing was stored",
    sqlite3.SQLITE_BUSY: "locked by another process for too long, nothing was stored",
    sqlite3.SQLITE_LOCKED: "locked by another process for too long, nothing was stored",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk reports an input/output error",
}


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Whatever SQLite raises inside becomes a `DatabaseError` of one line."""
    try:
        yield
    except sqlite3.Error as error:
        reason = _REASONS.get(_primary(error)) or (str(error).splitlines() or ["unknown error"])[0]
        raise DatabaseError(f"{path}: {reason}") from error
    except UnicodeDecodeError as error:  # what SQLite says about a corrupt file quotes it
        raise DatabaseError(f"{path}: {_REASONS[sqlite3.SQLITE_CORRUPT]}") from error


def _primary(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 for an error of the Python module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def connect(path: Path, timeout: float, readonly: bool) -> sqlite3.Connection:
    """A connection to the schedule database `path`, made or upgraded as needed.

    Waits `timeout` seconds for locks. Raises `DatabaseError`, and then leaves the file as it was.
    """
    _check_place(path, readonly)
    with errors(path):
        connection = _open(path, timeout, readonly)
    try:
        with errors(path):
            connection.execute("PRAGMA trusted_schema = OFF")
            version = _version(connection, path)
            if not readonly:
                _wal(connection, timeout)
                connection.execute("PRAGMA synchronous = NORMAL")
                _migrate(connection, path)
            elif version < SCHEMA:
                what = f"has the old schema {version}" if version else "is empty"
                raise DatabaseError(f"{path}: {what}, and read-only it cannot be upgraded")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_place(path: Path, readonly: bool) -> None:
    if "\0" in str(path):
        raise DatabaseError(f"{str(path)!r}: not a file name")
    try:
        if path.is_dir():
            raise DatabaseError(f"{path}: a directory, not a database")
        if path.exists() and not path.is_file():
            raise DatabaseError(f"{path}: not a regular file")
        if readonly and not path.exists():
            raise DatabaseError(f"{path}: no such database")
        if not readonly:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatabaseError(f"{path}: cannot make or enter its folder: {reason}") from error


def writable(path: Path) -> bool:
    """Whether the database `path` can be written: the file and, for its log, its folder."""
    try:
        return not path.exists() or _may_write(path) and _may_write(path.parent)
    except OSError:
        return True  # opening it will say what is wrong


def _may_write(path: Path) -> bool:
    """Whether this process may, as whoever it acts for."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _open(path: Path, timeout: float, readonly: bool) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    if not readonly:
        return _connect(f"{uri}?mode=rwc", timeout)
    connection = _connect(f"{uri}?mode=ro", timeout)
    try:
        connection.execute("PRAGMA user_version")
    except sqlite3.OperationalError as error:
        connection.close()
        # SQLite wants to write an index beside a database in WAL mode even to read it. Where it
        # cannot and no log is pending, nobody else can write either.
        log = path.with_name(path.name + "-wal")
        unwritable = _primary(error) in (
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
        )
        if not unwritable or log.exists() and log.stat().st_size:
            raise
        connection = _connect(f"{uri}?mode=ro&immutable=1", timeout)
    return connection


def _connect(uri: str, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(uri, timeout=timeout, isolation_level=None, uri=True)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema of the file, 0 for a new one; `DatabaseError` when it is not ours to read."""
    # in one snapshot: another process may be making the file right now
    with contextlib.nullcontext() if connection.in_transaction else snapshot(connection):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, objects) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID or version < 1:
        raise DatabaseError(f"{path}: a SQLite file of another program")
    if version > SCHEMA:
        raise DatabaseError(
            f"{path}: has schema {version}, this flextensor knows {SCHEMA}; use a newer flextensor"
        )
    code = "SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')"
    if found := connection.execute(code).fetchone():
        raise DatabaseError(f"{path}: holds the trigger or view {found[0]!r}, not made by us")
    return int(version)


def _wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch to write-ahead logging; SQLite does not wait for its lock here, so we do."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection, path) == SCHEMA:
        return
    with transaction(connection):
        # Asked again: another process may have done it while this one waited for the lock.
        for statements in MIGRATIONS[_version(connection, path) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. Takes the write lock at once, so that it never fails half-way for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Every query inside sees the database as it is at the first of them."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def shrink(connection: sqlite3.Connection, timeout: float) -> None:
    """Give free pages back to the disk, unless others are using the file or the disk is full."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
