"""CUDA C run on the CPU, to prove what it computes where no card is.

    extern "C" __global__ void main_kernel(float* A, float* B)    compiled by g++ as it stands,
    { __shared__ float S[64]; ... __syncthreads(); ... }     ->   below cuda_emulation.h, which has
                                                                  blocks, fibers and vector types

Wrong indices, missing barriers, guards, pointers that are not aligned and launches show as on a
card; races within a warp, the memory model and its speed do not.
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
from flextensor.targets.device_function import DeviceBuffer, DeviceFunction
from flextensor.targets.launches import Function, Launch
from flextensor.targets.runtime import Runtime

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array

HEADER = Path(__file__).with_name("cuda_emulation.h")
SIGNATURE = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\((.*?)\)\s*\{")
ENTRY = """
static void run_{name}() {{ {name}({arguments}); }}
extern "C" int emulate_{name}(
    void** arguments, unsigned* grid, unsigned* block, unsigned shared) {{
  kernel_arguments = arguments;
  return run_grid(run_{name}, grid, block, shared);
}}
"""
ASYNC = re.compile(
    r"^__forceinline__ __device__ void (?:tvm_builtin_)?ptx_cp_async_(\w+)\((.*?)\) \{.*?^\}",
    re.MULTILINE | re.DOTALL,
)
PTX = re.compile(
    r'__asm__ __volatile__\(\s*"((?:ldmatrix|mma)\.[\w.]+)"\s*"[^"]*"(.*?)\);', re.DOTALL
)
OPERAND = re.compile(r'\s*[:,]?\s*"=?[rf]"')
DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")
FAILURES = {
    1: "threads of a block disagree about its barriers",
    2: "out of memory",
    3: "a block writes outside of its shared memory",
    4: "what is loaded, stored or copied at a time is not aligned to its size",
}
CHECKED = (
    "-O2", "-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE",
    "-fsanitize=alignment", "-fno-sanitize-recover=alignment",
)  # fmt: skip
"""How kernels are compiled: what is not aligned calls a function of the emulation."""
GUARD_BYTES, ALIGNMENT = 1 << 16, 64
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
    extern __shared__ float S[];          ->   float* S = (float*)dynamic_shared;
    """
    functions = re.sub(r"__shared__\s+(alignas\(\d+\))", r"\1 __shared__", body(source))
    functions = ASYNC.sub(_async, functions)
    functions = functions.replace("unsigned int addr = __cvta_generic_to_shared", "void* addr = ")
    functions = PTX.sub(_instruction, functions)
    functions = DYNAMIC.sub(r"\1* \2 = (\1*)dynamic_shared;", functions)
    entries = [_entry(name, types) for name, types in SIGNATURE.findall(functions)]
    head = f'#include "{HEADER}"\nstatic void** kernel_arguments;\n'
    return head + functions + "".join(entries)


def _async(function: re.Match[str]) -> str:
    """One of TVM's functions for asynchronous copies, which are PTX, by those of the emulation.

    wait_group_async_wait_group_1()                    all groups but the last are done
    legacy_pred_cg_16_2_2(to, i, from, j, inside)      16 bytes, elements of 2 bytes
    """
    name, parameters = function[1], function[2]
    head = function[0].partition("{")[0]
    if name.startswith("wait_group"):
        return f"{head}{{ wait_for_copies({name.rpartition('_')[2]}); }}"
    if name.startswith("commit_group"):
        return f"{head}{{ commit_copies(); }}"
    *_, size, to, source = name.split("_")
    inside = "predicate" if "predicate" in parameters else "true"
    there, here = f"(char*)dst + dst_off * {to}", f"(char*)src + src_off * {source}"
    return f"{head}{{ copy_async({there}, {here}, {size}, {inside}); }}"


def _instruction(asm: re.Match[str]) -> str:
    """An instruction of a warp by the function of the emulation that has its name.

    "ldmatrix.sync.aligned.m8n8.x4.shared.b16" .. : "=r"(a), .. : "r"(addr)
        ->   ldmatrix_sync_aligned_m8n8_x4_shared_b16((a), .., (addr));
    """
    operands = [part.strip() for part in OPERAND.split(asm[2]) if part.strip(" :\n")]
    return f"{asm[1].replace('.', '_')}({', '.join(operands)});"


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
        _compile([*CHECKED, "-c", "-o", f"{code}.o", str(code)])
        _compile(["-shared", "-o", str(library), f"{code}.o"])  # without the sanitizer's library
        loaded = ctypes.CDLL(str(library))
    names = [name for name, _ in SIGNATURE.findall(body(source))]
    return {name: _kernel(getattr(loaded, f"emulate_{name}")) for name in names}


def _compile(options: Sequence[str]) -> None:
    done = subprocess.run(["g++", *options], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        raise DeviceError(f"emulation: {errors[0] if errors else done.stderr[:200]}")


def _kernel(entry: Any) -> Kernel:
    def run(launch: Launch, arrays: Sequence[Array]) -> None:
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        three = ctypes.c_uint * 3
        extents = three(*launch.grid), three(*launch.block)
        code = entry(pointers, *extents, ctypes.c_uint(launch.shared))
        if code:
            raise DeviceError(f"{launch.kernel}: {FAILURES[code]}")

    return run


class EmulatedRuntime(Runtime):
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


class HostBuffer(DeviceBuffer):
    """A copy of an array between two guards, in which nothing may be written; what is read from
    there is NaN. Aligned to 64 bytes."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.nbytes, array.shape, array.dtype)
        self._whole, start = _guarded(array.nbytes)
        own = self._whole[start : start + array.nbytes]
        self.array: Array = own.view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self._outside = (self._whole[:start], self._whole[start + array.nbytes :])

    @classmethod
    def unwritten(cls, size: int) -> HostBuffer:
        """Memory that nothing was written to: all bits set, a NaN in every float."""
        import numpy as np

        return cls(np.full(size, 0xFF, np.uint8))

    @property
    def intact(self) -> bool:
        """Whether nothing was written beside the array."""
        return all(bool((guard == 0xFF).all()) for guard in self._outside)

    def read(self, array: Array) -> None:
        """Copy all of it to an array of the host."""
        array[...] = self.array

    def write(self, array: Array) -> None:
        """Copy an array of the host, all of it, here."""
        self.array[...] = array


def _guarded(size: int) -> tuple[Array, int]:
    """Bytes with all bits set, and where in them `size` aligned ones stand between guards."""
    import numpy as np

    whole: Array = np.full(size + 2 * GUARD_BYTES + ALIGNMENT, 0xFF, np.uint8)
    return whole, GUARD_BYTES + -(whole.ctypes.data + GUARD_BYTES) % ALIGNMENT


class EmulatedFunction(DeviceFunction):
    """One function of a program on this CPU."""

    buffer = HostBuffer

    def __init__(self, kernels: Mapping[str, Kernel], function: Function) -> None:
        super().__init__(function)
        self._kernels = kernels

    def place(self, array: Array) -> HostBuffer:
        """A copy of `array` between guards."""
        return HostBuffer(array)

    def launch(self, buffers: Sequence[HostBuffer]) -> None:
        """Run every kernel; `DeviceError` when one writes outside of its buffers."""
        own = self.function.sizes[self.function.parameters :]
        everything = [*buffers, *map(HostBuffer.unwritten, own)]
        for launch in self.function.launches:
            arguments = [everything[position].array for position in launch.arguments]
            self._kernels[launch.kernel](launch, arguments)
            if not all(buffer.intact for buffer in everything):
                raise DeviceError(f"{launch.kernel} writes outside of its buffers")
