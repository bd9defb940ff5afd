"""Files under the database: strangers' and broken ones, old schemas, exports and imports."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database_trials import ASSETS, HERE, add, failure, ok, refused

from flextensor import database_schema
from flextensor.database import Database
from flextensor.errors import DatabaseError
from flextensor.targets.base import Status, Trial

# --- files that are not ours, or not well


def foreign(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_places_where_no_database_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    os.mkfifo(tmp_path / "fifo")
    assert "directory" in refused(tmp_path)
    assert "folder" in refused(file / "trials.db")
    assert "regular" in refused(tmp_path / "fifo")
    assert "file name" in refused("a\0b")
    assert "no such" in refused(tmp_path / "missing.db", readonly=True)
    assert not (tmp_path / "missing.db").exists()


def test_missing_folders_are_made_and_odd_names_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "?mode=ro#%41" / "träls.db"
    with Database(path) as database:
        add(database, ok())
    assert path.is_file()


def test_files_that_are_not_sqlite(path: Path) -> None:
    for content in (b"not a database" * 100, b"\0" * 5000):
        path.write_bytes(content)
        assert str(path) in refused(path)
        assert path.read_bytes() == content


def test_a_sqlite_file_of_another_program_stays_as_it_is(path: Path) -> None:
    foreign(path, "CREATE TABLE songs (title TEXT)")
    before = path.read_bytes()
    assert "another program" in refused(path)
    foreign(path, "DROP TABLE songs", "PRAGMA application_id = 77")
    assert "another program" in refused(path)
    assert path.read_bytes()[:16] == before[:16] and not path.with_name("trials.db-wal").exists()


def test_a_newer_schema_stays_as_it_is(path: Path) -> None:
    Database(path).close()
    foreign(path, "PRAGMA user_version = 99")
    assert "schema 99" in refused(path) and "schema 99" in refused(path, readonly=True)


def test_code_in_a_strangers_database_is_refused(path: Path) -> None:
    Database(path).close()
    foreign(path, "CREATE TRIGGER evil AFTER INSERT ON trials BEGIN DELETE FROM trials; END")
    assert "'evil'" in refused(path)


def test_a_database_without_its_tables_is_an_error(path: Path) -> None:
    Database(path).close()
    foreign(path, "DROP TABLE trials")
    with Database(path) as database:
        assert "no such table" in refused(database, ok(), action=add)


def test_a_corrupt_file_is_an_error(path: Path) -> None:
    with Database(path) as database:
        for tile in range(200):
            add(database, ok(tile=tile))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with Database(path) as database:
        assert "corrupt" in refused(*HERE, action=database.trials)


@pytest.mark.parametrize(
    "change",
    [
        "config = '[1]'",
        "config = 'os.system()'",
        "config = '{\"tile\": null}'",
        "config = x'80'",
        "config = 7",
        "times = '[1e999]'",
        "times = '[NaN]'",
        "times = '[]'",
        "status = 'fine'",
        "error = 9e999",
        "formulation = x'00'",
        "message = CAST(x'ff' AS TEXT)",
    ],
)
def test_nonsense_in_a_strangers_database_is_an_error(path: Path, change: str) -> None:
    with Database(path) as database:
        add(database, ok())
    foreign(path, f"UPDATE trials SET {change}")
    with Database(path) as database:
        assert str(path) in refused(*HERE, action=database.trials)
        assert str(path) in refused(path.with_name("out"), action=database.export)


def test_a_full_disk_is_an_error_and_loses_nothing(path: Path) -> None:
    with Database(path) as database:
        add(database, ok())
        pages = database._store.query("PRAGMA page_count")[0][0]
        database._store.query(f"PRAGMA max_page_count = {pages}")
        huge = Trial("direct", {}, Status.TIMEOUT, message="x" * 100_000)
        assert "full" in refused(database, huge, action=add)
        assert database.trials(*HERE) == [ok()]
        database._store.query("PRAGMA max_page_count = 1000000")
        add(database, huge)
        assert database.trials(*HERE) == [ok(), huge]


def test_read_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(path) as database:
        add(database, ok())
    with Database(path, readonly=True) as database:
        assert database.best(*HERE) == ok()
        assert "read-only" in refused(database, ok(), action=add)
        assert "read-only" in refused(action=database.prune)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with Database(path) as database:
        assert database.readonly and database.trials(*HERE) == [ok()]
    path.with_name("empty.db").touch()
    assert "empty" in refused(path.with_name("empty.db"))


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Without write permission in `folder`, which root has anywhere: as another user then."""
    nobody = 65534
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(nobody)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_folder_without_write_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, whose parents nobody may enter
        path = Path(folder) / "trials.db"
        with Database(path) as database:
            add(database, ok())
        path.chmod(0o666)
        with as_nobody(path.parent):
            with Database(path) as database:
                assert database.best(*HERE) == ok()
                assert "read-only" in refused(database, ok(), action=add)


