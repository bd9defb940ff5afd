"""Bundles: made here, run by a stand-in for CuPy, imported, and made again without repetition."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import Database, bundle, bundle_runner
from flextensor.cost_models import gpu
from flextensor.errors import DeviceError
from flextensor.hosts import cuda_host
from flextensor.operators import Gemm, Workload, parse
from flextensor.operators.workload import numpy_dtype
from flextensor.targets import Status, Trial, lookup
from flextensor.targets.cuda import CUDA
from flextensor.tuner import tune

GEMM = Workload(Gemm(m=33, n=40, k=24))
SHIFT = Workload(parse("shift_conv2d", {"channels": "9", "height": "5", "width": "6"}))
STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(scope="module")
def target() -> CUDA:
    found = lookup("cuda:sm_80")
    assert isinstance(found, CUDA)
    return found


@pytest.fixture(scope="module")
def modelled(target: CUDA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with modelled trials of two workloads."""
    path = tmp_path_factory.mktemp("bundle") / "trials.db"
    for workload in (GEMM, SHIFT):
        tune(workload, target=target, measure="model", trials=24, db=path)
    return path


@pytest.fixture
def database(modelled: Path, tmp_path: Path) -> Any:
    with Database(tmp_path / "trials.db") as copy:
        copy.merge(modelled)
        yield copy


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script as on a machine with a card and CuPy."""
    root = Path(bundle.__file__).parents[1]
    paths = os.pathsep.join([str(STAND_IN), str(root)])
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, str(folder / "run.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def test_what_is_measured_elsewhere_comes_back_as_trials(
    target: CUDA, database: Database, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    assert bundle.make([GEMM, SHIFT], target, database, top=4, out=out) == [4, 4]
    manifest = json.loads((out / "manifest.json").read_text())
    carried = manifest["workloads"][0]["candidates"]
    sources = [out / c["file"].replace(".cubin", ".cu") for c in carried]
    before, kernel, inside = re.split(r"(\bmain_kernel\(.*\) \{\n)", sources[1].read_text())
    sources[1].write_text(f"{before}{kernel}  *(volatile int*)8 = 1;\n{inside}")
    sources[2].write_text(sources[2].read_text().replace("0x0p+0f", "0x1p+0f"))  # sums from 1
    sources[3].write_text("no CUDA")
    done = run(out)
    assert done.returncode == 0, done.stderr
    added = database.import_(out / "trials.jsonl")
    assert added == (8, 0)
    fingerprint = f"cuda/sm_80/Stand-in/4/tvm-{manifest['tvm']}/cold"
    trials = database.trials(GEMM.key, fingerprint)
    assert [t.status for t in trials] == ["ok", "run_error", "wrong_result", "run_error"], trials
    assert trials[0].times == (1e-3,) * 20
    assert trials[0].error is not None and trials[0].error < 1e-5
    assert "died" in trials[1].message
    assert "emulation" in trials[3].message
    assert all(t.ok for t in database.trials(SHIFT.key, fingerprint))
    assert database.trials(GEMM.key, target.fingerprint) == []  # another card's, not this one's
    again = run(out)
    assert again.returncode == 0
    assert database.import_(out / "trials.jsonl") == (0, 8)
    _the_next_bundle_repeats_nothing(target, database, tmp_path, carried)


def _the_next_bundle_repeats_nothing(
    target: CUDA, database: Database, tmp_path: Path, before: list[Any]
) -> None:
    bundle.make([GEMM], target, database, top=4, out=tmp_path / "next")
    manifest = json.loads((tmp_path / "next" / "manifest.json").read_text())
    (work,) = manifest["workloads"]
    old = [c["config"] for c in before]
    assert len(work["candidates"]) == 4
    assert not [c for c in work["candidates"] if c["config"] in old]


def test_a_machine_that_cannot_run_it_says_so_in_one_line(
    target: CUDA, database: Database, tmp_path: Path
) -> None:
    bundle.make([GEMM], target, database, top=1, out=tmp_path / "b")
    other = run(tmp_path / "b", STAND_IN_CAPABILITY="9.0")
    assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
    assert "the bundle is for sm_80, this card is sm_90" in other.stderr
    without = run(tmp_path / "b", PYTHONPATH="")
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1)
    assert "CuPy finds no CUDA card" in without.stderr
    manifest = tmp_path / "b" / "manifest.json"
    right = manifest.read_text()
    manifest.write_text(right.replace('"digests": [', '"digests": ["another", '))
    drawn = run(tmp_path / "b")
    assert (drawn.returncode, len(drawn.stderr.splitlines())) == (2, 1)
    assert "draws other inputs than the bundle's" in drawn.stderr
    assert not (tmp_path / "b" / "done.txt").is_file()  # no kernel was held to account for that
    manifest.write_text(right)
    reference = tmp_path / "b" / "w0_reference.npz"
    whole = reference.read_bytes()
    reference.write_bytes(b"no archive")
    damaged = run(tmp_path / "b")
    assert (damaged.returncode, len(damaged.stderr.splitlines())) == (2, 1)
    assert f"{GEMM.key} cannot be loaded: " in damaged.stderr
    assert not (tmp_path / "b" / "done.txt").is_file()
    reference.write_bytes(whole)
    assert run(tmp_path / "b").returncode == 0


def test_bfloat16_travels_as_its_bits(target: CUDA, tmp_path: Path) -> None:
    half, out = Workload(Gemm(m=33, n=40, k=24, dtype="bfloat16")), tmp_path / "b"
    with Database(tmp_path / "t.db") as database:
        tune(half, target=target, measure="model", trials=3, db=database)
        assert bundle.make([half], target, database, top=1, out=out) == [1]
        done = run(out)
        assert done.returncode == 0, done.stderr
        (line,) = (out / "trials.jsonl").read_text().splitlines()[1:]
    trial = json.loads(line)
    assert trial["status"] == "ok" and trial["error"] < 2**-7, trial["message"]


def test_bits_of_bfloat16_are_those_of_a_library() -> None:
    values = np.random.default_rng(0).standard_normal(4096).astype("float32")
    values[:4] = [0.0, -0.0, 1.00390625, 1.01171875]  # between two: to the even one
    for script in (bundle_runner, cuda_host):
        bits = script.stored(values, "bfloat16")
        wanted = values.astype(numpy_dtype("bfloat16"))
        np.testing.assert_array_equal(bits, wanted.view("uint16"))
        np.testing.assert_array_equal(script.numbers(bits, "bfloat16"), wanted.astype("float32"))
        assert np.isnan(
            script.numbers(script.stored(np.full(2, np.nan), "bfloat16"), "bfloat16")
        ).all()


def test_a_workload_that_was_never_modelled_has_nothing_to_carry(
    target: CUDA, tmp_path: Path
) -> None:
    with Database(tmp_path / "empty.db") as empty:
        with pytest.raises(DeviceError, match="no candidate for sm_80 is left to measure"):
            bundle.make([GEMM], target, empty, top=1, out=tmp_path / "b")


def test_a_formulation_of_another_version_is_not_carried(
    target: CUDA, database: Database, tmp_path: Path
) -> None:
    gone = Trial("gone", {"tile": 1}, Status.OK, (1e-9,))
    there = target.measured_by("model").fingerprint
    database.add(GEMM.key, "gemm", GEMM.params, there, gone)
    assert bundle.make([GEMM], target, database, top=1, out=tmp_path / "b") == [1]


def test_one_workload_without_candidates_leaves_the_others_and_none_the_old_bundle(
    target: CUDA, database: Database, tmp_path: Path, capsys: Any
) -> None:
    out, unknown = tmp_path / "b", Workload(Gemm(m=24, n=40, k=8))
    assert bundle.make([unknown, GEMM], target, database, top=1, out=out) == [0, 1]
    assert "no candidate" not in (out / "manifest.json").read_text()
    assert unknown.key in capsys.readouterr().err
    before = sorted(p.name for p in out.iterdir())
    with pytest.raises(DeviceError, match="no candidate for sm_80 is left to measure"):
        bundle.make([unknown], target, database, top=1, out=out)
    assert sorted(p.name for p in out.iterdir()) == before
    assert run(out).returncode == 0


def test_a_candidate_that_tvm_fails_at_costs_itself_only(
    target: CUDA, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    judge, left = gpu.judge, [2]

    def failing(*given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ValueError("no such\naxis")
        return judge(*given)

    monkeypatch.setattr(gpu, "judge", failing)
    assert bundle.make([GEMM], target, database, top=2, out=tmp_path / "b") == [2]
    said = f"{GEMM.key}: 2 candidates; 2 failed, first ValueError: no such"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    left[0] = 1000
    with pytest.raises(DeviceError, match="no candidate .* to measure; 4 failed, first ValueErr"):
        bundle.make([GEMM], target, database, top=2, out=tmp_path / "b")

    def absent(*_: Any) -> Any:
        raise DeviceError("no compiler")

    monkeypatch.setattr(gpu, "judge", absent)  # which all would say
    with pytest.raises(DeviceError, match="^no compiler$"):
        bundle.make([GEMM], target, database, top=2, out=tmp_path / "b")


def test_trials_of_the_model_and_of_cards_are_kept_apart(target: CUDA, database: Database) -> None:
    kept = database.trials(GEMM.key, target.measured_by("model").fingerprint)
    assert kept and all(t.status in (Status.OK, Status.ILLEGAL) for t in kept)
    assert database.trials(GEMM.key, target.fingerprint) == []
