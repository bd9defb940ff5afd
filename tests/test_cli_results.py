"""The command line around the tuner: what it prints, keeps quiet about, and exits with."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flextensor import cli, operators, report, tuner, tuner_all
from flextensor.database import Database
from flextensor.errors import DeviceError
from flextensor.operators import Gemm, Workload
from flextensor.result import Result
from flextensor.shares import AllInterrupted
from flextensor.targets import Status, Trial, lookup
from flextensor.tuner import Interrupted, Progress

VALUES: dict[str, Any] = {
    "workload": "gemm(m=8, n=8, k=8)", "operator": "gemm", "params": {"m": 8}, "target": "llvm",
    "device": "a [fast] machine", "formulation": "direct", "config": {"tile": [4, 8]},
    "best_seconds": 2e-3, "spread": 0.01, "gflops": 12.5, "peak_fraction": 0.5,
    "bound": "compute", "trials": 7, "failures": {"timeout": 2}, "tuning_seconds": 3.0,
    "reused": False, "verified": True, "max_rel_error": 1e-6, "peers": {"torch": 4e-3},
    "speedup": 2.0,
}  # fmt: skip

PROGRESS = Progress(30, 60, 10.0, 90.0, 2e-3, 12.5, 0.5, {"timeout": 2}, "search")


def result(**changes: Any) -> Result:
    values: Any = {**VALUES, **changes}
    return Result(values, None, None)  # type: ignore[arg-type]


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Run a command in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flextensor", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.run()
        code = stop.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def fake(monkeypatch: pytest.MonkeyPatch, tune: Callable[..., Any]) -> None:
    monkeypatch.setattr(tuner, "tune", tune)


def test_options_reach_the_tuner(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def tune(what: Any, **options: Any) -> Result:
        seen.update(options, what=what.key())
        return result()

    fake(monkeypatch, tune)
    code, out, _ = call(
        "tune", "--einsum", "ij,jk->ik", "i=2", "j=3", "k=4", "--trials", "5", "--time", "2.5",
        "--explorer", "random", "--cost-model", "none", "--seed", "3", "--fresh", "--threads", "1",
        "--no-peers", "--tolerance", "1e-3",
    )  # fmt: skip
    assert code == 0
    wanted = {
        "trials": 5, "time": 2.5, "explorer": "random", "cost_model": "none", "seed": 3,
        "fresh": True, "peers": False, "tolerance": 1e-3, "target": lookup("llvm", threads=1),
    }  # fmt: skip
    assert {k: seen[k] for k in wanted} == wanted
    assert "i=2,j=3,k=4" in seen["what"]
    for text in ("2 ms", "12.5 GFLOP/s", "50.0%", "2.00x", "1.0e-06", "7, 2 timeout", "[fast]"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_speed_up_says_how_far_the_time_of_pytorch_scattered() -> None:
    peers = {"torch compiled": 5e-3, "torch": 4e-3}
    spreads = {"torch compiled": 0.01, "torch": 0.3}
    values = {**VALUES, "peers": peers, "peer_spreads": spreads}
    assert ("speed-up over PyTorch", "2.00x (4 ms, spread 30.0%)") in report.rows(values)
    assert ("speed-up over PyTorch", "2.00x (4 ms)") in report.rows(VALUES)  # kept by older code
    alone = {**VALUES, "peers": {}, "peer_spreads": {}, "speedup": None, "missing": {"t": "none"}}
    assert ("speed-up over PyTorch", "not measured: none") in report.rows(alone)


def test_json_stays_pure_when_a_users_operator_prints(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("print('loaded')\n" + OPERATOR)
    fake(monkeypatch, lambda what, **_: print("tuning") or result(max_rel_error=math.inf))
    code, out, err = call("tune", f"{tmp_path / 'mine.py'}:double", "--json")
    assert code == 0
    assert json.loads(out, parse_constant=pytest.fail) == {**VALUES, "max_rel_error": None}
    assert out.count("\n") == 1
    assert "loaded" in err and "tuning" in err


OPERATOR = """
def double(n: int = 4):
    from tvm import te
    a = te.placeholder((n,), name="a")
    return [a, te.compute((n,), lambda i: a[i] * 2)]
