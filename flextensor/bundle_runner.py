"""Verify and time the kernels of a bundle on this machine's CUDA card; needs CuPy and NumPy only.

    python run.py                  writes trials.jsonl beside this file; run again, it goes on
    flextensor db import trials.jsonl        on the machine that made the bundle

Every kernel runs in a child process that an illegal address, a crash or a hang may take down: it
costs one trial. Times are of CUDA events, one call each, the L2 cache overwritten before it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

HERE = Path(__file__).resolve().parent
REPEATS = 20
FLUSH_BYTES = 256 << 20
SILENCE_SECONDS = 120.0
"""A child that finishes no kernel for so long is ended."""
UNABLE = 2
"""Exit code where nothing can be measured at all."""


def random_input(rng: Any, shape: list[int], dtype: str) -> Any:
    """What FlexTensor draws for an input: standard normal floats, any integers of 8 and 16 bits,
    small ones of more."""
    if dtype in ("int8", "uint8", "int16", "uint16"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    if dtype.startswith(("int", "uint", "bool")):
        return rng.integers(0, 2 if dtype == "bool" else 8, shape).astype(dtype)
    return stored(rng.standard_normal(shape, dtype="float32"), dtype)


def stored(array: Any, dtype: str) -> Any:
    """An array in a dtype; bfloat16, which NumPy lacks, as its bits, rounded to even."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = array.astype("float32").view("uint32")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("uint16")


def numbers(array: Any, dtype: str) -> Any:
    """What is `stored` in an array."""
    return (array.astype("uint32") << 16).view("float32") if dtype == "bfloat16" else array


def inputs_of(work: dict[str, Any]) -> list[Any]:
    """The inputs of a workload, from its seed or its file, the same bits as where it was made."""
    *specs, _ = work["buffers"]
    if work["data"]:
        with np.load(HERE / work["data"]) as data:
            arrays = [data[f"input{i}"] for i in range(len(specs))]
    else:
        rng = np.random.default_rng(work["seed"])
        arrays = [random_input(rng, spec["shape"], spec["dtype"]) for spec in specs]
    if [digest(a) for a in arrays] != work["digests"]:
        give_up(f"NumPy {np.__version__} draws other inputs than the bundle's")
    return arrays


def give_up(why: str) -> NoReturn:
    """End all: nothing can be measured here, and no candidate is to blame."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(UNABLE)


def digest(array: Any) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class Card:
    """The card, and the buffers of the workload that is on it."""

    def __init__(self) -> None:
        try:
            import cupy

            cupy.cuda.runtime.getDeviceCount()
        except Exception as error:  # not installed, or no card: each has a class of its own
            give_up(f"CuPy finds no CUDA card: {type(error).__name__}: {error}")
        self.cupy: Any = cupy
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        name = properties["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.architecture = f"sm_{properties['major']}{properties['minor']}"
        self.flush = cupy.zeros(FLUSH_BYTES, "uint8")
        self.key = ""

    def load(self, work: dict[str, Any]) -> None:
        """Place the inputs of a workload, unless they are there."""
        if self.key == work["key"]:
            return
        self.inputs = [self.cupy.asarray(a) for a in inputs_of(work)]
        with np.load(HERE / work["reference"]) as data:
            self.positions, self.values = data["positions"], data["values"]
            self.scale = float(data["scale"])
        self.key = work["key"]

    def measure(self, work: dict[str, Any], candidate: dict[str, Any]) -> dict[str, Any]:
        """{"status", "times", "message", "error"} of a candidate of the workload that is there."""
        shape, dtype = work["buffers"][-1]["shape"], work["buffers"][-1]["dtype"]
        fill = np.full(shape, np.nan if "float" in dtype else 1, "float32")
        out = self.cupy.asarray(stored(fill, dtype))
        call = self.prepared(candidate, [*self.inputs, out])
        call()
        self.cupy.cuda.Device().synchronize()
        error = self.error(numbers(self.cupy.asnumpy(out), dtype).reshape(-1))
        if not error <= work["tolerance"]:
            finite = error < np.inf
            said = f"relative error {error:.3g}" if finite else "the output holds NaN or inf"
            kept = error if finite else None
            return {"status": "wrong_result", "times": [], "message": said, "error": kept}
        times = [self.timed(call) for _ in range(REPEATS)]
        return {"status": "ok", "times": times, "message": "", "error": error}

    def prepared(self, candidate: dict[str, Any], buffers: list[Any]) -> Any:
        """All launches of a candidate on `buffers` as one function."""
        module = self.cupy.RawModule(path=str(HERE / candidate["file"]))
        function = candidate["function"]
        sizes = function["sizes"][function["parameters"] :]
        everything = [*buffers, *(self.cupy.full(size, 0xFF, "uint8") for size in sizes)]
        launches = [
            (
                self.kernel(module, launch),
                tuple(launch["grid"]),
                tuple(launch["block"]),
                tuple(everything[p] for p in launch["arguments"]),
                launch.get("shared", 0),
            )
            for launch in function["launches"]
        ]

        def call() -> None:
            for kernel, grid, block, arguments, shared in launches:
                kernel(grid, block, arguments, shared_mem=shared)

        return call

    def kernel(self, module: Any, launch: dict[str, Any]) -> Any:
        """A kernel that may have as much shared memory as its launch gives it."""
        kernel, shared = module.get_function(launch["kernel"]), launch.get("shared", 0)
        if shared:
            kernel.max_dynamic_shared_size_bytes = shared
        return kernel

    def error(self, out: Any) -> float:
        """max|y - y64| / max|y64| at the positions of the reference; inf for NaN anywhere."""
        if not np.isfinite(out).all():
            return float("inf")
        gap = np.abs(out[self.positions].astype("float64") - self.values)
        return float(gap.max(initial=0.0) / (self.scale or 1.0))

    def timed(self, call: Any) -> float:
        """Seconds of one call, after its data was driven out of L2."""
        event = self.cupy.cuda.Event
        start, end = event(), event()
        self.flush.fill(1)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e-3


def record(
    manifest: dict[str, Any],
    work: dict[str, Any],
    candidate: dict[str, Any],
    card: dict[str, Any],
    found: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """One line of an export of trials, as `flextensor db import` reads it; ``cold``, since caches
    are, as in a `tune` on a card."""
    device = f"{card['name']}/{card['multiprocessors']}"
    target = f"cuda/{manifest['architecture']}/{device}/tvm-{manifest['tvm']}/cold"
    identity = hashlib.sha256(f"{candidate['id']} {target}".encode()).hexdigest()[:32]
    fields = ("formulation", "config")
    return {
        "record": "trial", "id": identity, "workload": work["key"], "target": target,
        "created": time.time(), "version": manifest["version"], "operator": work["operator"],
        "params": work["params"], "session": manifest["session"], "seed": None,
        **{name: candidate[name] for name in fields}, **found,
        "build_seconds": candidate["build_seconds"], "run_seconds": seconds,
    }  # fmt: skip


def child(numbers: list[int], out: Path) -> None:
    """Measure candidates in turn, a line each; the first failure of the card ends the process."""
    manifest = json.loads((HERE / "manifest.json").read_text())
    every = candidates(manifest)
    card = Card()
    wanted, has = manifest["architecture"], card.architecture
    if wanted != has:
        give_up(f"the bundle is for {wanted}, this card is {has}")
    known = {"name": card.name, "multiprocessors": card.multiprocessors}
    (HERE / "card.json").write_text(json.dumps(known))
    for number in numbers:
        work, candidate = every[number]
        try:
            card.load(work)
        except Exception as error:  # a damaged file, or a card that is too small
            give_up(f"{work['key']} cannot be loaded: {type(error).__name__}: {error}")
        start, failed = time.time(), False
        try:
            found = card.measure(work, candidate)
        except Exception as error:  # CuPy's own: the context may be lost
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            found = {"status": "run_error", "times": [], "message": message, "error": None}
            failed = True
        line = record(manifest, work, candidate, known, found, time.time() - start)
        write(out, line, candidate["id"])
        if failed:
            return


def candidates(manifest: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every candidate with its workload, in order."""
    return [(work, c) for work in manifest["workloads"] for c in work["candidates"]]


