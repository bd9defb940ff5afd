"""Run an exported kernel on the first CUDA card; needs CuPy and NumPy only.

python run.py          inputs are random, integers zero: replace them by your own
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CALLS = 20


def main() -> None:
    """Load, launch, time, read back."""
    import cupy

    info: dict[str, Any] = json.loads((HERE / "launch.json").read_text())
    module = cupy.RawModule(path=str(HERE / info["binary"]))

    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(b["shape"]) for b in info["buffers"]]
    arrays = [a.astype(b["dtype"]) for a, b in zip(arrays, info["buffers"], strict=True)]
    arrays = [a if a.dtype.kind == "f" else a * 0 for a in arrays]
    memory = [cupy.asarray(array) for array in arrays]
    memory += [cupy.empty(size, "uint8") for size in info["sizes"][len(arrays) :]]  # workspaces

    kernels = []
    for launch in info["launches"]:
        kernel = module.get_function(launch["kernel"])
        if launch["shared"]:
            kernel.max_dynamic_shared_size_bytes = launch["shared"]
        arguments = tuple(memory[position] for position in launch["arguments"])
        kernels.append((kernel, launch, arguments))

    def call() -> None:
        for kernel, launch, arguments in kernels:
            shape = tuple(launch["grid"]), tuple(launch["block"])
            kernel(*shape, arguments, shared_mem=launch["shared"])

    call()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    seconds = []
    for _ in range(CALLS):
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(start, end) * 1e-3)
    out = cupy.asnumpy(memory[len(arrays) - 1])
    print(f"{info['workload']}: {np.median(seconds) * 1e6:.1f} us, sum {float(out.sum()):.6g}")


if __name__ == "__main__":
    main()