# --- old schemas


@pytest.mark.parametrize("asset", sorted(ASSETS.glob("trials_v*.sql")), ids=lambda p: p.stem)
def test_old_databases_are_upgraded(path: Path, asset: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(asset.read_text())
    connection.close()
    where = ("gemm(m=64, n=37, k=128, bias=False)", "llvm-test")
    with Database(path) as database:
        trials = database.trials(*where)
        assert [trial.status for trial in trials] == list(Status)
        assert [trial.config["tile"] for trial in trials] == [1, 2, 4, 8, 16, 32]
        config = {"tile": 1, "order": "mnk", "split": [4, 0], "pack": True, "alpha": 0.5}
        times = (3e-6, 1e-6, 2e-6)
        assert trials[0] == Trial("direct", config, Status.OK, times, "", 1e-7, 0.25, 0.5)
        assert trials[1].message == "why it is illegal: ü"
        result = database.result(*where)
        assert result and result["config"] == {"tile": 1}


def test_every_schema_has_an_asset() -> None:
    found = {asset.stem for asset in ASSETS.glob("trials_v*.sql")}
    assert found == {f"trials_v{n}" for n in range(1, database_schema.SCHEMA + 1)}


def test_migrations_run_once_and_only_the_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(path) as database:
        add(database, ok())
    later = (*database_schema.MIGRATIONS, ("ALTER TABLE trials ADD COLUMN host TEXT",))
    monkeypatch.setattr(database_schema, "MIGRATIONS", later)
    monkeypatch.setattr(database_schema, "SCHEMA", len(later))
    assert "old schema" in refused(path, readonly=True)
    for _ in range(2):
        with Database(path) as database:
            assert database.trials(*HERE) == [ok()]


# --- files to take away


def exported(database: Database, path: Path) -> str:
    out = path.with_name("export.jsonl")
    database.export(out)
    return out.read_text()


def test_export_and_import_are_idempotent(path: Path) -> None:
    with Database(path) as database:
        add(database, ok(), failure(), ok(2e-3))
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 1}})
        text = exported(database, path)
        file = path.with_name("export.jsonl")
        assert database.import_(file) == (0, 4)
    assert json.loads(text.splitlines()[0]) == {"flextensor": "trials", "schema": 1}
    with Database(path.with_name("other.db")) as other:
        assert other.import_(file) == (4, 0)
        assert other.import_(file) == (0, 4)
        assert other.trials(*HERE) == [ok(), failure(), ok(2e-3)]
        assert other.result(*HERE) == {"formulation": "direct", "config": {"tile": 1}}
        with path.with_name("again.jsonl").open("w") as stream:
            assert other.export(stream) == 4
    assert path.with_name("again.jsonl").read_text() == text


def test_merge_is_idempotent(path: Path) -> None:
    other = path.with_name("other.db")
    with Database(other) as database:
        add(database, ok(), failure())
        database.add_result(*HERE, {"config": {}})
    with Database(path) as database:
        add(database, ok(5e-3))
        assert database.merge(other) == (3, 0)
        assert database.merge(other) == (0, 3)
        assert database.merge(path) == (0, 4)
        assert database.trials(*HERE) == [ok(5e-3), ok(), failure()]
        assert "no such" in refused(path.with_name("missing.db"), action=database.merge)


