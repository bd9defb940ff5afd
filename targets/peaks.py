"""What a device can do at most: FLOP/s and bytes/s, measured once and remembered.

On a CPU the peak is that of independent chains of fused multiply-adds that never leave the
registers; of a dtype whose products tile registers or dot products sum, that of these instructions.
The bandwidth is that of reading, all cores at once, a buffer four times as big as the last-level
cache, but of at most 512 MiB and an eighth of the memory: where hundreds of cores share a cache
that is bigger than that (virtual machines), part of what is measured is that cache.
Both are the best of many repeats, for a peak is a maximum and neighbours only take from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from flextensor.targets import dot_products, host, remote, tiles
from flextensor.targets.base import Target

BANDWIDTH = "bandwidth"
MEASURE_SECONDS = 1.0
"""How long a kernel is repeated."""
CHAINS = 12
"""Independent accumulators: two FMA units times a latency of 4 to 5, and they fit 16 registers."""
STEPS = 1 << 19
MOST_BYTES = 512 << 20
_unwritten: dict[Path, dict[str, Any]] = {}
"""What this process could not write, by cache file."""


def peak_flops(target: Target, dtype: str = "float32") -> float:
    """FLOP/s of all cores of `target`; about two seconds the first time, then from the cache."""
    return _remembered(target, dtype)


def bandwidth(target: Target) -> float:
    """Bytes/s that all cores of `target` read; about four seconds the first time."""
    return _remembered(target, BANDWIDTH)


def remeasure(target: Target, dtype: str = "float32") -> None:
    """Measure both again and remember what is higher: a reading beside a busy neighbour is low."""
    path = _path(target)
    known = _read(path)
    for what in (dtype, BANDWIDTH):
        known[what] = max(_in_worker(target, what), float(known.get(what, 0.0)))
    _write(path, {**known, "fingerprint": target.fingerprint})


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/flextensor, by default ~/.cache/flextensor."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "flextensor"


def _path(target: Target) -> Path:
    name = hashlib.sha256(target.fingerprint.encode()).hexdigest()[:16]
    return cache_folder() / f"peaks-{name}.json"


def _remembered(target: Target, what: str) -> float:
    path = _path(target)
    known = _read(path)
    if what not in known:
        measured = _in_worker(target, what)
        known = _read(path) | {"fingerprint": target.fingerprint, what: measured}
        _write(path, known)
    return float(known[what])


def _in_worker(target: Target, what: str) -> float:
    """Measure in a fresh process, where the device is: its thread pool is that of the target, and
    no peer runs."""
    from flextensor import targets

    with tempfile.TemporaryDirectory(prefix="flextensor-peak-") as folder:
        worker = remote.runner(target, Path(folder))
        try:
            reply = worker.call("peak", {"target": targets.dump(target), "what": what}, timeout=120)
            return float(reply["value"])
        finally:
            worker.kill()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        values = _unwritten.get(path, {})
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    """Replace the file as a whole; without a writable cache the next process measures again, but
    not this one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(values))
        os.replace(part, path)
    except OSError:
        _unwritten[path] = values
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def measure(target: Target, what: str) -> float:
    """Measure bandwidth or the peak of a dtype on a CPU, in this process."""
    return _measure_bandwidth(target) if what == BANDWIDTH else _measure_flops(target, what)


def _measure_flops(target: Target, dtype: str) -> float:
    import numpy as np

    if depth := target.tile_depth(dtype):
        return _measure_tiles(target, dtype, depth)
    if group := target.dot_group(dtype):
        return _measure_dots(target, dtype, group)
    lanes = target.lanes(dtype)
    shape = (target.cores, CHAINS, lanes)
    x, out = np.full(lanes, 0.5, dtype), np.zeros(shape, dtype)
    return 2 * STEPS * math.prod(shape) / _best_seconds(target, _chains(target, dtype), x, out)


def _measure_dots(target: Target, dtype: str, group: int) -> float:
    import ml_dtypes  # noqa: F401 - importing it lets NumPy know bfloat16
    import numpy as np

    shape = (target.cores, CHAINS, target.lanes("float32"))
    x = np.zeros(group * shape[-1], dtype)
    out = np.zeros(shape, dot_products.SUMS[dtype])
    module = dot_products.chains(dtype, target.cores, CHAINS, STEPS)
    return 2 * group * STEPS * math.prod(shape) / _best_seconds(target, module, x, out)


def _measure_tiles(target: Target, dtype: str, depth: int) -> float:
    import numpy as np

    x = np.zeros((tiles.ROWS, tiles.ROWS), "uint32")
    out = np.zeros((target.cores, *x.shape), dot_products.SUMS[dtype])
    module, steps = tiles.products(dtype, target.cores, STEPS // 8), 4 * STEPS // 8
    return 2 * depth * steps * out.size / _best_seconds(target, module, x, out)


def _measure_bandwidth(target: Target) -> float:
    import numpy as np

    size = min(4 * target.l3_bytes, MOST_BYTES, host.memory_bytes() // 8)
    block = CHAINS * target.lanes("float32")
    parts = 8 * target.cores
    steps = size // 4 // block // parts
    x = np.zeros((parts, steps, CHAINS, target.lanes("float32")), "float32")  # TVM's copy is real
    out = np.zeros((parts, CHAINS, target.lanes("float32")), "float32")
    return x.nbytes / _best_seconds(target, _stream(target, x.shape), x, out)


def _best_seconds(target: Target, module: Any, *arrays: Any) -> float:
    import tvm

    call = tvm.compile(module, target=target.tvm_target())["main"]
    runtime = target.runtime()
    tensors = [runtime.place(array) for array in arrays]
    end, best = time.perf_counter() + MEASURE_SECONDS, math.inf
    while time.perf_counter() < end:
        start = time.perf_counter()
        call(*tensors)
        runtime.sync()
        best = min(best, time.perf_counter() - start)
    return best


def _chains(target: Target, dtype: str) -> Any:
    """Every core: out[chain, lane] = out[chain, lane] * x[lane] + x[lane], STEPS times."""
    from tvm import te, tirx

    lanes = target.lanes(dtype)
    x = te.placeholder((lanes,), dtype=dtype, name="x")
    step = te.reduce_axis((0, STEPS), "step")
    fma = te.comm_reducer(lambda a, b: a * b + b, lambda d: tirx.const(0, d), name="fma")
    shape = (target.cores, CHAINS, lanes)
    out = te.compute(shape, lambda p, c, v: fma(x[v], axis=step), name="out")
    return _in_registers([x, out])


def _stream(target: Target, shape: tuple[int, ...]) -> Any:
    """Every part: out[chain, lane] = the sum of x[part, :, chain, lane]."""
    from tvm import te

    x = te.placeholder(shape, dtype="float32", name="x")
    step = te.reduce_axis((0, shape[1]), "step")
    parts = (shape[0], *shape[2:])
    out = te.compute(parts, lambda p, c, v: te.sum(x[p, step, c, v], axis=step), name="out")
    return _in_registers([x, out])


def _in_registers(tensors: list[Any]) -> Any:
    """Parts in parallel, then the reduction, then unrolled chains of vectors."""
    from tvm import te
    from tvm.s_tir import Schedule

    schedule = Schedule(te.create_prim_func(tensors))
    block = schedule.get_sblock("out")
    part, chain, lane, step = schedule.get_loops(block)
    schedule.reorder(part, step, chain, lane)
    schedule.parallel(part)
    schedule.unroll(chain)
    schedule.vectorize(lane)
    schedule.decompose_reduction(block, step)
    return schedule.mod