"""


def test_a_suite_is_a_row_or_an_object_per_case(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, lambda what, **_: result(workload=what.key(), reused=True))
    code, out, _ = call("tune", "gemv", "--suite", "paper")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.startswith("case") and len(rows) == 6
    assert rows[0].startswith("paper/GMV1") and rows[0].endswith(" r")
    assert max(map(len, out.splitlines())) <= 80
    _, out, _ = call("tune", "gemv", "--suite", "paper", "--json")
    assert len({json.loads(line)["workload"] for line in out.splitlines()}) == 6


def test_a_prepacked_suite_leaves_out_what_has_no_weights(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, lambda what, **_: result(workload=what.key()))
    every = [c for c in operators.cases("smoke")]
    bare = [c.full_name for c in every if not c.operator.weights]
    assert 0 < len(bare) < len(every)
    code, out, err = call("tune", "--suite", "smoke", "--prepacked", "--json")
    assert code == 0 and len(out.splitlines()) == len(every) - len(bare)
    assert err == f"left out, without weights to pack ahead: {', '.join(bare)}\n"
    family = next(c.family for c in every if not c.operator.weights)
    code, out, err = call("tune", family, "--suite", "smoke", "--prepacked")
    assert code == 2 and not out and err.startswith("error: --prepacked: no case has weights")


def test_a_suite_goes_on_after_a_case_that_fails(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(what: Any, **_: Any) -> Result:
        if what.m == 256:
            raise DeviceError("no candidate worked")
        return result()

    fake(monkeypatch, tune)
    code, out, err = call("tune", "gemv", "--suite", "paper", "--json")
    assert code == 2
    assert len(out.splitlines()) == 5
    assert err == "error: paper/GMV2: no candidate worked\n"


def test_a_suite_goes_on_after_a_case_that_this_machine_has_no_memory_for(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(what: Any, **_: Any) -> Result:
        Workload(Gemm(m=2**31 - 1, n=2**31 - 1) if what.m == 256 else what)
        return result()

    fake(monkeypatch, tune)
    code, out, err = call("tune", "gemv", "--suite", "paper", "--json")
    assert code == 2 and len(out.splitlines()) == 5
    assert err.startswith("error: paper/GMV2: gemm: tensor ") and err.count("\n") == 1


def test_a_total_is_shared_by_the_cases_of_a_suite(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def tune_all(work: Any, *, done: Any, progress: Any, **options: Any) -> None:
        seen.update(options)
        print("an operator prints")
        progress(1, PROGRESS)
        for place in (2, 0, 1):
            case = result(workload=work[place].key())
            done(place, DeviceError("no candidate worked") if place == 1 else case)

    monkeypatch.setattr(tuner_all, "tune_all", tune_all)
    code, out, err = call("tune", "gemv", "--suite", "paper", "--total", "90", "--trials", "7")
    assert code == 2
    assert (seen["total"], seen["trials"], seen["peers"]) == (90.0, 7, True)
    assert [row.split()[0] for row in out.splitlines()] == ["case", "paper/GMV3", "paper/GMV1"]
    assert err == "an operator prints\nerror: paper/GMV2: no candidate worked\n"


def test_ctrl_c_prints_the_best_so_far_of_every_case(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune_all(work: Any, *, done: Any, **_: Any) -> None:
        done(0, result())
        raise AllInterrupted([result(), result(verified=False), None, DeviceError("x")])

    monkeypatch.setattr(tuner_all, "tune_all", tune_all)
    code, out, err = call("tune", "--suite", "paper", "--total", "9", "--json")
    assert (code, err) == (130, "")
    assert [json.loads(line)["verified"] for line in out.splitlines()] == [True, False]


@pytest.mark.parametrize("best", [result(verified=False, speedup=None, peers={}), None])
def test_ctrl_c_prints_the_best_so_far(
    best: Result | None, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(what: Any, **_: Any) -> Result:
        raise Interrupted(best)

    fake(monkeypatch, tune)
    code, out, err = call("tune", "gemm", "--json")
    assert (code, err) == (130, "")
    assert [json.loads(line)["verified"] for line in out.splitlines()] == [False] * bool(best)


def test_ctrl_c_elsewhere_has_no_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(what: Any, **_: Any) -> Result:
        raise KeyboardInterrupt

    fake(monkeypatch, tune)
    code, out, err = call("tune", "gemm")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tune", "gemm", "--nope"], "--nope"),
        (["tune", "gemm", "--trials", "many"], "--trials"),
        (["tune", "gemm", "--trials", "0"], "greater than 0"),
        (["tune", "gemm", "--time", "nan"], "greater than 0"),
        (["tune", "gemm", "--total", "9"], "needs a --suite"),
        (["tune", "--suite", "smoke", "--total", "0"], "greater than 0"),
        (["tune", "--suite", "smoke", "--total", "9", "--time", "9"], "exclude"),
        (["tune", "gemm", "--time", "inf"], "greater than 0"),
        (["tune", "gemm", "--tolerance", "0"], "greater than 0"),
        (["tune", "gemm", "--seed", "-1"], "at least 0"),
        (["tune", "gemm", "m=4", "m=5"], "given twice"),
        (["tune", "mine.py"], "mine.py:my_op"),
        (["tune", "--einsum", "i,i->i", "i=4", "--case", "paper/C8"], "exclude"),
        (["tune", "--case", "paper/C8", "--suite", "paper"], "exclude"),
        (["tune", "einsum", "--suite", "smoke"], "unknown family"),
        (["bench", "--suite", "smoke", "--trials", "0"], "greater than 0"),
        (["bench", "--suite", "smok"], "did you mean smoke"),
        (["bench"], "--suite"),
        (["ops", "gemmm"], "did you mean gemm"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_options_are_one_line_and_make_no_database(
    args: list[str], says: str, call: Call, tmp_path: Path
) -> None:
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ") and says in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ("db", "ls"),
        ("db", "stats"),
        ("db", "prune"),
        ("show", "gemm"),
        ("export", "gemm", "--out", "design"),
    ],
)
def test_a_database_that_is_named_and_missing_is_not_made(
    command: tuple[str, ...], call: Call, tmp_path: Path
) -> None:
    code, out, err = call(*command, "--db", tmp_path / "typo.db")
    assert (code, out) == (2, "")
    assert "no such database" in err
    assert not (tmp_path / "typo.db").exists()


def test_the_best_of_another_device_or_way_to_measure_is_named_as_that(
    call: Call, tmp_path: Path
) -> None:
    db, key = tmp_path / "t.db", "gemm(m=8, n=8, k=8)"
    here, model = lookup("llvm"), lookup("fpga:vu9p")
    with Database(db) as database:
        for device in (here, model.measured_by("rtl")):
            trial = Trial("direct", {}, Status.OK, (1.0,))
            database.add(key, "gemm", {"m": 8}, device.fingerprint, trial)
        database.add_result(key, model.measured_by("rtl").fingerprint, VALUES)
    assert "has trials and no result" in call("db", "best", key, "--db", db)[2]
    code, _, err = call("db", "best", key, "--db", db, "--target", "fpga:vu9p")
    assert code == 2 and f"was not tuned on {model.device}, but on" in err
    code, out, _ = call(
        "db", "best", key, "--db", db, "--target", "fpga:vu9p", "--measure", "rtl", "--json"
    )  # fmt: skip
    assert code == 0 and json.loads(out)["best_seconds"] == VALUES["best_seconds"]


def test_one_operator_with_its_fields_and_cases(call: Call) -> None:
    code, out, _ = call("ops", "conv2d")
    assert code == 0
    assert "in_channels" in out and "default" in out and "paper/C8" in out


def test_the_live_line() -> None:
    p = PROGRESS
    assert report.line(p) == (
        "search, 30/60 trials, best 2 ms, 12.5 GFLOP/s (50%), 10 s left, 2 timeout"
    )
    assert report.eta(dataclasses.replace(p, budget_trials=None)) == 80
    assert report.eta(dataclasses.replace(p, budget_trials=None, budget_seconds=None)) is None
    assert report.eta(dataclasses.replace(p, trials=0, budget_seconds=None)) is None
    assert report.eta(dataclasses.replace(p, known=20, budget_seconds=None)) == 30  # 10 in 10 s
    assert "best" not in report.line(dataclasses.replace(p, best_seconds=math.inf))
