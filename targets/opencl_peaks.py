"""What an OpenCL device can do at most, measured by two kernels that only compute and only read.

Multiply-adds are written as such and contracted by the compiler: `fma` is a call on some CPUs.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from flextensor.targets import peaks

if TYPE_CHECKING:
    from flextensor.targets.opencl import OpenCL

CHAINS = 12
"""Independent sums a thread, so that no multiply-add waits for another."""
STEPS = 1 << 12
GROUPS = 32
"""Work groups for every compute unit."""
MOST_THREADS = 64
"""A work group: two warps of a GPU; a CPU runs its threads one after the other."""
TYPES = {"float32": "float", "float64": "double", "float16": "half"}

COMPUTE = """
__kernel void compute(__global {one}* out, {one} factor) {{
  {vector} x = factor;
  {declare}
  for (int step = 0; step < {steps}; ++step) {{
    {chain}
  }}
  {vector} sum = {total};
  vstore{lanes}(sum, get_global_id(0), out);
}}
"""
READ = """
__kernel void compute(__global const {vector}* in, __global {vector}* out,
                      int steps, int start, int by) {{
  size_t at = get_group_id(0) * get_local_size(0) * steps + get_local_id(0) * start;
  {vector} sum = 0;
  for (int step = 0; step < steps; ++step) {{
    sum += in[at];
    at += by;
  }}
  out[get_global_id(0)] = sum;
}}
"""
"""Every group reads a part of its own, its threads side by side or each a stretch of it. (To load
a vector from anywhere, `vload`, is a call on some CPUs.)"""


def measure(target: OpenCL, what: str) -> float:
    """Measure ``bandwidth``, bytes/s, or the FLOP/s of a dtype, in this process."""
    return _bandwidth(target) if what == peaks.BANDWIDTH else _flops(target, what)


def _flops(target: OpenCL, dtype: str) -> float:
    import numpy as np

    lanes = min(target.lanes(dtype), 16)
    one = TYPES[dtype]
    names = [f"c{i}" for i in range(CHAINS)]
    source = COMPUTE.format(
        one=one, vector=f"{one}{lanes}", lanes=lanes, steps=STEPS, total=" + ".join(names),
        declare="\n  ".join(f"{one}{lanes} {name} = get_global_id(0) + {i};"
                            for i, name in enumerate(names)),
        chain="\n    ".join(f"{name} = {name} * x + x;" for name in names),
    )  # fmt: skip
    threads = _threads(target)
    out = np.zeros(threads * lanes, dtype)
    seconds = _best_seconds(target, source, threads, out, np.dtype(dtype).type(0.5))
    return 2 * STEPS * CHAINS * lanes * threads / seconds


def _bandwidth(target: OpenCL) -> float:
    import numpy as np

    from flextensor.targets import host

    lanes = min(target.lanes("float32"), 16)
    threads = _threads(target)
    size = min(4 * target.l3_bytes, peaks.MOST_BYTES, host.memory_bytes() // 8)
    steps = max(size // (4 * lanes * threads), 1)
    data, out = np.zeros(steps * threads * lanes, "float32"), np.zeros(threads * lanes, "float32")
    source = READ.format(vector=f"float{lanes}")
    together, apart = (1, _block(target)), (steps, 1)  # what a GPU likes, and what a CPU likes
    return max(
        data.nbytes
        / _best_seconds(target, source, threads, data, out, *map(np.int32, (steps, *order)))
        for order in (together, apart)
    )


def _threads(target: OpenCL) -> int:
    """Threads in all."""
    return GROUPS * target.cores * _block(target)


def _block(target: OpenCL) -> int:
    return min(target.threads_per_block, MOST_THREADS)


def _best_seconds(target: OpenCL, source: str, threads: int, *arguments: Any) -> float:
    """Seconds of the fastest of many launches; arrays among the arguments are placed."""
    import numpy as np
    import pyopencl as cl

    runtime = target.runtime()
    placed = [runtime.place(a) if isinstance(a, np.ndarray) else a for a in arguments]
    kernel = cl.Kernel(runtime.compile(source), "compute")
    kernel.set_args(*(getattr(p, "memory", p) for p in placed))
    best, end = math.inf, time.perf_counter() + peaks.MEASURE_SECONDS
    launches = 0
    while time.perf_counter() < end or launches < 3:
        start = time.perf_counter()
        cl.enqueue_nd_range_kernel(runtime.queue, kernel, (threads,), (_block(target),))
        runtime.sync()
        best = min(best, time.perf_counter() - start)
        launches += 1
    return best
