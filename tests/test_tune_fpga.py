"""tune() for an FPGA end to end: by the model, by RTL, through the command line; export, show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flextensor
from flextensor import result as results
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Conv2d, DepthwiseConv2d, Gemm, Operator, parse
from flextensor.targets import lookup


def run(*args: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flextensor", *map(str, args)]
    env = {**os.environ, **({"PATH": path} if path is not None else {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


@pytest.mark.parametrize(
    "operator",
    [
        Gemm(),
        Conv2d(),
        Conv2d(stride=2, dilation=2, groups=4, padding=1),
        parse("conv_transpose2d", {"stride": "2"}),
        DepthwiseConv2d(),
    ],
    ids=lambda o: str(o.name),
)
def test_a_design_is_found_kept_and_reused(operator: Operator, tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    values = flextensor.tune(operator, target="fpga:vu9p", trials=150, db=db).json()
    design, target = values["design"], lookup("fpga:vu9p")
    assert values["measured"] == "model"
    assert not values["verified"] and values["failures"] == {}
    assert values["peers"] == {} and values["max_rel_error"] is None
    assert 0 < values["peak_fraction"] <= 1
    assert design["gmacs"] > 1
    assert design["cycles"] == design["predicted_cycles"]
    assert 0 < design["array_use"] <= 1
    assert design["resources"]["dsp"] <= target.multipliers
    again = flextensor.tune(operator, target="fpga:vu9p", db=db).json()
    assert again["reused"] and again["config"] == values["config"]


def test_data_types_and_measures_are_kept_apart(tmp_path: Path) -> None:
    db, gemm = tmp_path / "trials.db", Gemm(m=64, n=64, k=64)
    flextensor.tune(gemm, target="fpga:vu9p", trials=20, db=db)
    with pytest.raises(InputError, match="never tuned"):
        flextensor.load(gemm, target="fpga:vu9p,dtype=int16", db=db)
    with pytest.raises(InputError, match="never tuned"):
        flextensor.load(gemm, target="fpga:vu9p", measure="rtl", db=db)
    result = flextensor.load(gemm, target="fpga:vu9p", db=db)
    with pytest.raises(DeviceError, match="does not run here"):
        _ = result.kernel
    shown = results.show(result)
    assert "__kernel" in shown["source"] and "xcl_pipeline_loop" in shown["source"]
    assert "flextensor.engine" in shown["tir"]


def test_float32_is_modelled_and_has_no_rtl(tmp_path: Path) -> None:
    gemm, spec = Gemm(m=64, n=64, k=64), "fpga:vu9p,dtype=float32"
    values = flextensor.tune(gemm, target=spec, trials=20, db=tmp_path / "t.db").json()
    assert values["design"]["resources"]["dsp"] == 5 * values["design"]["multipliers"]
    with pytest.raises(DeviceError, match="float32 is in the model and HLS only"):
        flextensor.tune(gemm, target=spec, measure="rtl", db=tmp_path / "t.db")


@pytest.mark.skipif(
    shutil.which("verilator") is None,
    reason="this machine has no FPGA and no simulator of one (apt-get install verilator)",
)
def test_rtl_trials_are_checked_and_timed_in_cycles(tmp_path: Path) -> None:
    gemm, spec = Gemm(m=12, n=10, k=9), "fpga:ecp5-85k"
    result = flextensor.tune(gemm, target=spec, measure="rtl", trials=2, db=tmp_path / "t.db")
    values = result.json()
    assert values["measured"] == "rtl" and values["verified"]
    assert values["failures"] == {} and values["max_rel_error"] == 0.0
    design = values["design"]
    assert design["predicted_cycles"] == pytest.approx(design["cycles"], rel=0.05)
    assert values["best_seconds"] == pytest.approx(design["cycles"] / 60e6)


def test_the_command_line_tunes_shows_and_exports(tmp_path: Path) -> None:
    gemm = ("gemm", "m=16", "n=32", "k=8", "--db", tmp_path / "t.db", "--target", "fpga:zu9eg")
    done = run("tune", *gemm, "--trials", "30")
    assert done.returncode == 0, done.stderr
    for said in ("GMAC/s in int8 at 200 MHz, an assumption", "dsp", "bound", "by a model"):
        assert said in done.stdout
    assert json.loads(run("tune", *gemm, "--json").stdout)["reused"]
    assert "__kernel" in run("show", *gemm, "--source").stdout
    out = tmp_path / "design"
    done = run("export", *gemm, "--out", out)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert names >= {"engine.v", "row_loader.v", "testbench.cpp", "Makefile", "engine.cl", "a.bin"}
    report = (out / "report.md").read_text()
    assert "GMAC/s" in report and "Nothing was run on a board" in report
    assert "fpga:zu9eg" in json.loads(run("targets", "--json").stdout)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    gemm = ("gemm", "m=16", "n=32", "k=8", "--db", tmp_path / "t.db")
    for args, said in (
        (("tune", *gemm, "--target", "fpga:vu9p", "--measure", "run"), "unknown measure of fpga"),
        (("tune", *gemm, "--measure", "model"), "unknown measure of llvm 'model'; known: run"),
        (("tune", *gemm, "--synth"), "only a design for an FPGA is synthesised"),
        (("tune", *gemm, "--target", "fpga", "--prepacked"), "always packed ahead"),
        (("export", *gemm, "--target", "fpga", "--out", tmp_path / "x"), "was never tuned"),
        (("tune", *gemm, "bias=true", "--target", "fpga"), "no FPGA engine computes bias_add"),
    ):
        done = run(*args)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_verilator_it_says_what_to_install(tmp_path: Path) -> None:
    gemm = ("gemm", "m=16", "n=32", "k=8", "--db", tmp_path / "t.db", "--target", "fpga")
    done = run("tune", *gemm, "--measure", "rtl", path=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: simulating RTL needs verilator")
    assert "apt-get install" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_suite_goes_on_after_what_no_engine_computes(tmp_path: Path) -> None:
    done = run(
        "tune", "--suite", "smoke", "--target", "fpga", "--trials", "1", "--db", tmp_path / "t.db",
        "--json",
    )  # fmt: skip
    assert done.returncode == 2
    found = [json.loads(line)["operator"] for line in done.stdout.splitlines()]
    assert {"gemm", "conv2d", "depthwise_conv2d", "conv_transpose3d"} <= set(found)
    said = done.stderr.splitlines()
    assert said and all("no FPGA engine computes" in line for line in said)
