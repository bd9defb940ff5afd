"""Run an exported kernel on the first OpenCL device; needs pyopencl and NumPy only.

python run.py          inputs are random, integers zero: replace them by your own
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

HERE = Path(__file__).resolve().parent
CALLS = 20


def main() -> None:
    """Build, launch, time, read back."""
    info: dict[str, Any] = json.loads((HERE / "launch.json").read_text())
    context = cl.create_some_context(interactive=False)
    queue = cl.CommandQueue(context)
    program = cl.Program(context, (HERE / info["source"]).read_text()).build()

    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(b["shape"]) for b in info["buffers"]]
    arrays = [a.astype(b["dtype"]) for a, b in zip(arrays, info["buffers"], strict=True)]
    arrays = [a if a.dtype.kind == "f" else a * 0 for a in arrays]
    memory = [cl.Buffer(context, cl.mem_flags.READ_WRITE, n) for n in info["sizes"]]
    for buffer, array in zip(memory, arrays, strict=False):  # behind them are workspaces
        cl.enqueue_copy(queue, buffer, array)

    kernels = []
    for launch in info["launches"]:
        kernel = cl.Kernel(program, launch["kernel"])
        kernel.set_args(*(memory[position] for position in launch["arguments"]))
        pairs = zip(launch["grid"], launch["block"], strict=True)
        kernels.append((kernel, tuple(g * b for g, b in pairs), tuple(launch["block"])))

    def call() -> None:
        for kernel, threads, block in kernels:
            cl.enqueue_nd_range_kernel(queue, kernel, threads, block)
        queue.finish()

    call()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    out = np.empty(info["buffers"][-1]["shape"], info["buffers"][-1]["dtype"])
    cl.enqueue_copy(queue, out, memory[len(info["buffers"]) - 1])
    print(f"{info['workload']}: {np.median(seconds) * 1e6:.1f} us, sum {float(out.sum()):.6g}")


if __name__ == "__main__":
    main()
