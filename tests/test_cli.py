"""The command line's contract: output, exit codes, one line for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flextensor import bench_page


def run(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flextensor", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


BAD = {
    "operator": (["tune", "gemmm"], "did you mean gemm"),
    "field": (["tune", "gemm", "q=4"], "q"),
    "no field": (["tune", "gemm", "m"], "no field=value"),
    "target": (["tune", "gemm", "--target", "lvm"], "unknown target"),
    "explorer": (["tune", "gemm", "--explorer", "flextensr"], "did you mean flextensor"),
    "cost model": (["tune", "gemm", "--cost-model", "xgbost"], "did you mean xgboost"),
    "case": (["tune", "--case", "paper/C99"], "unknown case"),
    "other family": (["tune", "gemm", "--case", "paper/C8"], "is a conv2d"),
    "suite": (["tune", "--suite", "papr"], "did you mean paper"),
    "zero": (["tune", "gemm", "m=0"], "between 1 and"),
    "negative": (["tune", "gemm", "m=-3"], "between 1 and"),
    "no integer": (["tune", "gemm", "m=2.5"], "integer"),
    "huge": (["tune", "gemm", "m=2000000", "n=2000000"], "this machine has"),
    "groups": (["tune", "conv2d", "in_channels=6", "groups=4"], "groups"),
    "kernel": (["tune", "conv2d", "height=3", "kernel=7"], "kernel"),
    "einsum": (["tune", "--einsum", "ij,jk>ik", "i=2", "j=2", "k=2"], "einsum"),
    "no trials": (["tune", "gemm", "--trials", "0"], "greater than 0"),
    "no time": (["tune", "gemm", "--time", "-1"], "greater than 0"),
    "no file": (["tune", "nowhere.py:f"], "nowhere.py"),
    "nothing": (["tune"], "OPERATOR"),
    "cold": (["compare", "--explorers", "random/warm", "--trials", "4"], "need each other"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(args: list[str], says: str, tmp_path: Path) -> None:
    done = run(*args, "--db", tmp_path / "t.db")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is full (/dev/full)"
)
def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "flextensor", "ops"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == "error: cannot read or write: [Errno 28] No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "flextensor", "ops"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None and started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 1


def test_a_custom_file_that_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(n: int = 4):\n    raise RuntimeError('boom')\n")
    done = run("tune", f"{tmp_path / 'bad.py'}:f", "--db", tmp_path / "t.db")
    assert done.returncode == 2
    assert "boom" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", [b"no database at all, but text " * 40, b"SQLite format 3\0" * 99]
)
def test_a_file_that_is_no_database_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    path.write_bytes(content)
    done = run("db", "stats", "--db", path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert path.read_bytes() == content


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    db = tmp_path / "t.db"
    args = ("tune", "gemm", "m=16", "n=32", "k=8", "--trials", "2", "--db", db)
    first = json.loads(run(*args, "--no-peers", "--json").stdout)
    assert first["verified"] and not first["reused"] and first["peers"] == {}
    assert json.loads(run(*args, "--json").stdout)["reused"]
    assert "reused" in run(*args).stdout
    assert first["workload"] in run("db", "ls", "--db", db).stdout
    out = tmp_path / "trials.jsonl"
    assert run("db", "export", out, "--db", db).returncode == 0
    assert run("db", "import", out, "--db", tmp_path / "u.db").returncode == 0
    assert run("db", "merge", db, "--db", tmp_path / "u.db").returncode == 0
    stats = json.loads(run("db", "stats", "--db", tmp_path / "u.db", "--json").stdout)
    assert stats["trials"] == 2
    shown = run("show", "gemm", "m=16", "n=32", "k=8", "--db", db, "--tir")
    assert "def main" in shown.stdout


def test_lists_name_what_there_is() -> None:
    assert {"gemm", "conv2d"} <= set(json.loads(run("ops", "--json").stdout))
    assert "llvm" in json.loads(run("targets", "--json").stdout)
    assert "flextensor" in json.loads(run("explorers", "--json").stdout)
    assert run("--version").stdout.startswith("flextensor ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['flextensor', '--help']\n"
        "from flextensor.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'tvm', 'torch', 'numpy', 'matplotlib', 'xgboost'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bench_writes_data_table_and_picture(tmp_path: Path) -> None:
    out, db = tmp_path / "out", tmp_path / "t.db"
    done = run("bench", "--suite", "smoke", "--family", "gemm", "--trials", "2", "--out", out,
               "--db", db)  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((out / "data.json").read_text())
    settings = {"prepacked", "dtype", "tolerance"}
    assert {"machine", "command", "date", "versions", "cases", *settings} == set(data)
    assert data["cases"][0]["case"] == "smoke/GMM1"
    assert "| gemm | 1 |" in (out / "README.md").read_text()
    assert (out / "speedup.png").stat().st_size > 1000


def test_the_geomean_is_geometric() -> None:
    assert bench_page.geomean([1, 4]) == pytest.approx(2)
