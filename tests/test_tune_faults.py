"""A whole `tune` that is killed, and two of them on one database: nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flextensor import Database
from flextensor.answers import config_key
from flextensor.errors import DatabaseError
from flextensor.operators import Gemm, Workload
from flextensor.targets import Trial, lookup

GEMM = Workload(Gemm(m=40, n=56, k=24))
TARGET = lookup("llvm")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a `tune` on a database; none is left running."""
    started: list[subprocess.Popen[str]] = []

    def run(db: Path, *options: str, m: int = 40) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flextensor", "tune", "gemm", f"m={m}", "n=56", "k=24"]
        started.append(
            subprocess.Popen(
                [*command, "--db", str(db), "--no-peers", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def trials(db: Path, workload: Workload = GEMM) -> list[Trial]:
    if not db.exists():
        return []
    try:
        with Database(db) as database:
            return database.trials(workload.key, TARGET.fingerprint)
    except DatabaseError:  # another process is creating it
        return []


def wait_until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def processes() -> Iterator[tuple[int, int]]:
    """(pid, parent's pid) of every process that still runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    yield int(entry.name), int(parent)


def test_a_killed_tune_goes_on_where_it_stood(tmp_path: Path, start: Start) -> None:
    db = tmp_path / "trials.db"
    first = start(db, "--trials", "400")
    wait_until(lambda: len(trials(db)) >= 10)
    workers = {pid for pid, parent in processes() if parent == first.pid}
    assert workers
    first.kill()
    first.communicate()
    wait_until(lambda: not workers & {pid for pid, _ in processes()}, 60.0)
    kept = trials(db)
    assert len(kept) >= 10

    wanted = len(kept) + 6
    second = start(db, "--trials", str(wanted))
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    after = trials(db)
    assert after[: len(kept)] == kept
    assert len(after) == wanted
    assert max(Counter(map(config_key, after)).values()) == 1, "a point was measured twice"


def test_two_tuners_on_one_database_lose_nothing(tmp_path: Path, start: Start) -> None:
    db = tmp_path / "trials.db"
    running = [start(db, "--trials", "12", m=m) for m in (40, 41)]
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    assert len(trials(db)) == 12
    assert len(trials(db, Workload(Gemm(m=41, n=56, k=24)))) == 12
