from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flextensor import buffers, targets
from flextensor.compiled import Library
from flextensor.errors import DeviceError, InputError
from flextensor.kernel import Kernel
from flextensor.operators import BufferSpec

SHAPE = (6, 64)
SPECS = [BufferSpec(name, SHAPE, "float32") for name in ("A", "B", "C")]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C = A + 2 * B in aligned vectors."""
    import tvm
    from tvm import te
    from tvm.s_tir import Schedule

    a, b = (te.placeholder(SHAPE, name=name) for name in "AB")
    c = te.compute(SHAPE, lambda i, j: a[i, j] + 2.0 * b[i, j], name="C")
    schedule = Schedule(te.create_prim_func([a, b, c]))
    row, column = schedule.get_loops(schedule.get_sblock("C"))
    schedule.vectorize(schedule.split(column, [None, 16])[1])
    schedule.parallel(row)
    path = tmp_path_factory.mktemp("kernel") / "kernel.so"
    targets.lookup("llvm").build(tvm.IRModule({"main": schedule.mod["main"]}), path)
    return path


@pytest.fixture(scope="module")
def kernel(library: Path) -> Kernel:
    return Kernel(library, SPECS, targets.lookup("llvm").runtime())


def offset(count: int) -> Callable[[Array], Array]:
    """The same values, `count` bytes after a multiple of 64."""

    def place(values: Array) -> Array:
        raw = np.empty(values.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + count
        moved: Array = raw[start : start + values.nbytes].view("float32").reshape(values.shape)
        moved[...] = values
        return moved

    return place


def strided(values: Array) -> Array:
    wide = np.zeros((SHAPE[0], 2 * SHAPE[1]), "float32")
    wide[:, ::2] = values
    return wide[:, ::2]


def reversed_rows(values: Array) -> Array:
    return np.ascontiguousarray(values[::-1])[::-1]


def torch_slice(values: Array) -> Any:
    wide = torch.zeros(SHAPE[0], SHAPE[1] + 5)
    wide[:, 3:-2] = torch.from_numpy(values)
    return wide[:, 3:-2]


def torch_transposed(values: Array) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values.T)).T


PLACES = {
    **{f"offset {n}": offset(n) for n in (0, 1, 4, 8, 16, 32, 60)},
    "strided": strided,
    "fortran": np.asfortranarray,
    "reversed": reversed_rows,
    "torch": lambda values: torch.from_numpy(values.copy()),
    "torch slice": torch_slice,
    "torch transposed": torch_transposed,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_any_place_of_inputs_and_output(kernel: Kernel, place: Callable[[Array], Any]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(SHAPE, dtype="float32") for _ in "ab")
    want = a + 2 * b
    got = kernel(place(a), place(b))
    assert type(got) is type(place(a))
    assert np.array_equal(np.asarray(got), want)
    out = place(np.full(SHAPE, np.nan, "float32"))
    assert kernel(place(a), place(b), out=out) is out
    assert np.array_equal(np.asarray(out), want)


def test_aligned_arrays_are_not_copied(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("copied")

    ones = offset(0)(np.ones(SHAPE, "float32"))
    out = buffers.empty(SHAPE, "float32")
    monkeypatch.setattr("flextensor.kernel.aligned", refuse)
    monkeypatch.setattr("flextensor.kernel.empty", refuse)
    assert kernel(ones, torch.from_numpy(ones), out=torch.from_numpy(out))[0, 0] == 3
    assert out[0, 0] == 3


def test_new_outputs_are_aligned(kernel: Kernel) -> None:
    ones = np.ones(SHAPE, "float32")
    assert all(kernel(ones, ones).ctypes.data % 64 == 0 for _ in range(8))


def test_read_only_inputs_are_read_and_outputs_refused(kernel: Kernel) -> None:
    ones = offset(0)(np.ones(SHAPE, "float32"))
    ones.flags.writeable = False
    assert (kernel(ones, ones) == 3).all()
    with pytest.raises(InputError, match="output C is read-only"):
        kernel(ones, ones, out=ones)


def test_an_output_that_is_an_input(kernel: Kernel) -> None:
    both = offset(0)(np.ones(SHAPE, "float32"))
    assert (kernel(both, both, out=both) == 3).all()


def ones(dtype: str = "float32", shape: tuple[int, ...] = SHAPE) -> Array:
    return np.ones(shape, dtype)


BAD = {
    "A must be float32, got float64": ones("float64"),
    "A must be float32, got >f4": ones(">f4"),
    r"A must have shape \(6, 64\), got \(64, 6\)": ones(shape=(64, 6)),
    r"A must have shape \(6, 64\), got \(384,\)": ones(shape=(384,)),
    "A must be a NumPy array or a PyTorch tensor, got list": [[1.0]],
    "A must be on the CPU, got a tensor on meta": torch.empty(SHAPE, device="meta"),
    "A requires a gradient, kernels have none: detach it": torch.ones(SHAPE, requires_grad=True),
    "A cannot be read as an array": torch.ones(SHAPE).to_sparse(),
    "A must be float32, got float16": torch.ones(SHAPE).half(),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_in_one_line(kernel: Kernel, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kernel(BAD[message], ones())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message.replace("A ", "C ", 1)):
        kernel(ones(), ones(), out=BAD[message])


THREADS = """
import json, os, sys, threading
import numpy as np, tvm
from flextensor import targets
from flextensor.kernel import Kernel
from flextensor.operators import BufferSpec

