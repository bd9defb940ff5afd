"""A CUDA kernel as a shared library: loaded without TVM, on a stand-in for the driver."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flextensor import export, export_library
from flextensor.buffers import relative_error
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Workload, parse
from flextensor.result import Result
from flextensor.schedulers import schedule, space
from flextensor.targets import launches, lookup
from flextensor.targets.cuda_compiler import body
from flextensor.targets.cuda_emulation import SIGNATURE, host_source
from flextensor.targets.launches import Function, Launch

ARCH = "cuda:sm_80"
DRIVER = Path(__file__).parent / "stand_in" / "libcuda.cpp"
KERNEL = "struct Kernel { const char* name; int (*run)(void**, unsigned*, unsigned*, unsigned);"
FIELDS = {"m": "40", "n": "24", "k": "256"}
CALL = """\
import ctypes, sys
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.product_error.restype = ctypes.c_char_p
data = np.load(sys.argv[2])
arrays = [data[name] for name in data.files]
pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
if sys.argv[3] == "shifted":
    pointers[1] += 8
if sys.argv[3] == "host":
    failed = library.product_on_host(pointers)
else:
    failed = library.product(pointers, None)  # of the stand-in, whose memory is the host's
if failed:
    print(library.product_error().decode())
    sys.exit(3)
np.save(sys.argv[4], arrays[-1])
"""


@pytest.fixture(scope="module", params=["float32", "float16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library of a product in two parts, and a driver that knows its kernels."""
    folder = tmp_path_factory.mktemp(request.param)
    workload, target = Workload(parse("gemm", {**FIELDS, "dtype": request.param})), lookup(ARCH)
    found = space(workload.prim_func(), target)
    halves = ({**seed, "gemm.k_split": 2} for seed in found.seeds)
    split = next(config for config in halves if found.has(config))
    result = Result({"formulation": "direct", "config": split}, workload, target)
    written = export.write(result, folder / "product.so")
    assert [path.name for path in written] == ["product.h", "product.so"]
    module = schedule(workload.prim_func(), target, split)
    program = launches.lower(module, target.tvm_target())
    assert len(program.functions["main"].launches) > 1
    _build_driver(program.source, folder / "driver")
    inputs = workload.inputs(0)
    got = np.full(workload.buffers[-1].shape, np.nan, request.param)
    np.savez(folder / "data.npz", *inputs, got)
    np.save(folder / "want.npy", workload.reference(inputs))
    return folder


def _build_driver(source: str, folder: Path) -> None:
    names = [(name, len(types.split(","))) for name, types in SIGNATURE.findall(body(source))]
    own = ", ".join(f'{{"{n}", emulate_{n}, {c}, 48 << 10}}' for n, c in dict(names).items())
    table = f"{KERNEL} int count, allowed; }};\nstatic Kernel KERNELS[] = {{{own}}};\n"
    folder.mkdir()
    code = folder / "driver.cpp"
    code.write_text(host_source(source) + table + DRIVER.read_text())
    command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"]
    command += ["-U_FORTIFY_SOURCE", "-o", str(folder / "libcuda.so.1"), str(code)]
    subprocess.run(command, check=True, timeout=120)


def call(folder: Path, where: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Call the library in a process that has NumPy and nothing of ours."""
    env = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(folder / "driver"), **changes}
    files = [str(folder / name) for name in ("product.so", "data.npz")]
    command = [sys.executable, "-c", CALL, *files, where, str(folder / "got.npy")]
    (folder / "got.npy").unlink(missing_ok=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize("where", ["host", "device"])
def test_it_computes_without_tvm(exported: Path, where: str) -> None:
    done = call(exported, where)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    error = relative_error(np.load(exported / "got.npy"), np.load(exported / "want.npy"))
    assert error < 1e-3


def test_a_later_card_takes_the_ptx(exported: Path) -> None:
    done = call(exported, "host", STAND_IN_LATER="1")
    assert (done.returncode, done.stderr) == (0, "PTX\n"), done.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LD_LIBRARY_PATH": "no-driver"}, "no CUDA driver: libcuda.so.1 was not found"),
        ({"STAND_IN_NO_CARD": "1"}, "CUDA: cuInit: CUDA_ERROR_NO_DEVICE"),
        ({"STAND_IN_REFUSES": "1"}, "CUDA: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"),
    ],
    ids=["no driver", "no card", "refused"],
)
def test_a_failure_is_said_in_words(exported: Path, changes: dict[str, str], said: str) -> None:
    if "LD_LIBRARY_PATH" in changes:  # what the loader finds first there is no library
        folder = exported / changes["LD_LIBRARY_PATH"]
        folder.mkdir()
        (folder / "libcuda.so.1").touch()
        changes = {"LD_LIBRARY_PATH": str(folder)}
    done = call(exported, "host", **changes)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{said}\n", "")


def test_a_pointer_that_vectors_cannot_be_loaded_from_is_refused(exported: Path) -> None:
    done = call(exported, "shifted")
    said = "buffer 1 is not aligned to 16 bytes, which the kernel needs\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")
    assert "begins at a multiple of 16 bytes" in (exported / "product.h").read_text()


def test_a_kernel_may_have_any_name_that_c_allows(tmp_path: Path) -> None:
    """The names of the host in C are its own, macros and tags among them."""
    host = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", export_library.HOST.read_text(), flags=re.DOTALL)
    words = set(re.findall(r"\bft_(\w+)", host, re.IGNORECASE))
    assert {"kernels", "load", "ASK", "ENTRY", "launch"} <= words
    function = Function(1, (4,), (0,), (Launch("k", (0,), (1, 1, 1), (1, 1, 1)),))
    data = export_library._data("sm_80", function, b"1", "2")
    for name in sorted(words):
        assert export_library.NAME.fullmatch(name) and name not in export_library.RESERVED
        library = tmp_path / f"{name}.so"
        export_library._compile("cc", name, data, library)
        assert getattr(ctypes.CDLL(str(library)), name)


def test_the_header_is_c_and_cpp(exported: Path) -> None:
    header = exported / "product.h"
    assert f"{exported.name[:7]} A[40][256], " in header.read_text()
    for compiler, language in (("cc", "c"), ("g++", "c++")):
        command = [compiler, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", language]
        subprocess.run([*command, "-include", str(header), os.devnull], check=True, timeout=60)


def test_what_cannot_be_a_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(parse("gemm", {"m": "8", "n": "8", "k": "8"}))

    def write(spec: str, name: str) -> None:
        target = lookup(spec)
        config = space(workload.prim_func(), target).seeds[0]
        values = {"formulation": "direct", "config": config}
        export.write(Result(values, workload, target), tmp_path / name)

    with pytest.raises(InputError, match="only a kernel for cuda is exported .*--target cuda"):
        write("llvm", "kernel.so")
    names = ("my-kernel", "int", "class", "kérnel", "_Bool", "linux", "unix", "ft_load", "__x")
    for name in names:
        with pytest.raises(InputError, match=f"{name} is no name of a function in C"):
            write(ARCH, f"{name}.so")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceError, match="no C compiler found"):
        write(ARCH, "kernel.so")
