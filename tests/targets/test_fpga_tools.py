"""Small designs through Verilator and yosys: right, as fast and as large as the formulas say."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
from pathlib import Path

import pytest

from flextensor import synthesis
from flextensor.engines import Engines, integers
from flextensor.errors import DeviceError
from flextensor.measure import Limits
from flextensor.rtl_check import WORKLOADS, Drawn, draw, row, simulate
from flextensor.rtl_measure import RtlMeasurer
from flextensor.targets import FPGA, Status, engine_resources, fpga_rtl, lookup, verilator, yosys

pytestmark = pytest.mark.skipif(
    shutil.which("verilator") is None or shutil.which("yosys") is None,
    reason="this machine has no FPGA, and no tools for one (apt-get install verilator yosys)",
)


def target_of(spec: str) -> FPGA:
    target = lookup(spec)
    assert isinstance(target, FPGA)
    return target


@functools.cache
def smallest(spec: str, kind: str) -> Drawn:
    """Of some random designs of one kind, that with the fewest multipliers."""
    target = target_of(spec)
    order = list(WORKLOADS)
    own = draw(target, 20 * len(order), seed=11)[order.index(kind) :: len(order)]
    sizes = [Engines(d.workload, target).engine(d.candidate).multipliers for d in own]
    return own[sizes.index(min(sizes))]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("fpga:vu9p", "conv2d 3x3"), ("fpga:vu9p", "depthwise"), ("fpga:vu9p,dtype=int16", "grouped"),
     ("fpga:ecp5-85k", "sub-pixel")],
)  # fmt: skip
def test_rtl_computes_the_integer_reference_in_the_cycles_of_the_model(
    spec: str, kind: str
) -> None:
    target, drawn = target_of(spec), smallest(spec, kind)
    trial = simulate(target, drawn, seed=5, builders=1)
    assert trial.status is Status.OK, trial.message
    found = row(target, drawn, trial)
    assert found["predicted"] == pytest.approx(found["cycles"], rel=0.03)
    assert trial.error == 0.0


def test_a_wrong_adder_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, drawn = target_of("fpga:vu9p"), smallest("fpga:vu9p", "gemm")
    broken = tmp_path / "rtl"
    shutil.copytree(fpga_rtl.FOLDER, broken)
    unit = broken / "accumulators.v"
    text = unit.read_text()
    assert "= base + sum" in text
    unit.write_text(text.replace("= base + sum", "= 1 + base + sum", 1))
    monkeypatch.setattr(fpga_rtl, "FOLDER", broken)
    engines = Engines(drawn.workload, target)
    path = tmp_path / "kernel.so"
    verilator.build(engines.engine(drawn.candidate), path, target.latency, target.gap)
    with RtlMeasurer(drawn.workload, target, limits=Limits(300, 60, builders=1)) as measurer:
        trial = measurer._run(drawn.candidate, path, 1.0)
    assert trial.status is Status.WRONG_RESULT
    assert trial.message == "outputs differ from the integer reference"
    assert trial.times == ()


def test_a_simulation_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    target, drawn = target_of("fpga:vu9p"), smallest("fpga:vu9p", "gemm")
    engines = Engines(drawn.workload, target)
    path = tmp_path / "kernel.so"
    verilator.build(engines.engine(drawn.candidate), path, target.latency, target.gap)
    inputs = integers(drawn.workload, "int8", 0)
    a, b = engines.packing(drawn.candidate).images(*engines.operands(drawn.candidate, inputs))
    (tmp_path / "a").write_bytes(a)
    (tmp_path / "b").write_bytes(b)
    files = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    with pytest.raises(DeviceError, match="not done after 10 cycles"):
        verilator.simulate(path, *files, limit=10)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DeviceError, match="read past the end of memory"):
        verilator.simulate(path, *files, limit=100_000)


def test_synthesis_takes_what_the_formulas_say() -> None:
    target, drawn = target_of("fpga:vu9p"), smallest("fpga:vu9p", "gemm")
    engine = Engines(drawn.workload, target).engine(drawn.candidate)
    found, want = synthesis.resources(engine, "vu9p"), engine_resources.resources(engine)
    assert found["dsp"] == want.dsp
    assert found["bram18"] == pytest.approx(want.bram18, rel=0.1, abs=1)
    assert found["lut"] == pytest.approx(want.lut, rel=0.3)
    assert found["ff"] > 100


def test_yosys_says_why_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = smallest("fpga:vu9p", "gemm")
    engine = Engines(drawn.workload, target_of("fpga:vu9p")).engine(drawn.candidate)
    monkeypatch.setattr(fpga_rtl, "verilog", lambda engine: "module engine(; endmodule")
    with pytest.raises(DeviceError, match="yosys: .*syntax error"):
        yosys.synthesise(engine, "vu9p")
    with pytest.raises(DeviceError, match="verilator: .*rror"):
        verilator.build(engine, tmp_path / "kernel.so", 64, 4)


def test_what_is_exported_runs_by_make(tmp_path: Path) -> None:
    import flextensor
    from flextensor import export
    from flextensor.operators import Gemm

    tiny = lookup("fpga:vu9p")
    assert isinstance(tiny, FPGA)
    small = dataclasses.replace(tiny, multipliers=8)
    result = flextensor.tune(Gemm(m=9, n=10, k=11), target=small, trials=50, db=tmp_path / "t.db")
    export.write(result, tmp_path / "design")
    done = subprocess.run(
        ["make", "--no-print-directory", "run"],
        cwd=tmp_path / "design",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cycles = int(done.stdout.split()[-1])
    assert cycles == pytest.approx(result.values["design"]["cycles"], rel=0.03)


def test_the_check_of_the_model_writes_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flextensor import rtl_check

    monkeypatch.setattr(rtl_check, "LARGEST", 8)
    arguments = ["--configs", "2", "--synth", "0", "--seed", "3", "--jobs", "1"]
    assert rtl_check.main([*arguments, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "2 random designs" in page and "(0 failed)" in page
    (tmp_path / "scatter.png").unlink()
    before = (tmp_path / "data.json").read_text()
    assert rtl_check.main(["--again", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "data.json").read_text() == before
    assert (tmp_path / "scatter.png").is_file()