LINE: dict[str, Any] = {
    "record": "trial",
    "id": "0" * 32,
    "workload": HERE[0],
    "target": HERE[1],
    "created": 1.0,
    "version": "0.1.0",
    "operator": "gemm",
    "params": {"m": 64},
    "session": "",
    "seed": None,
    "formulation": "direct",
    "config": {"tile": [1, "a", True, 0.5]},
    "status": "ok",
    "times": [1e-3],
    "message": "",
    "error": None,
    "build_seconds": 0,
    "run_seconds": 0.0,
}
CHANGES: tuple[dict[str, Any], ...] = (
    {"id": "short"},
    {"id": "0" * 32 + "\n"},
    {"record": "program"},
    {"status": "fine"},
    {"status": ["ok"]},
    {"status": "timeout"},
    {"times": []},
    {"times": [0]},
    {"times": [-1.0]},
    {"times": [True]},
    {"times": ["1"]},
    {"times": 1.0},
    {"config": []},
    {"config": {"tile": None}},
    {"config": {"tile": {"code": "x"}}},
    {"config": {"tile": [[None]]}},
    {"params": {"m": {}}},
    {"seed": 1.5},
    {"seed": 2**64},
    {"created": -1},
    {"created": "now"},
    {"created": 10**400},
    {"error": -1.0},
    {"message": None},
    {"message": "\ud800"},
    {"workload": 7},
    {"extra": 1},
)
HEADER = '{"flextensor": "trials", "schema": 1}'


def test_a_line_as_it_should_be(path: Path) -> None:
    file = path.with_name("lines")
    file.write_text(f"{HEADER}\n{json.dumps(LINE)}")
    with Database(path) as database:
        assert database.import_(file) == (1, 0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "trial",
        "[]",
        "{}",
        '{"record": []}',
        json.dumps(LINE)[:-5],
        '{"config":' + "[" * 100_000,
        json.dumps(LINE).replace("0.001", "1e999"),
        json.dumps(LINE).replace("0.001", "NaN"),
        json.dumps(LINE).replace("0.001", "9" * 5000),
        *(json.dumps(LINE | change) for change in CHANGES),
        json.dumps({k: v for k, v in LINE.items() if k != "seed"}),
        json.dumps({k: LINE[k] for k in ("id", "workload", "target", "created", "version")}),
        json.dumps(LINE | {"record": "result", "result": {}}),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_stored(path: Path, line: str) -> None:
    file = path.with_name("lines")
    file.write_text(f"{HEADER}\n{json.dumps(LINE | {'id': 'f' * 32})}\n{line}\n")
    with Database(path) as database:
        assert f"{file}:3: " in refused(file, action=database.import_)
        assert database.stats().trials == 0


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfe\x00", b"{}", b'{"flextensor": "trials", "schema": true}']
)
def test_files_that_are_no_export(path: Path, content: bytes) -> None:
    file = path.with_name("lines")
    file.write_bytes(content)
    with Database(path) as database:
        assert f"{file}:1: " in refused(file, action=database.import_)


def test_an_export_of_a_newer_schema(path: Path) -> None:
    file = path.with_name("lines")
    file.write_text(HEADER.replace("1", "2"))
    with Database(path) as database:
        assert "has schema 2" in refused(file, action=database.import_)


def test_exports_that_cannot_be_written_or_read(path: Path) -> None:
    with Database(path) as database:
        assert "itself" in refused(path, action=database.export)
        assert "cannot write" in refused(path.parent, action=database.export)
        assert "cannot read" in refused(path.parent, action=database.import_)
        assert "cannot read" in refused(path.with_name("missing"), action=database.import_)
        add(database, ok())


def test_an_export_that_fails_leaves_the_older_one(path: Path) -> None:
    out, link = path.with_name("out"), path.with_name("link")
    link.symlink_to(out)
    with Database(path) as database:
        add(database, ok())
        assert database.export(link) == 1
    older, files = out.read_text(), sorted(path.parent.iterdir())
    foreign(path, "UPDATE trials SET config = '[1]'")
    with Database(path) as database:
        assert str(path) in refused(link, action=database.export)
    assert link.is_symlink() and out.read_text() == older
    assert sorted(path.parent.iterdir()) == files
    with Database(path.with_name("new.db")) as database:
        assert database.export("/dev/null") == 0 and database.export(link) == 0
    assert json.loads(out.read_text()) == json.loads(HEADER)


def test_an_import_refuses_what_cannot_be_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with Database(tmp_path / "t.db") as database:
        with pytest.raises(DatabaseError, match="no regular file"):
            database.import_(pipe)
