"""CUDA C to machine code: by NVRTC in this process, or by nvcc where it is installed.

Either gives a cubin for one architecture and, in its log, what ptxas made of every kernel. No
card and no driver are needed. Both compile with ``--use_fast_math``'s contraction only
(``--fmad``, the default): results are IEEE but for fused multiply-adds.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flextensor.errors import DeviceError

HEADER = Path(__file__).with_name("cuda_half.h")
NEEDED = "no CUDA compiler found: pip install nvidia-cuda-nvrtc, or install nvcc"
SECONDS = 60
"""What nvcc may take for one program."""
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
BODY = re.compile(r'^(?:static __device__|__forceinline__|extern "C" __global__)', re.MULTILINE)
HALF = re.compile(r"\b(?:half|__half|nvcuda)\b|nv_bfloat16")
FOREIGN = re.compile(r"\b__nv_|\bh(?:exp|log|sqrt|rsqrt|sin|cos|tanh|pow)\b")
"""What only CUDA's own headers have."""
TYPES = """
#ifdef __CUDACC_RTC__
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t;
typedef unsigned short uint16_t; typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
#define __asm__ asm
#define __volatile__ volatile
#else
#include <cstdint>
#endif
typedef unsigned int uint; typedef unsigned char uchar; typedef unsigned short ushort;
"""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel: registers a thread, bytes of static shared memory a block, and
    bytes that a thread stores and loads because its registers are too few."""

    registers: int
    shared: int
    spill_stores: int = 0
    spill_loads: int = 0


@dataclasses.dataclass(frozen=True)
class Binary:
    """The machine code of a program (ELF, a cubin), and what each of its kernels takes."""

    cubin: bytes
    resources: Mapping[str, Resources]


class CompileError(DeviceError):
    """The compiler refused the source; its first error."""


def check() -> None:
    """Raise `DeviceError` unless there is a compiler."""
    if _nvrtc() is None and shutil.which("nvcc") is None:
        raise DeviceError(NEEDED)


def compile_cuda(source: str, arch: str) -> Binary:
    """Compile CUDA C for an architecture, e.g. ``sm_90``.

    Raises `CompileError`, and `DeviceError` without a compiler.
    """
    cubin, log = _compiled(source, arch, "cubin")
    return Binary(cubin, resources(log))


def ptx(source: str, arch: str) -> str:
    """The same as PTX, which a driver compiles for later architectures too."""
    text, _ = _compiled(source, arch.replace("sm_", "compute_"), "ptx")
    return text.rstrip(b"\0").decode()


def self_contained(source: str) -> str:
    """What any CUDA compiler takes: without the headers of TVM's preamble, where that can be."""
    return source if FOREIGN.search(body(source)) else trimmed(source)


def _compiled(source: str, arch: str, kind: str) -> tuple[bytes, str]:
    """(a ``cubin`` or ``ptx``, what the compiler said), by NVRTC where no header is needed."""
    library = _nvrtc()
    if library is not None and not FOREIGN.search(body(source)):
        return _by_nvrtc(library, trimmed(source), arch, kind.upper())
    if shutil.which("nvcc"):
        return _by_nvcc(source, arch, kind)
    if library is None:
        raise DeviceError(NEEDED)
    raise DeviceError("kernels with such types or functions need CUDA's headers: install nvcc")


def body(source: str) -> str:
    """The functions of what TVM generates, without the includes before them."""
    found = BODY.search(source)
    return source if found is None else source[found.start() :]


def trimmed(source: str) -> str:
    """The functions and the few types that they take from headers: TVM's preamble includes
    libcu++, over a second of NVRTC's time where a kernel takes a twentieth."""
    functions = body(source)
    half = HEADER.read_text() if HALF.search(functions) else ""
    return TYPES + half + functions


def resources(log: str) -> dict[str, Resources]:
    """What ``ptxas -v`` said, by kernel."""
    found: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function)", log):
        entry, used = ENTRY.search(part), USED.search(part)
        if entry is None or used is None:
            continue
        stack, shared = STACK.search(part), SHARED.search(part)
        spills = (int(stack[2]), int(stack[3])) if stack else (0, 0)
        found[entry[1]] = Resources(int(used[1]), int(shared[1]) if shared else 0, *spills)
    return found


def _by_nvcc(source: str, arch: str, kind: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory(prefix="flextensor-nvcc-") as folder:
        code, out = Path(folder) / "kernel.cu", Path(folder) / f"kernel.{kind}"
        code.write_text(source)
        command = ["nvcc", f"--{kind}", f"-arch={arch}", "-Xptxas", "-v", "-diag-suppress=177"]
        command += ["-o", str(out), str(code)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise CompileError(f"nvcc took more than {SECONDS} s") from None
        if done.returncode:
            raise CompileError(_first_error(done.stderr))
        return out.read_bytes(), done.stderr


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "?")


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    """NVRTC of the newest wheel, or of the system; None without one."""
    for path in (*_wheels(), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            for builtins in _beside(path):
                ctypes.CDLL(builtins)  # NVRTC 13.0 looks for it by name, and not beside itself
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def _wheels() -> list[str]:
    """Where wheels put NVRTC: nvidia/cu13/lib, before CUDA 13 nvidia/cuda_nvrtc/lib."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    return [str(path) for path in sorted(found, key=_version, reverse=True)]


def _beside(path: str) -> list[str]:
    """What a library of a wheel needs from its folder."""
    return [str(p) for p in Path(path).parent.glob("libnvrtc-builtins.so.*") if "/" in path]


def _version(path: Path) -> int:
    digits = path.name.rpartition(".so.")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _by_nvrtc(library: ctypes.CDLL, source: str, arch: str, kind: str) -> tuple[bytes, str]:
    program = ctypes.c_void_p()
    name = b"kernel.cu"
    _ask(library.nvrtcCreateProgram, ctypes.byref(program), source.encode(), name, 0, None, None)
    try:
        options = [f"--gpu-architecture={arch}", "--ptxas-options=-v", "-diag-suppress=177"]
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        code = library.nvrtcCompileProgram(program, len(options), array)
        log = _bytes(library, program, "ProgramLog").decode(errors="replace")
        if code:
            raise CompileError(_first_error(log))
        return _bytes(library, program, kind), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _ask(getattr(library, f"nvrtcGet{what}Size"), program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    _ask(getattr(library, f"nvrtcGet{what}"), program, data)
    return data.raw


def _ask(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    code = function(*arguments)
    if code:
        raise DeviceError(f"NVRTC: {function.__name__} failed with code {code}")
