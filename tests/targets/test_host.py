from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flextensor import targets
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Gemm
from flextensor.operators.workload import Workload
from flextensor.targets import LLVM, host, llvm

SKYLAKE = frozenset({"avx2", "fma", "avx512f", "avx512bw"})
SAPPHIRE = SKYLAKE | {"avx512fp16", "amx-tile"}
KNOWN = {
    "skylake-avx512": SKYLAKE | {"pku", "fast-gather"},
    "sapphirerapids": SAPPHIRE | {"uintr"},
    "haswell": frozenset({"avx2", "fma"}),
}


def test_a_masked_model_gets_the_cpu_of_its_features() -> None:
    assert host.best_cpu(SAPPHIRE, KNOWN, "skylake-avx512") == ("sapphirerapids", ())


def test_never_a_cpu_whose_features_the_host_lacks() -> None:
    have = SAPPHIRE - {"amx-tile"}
    assert host.best_cpu(have, KNOWN, "sapphirerapids") == ("skylake-avx512", ("+avx512fp16",))
    assert host.best_cpu(frozenset({"sse2"}), KNOWN, "haswell") == ("", ())


def test_llvms_own_answer_wins_ties() -> None:
    known = KNOWN | {"cascadelake": SKYLAKE}
    assert host.best_cpu(SKYLAKE, known, "cascadelake")[0] == "cascadelake"
    assert host.best_cpu(SKYLAKE, known, "skylake-avx512")[0] == "skylake-avx512"


def test_this_hosts_cpu_has_no_more_than_the_host() -> None:
    import tvm
    from tvm.target import codegen

    target = tvm.target.Target({"kind": "llvm", "mcpu": LLVM.from_spec().mcpu})
    assert set(map(str, codegen.llvm_get_cpu_features(target))) & host.EMITTED <= host.features()


def test_tile_registers_that_the_system_refuses_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "flags : avx512f avx512_bf16 amx_tile amx_int8 amx_bf16"
    monkeypatch.setattr(host, "_cpuinfo", lambda: flags)
    for permitted in (True, False):
        monkeypatch.setattr(host, "tiles_permitted", lambda permitted=permitted: permitted)
        found = host.features.__wrapped__()
        assert {"avx512f", "avx512bf16"} <= found
        assert ("amx-int8" in found) == ("amx-tile" in found) == permitted


@pytest.mark.parametrize(
    "isa, expected",
    [({"avx2", "avx512f"}, (512, 32)), ({"avx2"}, (256, 16)), ({"sse2"}, (128, 16))],
)
def test_vectors(isa: set[str], expected: tuple[int, int]) -> None:
    assert host.vectors(isa) == expected


def test_caches_of_a_folder_and_of_none(tmp_path: Path) -> None:
    assert host.caches(tmp_path) == host.DEFAULT_CACHES
    entries = [
        ("Data", 1, "48K"),
        ("Instruction", 1, "64K"),
        ("Unified", 2, "2M"),
        ("Unified", 3, ""),
    ]
    for number, (kind, level, size) in enumerate(entries):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, text in (("type", kind), ("level", str(level)), ("size", size)):
            (index / name).write_text(f"{text}\n")
    assert host.caches(tmp_path) == {**host.DEFAULT_CACHES, 1: 48 << 10, 2: 2 << 20}


def test_lookup_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="unknown target 'lvm'; did you mean llvm?"):
        targets.lookup("lvm")
    with pytest.raises(InputError, match="unknown target 'vulkan'; known: "):
        targets.lookup("vulkan")
    with pytest.raises(InputError, match="unknown target"):
        targets.load({"kind": "tpu"})


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_are_those_of_the_host(threads: int) -> None:
    with pytest.raises(InputError, match="threads must be between 1 and"):
        targets.lookup("llvm", threads)


def test_a_part_of_the_cores() -> None:
    one = targets.lookup("llvm", 1)
    assert (one.cores, one.tvm_target().attrs["num-cores"]) == (1, 1)
    assert one.device.endswith("1 thread")


WORKER = """
import os
from pathlib import Path
from flextensor import targets

cpu = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cpu})
os.environ.update(targets.lookup("llvm").environment(Path.cwd()))
import tvm
tvm.get_global_func("runtime.NumThreads")()  # starts TVM's threads
print(os.sched_getaffinity(0) == {cpu})
"""


def test_workers_keep_to_the_cpus_that_they_may_use() -> None:
    """With a set of CPUs for each, two tuners do not measure on the same ones."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_the_family_is_imported_for_nothing() -> None:
    code = "import sys, flextensor.targets as t; t.available(); print({*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"'tvm'", "'torch'", "'numpy'"} & set(done.stdout.strip("{}\n").split(", "))


def test_no_linker_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    llvm.linker.cache_clear()
    try:
        with pytest.raises(DeviceError, match="no C compiler or linker found"):
            llvm.link(tmp_path / "a.o", tmp_path / "a.so")
    finally:
        llvm.linker.cache_clear()


def test_a_linker_that_fails_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.o").write_text("no object")
    with pytest.raises(DeviceError, match=r"cannot link a\.so: "):
        llvm.link(tmp_path / "a.o", tmp_path / "a.so")


def test_llvm_knows_the_options_that_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    """TVM only warns of one that it ignores."""
    import tvm

    def told(target: object) -> str:
        tvm.compile(Workload(Gemm(m=4, n=4, k=4)).prim_func(), target=target)
        return capfd.readouterr().err

    assert "not an LLVM option" not in told(targets.lookup("llvm").tvm_target())
    unknown = {"kind": "llvm", "cl-opt": ["-no-such-option:uint=1"]}
    assert "not an LLVM option" in told(tvm.target.Target(unknown))
