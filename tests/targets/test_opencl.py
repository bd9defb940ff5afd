"""OpenCL on PoCL: finding a device, what a built file says, and programs of several kernels."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl
import pytest

from flextensor import targets
from flextensor.compiled import Library
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import schedule, space
from flextensor.targets import OpenCL, opencl, opencl_source
from flextensor.targets.launches import Program
from flextensor.targets.process import Worker, WorkerDied
from flextensor.testing_targets import gram


@pytest.fixture(scope="module")
def target() -> OpenCL:
    found = targets.lookup("opencl")
    assert isinstance(found, OpenCL)
    return found


def test_a_device_is_found_by_number_and_by_a_part_of_its_name(target: OpenCL) -> None:
    assert targets.lookup("opencl:0") == target
    assert targets.lookup(f"opencl:{target.name[2:9].upper()}") == target
    assert targets.lookup(f"opencl:{target.platform[:8].lower()}") == target
    assert targets.present()["opencl:0"] == target


def test_time_is_the_devices_own_and_counts_what_is_called_in_between(target: OpenCL) -> None:
    runtime, naps = target.runtime(), []

    def nap() -> None:
        naps.append(0)
        time.sleep(0.01)

    assert runtime.seconds(nap, 3) >= 0.01  # as that of a peer on the host
    assert len(naps) == 3


def test_a_device_that_is_not_there_is_one_line_with_those_that_are(target: OpenCL) -> None:
    with pytest.raises(InputError, match="there is no OpenCL device 9; there is 0: "):
        targets.lookup("opencl:9")
    with pytest.raises(InputError, match="no OpenCL device is called 'voodoo'; there is 0: "):
        targets.lookup("opencl:voodoo")
    with pytest.raises(InputError, match="2 OpenCL devices are called 'ti'; there is 0: Titan, "):
        opencl._choose("ti", ["Titan", "Tigris", "Other"])
    with pytest.raises(InputError, match="threads cannot be chosen"):
        targets.lookup("opencl", threads=1)
    for other in ({"index": 9}, {"name": "another"}):
        with pytest.raises(DeviceError, match="is not .* on this machine"):
            dataclasses.replace(target, **other).runtime()


def test_no_pyopencl_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DeviceError, match="OpenCL needs pyopencl: pip install"):
        targets.lookup("opencl")
    assert not [spec for spec in targets.present() if spec.startswith("opencl")]


def test_no_platform_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Any]:
        raise pyopencl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    for platforms in (none, list):
        monkeypatch.setattr(pyopencl, "get_platforms", platforms)
        with pytest.raises(DeviceError, match="no OpenCL device found.*: install") as caught:
            targets.lookup("opencl")
        assert "\n" not in str(caught.value)
    assert not [spec for spec in targets.present() if spec.startswith("opencl")]


def chain(target: OpenCL, *sizes: int) -> Any:
    """Two kernels, of which the second takes the workspace before its other arguments."""
    import tvm

    return tvm.IRModule({"main": gram(target, *sizes)})


@pytest.fixture
def built(target: OpenCL, tmp_path: Path) -> Path:
    path = tmp_path / "chain.so"
    target.build(chain(target, 13, 7, 8), path)
    return path


def test_a_built_file_has_the_launches_of_the_host(built: Path) -> None:
    function = Program.loads(built.read_text()).functions["main"]
    first, second = function.launches
    assert function.parameters == 3
    assert function.sizes == (13 * 7 * 4, 13 * 4, 13 * 13 * 4, 13 * 7 * 4)
    assert function.written == (2,)
    assert sorted(first.arguments) == [0, 3]
    assert sorted(second.arguments) == [1, 2, 3]
    assert (first.grid, first.block) == ((12, 1, 1), (8, 1, 1))
    assert (second.grid, second.block) == ((22, 1, 1), (8, 1, 1))


@pytest.mark.parametrize(("rows", "columns", "threads"), [(13, 7, 8), (1, 1, 1), (31, 3, 100)])
def test_kernels_run_in_turn_and_share_a_workspace(
    target: OpenCL, tmp_path: Path, rows: int, columns: int, threads: int
) -> None:
    path = tmp_path / "chain.so"
    target.build(chain(target, rows, columns, threads), path)
    runtime = target.runtime()
    function = runtime.load(path)["main"]
    rng = np.random.default_rng(0)
    scale = rng.standard_normal(rows, dtype="float32")
    placed = runtime.place(scale)
    for _ in range(2):  # other buffers are bound anew, and arrays of the host may be mixed in
        a = rng.standard_normal((rows, columns), dtype="float32")
        want = ((a + 1) @ (a + 1).T) * scale[:, None]
        wide = np.full((rows, 2 * rows), np.nan, "float32")
        function(a, placed, wide[:, ::2])
        np.testing.assert_allclose(wide[:, ::2], want, rtol=1e-5, atol=1e-5)
        assert np.isnan(wide[:, 1::2]).all()


TYPES = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "double")


@pytest.mark.parametrize("one", TYPES)
@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_what_pocl_would_call_computes_the_same(target: OpenCL, one: str, n: int) -> None:
    """Vectors of every memory, from places that are no whole vectors, and their extremes."""
    text = f"""
    #if !defined(POCL_DEVICE_ADDRESS_BITS) || !defined(vload8) || !defined(min)
    #error nothing is in place
    #endif
    __kernel void some(__global const {one}* a, __global {one}* out, __local {one}* shared) {{
      {one} own[{n + 1}];
      vstore{n}(vload{n}(1, a + 1), 0, shared + 1);
      vstore{n}(vload{n}(0, shared + 1), 0, own + 1);
      {one}{n} other = vload{n}(0, a), mine = vload{n}(0, own + 1);
      vstore{n}(min(mine, other), 0, out + 1);
      vstore{n}(max(mine, other), 1, out + 1);
      out[0] = min(max(a[0], a[1]), a[2]);
    }}"""
    import pyopencl as cl

    source = opencl_source.BUILTINS.read_text() + opencl_source.in_place(text)
    dtype = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
             "long": "i8", "ulong": "u8", "float": "f4", "double": "f8"}[one]  # fmt: skip
    a = np.random.default_rng(0).integers(0, 100, 2 * n + 1).astype(dtype)
    a -= np.array(0 if dtype[0] == "u" else 50, dtype)
    runtime, out = target.runtime(), np.zeros(2 * n + 1, dtype)
    placed = [runtime.place(x) for x in (a, out)]
    kernel = cl.Kernel(runtime.compile(source), "some")
    kernel.set_args(*(p.memory for p in placed), cl.LocalMemory(64 * n))
    cl.enqueue_nd_range_kernel(runtime.queue, kernel, (1,), (1,))
    mine, other = a[n + 1 : 2 * n + 1], a[:n]
    want = [[min(max(a[0], a[1]), a[2])], np.minimum(mine, other), np.maximum(mine, other)]
    np.testing.assert_array_equal(placed[1].numpy(), np.concatenate(want))


def test_kernels_of_one_thread_call_nothing_on_pocl(target: OpenCL) -> None:
    gemm = Workload(Gemm(m=32, n=64, k=32))
    found = space(gemm.prim_func(), target)
    vectors = next(s for s in found.seeds if s["gemm.x_lanes"] != 1)
    source = target.source(schedule(gemm.prim_func(), target, vectors))
    assert source.index("inline_vload##n(") < source.index("#define vload8 inline_vload8")
    assert source.index('pop_macro("max")') > source.rindex("vstore")
    other = dataclasses.replace(target, platform="another")
    assert "inline" not in other.source(schedule(gemm.prim_func(), target, vectors))
    assert "inline" not in target.source(chain(target, 13, 7, 8))  # blocks of eight threads


def test_buffers_that_do_not_fit_are_refused(target: OpenCL, built: Path) -> None:
    function = target.runtime().load(built)["main"]
    a, scale, out = (np.ones(s, "float32") for s in ((13, 7), (13,), (13, 13)))
    with pytest.raises(ValueError, match="takes 3 buffers, got 2"):
        function(a, out)
    with pytest.raises(ValueError, match="a buffer of 48 bytes is too small, needs 52"):
        function(a, scale[1:], out)
    placed = target.runtime().place(a)
    with pytest.raises(ValueError, match=r"cannot copy float64\(13, 7\)"):
        placed.copyfrom(a.astype("float64"))


def test_files_that_are_no_programs(target: OpenCL, tmp_path: Path) -> None:
    source = json.dumps({"source": "__kernel void main_kernel(", "functions": {}})
    for text in ("no program", "{}", source):
        path = tmp_path / "kernel.so"
        path.write_text(text)
        with pytest.raises(DeviceError, match="cannot load"):
            Library(path, target.runtime())


def test_what_is_bound_to_no_block_is_refused(target: OpenCL, tmp_path: Path) -> None:
    import tvm

    module = tvm.IRModule({"main": Workload(Gemm(m=3, n=5, k=7)).prim_func()})
    with pytest.raises(Exception, match="[Bb]ind|bound"):
        target.build(module, tmp_path / "kernel.so")
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_crashes_takes_only_its_worker(target: OpenCL, tmp_path: Path) -> None:
    path = tmp_path / "wild.so"
    source = "__kernel void wild(__global float* a) { *(__global float*)(16) = a[0]; }"
    launch = {"kernel": "wild", "arguments": [1], "grid": [1, 1, 1], "block": [1, 1, 1]}
    function = {"parameters": 2, "sizes": [4, 4], "written": [1], "launches": [launch]}
    path.write_text(json.dumps({"source": source, "functions": {"main": function}}))
    array = np.ones(1, "float32")
    np.save(tmp_path / "one.npy", array)
    file = str(tmp_path / "one.npy")
    data = {"inputs": [file], "reference": file, "shape": [1], "dtype": "float32"}
    load = {"target": targets.dump(target), "tolerance": 1e-4, **data}
    worker = Worker([("load", load)], target.environment(tmp_path))
    try:
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            worker.call("run", {"path": str(path), "best": None}, 60)
    finally:
        worker.kill()
    assert (tmp_path / "pocl").is_dir()  # and no kernel went into the user's cache


@pytest.mark.parametrize(
    ("version", "lanes", "bits"),
    [
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-znver3", 16, 256),
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-znver4", 16, 512),
        ("OpenCL 3.0 PoCL HSTR: cpu-x86_64-pc-linux-gnu-skylake-avx512", 16, 512),
        ("OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-znver3", 8, 256),
        ("OpenCL 3.0 CUDA 13.0.1", 1, 128),
        ("OpenCL 3.0 (Build 0)", 16, 512),
    ],
)
def test_vectors_are_as_wide_as_the_compiler_can(version: str, lanes: int, bits: int) -> None:
    """PoCL counts the lanes of the CPU, and may compile for an older one."""
    device = types.SimpleNamespace(
        version=version, preferred_vector_width_float=lanes, native_vector_width_float=lanes
    )
    assert opencl.vector_bits(device) == bits
