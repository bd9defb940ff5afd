"""OpenCL C as a device's compiler gets it, with the launches of its kernels.

PoCL calls what OpenCL C has built in, a function of its library for every load of a vector: twenty
calls in an inner loop of six by two vectors of multiply-adds, which takes twenty times as long.
Kernels whose blocks are one thread get functions that are compiled with them.

    acc = vload8(0, a) * x;    ->    acc = inline_vload8(0, a) * x;     # by the preprocessor

Of blocks of several threads PoCL makes loops, and miscompiles some that hold such vectors; they
keep their calls.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.targets import launches
from flextensor.targets.launches import Program

if TYPE_CHECKING:
    from flextensor.targets.opencl import OpenCL

POCL = "Portable Computing Language"
BUILTINS = Path(__file__).with_name("opencl_builtins.cl")
NAMES = (*(f"{what}{n}" for what in ("vload", "vstore") for n in (2, 4, 8, 16)), "min", "max")
KERNEL = re.compile(r"^// Function: (\w+)$", re.MULTILINE)
"""How TVM begins a kernel."""


def lower(module: Any, target: OpenCL) -> Program:
    """A scheduled `tvm.IRModule` as `launches.lower` has it, complete for the device."""
    program = launches.lower(module, target.tvm_target())
    kernels = [x for function in program.functions.values() for x in function.launches]
    alone = {x.kernel for x in kernels if math.prod(x.block) == 1}
    if target.platform != POCL or not alone:
        return program
    head, *parts = KERNEL.split(program.source)
    source = _for_pocl(BUILTINS.read_text()) + head
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        source += f"// Function: {name}" + (in_place(text) if name in alone else text)
    return dataclasses.replace(program, source=source)


def in_place(text: str) -> str:
    """OpenCL C in which PoCL calls none of `NAMES`, for after `BUILTINS`."""
    begin = "".join(
        f'#pragma push_macro("{name}")\n#undef {name}\n#define {name} inline_{name}\n'
        for name in NAMES
    )
    end = "".join(f'#pragma pop_macro("{name}")\n' for name in NAMES)
    return f"\n{_for_pocl(begin)}{text}\n{_for_pocl(end)}"


def _for_pocl(text: str) -> str:
    """For no other compiler: an exported kernel may run anywhere."""
    return f"#ifdef POCL_DEVICE_ADDRESS_BITS\n{text}#endif\n"
