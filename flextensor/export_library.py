"""A tuned CUDA kernel as one shared library with a C header, which needs the driver alone.

    kernel.so   machine code, PTX for later architectures, and a host in C (`hosts/cuda_library.c`)
    kernel.h    int kernel(void *const *buffers, void *stream);  and how its buffers lie

The driver is looked for when the kernel is first called: the library loads on any machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flextensor import hosts
from flextensor.errors import DeviceError, InputError
from flextensor.operators.workload import BufferSpec, Workload
from flextensor.result import Result
from flextensor.results import make
from flextensor.schedulers import schedule
from flextensor.targets import cuda_compiler
from flextensor.targets.cuda import CUDA
from flextensor.targets.launches import Function, Launch

HOST = Path(hosts.__file__).with_name("cuda_library.c")
SECONDS = 60
"""What the C compiler may take."""
RESERVED = frozenset(
    # C11 (6.4.1), and what C++20 (lex.key) adds, for the header is read by both
    """auto break case char const continue default do double else enum extern float for goto if
    inline int long register restrict return short signed sizeof static struct switch typedef
    typeof union unsigned void volatile while asm main
    alignas alignof and and_eq bitand bitor bool catch char8_t char16_t char32_t class co_await
    co_return co_yield compl concept const_cast consteval constexpr constinit decltype delete
    dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr
    operator or or_eq private protected public reinterpret_cast requires static_assert static_cast
    template this thread_local throw true try typeid typename using virtual wchar_t xor
    xor_eq
    linux unix i386 NULL EOF errno stdin stdout stderr""".split()
)
"""Words that name no function: `main`, and macros of compilers and of the C library, among them."""
NAME = re.compile(r"(?!ft_)[a-z]\w*", re.ASCII | re.IGNORECASE)
"""Of a function: neither the implementation's (`_Bool`, `__x`) nor the host's own (`ft_load`)."""
DATA = """\
#include <stddef.h>
#define FT_ARCHITECTURE "{arch}"
#define FT_PARAMETERS {parameters}
#define FT_MOST_ARGUMENTS {most}
struct ft_launch {{
  const char *kernel;
  unsigned grid[3], block[3], shared;
  int count;
  int arguments[FT_MOST_ARGUMENTS];
}};
static const struct ft_launch FT_LAUNCH[] = {{{launches}}};
static const size_t FT_SIZES[] = {{{sizes}}}; /* of the parameters, then of workspaces */
static const char FT_WRITTEN[FT_PARAMETERS] = {{{written}}};
static const unsigned char FT_CUBIN[] __attribute__((aligned(64))) = {{{cubin}}};
static const unsigned char FT_PTX[] = {{{ptx}, 0}};
"""
HEADER = """\
/* {workload}
 * tuned for {device}
 *
 * Buffers, row-major, in this order:
{buffers}
 */
#ifndef FLEXTENSOR_{guard}_H
#define FLEXTENSOR_{guard}_H
#ifdef __cplusplus
extern "C" {{
#endif

/* Launch on buffers in the memory of the card: of the context that was current at the first call,
 * or else of the first card. Each begins at a multiple of 16 bytes, as what is allocated does; a
 * view into it may not, and is refused. `stream` is a CUstream or NULL; calls share {workspaces}
 * bytes of workspaces: where that is not 0, they want one stream. Returns before the kernels are
 * done: 0, or 1 for a failure. */
int {name}(void *const *buffers, void *stream);

/* The same on arrays of the host, copied there and back: done when it returns. */
int {name}_on_host(void *const *arrays);

/* What the last failure of this thread was, in words. */
const char *{name}_error(void);

#ifdef __cplusplus
}}
#endif
#endif
"""


def write(result: Result, path: Path) -> list[Path]:
    """Write the library `path` and its header; the paths.

    `InputError` for other targets than CUDA, for weights that are packed ahead, and for a file
    name that is no name in C; `DeviceError` without a C compiler.
    """
    workload, target, name = result.workload, result.target, path.stem
    if not isinstance(target, CUDA):
        raise InputError(
            f"--out {path.name}: only a kernel for cuda is exported as a library: --target cuda, or"
            " cuda:sm_90 --measure model"
        )
    if workload.prepacked:
        raise InputError("a kernel whose weights are packed ahead cannot be exported yet")
    if NAME.fullmatch(name) is None or name in RESERVED:
        raise InputError(f"--out {path.name}: {name} is no name of a function in C")
    compiler = _compiler()
    make(path.parent)
    func = workload.prim_func(result.values["formulation"])
    program = target.program(schedule(func, target, result.values["config"]))
    binary = cuda_compiler.compile_cuda(program.source, target.arch)
    text = cuda_compiler.ptx(program.source, target.arch)
    data = _data(target.arch, program.functions["main"], binary.cubin, text)
    _compile(compiler, name, data, path)
    header = path.with_suffix(".h")
    header.write_text(_header(workload, target.device, name, program.functions["main"]))
    return [header, path]


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise DeviceError("no C compiler found (cc, gcc, clang): install one")
    return found


def _compile(compiler: str, name: str, data: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="flextensor-export-") as folder:
        included = Path(folder) / "kernel_data.h"
        included.write_text(data)
        command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC"]
        command += ["-fvisibility=hidden", f"-DFT_ENTRY={name}", "-include", str(included)]
        command += ["-o", str(path), str(HOST), "-ldl", "-lpthread"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{compiler} took more than {SECONDS} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise DeviceError(f"{compiler}: {errors[0] if errors else done.stderr[:200].strip()}")


def _data(arch: str, function: Function, cubin: bytes, ptx: str) -> str:
    """The constants that the host is compiled with."""
    return DATA.format(
        arch=arch,
        parameters=function.parameters,
        most=max(len(launch.arguments) for launch in function.launches),
        launches=", ".join(map(_launch, function.launches)),
        sizes=_listed(max(size, 1) for size in function.sizes),
        written=_listed(int(p in function.written) for p in range(function.parameters)),
        cubin=_listed(cubin),
        ptx=_listed(ptx.encode()),
    )


def _launch(launch: Launch) -> str:
    extents = ", ".join(f"{{{_listed(three)}}}" for three in (launch.grid, launch.block))
    arguments = f"{len(launch.arguments)}, {{{_listed(launch.arguments)}}}"
    return f'{{"{launch.kernel}", {extents}, {launch.shared}, {arguments}}}'


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _header(workload: Workload, device: str, name: str, function: Function) -> str:
    return HEADER.format(
        workspaces=sum(function.sizes[function.parameters :]),
        workload=workload.key.replace("*/", "* /"), device=device, name=name, guard=name.upper(),
        buffers="\n".join(map(_buffer, workload.buffers)),
    )  # fmt: skip


def _buffer(buffer: BufferSpec) -> str:
    shape = "".join(f"[{extent}]" for extent in buffer.shape)
    return f" *   {buffer.dtype} {buffer.name}{shape}, {buffer.nbytes} bytes"
