"""Run an exported kernel on the first CUDA card; needs CuPy and NumPy only.

python run.py          inputs are random, integers zero: replace them by your own
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CALLS = 20


def stored(array: Any, dtype: str) -> Any:
    """An array in a dtype; bfloat16, which NumPy lacks, as its bits, rounded to even."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = array.astype("float32").view("uint32")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("uint16")


def numbers(array: Any, dtype: str) -> Any:
    """What is `stored` in an array."""
    return (array.astype("uint32") << 16).view("float32") if dtype == "bfloat16" else array


def main() -> None:
    """Load, launch, time, read back."""
    import cupy

    info: dict[str, Any] = json.loads((HERE / "launch.json").read_text())
    module = cupy.RawModule(path=str(HERE / info["binary"]))

    rng = np.random.default_rng(0)
    drawn = [(rng.standard_normal(b["shape"]), b["dtype"]) for b in info["buffers"]]
    arrays = [stored(a if "float" in dtype else a * 0, dtype) for a, dtype in drawn]
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
    out = numbers(cupy.asnumpy(memory[len(arrays) - 1]), info["buffers"][-1]["dtype"])
    print(f"{info['workload']}: {np.median(seconds) * 1e6:.1f} us, sum {float(out.sum()):.6g}")


if __name__ == "__main__":
    main()
