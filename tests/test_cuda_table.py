"""The page of kernels for architectures without a card: what it says, and what it complains of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flextensor import cuda_table, operators
from flextensor.model_measure import ModelMeasurer

KERNEL = {
    "name": "main_kernel", "seconds": 9e-6, "bound": "memory", "registers": 40, "occupancy": 0.5,
    "spilled_bytes": 0, "shared_bytes": 4096, "blocks": 8, "threads": 256,
}  # fmt: skip
PACK = {**KERNEL, "name": "pack", "seconds": 1e-6, "bound": "L2", "registers": 64, "occupancy": 1.0}
ROW: dict[str, Any] = {
    "case": "C1", "family": "conv2d", "dtype": "float32", "arch": "sm_80", "device": "A (sm_80)",
    "seconds": 20.0, "flops": 4e9, "best_seconds": 1e-5, "gflops": 4e5, "verified": True,
    "max_rel_error": 2e-7, "kernels": [PACK, KERNEL], "matrix_units": False,
}  # fmt: skip


def page(*rows: dict[str, Any]) -> str:
    versions = {"flextensor": "0", "torch": None}
    return cuda_table.markdown(
        {"command": "x", "date": "today", "versions": versions, "suite": "smoke", "rows": rows}
    )


def test_the_page_has_a_table_for_every_architecture() -> None:
    other = {**ROW, "arch": "sm_90", "device": "H (sm_90)", "matrix_units": True, "flops": 0}
    said = page(ROW, other)
    assert "## A (sm_80)" in said and "## H (sm_90)" in said
    cells = "10 us | 400000 | 2 | 64 | 0 | 50% | 4096 | memory | no | 2e-07 | 20 |"
    assert f"| C1 | conv2d | float32 | {cells}" in said
    assert "| 10 us | - | 2 | 64 | 0 | 50% | 4096 | memory | yes | 2e-07 | 20 |" in said
    assert "2 of 2 are as they should be" in said and "Not as it should be" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernels": [{**KERNEL, "spilled_bytes": 8}]}, "registers spilled"),
        ({"verified": False, "max_rel_error": None}, "not verified"),
        ({"dtype": "float16"}, "no matrix units"),
        ({"seconds": 61.0}, "took more than 60 s"),
        ({"error": "no candidate worked"}, "no candidate worked"),
    ],
)
def test_what_is_not_as_it_should_be_is_said(change: dict[str, Any], said: str) -> None:
    assert cuda_table.complaint(ROW) == ""
    row = {**ROW, **change}
    assert cuda_table.complaint(row) == said
    assert "1 of 2 are as they should be" in page(ROW, row)
    assert f"- C1 {row['dtype']} sm_80: {said}" in page(ROW, row)


def test_a_case_is_tuned_compiled_and_proven(tmp_path: Path) -> None:
    arguments = ["--arch", "sm_90", "--time", "1", "--cases", "GMM1", "--out", str(tmp_path)]
    assert cuda_table.main(arguments) == 0
    found = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert [row["dtype"] for row in found] == ["float32", "float16", "bfloat16"]
    assert [row["matrix_units"] for row in found] == [False, True, True]
    for row in found:
        assert row["arch"] == "sm_90" and row["measured"] == "model"
        assert row["verified"] and 0 < row["max_rel_error"] < 1e-2
        assert all(0 < kernel["registers"] <= 255 for kernel in row["kernels"])
        assert all(kernel["spilled_bytes"] == 0 for kernel in row["kernels"])
        assert sum(k["seconds"] for k in row["kernels"]) == pytest.approx(row["best_seconds"])
    assert "| GMM1 | gemm | float16 |" in (tmp_path / "README.md").read_text()


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found stays, also beside what is not asked for; what failed is tuned again."""
    tuned: list[tuple[str, str]] = []

    def row(case: Any, dtype: str, target: Any, seconds: float) -> dict[str, Any]:
        tuned.append((case.name, dtype))
        if case.name == "GMV3" and tuned.count(tuned[-1]) == 1:
            raise KeyboardInterrupt
        spilled = case.name == "GMV1" and tuned.count(tuned[-1]) == 1
        kernels = [{**KERNEL, "spilled_bytes": 8 if spilled else 0}]
        return {**ROW, "case": case.name, "dtype": dtype, "kernels": kernels}

    monkeypatch.setattr(cuda_table, "_row", row)

    def main(cases: str, *more: str) -> int:
        given = ["--suite", "paper", "--arch", "sm_80", "--cases", cases, "--out", str(tmp_path)]
        return cuda_table.main([*given, *more])

    with pytest.raises(KeyboardInterrupt):
        main("GMV1,GMV2,GMV3")
    assert main("GMV1,GMV2,GMV3") == 0
    assert [name for name, _ in tuned] == ["GMV1", "GMV2", "GMV3", "GMV1", "GMV3"]
    assert main("GMM1", "--dtypes", "bfloat16") == 2  # the row says that no matrix unit was used
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert [r["case"] for r in rows] == ["GMM1", "GMV1", "GMV2", "GMV3"]
    assert [r["command"].partition("--cases ")[2].split()[0] for r in rows] == [
        "GMM1", "GMV1,GMV2,GMV3", "GMV1,GMV2,GMV3", "GMV1,GMV2,GMV3",
    ]  # fmt: skip
    assert main("GMV2", "--time", "5", "--arch", "sm_80,sm_80", "--dtypes", "float32,float32") == 0
    assert tuned[-1] == ("GMV2", "float32") and len(tuned) == 7
    (only,) = json.loads((tmp_path / "data.json").read_text())["rows"]  # of searches as long
    assert (only["case"], only["budget"]) == ("GMV2", 5.0) and only["date"] >= rows[0]["date"]


