"""CUDA C run on the CPU, to prove what it computes where no card is.

    extern "C" __global__ void main_kernel(float* A, float* B)    compiled by g++ as it stands,
    { __shared__ float S[64]; ... __syncthreads(); ... }     ->   below cuda_emulation.h, which has
                                                                  blocks, fibers and vector types

Wrong indices, missing barriers, guards and launches show as on a card; races within a warp, the
memory model and its speed do not.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError
from flextensor.targets.cuda_compiler import body
from flextensor.targets.cuda_program import CudaProgram
from flextensor.targets.launches import Function, Launch

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array

HEADER = Path(__file__).with_name("cuda_emulation.h")
SIGNATURE = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\((.*?)\)\s*\{")
ENTRY = """
static void run_{name}() {{ {name}({arguments}); }}
extern "C" int emulate_{name}(void** arguments, unsigned* grid, unsigned* block) {{
  kernel_arguments = arguments;
  return run_grid(run_{name}, grid, block);
}}
"""
SECONDS = 60
"""What g++ may take for one program."""

Kernel = Callable[[Launch, Sequence["Array"]], None]
"""Runs a launch on its arguments."""


def check() -> None:
    """Raise `DeviceError` unless there is a C++ compiler."""
    if shutil.which("g++") is None:
        raise DeviceError("emulating CUDA needs g++, which was not found; install it")


def host_source(source: str) -> str:
    """CUDA C as C++ with an entry for each of its kernels.

    __shared__ alignas(64) float S[64];   ->   alignas(64) static float S[64];
    """
    functions = re.sub(r"__shared__\s+(alignas\(\d+\))", r"\1 __shared__", body(source))
    entries = [_entry(name, types) for name, types in SIGNATURE.findall(functions)]
    head = f'#include "{HEADER}"\nstatic void** kernel_arguments;\n'
    return head + functions + "".join(entries)


def _entry(name: str, parameters: str) -> str:
    types = [re.sub(r"__restrict__\s*\w+$", "", p).strip() for p in parameters.split(",")]
    arguments = (f"({t})kernel_arguments[{i}]" for i, t in enumerate(types))
    return ENTRY.format(name=name, arguments=", ".join(arguments))


def compiled(source: str) -> dict[str, Kernel]:
    """The kernels of a source, by name; `DeviceError` when g++ refuses it."""
    check()
    with tempfile.TemporaryDirectory(prefix="flextensor-emulation-") as folder:
        code, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        code.write_text(host_source(source))
        command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"]
        command += ["-U_FORTIFY_SOURCE", "-o", str(library), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            raise DeviceError(f"emulation: {errors[0] if errors else done.stderr[:200]}")
        loaded = ctypes.CDLL(str(library))
    names = [name for name, _ in SIGNATURE.findall(body(source))]
    return {name: _kernel(getattr(loaded, f"emulate_{name}")) for name in names}


def _kernel(entry: Any) -> Kernel:
    def run(launch: Launch, arrays: Sequence[Array]) -> None:
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        three = ctypes.c_uint * 3
        code = entry(pointers, three(*launch.grid), three(*launch.block))
        if code:
            reason = "threads of a block disagree about its barriers"
            raise DeviceError(f"{launch.kernel}: {reason if code == 1 else 'out of memory'}")

    return run


class EmulatedRuntime:
    """Programs of CUDA on this CPU; the device's memory is the host's."""

    def load(self, path: Path) -> dict[str, EmulatedFunction]:
        """The functions of a file that `CUDA.build` wrote."""
        program = CudaProgram.loads(path.read_text()).program
        kernels = compiled(program.source)
        return {name: EmulatedFunction(kernels, f) for name, f in program.functions.items()}

    def place(self, array: Array) -> HostBuffer:
        """A copy of `array`."""
        return HostBuffer(array)

    def sync(self) -> None:
        """Calls return when they are done."""


class HostBuffer:
    """A copy of an array, row-major; the heap aligns it to 16 bytes, the widest vector."""

    def __init__(self, array: Array) -> None:
        import numpy as np

        self.array: Array = np.array(array, order="C")

    def numpy(self) -> Array:
        """A copy."""
        return self.array.copy()

    def copyfrom(self, array: Array) -> None:
        """Overwrite it with an array of the same shape and dtype."""
        self.array[...] = array


class EmulatedFunction:
    """One function of a program: its kernels, run in turn."""

    def __init__(self, kernels: Mapping[str, Kernel], function: Function) -> None:
        self._kernels, self._function = kernels, function

    def __call__(self, *buffers: Any) -> None:
        """Run on placed buffers or arrays of the host."""
        import numpy as np

        given = [b.array if isinstance(b, HostBuffer) else b for b in buffers]
        if len(given) != self._function.parameters:
            raise ValueError(f"takes {self._function.parameters} buffers, got {len(given)}")
        placed = [HostBuffer(a).array for a in given]
        sizes = self._function.sizes[len(given) :]
        # all bits set is NaN: what no kernel wrote is seen in what it leads to
        everything = placed + [np.full(size, 0xFF, np.uint8) for size in sizes]
        for launch in self._function.launches:
            arguments = [everything[position] for position in launch.arguments]
            self._kernels[launch.kernel](launch, arguments)
        for position in self._function.written:
            np.copyto(given[position], placed[position])
