"""Kernels as files run without TVM: by pyopencl, and by CuPy, of which there is a stand-in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flextensor import export, tune
from flextensor.errors import InputError
from flextensor.operators import Gemm
from flextensor.result import Result

STAND_IN = Path(__file__).parent / "stand_in"
GEMM = Gemm(m=33, n=40, k=24, relu=True)


def tuned(folder: Path, target: str, **options: str) -> Result:
    return tune(
        GEMM,
        target=target,
        trials=1,
        peers=False,
        db=folder / "t.db",
        measure=options.get("measure"),
    )


def run(out: Path, *paths: Path) -> float:
    """The sum of what run.py computes, started from another folder."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, str(out / "run.py")],
        capture_output=True, text=True, timeout=120, env=env, cwd=out.parent,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    found = re.fullmatch(r"gemm\(.*\): [\d.]+ us, sum (\S+)\n", done.stdout)
    assert found, done.stdout
    return float(found[1])


def expected() -> float:
    """The sum for the inputs that a host draws, the output's old contents among them."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype("float32") for shape in ((33, 24), (24, 40)))
    return float(np.maximum(a.astype("float64") @ b, 0).sum())


def test_opencl_c_runs_with_pyopencl_alone(tmp_path: Path) -> None:
    written = export.write(tuned(tmp_path, "opencl"), tmp_path / "out")
    assert [path.name for path in written] == ["kernel.cl", "launch.json", "run.py"]
    assert run(tmp_path / "out") == pytest.approx(expected(), rel=1e-4)


def test_cuda_has_source_machine_code_and_ptx(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = export.write(tuned(tmp_path, "cuda:sm_80", measure="model"), out)
    names = ["kernel.cu", "kernel.cubin", "kernel.ptx", "launch.json", "run.py"]
    assert [path.name for path in written] == names
    assert (out / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"
    ptx, info = (out / "kernel.ptx").read_text(), json.loads((out / "launch.json").read_text())
    assert ".target sm_80" in ptx and "\0" not in ptx
    assert all(f".entry {launch['kernel']}(" in ptx for launch in info["launches"])
    root = Path(__file__).parent.parent
    assert run(out, STAND_IN, root) == pytest.approx(expected(), rel=1e-4)


def test_a_library_of_a_cpu_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a library of this machine.*--target cuda"):
        export.write(tuned(tmp_path, "llvm"), tmp_path / "out")