def test_rows_that_do_not_say_how_they_were_made_have_it_from_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cuda_table, "_row", lambda case, *_: {**ROW, "case": case.name, "family": case.family}
    )
    given = ["--arch", "sm_80", "--dtypes", "float32", "--out", str(tmp_path), "--cases"]
    assert cuda_table.main([*given, "GMV1"]) == 0
    path = tmp_path / "data.json"
    old = json.loads(path.read_text())
    for row in old["rows"]:
        del row["date"], row["command"]
    path.write_text(json.dumps(old | {"date": "then", "command": "first"}))
    assert cuda_table.main([*given, "GMM1"]) == 0
    rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    assert (rows["GMV1"]["date"], rows["GMV1"]["command"]) == ("then", "first")
    assert rows["GMM1"]["command"].endswith("GMM1") and rows["GMM1"]["date"] != "then"


def test_a_case_is_called_by_the_dtype_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    (half,) = operators.cases("paper", names=["GMM1"], dtype="float16")
    monkeypatch.setattr(operators, "cases", lambda suite, dtype=None: [half])
    assert list(cuda_table._cases("paper", ["float32"], None)) == [(half, "float16")]


def test_a_kernel_that_is_wrong_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ModelMeasurer, "verify", lambda self, candidate: 0.5)
    arguments = ["--arch", "sm_80", "--time", "1", "--cases", "GMV1", "--out", str(tmp_path)]
    assert cuda_table.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == f"error: 1 of 1 failed, see {tmp_path / 'README.md'}"
    assert "| GMV1 | gemv | float32 | failed |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm_70"], "sm_70 is gone from CUDA 13"),
        (["--arch", "0"], "name architectures, as sm_80,sm_90"),
        (["--cases", "GMM"], "did you mean GMM1"),
        (["--suite", "papr"], "did you mean paper"),
        (["--dtypes", "float64"], "unknown dtype 'float64'"),
        (["--cases", "GMV1", "--dtypes", "float16"], "no case has that dtype"),
        (["--time", "0"], "time must be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_table.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
