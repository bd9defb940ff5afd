"""tune() end to end on an OpenCL device: verified, kept, shown, called on arrays of the host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import flextensor
from flextensor import experience
from flextensor import result as results
from flextensor.operators import Conv2d, Gemm, Workload
from flextensor.targets import lookup

GEMM = Gemm(m=37, n=53, k=29, bias=True, relu=True)


def test_tune_verifies_keeps_and_gives_a_kernel(tmp_path: Path) -> None:
    db = tmp_path / "trials.db"
    result = flextensor.tune(GEMM, target="opencl", trials=4, db=db)
    values = result.json()
    assert values["target"] == "opencl"
    assert values["verified"] and values["max_rel_error"] < 1e-5
    assert values["failures"] == {}
    assert values["peers"]["torch"] > 0
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(s, dtype="float32") for s in ((37, 29), (29, 53), (53,)))
    want = np.maximum(a @ b + c, 0)
    kernel = flextensor.load(GEMM, target="opencl", db=db).kernel
    np.testing.assert_allclose(kernel(a, b, c), want, atol=1e-4)
    y = kernel(*map(torch.from_numpy, (a, b, c)))
    np.testing.assert_allclose(y.numpy(), want, atol=1e-4)
    shown = results.show(result)
    assert "threadIdx" in shown["tir"]
    assert "__kernel void main_kernel" in shown["source"]


def test_weights_packed_ahead_are_packed_by_a_function_of_their_own(tmp_path: Path) -> None:
    conv = Conv2d(in_channels=8, out_channels=16, height=8, width=8, kernel=3, padding=1)
    kernel = flextensor.tune(
        conv, target="opencl", trials=3, db=tmp_path / "t.db", peers=False, prepacked=True
    ).kernel
    workload = Workload(conv)
    x, w = inputs = workload.inputs(0)
    np.testing.assert_allclose(kernel.prepack(w)(x), workload.reference(inputs), atol=1e-3)


def test_what_cpus_taught_does_not_guide_a_device_with_blocks(tmp_path: Path) -> None:
    with flextensor.Database(tmp_path / "t.db") as database:
        workload = Workload(Gemm(m=64, n=64, k=64))
        assert experience.near(database, workload, lookup("llvm"))
        assert not experience.near(database, workload, lookup("opencl"))


def test_the_command_line_takes_a_device(tmp_path: Path) -> None:
    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flextensor", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    gemm = ("gemm", "m=16", "n=32", "k=8", "--db", tmp_path / "t.db")
    done = run("tune", *gemm, "--target", "opencl:0", "--trials", "2", "--no-peers", "--json")
    assert json.loads(done.stdout)["verified"], done.stderr
    assert "opencl:0" in json.loads(run("targets", "--json").stdout)
    bad = run("tune", *gemm, "--target", "opencl:voodoo")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: no OpenCL device is called 'voodoo'")
    assert len(bad.stderr.splitlines()) == 1