def threads(cores):
    kernel = Kernel(sys.argv[1], [BufferSpec(n, (6, 64), "float32") for n in "ABC"],
                    targets.lookup("llvm", cores).runtime())
    kernel(*np.ones((2, 6, 64), "float32"))
    return tvm.get_global_func("runtime.NumThreads")()

before, seen = os.sched_getaffinity(0), []
seen += [threads(None), threads(1), threads(None)]
other = threading.Thread(target=lambda: seen.append(threads(None)))
other.start()
other.join()
print(json.dumps([len(before), seen, os.sched_getaffinity(0) == before]))
"""


def test_calls_have_the_targets_threads_and_leave_those_of_the_caller_alone(library: Path) -> None:
    """Whatever TVM would do by itself, which is half of the CPUs, or what OpenMP is told."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("TVM_")}
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(library)], capture_output=True, text=True, check=True,
        env=env | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    cpus, threads, same = json.loads(done.stdout)
    assert threads == [cpus, 1, cpus, cpus] and same


def test_the_number_of_inputs(kernel: Kernel) -> None:
    with pytest.raises(InputError, match=r"takes 2 inputs \(A, B\), got 1"):
        kernel(ones())


def test_says_what_it_is(kernel: Kernel) -> None:
    assert repr(kernel) == "Kernel(A: float32[6, 64], B: float32[6, 64]) -> C: float32[6, 64]"


def test_libraries_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernel library at"):
        Kernel(tmp_path / "missing.so", SPECS, targets.lookup("llvm").runtime())
    (tmp_path / "broken.so").write_text("no library")
    with pytest.raises(DeviceError, match="cannot load"):
        Kernel(tmp_path / "broken.so", SPECS, targets.lookup("llvm").runtime())


def test_a_library_that_cannot_be_loaded_gives_the_compilers_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "BUILD_PROGRAM_FAILURE\n\nerror: k.cl:54: no such function\nDevice failed\n(options: -I)"

    def load(path: Path) -> Any:
        raise RuntimeError(log)

    runtime = targets.lookup("llvm").runtime()
    monkeypatch.setattr(runtime, "load", load)
    (tmp_path / "kernel.so").touch()
    with pytest.raises(DeviceError, match="error: k.cl:54: no such function$"):
        Library(tmp_path / "kernel.so", runtime)
