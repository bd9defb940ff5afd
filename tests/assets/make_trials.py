"""Print a small database of the current schema as SQL: one trial of every status and a result."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from flextensor.database import Database
from flextensor.database_schema import APPLICATION_ID, SCHEMA
from flextensor.targets.base import Status, Trial

TARGET = "llvm-test"


def fill(database: Database) -> None:
    """What every asset holds."""
    params = {"m": 64, "n": 37, "k": 128, "bias": False}
    key = "gemm(m=64, n=37, k=128, bias=False)"
    for number, status in enumerate(Status):
        ok = status is Status.OK
        trial = Trial(
            "direct",
            {"tile": 2**number, "order": "mnk", "split": [4, number], "pack": True, "alpha": 0.5},
            status,
            (3e-6, 1e-6, 2e-6) if ok else (),
            "" if ok else f"why it is {status}: ü",
            1e-7 if ok else None,
            0.25,
            0.5,
        )
        database.add(key, "gemm", params, TARGET, trial, session="asset", seed=7)
    database.add_result(key, TARGET, {"formulation": "direct", "config": {"tile": 1}, "x": None})


def main() -> None:
    """Print the SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.db"
        with Database(path) as database:
            fill(database)
        with sqlite3.connect(path) as connection:
            print("\n".join(connection.iterdump()))
        connection.close()
    print(f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA};")


if __name__ == "__main__":
    main()