def write(out: Path, line: dict[str, Any], identity: str) -> None:
    """Append a trial, then say that it is done: what is said is never measured again."""
    with out.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    with (HERE / "done.txt").open("a") as stream:
        stream.write(f"{identity}\n")
    times, best = line["times"], ""
    if times:
        best = f"{float(np.median(times)) * 1e6:.1f} us, error {line['error']:.1e}"
    print(f"{line['workload']}: {line['status']} {best}{line['message']}", flush=True)


def finished() -> set[str]:
    """The candidates that have a trial."""
    path = HERE / "done.txt"
    return set(path.read_text().split()) if path.is_file() else set()


def unfinished(every: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[int]:
    """Numbers of the candidates that have none."""
    done = finished()
    return [number for number, (_, candidate) in enumerate(every) if candidate["id"] not in done]


def supervise(process: subprocess.Popen[bytes]) -> str:
    """Wait for a child; why it must be given up, or nothing."""
    last, done = time.time(), len(finished())
    while process.poll() is None:
        time.sleep(0.05)
        if len(finished()) > done:
            last, done = time.time(), len(finished())
        if time.time() - last > SILENCE_SECONDS:
            process.kill()
            process.wait()
            return "timeout"
    return "run_error" if process.returncode else ""


def main() -> int:
    """Measure whatever has no trial yet; children that die cost the kernel they were at."""
    manifest = json.loads((HERE / "manifest.json").read_text())
    every, out = candidates(manifest), HERE / "trials.jsonl"
    if not out.is_file():
        out.write_text(json.dumps({"flextensor": "trials", "schema": manifest["schema"]}) + "\n")
    while left := unfinished(every):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, left)]
        process = subprocess.Popen(command)
        why = supervise(process)
        left = unfinished(every)
        if not why or not left:
            continue
        if process.returncode == UNABLE or not (HERE / "card.json").is_file():
            return UNABLE  # the child said why
        message = f"no reply in {SILENCE_SECONDS:.0f} s" if why == "timeout" else "the process died"
        found: dict[str, Any] = {"status": why, "times": [], "message": message, "error": None}
        card = json.loads((HERE / "card.json").read_text())
        work, candidate = every[left[0]]
        write(out, record(manifest, work, candidate, card, found, 0.0), candidate["id"])
    print(f"{len(every)} trials in {out}; take it back and `flextensor db import` it")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(list(map(int, sys.argv[2:])), HERE / "trials.jsonl")
    else:
        sys.exit(main())
