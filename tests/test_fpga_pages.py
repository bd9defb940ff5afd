"""The pages about FPGA designs, from known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flextensor import fpga_table, rtl_check, rtl_page
from flextensor.errors import DeviceError
from flextensor.ranking import spearman


def design(predicted: float, cycles: int | None, kind: str = "gemm") -> dict[str, Any]:
    estimate = {"dsp": 4, "bram18": 11, "lut": 900}
    return {
        "kind": kind, "status": "ok" if cycles else "wrong_result", "predicted": predicted,
        "cycles": cycles, "estimate": estimate,
        "synthesised": {"dsp": 4, "bram18": 10, "lut": 1000} if cycles else None,
    }  # fmt: skip


ROWS = [design(100, 100), design(220, 200), design(303, 300, "depthwise"), design(5, None)]


def test_agreement_of_known_cycles() -> None:
    found = rtl_page.agreement(ROWS)
    assert (found["count"], found["wrong"]) == (3, 1)
    assert found["mean"] == pytest.approx((0 + 0.1 + 0.01) / 3)
    assert found["worst"] == pytest.approx(0.1)
    assert found["spearman"] == pytest.approx(1)
    swapped = [design(2, 10), design(1, 20)]
    assert rtl_page.agreement(swapped)["spearman"] == pytest.approx(-1)
    assert spearman([5, 7, 5], [1, 9, 1]) == pytest.approx(1)  # equal ones share their rank
    assert rtl_page.deviation(ROWS, "bram18") == pytest.approx((0.1, 0.1))


def test_the_page_has_every_kind_and_its_picture(tmp_path: Path) -> None:
    data = {
        "command": "python -m x", "date": "today", "target": "fpga:vu9p", "rows": ROWS,
        "versions": {"verilator": "Verilator 5", "yosys": "Yosys 0.23"},
    }  # fmt: skip
    page = rtl_page.markdown(data)
    assert "3 random designs" in page and "(1 failed)" in page
    assert "| depthwise | 1 | 1.00% | 1.00% | 300 to 300 |" in page
    assert "| bram18 | 10.00% | 10.00% | 10 | 10 |" in page
    unsynthesised = [{**r, "synthesised": None} for r in ROWS]
    assert "synthesised" not in rtl_page.markdown({**data, "rows": unsynthesised})
    rtl_page.plot(data, tmp_path / "scatter.png")
    assert (tmp_path / "scatter.png").stat().st_size > 5_000


def test_the_table_stands_beside_the_paper() -> None:
    def row(name: str, gmacs: float) -> dict[str, Any]:
        found = {
            "gmacs": gmacs, "bound": "read_a", "clock_mhz": 200.0,
            "resources": {"dsp": 4096, "bram18": 700, "lut": 9},
        }  # fmt: skip
        return {"case": name, "dtype": "int8", "tuning_seconds": 9.0, "design": found}

    rows = [row("C1", 100.0), row("C2", 300.0)]
    page = fpga_table.markdown({"part": "vu9p", "command": "x", "date": "today", "rows": rows})
    assert "| C2 | 300 | 4096 | 700 | read_a |" in page
    assert "| this model | int8 | 200 MHz, assumed | 4096 to 4096 | 200 |" in page
    assert "178" in page and "110" in page


def test_tools_that_are_missing_end_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing() -> None:
        raise DeviceError("synthesis needs yosys")

    monkeypatch.setattr("flextensor.targets.verilator.check", lambda: None)
    monkeypatch.setattr("flextensor.targets.yosys.check", missing)
    assert rtl_check.main(["--configs", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: synthesis needs yosys\n"
    assert fpga_table.main(["--part", "vu9", "--out", str(tmp_path)]) == 2
    assert "did you mean vu9p" in capsys.readouterr().err
