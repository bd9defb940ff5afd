"""`bench`: the files it writes, what survives a kill, what a failure costs."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flextensor import bench, operators, targets, tuner
from flextensor.errors import DeviceError, InputError
from flextensor.result import Result
from flextensor.tuner import Interrupted

PNG = b"\x89PNG\r\n"


@dataclasses.dataclass(frozen=True)
class Device:
    """A target with known peaks, so that nothing is measured."""

    device: str = "a machine"
    fingerprint: str = "machine-1"
    threads_per_block: int = 256
    conditions: str = "caches of glass"

    def bound(self, dtype: str) -> str:
        return dtype

    def peak_flops(self, dtype: str) -> float:
        return 2e11

    def bandwidth(self) -> float:
        return 3e10

    def remeasure(self, dtype: str = "float32") -> None:
        pass


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "lookup", lambda spec, threads: Device())


def result(what: Any, speedup: float | None = 2.0) -> Result:
    values: Any = {
        "workload": what.key(), "operator": what.name, "params": {}, "best_seconds": 2e-3,
        "spread": 0.01, "gflops": 12.5, "peak_fraction": 0.5, "bound": "compute", "trials": 7,
        "intensity": 0.5, "formulation": "direct",
        "failures": {}, "tuning_seconds": 3.0, "reused": False, "verified": True,
        "max_rel_error": 1e-6, "speedup": speedup,
    }  # fmt: skip
    return Result(values, None, None)  # type: ignore[arg-type]


def run(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    tune: Callable[[Any], Result],
    family: str = "gemv",
    peers: Sequence[str] | None = None,
    prepacked: bool = False,
) -> tuple[int, dict[str, Any]]:
    """The exit code and the recorded cases, by name."""
    monkeypatch.setattr(tuner, "tune", lambda what, **_: tune(what))
    code = bench.run(
        "paper", family=family, names=None, target="llvm", time=None, trials=1, threads=None,
        out=out, db=out.parent / "t.db", peers=peers, prepacked=prepacked,
        command=["flextensor", "bench", "--out", "a b"],
    )  # fmt: skip
    data = json.loads((out / "data.json").read_text())
    settings = {"prepacked", "dtype", "tolerance"}
    assert set(data) == {"machine", "command", "date", "versions", "cases", *settings}
    assert data["command"] == "flextensor bench --out 'a b'"
    assert data["machine"]["peak_gflops"] == 200
    return code, {c["case"]: c for c in data["cases"]}


def test_data_page_and_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, cases = run(monkeypatch, tmp_path / "out", lambda w: result(w, w.m / 512))
    assert code == 0
    assert list(cases) == [f"paper/GMV{i}" for i in range(1, 7)]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| gemv | 6 | 1.41 | 0.25 | 8.00 | 4 | 2 | 0 |" in page
    assert "| paper/GMV4 | 2 | 1.0% | 12.5 | 50% peak | 2.00 | 1.0e-06 | direct | 7 | 3 |" in page
    assert "needs: `direct` 6 times (error up to 1.0e-06)." in page
    assert "geomean of their geomeans 1.41" in page
    assert (tmp_path / "out" / "speedup.png").read_bytes().startswith(PNG)
    assert (tmp_path / "out" / "roofline.png").read_bytes().startswith(PNG)
    assert "(speedup.png)" in page and "(roofline.png)" in page
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 6
    assert "[6/6] paper/GMV6" in said.err
    assert not list((tmp_path / "out").glob(".*")) + list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceError("no candidate | worked"), "no candidate | worked"),
        (ZeroDivisionError("a fault\nin two lines"), "ZeroDivisionError: a fault in two lines"),
    ],
)
def test_a_case_that_fails_is_recorded_and_the_rest_is_measured(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def tune(what: Any) -> Result:
        if what.m == 256:
            raise error
        return result(what)

    code, cases = run(monkeypatch, tmp_path / "out", tune)
    assert code == 1
    assert cases["paper/GMV2"] == {"case": "paper/GMV2", "operator": "gemv", "failure": reason}
    assert len(cases) == 6
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| gemv | 6 | 2.00 | 2.00 | 2.00 | 5 | 0 | 1 |" in page
    assert f"failed: {reason}".replace("|", "\\|") in page


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tune(what: Any) -> Result:
        if what.m == 512:
            raise Interrupted(None)
        return result(what)

    code, cases = run(monkeypatch, tmp_path / "out", tune)
    assert (code, list(cases)) == (130, ["paper/GMV1", "paper/GMV2"])
    assert "| gemv | 2 |" in (tmp_path / "out" / "README.md").read_text()


def test_data_is_on_disk_after_every_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts: list[int] = []

    def tune(what: Any) -> Result:
        path = tmp_path / "out" / "data.json"
        counts.append(len(json.loads(path.read_text())["cases"]) if path.exists() else 0)
        return result(what)

    run(monkeypatch, tmp_path / "out", tune)
    assert counts == [0, 1, 2, 3, 4, 5]


def test_a_second_run_replaces_its_cases_and_keeps_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, out, result)
    _, cases = run(monkeypatch, out, lambda w: result(w, 3.0), family="gemm")
    assert len(cases) == 13
    assert cases["paper/GMV1"]["speedup"] == 2 and cases["paper/GMM1"]["speedup"] == 3
    _, cases = run(monkeypatch, out, lambda w: result(w, 4.0))
    assert len(cases) == 13 and cases["paper/GMV1"]["speedup"] == 4


def kept(what: Any, session: str = "one", seconds: float = 2e-3) -> Result:
    """What `tune` answers from a database."""
    found = result(what)
    values = {**found.values, "reused": True, "session": session, "best_seconds": seconds}
    return dataclasses.replace(found, values=values)


def test_a_failure_beside_peers_is_the_cases_until_the_next_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dies(*_: Any) -> Any:
        raise DeviceError("no reply")

    out = tmp_path / "out"
    monkeypatch.setattr(bench, "beside", dies)
    code, cases = run(monkeypatch, out, kept, peers=("torch-best",))
    assert code == 1
    assert cases["paper/GMV1"]["failure"] == "no reply" and cases["paper/GMV1"]["speedup"] == 2
    assert "beside" not in cases["paper/GMV1"]
    page = (out / "README.md").read_text()
    assert "| gemv | 6 | - | - | - | 0 | 0 | 6 |" in page and "failed: no reply" in page
    code, cases = run(monkeypatch, out, kept)
    assert code == 0 and not any("failure" in c for c in cases.values())
    assert "| gemv | 6 | 2.00 | 2.00 | 2.00 | 6 | 0 | 0 |" in (out / "README.md").read_text()


def test_what_peers_took_is_kept_with_its_result_and_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found: dict[str, Any] = {"peers": {}, "methods": {}, "searches": {}, "missing": {}}
    monkeypatch.setattr(bench, "beside", lambda *_: copy.deepcopy(found))
    run(monkeypatch, out, kept, peers=("torch-best",))
    _, cases = run(monkeypatch, out, kept)
    assert all(c["beside"] == found for c in cases.values())
    _, cases = run(monkeypatch, out, lambda w: kept(w, "one", 1e-3 if w.m == 128 else 2e-3))
    assert [c["best_seconds"] for c in cases.values() if "beside" not in c] == [1e-3]
    _, cases = run(monkeypatch, out, lambda w: kept(w, "another"))
    assert {c["session"] for c in cases.values()} == {"another"}
    assert not any("beside" in c for c in cases.values())


@pytest.mark.parametrize("damage", ["not json", '{"cases": 1}', "machine", "versions", "tolerance"])
def test_what_another_machine_or_version_measured_is_not_mixed_in(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, out, result)
    path = out / "data.json"
    if damage in ("machine", "versions"):
        data = json.loads(path.read_text())
        data[damage]["fingerprint" if damage == "machine" else "torch"] = "other"
        damage = json.dumps(data)
    elif damage == "tolerance":
        damage = json.dumps(json.loads(path.read_text()) | {"tolerance": 1e-6})
    path.write_text(damage)
    _, cases = run(monkeypatch, out, result, family="gemm")
    assert {c["operator"] for c in cases.values()} == {"gemm"}


def test_without_peers_there_is_a_page_and_no_stale_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, out, result)
    run(monkeypatch, out, lambda w: result(w, None))
    assert not (out / "speedup.png").exists()
    assert "| gemv | 6 | - | - | - | 0 | 0 | 0 |" in (out / "README.md").read_text()


def test_a_folder_that_cannot_be_made_is_known_before_tuning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write there"):
        run(monkeypatch, tmp_path / "out", pytest.fail)


def test_other_peers_get_columns_and_a_summary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        "seconds": 2e-3,
        "peers": {"torch": {"method": "torch", "seconds": 6e-3, "ratio": 3.0},
                  "blas": {"method": "blas", "seconds": 4e-3, "ratio": 2.0},
                  "dlight": {"method": "dlight", "seconds": 4e-3, "ratio": 2.0}},
        "methods": {"torch": 6e-3, "blas": 4e-3, "dlight": 4e-3, "dlight-fallback": 16e-3},
        "missing": {},
        "searches": {"blas": {"trials": 64, "seconds": 90.0}},
    }  # fmt: skip
    monkeypatch.setattr(bench, "beside", lambda *_: copy.deepcopy(found))
    after = {"gemv(m=128, k=128)": {"overtaken": 4.5}, "gemv(m=256, k=256)": {"overtaken": None}}
    monkeypatch.setattr(
        bench, "_race", lambda found, result, _: found["searches"]["blas"].update(
            after.get(result.values["workload"], {})
        )
    )  # fmt: skip
    _, cases = run(monkeypatch, tmp_path / "out", result, peers=("torch", "blas", "dlight"))
    assert cases["paper/GMV1"]["beside"]["peers"] == found["peers"]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Over the fastest method of `blas`" in page
    assert "| gemv | 6 | 2.00 | 2.00 | 2.00 | 6 | 0 | 0 |" in page
    assert "`dlight` 2.00 (geomean 2.00, 6 cases), `dlight-fallback` 8.00 (geomean 8.00," in page
    assert page.count("Medians over each method") == 1
    assert "its search measured 64 candidates in 90 s" in page
    assert "| paper/GMV1 | 64 | 90 | 3 | 4.5 | 5.0% |" in page
    assert "| paper/GMV2 | 64 | 90 | 3 | never | - |" in page
    assert "| paper/GMV3 | 64 | 90 | 3 | - | - |" in page
    assert "| over blas |" in page and "| 2.00 (blas) |" in page


def test_some_cases_in_the_order_and_the_dtype_that_were_asked() -> None:
    names = [c.name for c in operators.cases("paper", names=["C8", "GMM1"])]
    assert names == ["C8", "GMM1"]
    assert bench.folder("paper", "llvm", True) == Path("results/paper-prepacked")
    assert bench.folder("paper", "cuda:0", dtype="float16") == Path("results/cuda/paper-float16")
    assert bench.folder("paper", "llvm", tolerance=1e-5) == Path("results/paper-within-1e-05")
    halves = operators.cases("paper", names=["C8", "GMV1"], dtype="float16")
    assert [c.operator.key().endswith("dtype=float16)") for c in halves] == [True]
    with pytest.raises(InputError, match="no case of paper that was asked for has a dtype"):
        operators.cases("paper", "gemv", dtype="float16")
    with pytest.raises(InputError, match="dtype"):
        operators.cases("paper", "gemm", dtype="float17")
    with pytest.raises(InputError, match="unknown case of suite paper 'C99'"):
        operators.cases("paper", names=["C99"])


def test_an_unknown_peer_is_refused_before_anything_is_tuned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="did you mean torch"):
        run(monkeypatch, tmp_path / "out", result, peers=("torhc",))


def test_prepacked_takes_what_has_weights_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, cases = run(monkeypatch, tmp_path / "out", result, family="gemm", prepacked=True)
    assert code == 0 and len(cases) == 7
    page = (tmp_path / "out" / "README.md").read_text()
    assert "the fastest of PyTorch with weights packed ahead over FlexTensor" in page
    assert "packing of weights left out" in page
    _, again = run(monkeypatch, tmp_path / "out", result, family="gemm")
    assert "everything counted" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="compared with torch-prepacked only"):
        run(monkeypatch, tmp_path / "out", result, "gemm", ("torch", "blas"), prepacked=True)
    with pytest.raises(InputError, match="no case has weights"):
        run(monkeypatch, tmp_path / "out", result, family="gemv", prepacked=True)
