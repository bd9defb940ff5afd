"""tune() end to end on this CPU: verified, kept, reused, continued, interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flextensor
from flextensor import known, tuner
from flextensor import result as results
from flextensor.errors import InputError
from flextensor.explorers import policies
from flextensor.measure import LocalMeasurer
from flextensor.operators import Conv2d, Gemm, Gemv, Workload
from flextensor.targets import Status, Trial, lookup
from flextensor.targets.process import WorkerDied

KEYS = {
    "workload", "operator", "params", "target", "device", "formulation", "config", "best_seconds",
    "spread", "gflops", "peak_fraction", "bound", "intensity", "trials", "failures",
    "tuning_seconds", "reused", "verified", "max_rel_error", "peers", "peer_spreads", "speedup",
    "prepacked",
    "measured", "stopped", "shares", "twins", "asked", "date", "session",
}  # fmt: skip
GEMM = Gemm(m=37, n=53, k=29)


def test_tune_verifies_keeps_reuses_and_continues(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    first = flextensor.tune(GEMM, trials=6, db=db)
    values = first.json()
    assert set(values) == KEYS
    assert values["verified"]
    assert values["max_rel_error"] < 1e-5
    assert values["trials"] == 6
    assert values["stopped"] == "trials spent"
    assert set(values["shares"]) == {"build", "run", "search"}
    assert sum(values["shares"].values()) == pytest.approx(1)
    assert all(share > 0 for share in values["shares"].values())
    assert values["peers"]["torch"] > 0 and values["peer_spreads"]["torch"] >= 0
    again = flextensor.tune(GEMM, trials=6, db=db).json()
    assert again == {**values, "reused": True}
    more = flextensor.tune(GEMM, trials=10, db=db, peers=False).json()
    assert more["trials"] == 10
    assert more["speedup"] is None
    with flextensor.Database(db) as database:
        assert database.stats().trials == 10

    kernel = flextensor.load(GEMM, db=db).kernel
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((37, 29), (29, 53)))
    np.testing.assert_allclose(kernel(a, b), a @ b, atol=1e-3)
    y = kernel(torch.from_numpy(a), torch.from_numpy(b))
    assert isinstance(y, torch.Tensor)


def test_an_answer_from_the_database_is_measured_beside_peers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "trials.db"
    alone = flextensor.tune(GEMM, trials=3, db=db, peers=False).json()
    assert alone["peers"] == {} and flextensor.tune(GEMM, db=db, peers=False).json()["reused"]
    values = flextensor.tune(GEMM, db=db).json()
    assert values["reused"] and values["peers"]["torch"] > 0
    assert values["speedup"] == values["peers"]["torch"] / values["best_seconds"]
    timing = {
        "best_seconds", "spread", "gflops", "peak_fraction", "bound", "peers", "peer_spreads",
        "speedup",
    }  # fmt: skip
    assert set(values) == KEYS | {"missing"} and values["missing"] == {}
    same = KEYS - timing - {"reused", "date"}
    assert {name: values[name] for name in same} == {name: alone[name] for name in same}

    def dies(*_: Any) -> Any:
        raise WorkerDied("worker died: SIGSEGV")

    with monkeypatch.context() as patched, flextensor.Database(db) as database:
        patched.setattr(LocalMeasurer, "compare", dies)
        assert known.beside(flextensor.load(GEMM, db=db), database) is None
    monkeypatch.setattr(known, "beside", pytest.fail)
    assert flextensor.tune(GEMM, db=db).json() == values
    assert flextensor.tune(GEMM, db=db, peers=False).json() == values


def test_prepacked_weights_are_another_workload_with_peers_of_its_own(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    flextensor.tune(GEMM, trials=3, db=db, peers=False)
    result = flextensor.tune(GEMM, trials=3, db=db, prepacked=True)
    values = result.json()
    assert values["prepacked"] and values["verified"] and not values["reused"]
    assert set(values["peers"]) <= {"torch prepacked", "torch compiled"}
    assert values["speedup"] == min(values["peers"].values()) / values["best_seconds"]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((37, 29), (29, 53)))
    layer = flextensor.load(GEMM, db=db, prepacked=True).kernel.prepack(b)
    np.testing.assert_allclose(layer(a), a @ b, atol=1e-3)
    assert results.as_workload(Workload(GEMM), prepacked=True) == result.workload
    with pytest.raises(InputError, match="gemv has no weights"):
        flextensor.tune(Gemv(m=8, k=8), db=db, prepacked=True)


def test_a_function_tunes_and_its_name_does_not_matter(tmp_path: Path) -> None:
    from tvm import te

    def row_max(rows: int = 7, cols: int = 40) -> list[Any]:
        a = te.placeholder((rows, cols), name="a")
        k = te.reduce_axis((0, cols), name="k")
        return [a, te.compute((rows,), lambda i: te.max(a[i, k], axis=k), name="row_max")]

    def renamed(rows: int = 7, cols: int = 40) -> list[Any]:
        return row_max(rows, cols)

    result = flextensor.tune(row_max, trials=4, db=tmp_path / "trials.db").json()
    assert result["verified"]
    assert flextensor.tune(renamed, trials=4, db=tmp_path / "trials.db").json()["reused"]


def test_known_trials_are_judged_by_the_tolerance_of_this_run() -> None:
    """What was exact enough for another run is no start for a tighter one, and the reverse."""
    near = Trial("direct", {"rows": 1}, Status.OK, (2e-3,), error=4e-7)
    far = Trial("winograd4", {"rows": 2}, Status.OK, (1e-3,), error=1e-5)
    crashed = Trial("direct", {"rows": 3}, Status.RUN_ERROR, message="signal 11")
    poisoned = Trial("direct", {"rows": 4}, Status.WRONG_RESULT, message="NaN")
    refused = Trial("winograd4", {"rows": 5}, Status.WRONG_RESULT, message="far", error=1e-5)
    every = [near, far, crashed, poisoned, refused]
    tight = known.judged(every, 1e-6)
    assert [t.status for t in tight] == [
        Status.OK, Status.WRONG_RESULT, Status.RUN_ERROR, Status.WRONG_RESULT, Status.WRONG_RESULT
    ]  # fmt: skip
    assert tight[1].message == "relative error 1e-05 exceeds the tolerance 1e-06"
    assert known.judged(every, 1e-4) == [near, far, crashed, poisoned]  # measured again


def test_a_tighter_tolerance_tunes_anew_where_the_kept_kernel_is_less_exact(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    layer = Conv2d(in_channels=8, height=12, width=12, out_channels=8, kernel=3, padding=1)
    flextensor.tune(layer, trials=30, db=db, peers=False)
    tight = flextensor.tune(layer, trials=30, db=db, peers=False, tolerance=2e-6).json()
    assert tight["verified"] and tight["max_rel_error"] <= 2e-6


def test_a_search_that_ended_by_itself_answers_for_all_that_it_was_asked_for() -> None:
    known = {"best_seconds": 1.0, "verified": True, "max_rel_error": 1e-6, "measured": "run"}
    ended = {**known, "trials": 12, "asked": 64}
    assert [results.answers(ended, n, 1e-4) for n in (None, 12, 64, 65)] == [1, 1, 1, 0]
    assert not results.answers({**known, "trials": 12}, 64, 1e-4)  # as older versions kept it
    late = {**known, "trials": 12, "asked": 12}
    assert not results.answers(late, 64, 1e-4)


def test_trials_say_which_search_measured_them(tmp_path: Path) -> None:
    db = tmp_path / "t.db"
    found = [
        flextensor.tune(GEMM, trials=n, db=db, peers=False, seed=n).json() for n in (3, 5)
    ]  # fmt: skip
    with flextensor.Database(db) as database:
        records = [r for r in database.everything() if r["record"] == "trial"]
    assert [r["session"] for r in records] == [found[0]["session"]] * 3 + [found[1]["session"]] * 2
    assert [r["seed"] for r in records] == [3, 3, 3, 5, 5]


def test_parameters_that_are_no_json_are_kept_as_text(tmp_path: Path) -> None:
    """Of a user's function: searched, compared with nothing, verified, stored."""

    def scaled(rows: int = 16, low: float = float("-inf"), where: Any = Path("x")) -> list[Any]:
        from tvm import te

        a = te.placeholder((rows, 8), name="a")
        return [a, te.compute((rows, 8), lambda i, j: a[i, j] * 2.0, name="scaled")]

    values = flextensor.tune(scaled, trials=2, db=tmp_path / "t.db").json()
    assert values["verified"] and values["params"] == {"rows": 16, "low": "-inf", "where": "x"}


