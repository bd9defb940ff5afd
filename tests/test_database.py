"""The database: nothing is lost, nothing foreign is touched, every error is one line."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from database_trials import HERE, PARAMS, add, failure, ok, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flextensor.database import Database, default_path
from flextensor.errors import DatabaseError, InputError
from flextensor.targets.base import Status, Trial

# --- what is stored comes back


@pytest.mark.parametrize("status", Status)
def test_trials_come_back_as_they_were(path: Path, status: Status) -> None:
    times = (1e-3, 2.5e-3, 1.1e-3) if status is Status.OK else ()
    trial = Trial("winograd", {"tile": 4, "order": "nk"}, status, times, "ünï\0\ncode", 0.1, 1.5, 2)
    with Database(path) as database:
        add(database, trial, ok())
    with Database(path) as database:
        assert database.trials(*HERE) == [trial, ok()]
        assert database.trials("gemm(m=1)", HERE[1]) == database.trials(HERE[0], "other") == []


values = st.recursive(
    st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(config=st.dictionaries(st.text(), values, max_size=5), message=st.text())
def test_any_config_comes_back(path: Path, config: dict[str, Any], message: str) -> None:
    with Database(path) as database:
        add(database, Trial("direct", config, Status.TIMEOUT, message=message))
        found = database.trials(*HERE)[-1]
    assert json.dumps(found.config, sort_keys=True) == json.dumps(config, sort_keys=True)
    assert found.message == message


def test_an_error_that_is_no_number_is_absent(path: Path) -> None:
    with Database(path) as database:
        for error in (math.inf, math.nan):
            add(database, Trial("direct", {}, Status.WRONG_RESULT, error=error, message="NaN"))
        assert [t.error for t in database.trials(*HERE)] == [None, None]
        database.export(path.with_name("out"))
    assert "Infinity" not in path.with_name("out").read_text()


@pytest.mark.parametrize(
    "trial",
    [
        Trial("direct", {}, Status.OK),
        Trial("direct", {}, Status.OK, (math.inf,)),
        Trial("direct", {}, Status.OK, (0.0,)),
        Trial("direct", {}, Status.TIMEOUT, (1.0,)),
        Trial("direct", {"tile": None}, Status.TIMEOUT),
        Trial("direct", {"tile": math.nan}, Status.TIMEOUT),
        Trial("direct", {"tile": {}}, Status.TIMEOUT),
        Trial("direct", {"tile": object()}, Status.TIMEOUT),
        Trial("direct", {"\ud800": 1}, Status.TIMEOUT),
        Trial("direct", {}, Status.TIMEOUT, run_seconds=math.inf),
    ],
)
def test_what_is_no_trial_is_refused(path: Path, trial: Trial) -> None:
    with Database(path) as database:
        assert "cannot store" in refused(database, trial, action=add)
        assert database.trials(*HERE) == []


def test_parameters_of_a_users_operator_may_be_anything(path: Path) -> None:
    odd = {"shape": (1, [2.5, None]), "scale": math.inf, "mode": Path("x")}
    with Database(path) as database:
        database.add("custom-1", "custom", odd, HERE[1], ok(), session="s", seed=-1)
        (row,) = database.workloads()
    assert row.params == {"shape": [1, [2.5, None]], "scale": "inf", "mode": "x"}


# --- best, results, neighbours, numbers


def test_the_fastest_trial_is_the_best(path: Path) -> None:
    with Database(path) as database:
        assert database.best(*HERE) is None
        add(database, failure())
        assert database.best(*HERE) is None
        add(database, ok(2e-3), ok(1e-3, tile=2), ok(1e-3, tile=3), ok(3e-3))
        assert database.best(*HERE) == ok(1e-3, tile=2)


def test_a_schedule_that_was_wrong_once_is_never_the_best(path: Path) -> None:
    with Database(path) as database:
        add(database, ok(1e-3, tile=2), failure(Status.WRONG_RESULT, tile=2), ok(2e-3, tile=4))
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 2}})
        assert database.best(*HERE) == ok(2e-3, tile=4)


@pytest.mark.parametrize("status", [Status.RUN_ERROR, Status.TIMEOUT])
def test_a_schedule_that_failed_when_it_ran_again_is_no_longer_the_best(
    path: Path, status: Status
) -> None:
    with Database(path) as database:
        add(database, ok(1e-3, tile=2), ok(2e-3, tile=4), failure(tile=8), ok(3e-3, tile=8))
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 2}})
        add(database, failure(status, tile=2))
        sound = [failure(status, tile=2), ok(2e-3, tile=4), ok(3e-3, tile=8)]
        for _ in range(2):
            assert database.best(*HERE) == ok(2e-3, tile=4)
            assert database.sound(*HERE) == sound
            database.prune()
        assert database.stats().trials == 4


def test_the_newest_result_goes_before_faster_trials(path: Path) -> None:
    with Database(path) as database:
        assert database.result(*HERE) is None
        add(database, ok(1e-3, tile=1), ok(2e-3, tile=2), ok(3e-3, tile=3))
        for tile in (3, 2):
            result = {"formulation": "direct", "config": {"tile": tile}, "speedup": None}
            database.add_result(*HERE, result)
            assert database.best(*HERE) == ok(tile * 1e-3, tile=tile)
            assert database.result(*HERE) == result
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 99}})
        assert database.best(*HERE) == ok(1e-3, tile=1)
        assert database.result(HERE[0], "other") is None


def test_a_result_is_json(path: Path) -> None:
    with Database(path) as database:
        for bad in (math.nan, object(), {1, 2}):
            assert "cannot store" in refused(*HERE, {"x": bad}, action=database.add_result)
        assert database.result(*HERE) is None


def test_neighbours_are_the_nearest_workloads_that_worked(path: Path) -> None:
    def gemm(m: int, **more: Any) -> dict[str, Any]:
        return {"m": m, "relu": False, "layout": "row", **more}

    with Database(path) as database:
        for params in (gemm(8), gemm(256), gemm(64), gemm(60, relu=True), gemm(65, layout="col")):
            database.add(f"gemm{params}", "gemm", params, HERE[1], ok(tile=params["m"]))
        database.add("failed", "gemm", gemm(63), HERE[1], failure())
        database.add("elsewhere", "gemm", gemm(63), "other", ok())
        database.add("other fields", "gemm", {"m": 64}, HERE[1], ok())
        database.add("other operator", "gemv", gemm(64), HERE[1], ok())
        found = database.neighbours("gemm", gemm(64), HERE[1])
        assert [params["m"] for params, _ in found] == [60, 256, 8]
        assert [trial.config["tile"] for _, trial in found] == [60, 256, 8]
        assert found[:1] == database.neighbours("gemm", gemm(64), HERE[1], limit=1)
        assert database.neighbours("gemm", gemm(64), "nowhere") == []


def test_rows_and_stats_add_up(path: Path) -> None:
    with Database(path) as database:
        assert database.workloads() == []
        assert database.stats().trials == 0
        add(database, ok(2e-3), ok(1e-3), failure(), failure(Status.ILLEGAL))
        add(database, failure(), key="gemm(m=1)")
        database.add_result(*HERE, {})
        first, second = database.workloads()
        stats = database.stats()
    assert (first.key, first.operator, first.params, first.target) == (
        HERE[0],
        "gemm",
        PARAMS,
        HERE[1],
    )
    assert (first.trials, first.failures, first.best_seconds) == (4, 2, 1e-3)
    assert (second.trials, second.failures, second.best_seconds) == (1, 1, None)
    assert (stats.workloads, stats.targets, stats.trials, stats.results) == (2, 1, 5, 1)
    assert stats.status == {"build_error": 2, "illegal": 1, "ok": 2}
    assert stats.file_bytes > 0 and json.dumps(stats.__dict__)


# --- several processes, and dead ones

WRITER = """
import sys
from flextensor.database import Database
from flextensor.targets.base import Status, Trial
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Database(path) as database:
    for number in range(count):
        trial = Trial("direct", {"writer": name, "number": number}, Status.OK, (1e-3,))
        database.add("gemm(m=64, n=64, k=64)", "gemm", {}, "llvm-here", trial)
        print(number, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def numbers(path: Path, name: str) -> list[int]:
    with Database(path) as database:
        configs = [trial.config for trial in database.trials(*HERE)]
    return [config["number"] for config in configs if config["writer"] == name]


def test_writers_at_once_lose_nothing(path: Path) -> None:
    processes = [writer(path, name, 500) for name in "ab"]  # both make the file, too
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert numbers(path, "a") == numbers(path, "b") == list(range(500))


def test_a_killed_writer_loses_nothing_that_it_was_told_is_stored(path: Path) -> None:
    for round in range(3):
        process = writer(path, str(round), 10**6)
        assert process.stdout
        for _ in range(20 + 13 * round):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 20 + 13 * round + len(process.communicate()[0].splitlines())
        kept = numbers(path, str(round))
        assert kept == list(range(len(kept)))
        assert len(kept) in (told, told + 1)


def test_many_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        with Database(path) as database:
            database.stats()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for number in range(60):
            list(pool.map(make, [tmp_path / f"{number}.db"] * 4))


def test_a_lock_that_stays_is_an_error(path: Path) -> None:
    with Database(path, timeout=0.05) as database:
        add(database, ok())
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        assert "locked" in refused(database, ok(), action=add)
        assert database.trials(*HERE) == [ok()]  # readers need not wait
        holder.execute("ROLLBACK")
        holder.close()
        add(database, ok())
        assert len(database.trials(*HERE)) == 2


def test_another_thread_is_an_error(path: Path) -> None:
    import threading

    with Database(path) as database:
        messages: list[str] = []
        thread = threading.Thread(
            target=lambda: messages.append(refused(database, ok(), action=add))
        )
        thread.start()
        thread.join()
        assert "thread" in messages[0]


def test_a_closed_database_is_an_error(path: Path) -> None:
    database = Database(path)
    database.close()
    database.close()
    assert "closed" in refused(database, ok(), action=add)


def test_prune_keeps_the_best_the_result_and_the_warnings(path: Path) -> None:
    wrong = failure(Status.WRONG_RESULT, tile=8)
    with Database(path) as database:
        add(database, failure(), wrong, ok(1e-3, tile=8), ok(9e-3, tile=9))
        add(database, *(ok(2e-3 + tile * 1e-4, tile=100 + tile) for tile in range(10)))
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 9}})
        add(database, ok(1.0), key="gemm(m=1)")
        assert database.prune(keep=3) == (1, 8)
        kept = [wrong, ok(1e-3, 8), ok(9e-3, 9), ok(2e-3, 100), ok(2e-3 + 1e-4, 101)]
        assert database.trials(*HERE) == kept
        assert database.best(*HERE) == ok(9e-3, tile=9)
        assert database.trials("gemm(m=1)", HERE[1]) == [ok(1.0)]
        assert database.prune(keep=3) == (0, 0)
        add(database, ok())
        with pytest.raises(InputError):
            database.prune(keep=0)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert default_path() == tmp_path / ".local/share/flextensor/trials.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_path() == tmp_path / "data/flextensor/trials.db"
    with Database() as database:
        assert database.path == default_path() and database.path.is_file()


def test_damage_is_never_more_than_a_database_error(path: Path) -> None:
    with Database(path) as database:
        add(database, *(ok(1e-3 + tile, tile) for tile in range(40)), failure())
        database.add_result(*HERE, {"formulation": "direct", "config": {"tile": 3}})
    content, rng, damaged = path.read_bytes(), random.Random(0), path.with_name("damaged.db")
    for size in (1, 1, 3, 30, 300) * 30:
        changed = bytearray(content)
        for _ in range(size):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        damaged.write_bytes(changed)
        with contextlib.suppress(DatabaseError), Database(damaged) as database:
            for action in (database.workloads, database.stats, database.prune):
                with contextlib.suppress(DatabaseError):
                    action()
            with contextlib.suppress(DatabaseError):
                database.export(path.with_name("out"))
            add(database, ok())
            assert database.trials(*HERE)[-1] == ok()