def test_a_coarse_result_answers_within_what_its_dtype_allows(tmp_path: Path) -> None:
    db, half = tmp_path / "trials.db", Gemm(m=16, n=16, k=64, dtype="bfloat16")
    first = flextensor.tune(half, trials=2, db=db, peers=False).json()
    assert first["max_rel_error"] > 1e-4
    assert flextensor.tune(half, trials=2, db=db, peers=False).json()["reused"]


def test_a_result_in_terms_does_not_answer_a_tolerance_that_leaves_them_out() -> None:
    kernel = {"formulation": "direct_bf16x2", "max_rel_error": 4e-6}
    assert known.offered(kernel, Workload(GEMM), 1e-4)
    assert not known.offered(kernel, Workload(GEMM), 1e-5)
    assert known.offered({"formulation": "direct"}, Workload(GEMM), 1e-9)


def test_ctrl_c_keeps_everything_and_gives_the_best_so_far(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"

    def interrupt(progress: tuner.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(tuner.Interrupted) as stop:
        flextensor.tune(Conv2d(in_channels=4, height=9, width=9, out_channels=5), trials=40, db=db,
                        progress=interrupt)  # fmt: skip
    assert stop.value.result is not None
    with flextensor.Database(db) as database:
        assert database.stats().trials == stop.value.result.json()["trials"] > 0


def test_show_gives_the_program_and_the_code(tmp_path: Path) -> None:
    found = results.show(flextensor.tune(GEMM, trials=2, db=tmp_path / "t.db", peers=False))
    assert "def main" in found["tir"]
    assert "define" in found["source"]


def test_what_was_never_tuned_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never tuned"):
        flextensor.load(GEMM, db=tmp_path / "t.db")


@pytest.mark.parametrize("budget", [{"trials": 0}, {"time": -1.0}, {"tolerance": float("nan")}])
def test_a_budget_is_positive(budget: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="greater than 0"):
        flextensor.tune(GEMM, db=tmp_path / "t.db", **budget)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trials": 10.5}, "trials must be a whole number of at least 1, got 10.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"target": lookup("llvm"), "threads": 1}, "threads go with a target in words"),
        ({"target": "llvm:anything"}, "'llvm:anything': the CPU is this host's"),
    ],
)
def test_nothing_that_is_asked_for_is_ignored_or_found_wrong_late(
    given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    for ask in (flextensor.tune, lambda *a, **k: flextensor.tune_all([*a], total=9.0, **k)):
        with pytest.raises(InputError, match=says):
            ask(GEMM, db=tmp_path / "t.db", **given)
    assert not (tmp_path / "t.db").exists()


def test_a_policy_is_kept_and_followed_by_the_q_method_alone(tmp_path: Path) -> None:
    path = tmp_path / "policies.pt"
    for seed in range(2):
        flextensor.tune(GEMM, trials=16, db=tmp_path / f"{seed}.db", peers=False, seed=seed,
                        explorer="q-method", policy=path)  # fmt: skip
        assert path.is_file()
    with pytest.raises(InputError, match="by the explorer q-method, and not by flextensor"):
        flextensor.tune(GEMM, trials=4, db=tmp_path / "t.db", policy=path)
    absent = tmp_path / "absent" / "policies.pt"
    with pytest.raises(InputError, match="its folder does not exist"):
        flextensor.tune(GEMM, db=tmp_path / "t.db", explorer="q-method", policy=absent)


def test_a_policy_that_cannot_be_kept_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise InputError("policies.pt: cannot write the policies: disk full")

    monkeypatch.setattr(policies, "keep", full)
    with pytest.warns(UserWarning, match="disk full"):
        found = flextensor.tune(
            GEMM, trials=4, db=tmp_path / "t.db", peers=False, explorer="q-method",
            policy=tmp_path / "policies.pt",
        )  # fmt: skip
    assert found.values["verified"]
