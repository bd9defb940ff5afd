"""The runner's side of a measurement: check a kernel once, then time it; or time several in turns.

On a CPU caches are warm: a kernel is called over and over on the same buffers, as a layer of a
network finds its weights when it fits; on a card they are cold (`Runtime.seconds`). One kernel runs
at a time, on `target.cores` threads.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flextensor import buffers, compiled, peers, targets
from flextensor.lean import import_tvm
from flextensor.operators.workload import ROUNDING
from flextensor.targets.runtime import Runtime

WARM_SECONDS = 0.01
MIN_REPEATS, MAX_REPEATS = 5, 40
ENOUGH_SECONDS, MOST_SECONDS = 0.05, 0.15
SPREAD = 0.03
"""Repeats stop after ENOUGH_SECONDS when their interquartile range is below this share of the
median, and after MOST_SECONDS in any case."""
HOPELESS = ((0.02, 20.0), (0.1, 3.0))
"""A candidate is abandoned after a first, cold call of at least so many seconds, when that took so
many times as long as the best. Of a shorter one page faults and waking threads may be most."""
ABANDON = {1: 2.0, 3: 1.2}
"""After so many repeats, a candidate whose best is so many times slower is abandoned."""
SLOW_SECONDS = 0.05
"""Two calls a turn are enough when each takes this long: one to warm up, the other is timed."""
LONG_SECONDS = 0.3
"""Two repeats are enough when they took this long: a long call is its own average."""
UNSTEADY = 0.2
"""While the interquartile range of anything that is timed in turns is above this share of its
median there are more rounds, where a caller allows them."""
VOID = 1.0
"""Above this share of their median times say nothing: threads of a library wait for each other, a
thousand times as long as it computes, and do so in all rounds of a process or in none."""
FEW_ROUNDS, ROUNDS_SECONDS = 3, 10.0
"""After so many seconds there is no other round, scattered or not, but for so few of long calls."""

PEER_TOLERANCE = 1e-3
"""Relative error of a peer's result above which it does not compute the operator, unless its
dtype is coarser."""

Call = Callable[[], Any]


class Clock:
    """Times calls of one function on the clock of a runtime.

    `rest` are the seconds for which its threads spin after a call, on cores that others need.
    """

    def __init__(self, call: Call, runtime: Runtime, rest: float = 0.0) -> None:
        self.call, self.runtime, self.rest = call, runtime, rest

    def run(self, number: int) -> float:
        """Seconds per call over `number` calls."""
        return self.runtime.seconds(self.call, number)

    def warm(self, seconds: float) -> list[float]:
        """Call for `seconds` (at least twice); the seconds of every call."""
        end = time.perf_counter() + seconds
        calls = [self.run(1), self.run(1)]
        while time.perf_counter() < end:
            calls.append(self.run(1))
        return calls

    def calls(self, seconds: float) -> int:
        """Calls that a repeat needs when one takes `seconds`."""
        return max(1, round(self.runtime.repeat_seconds / max(seconds, 1e-8)))


def spread(times: Sequence[float]) -> float:
    """Interquartile range over the median; 0 of a single time."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4)
    return (high - low) / median


def steady(times: Sequence[float]) -> bool:
    """Whether times scatter so little that their median means something; a single one may not."""
    return spread(times) <= UNSTEADY


def void(times: Sequence[float]) -> bool:
    """Whether times scatter so much that they are no times of what was called."""
    return spread(times) > VOID


def slower(times: Sequence[float], best: float) -> bool:
    """Whether these repeats show clearly that the best is out of reach."""
    return len(times) in ABANDON and min(times) > ABANDON[len(times)] * best


def time_kernel(clock: Clock, best: float, first: float) -> tuple[list[float], str]:
    """(seconds per call of every repeat, a message when it was abandoned).

    `first` is what the first, cold call took and `best` the seconds to beat (may be inf).
    """
    if any(first > least and first > slow * best for least, slow in HOPELESS):
        return [first], f"abandoned: {first / best:.3g} times slower than the best"
    number = 1 if first > LONG_SECONDS else clock.calls(min(clock.warm(WARM_SECONDS)))
    times: list[float] = []
    total = 0.0
    while len(times) < MAX_REPEATS:
        times.append(clock.run(number))
        total += times[-1] * number
        if slower(times, best):
            ratio = min(times) / best
            return times, f"abandoned: {ratio:.3g} times slower than the best"
        if len(times) >= 2 and total >= LONG_SECONDS:
            break
        if len(times) < MIN_REPEATS or total < ENOUGH_SECONDS:
            continue
        if total >= MOST_SECONDS or spread(times) < SPREAD:
            break
    return times, ""


def interleave(
    clocks: Mapping[str, Clock], rounds: int, warm: float, most: int = 0
) -> dict[str, list[float]]:
    """Seconds per call of every function, timed in turns.

    Every turn first runs the same function `warm` seconds unrecorded: when thread pools change
    hands, about ten calls read 2 to 30 times slow. Each round begins with another function. A
    neighbour may slow a host down for seconds: while times are `UNSTEADY` there are more rounds for
    all, up to `most`, and every one of them counts. Of long calls `FEW_ROUNDS` are enough.
    """
    times: dict[str, list[float]] = {name: [] for name in clocks}
    names, start = list(clocks), time.perf_counter()
    for turn in range(max(rounds, most)):
        if turn >= FEW_ROUNDS and time.perf_counter() - start > ROUNDS_SECONDS:
            break
        if turn >= rounds and all(map(steady, times.values())):
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            calls = clocks[name].warm(warm)
            if min(calls) < SLOW_SECONDS:
                number = clocks[name].calls(min(calls))
                calls = [clocks[name].run(number) for _ in range(3)]
            else:
                calls = calls[-1:]
            times[name] += calls
            time.sleep(clocks[name].rest)
    return times


class Data:
    """Inputs, poisoned output and reference of a workload, read from the parent's files."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self.inputs = [buffers.aligned(buffers.load(path)) for path in payload["inputs"]]
        self.reference = np.load(payload["reference"])
        self.output = buffers.empty(tuple(payload["shape"]), payload["dtype"])

    def check(self, output: buffers.Array) -> float | None:
        """The relative error of an output, None when it is not finite where it should be."""
        error = buffers.relative_error(output, self.reference)
        return error if math.isfinite(error) else None


class Runner:
    """The methods of a run worker; `load` comes first."""

    def load(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """{"target", "tolerance", "inputs", "reference", "shape", "dtype"} -> {}."""
        import_tvm()
        self.target = targets.load(payload["target"])
        self.tolerance: float = payload["tolerance"]
        self.runtime = self.target.runtime()
        self.data = Data(payload)
        self.tensors = self._place(self.data)
        return {}

    def _place(self, data: Data) -> list[Any]:
        """The buffers as device tensors; the output is poisoned."""
        buffers.poison(data.output)
        return [self.runtime.place(array) for array in (*data.inputs, data.output)]

    def _poison(self) -> None:
        buffers.poison(self.data.output)
        self.tensors[-1].copyfrom(self.data.output)

    def _clock(self, path: str, tensors: Sequence[Any] | None = None) -> Clock:
        """Calls of a kernel on `tensors`, or on those of `load`; weights are packed here."""
        kernel = compiled.Library(Path(path), self.runtime)
        *inputs, out = tensors or self.tensors
        packed = kernel.pack([inputs[p] for p in kernel.constants])
        arguments = (*inputs, *map(self.runtime.place, packed), out)
        return Clock(lambda: kernel.main(*arguments), self.runtime)

    def run(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """{"path", "best": seconds to beat or None} -> a trial's fields.

        These are "status", "message", "times", "error" and "seconds" (of the whole run).
        """
        start = time.perf_counter()
        reply = self._run(payload["path"], payload["best"])
        return {**reply, "seconds": time.perf_counter() - start}

    def _run(self, path: str, best: float | None) -> dict[str, Any]:
        clock = self._clock(path)
        self._poison()
        first = clock.run(1)
        error = self.data.check(self.tensors[-1].numpy())
        if error is None or error > self.tolerance:
            message = "the output holds NaN or inf, or was not written"
            if error is not None:
                message = f"relative error {error:.3g} exceeds the tolerance {self.tolerance:.3g}"
            return {"status": "wrong_result", "message": message, "times": [], "error": error}
        if self.target.first_call_seconds:
            first = clock.run(1)  # the driver compiled during the first call
        times, message = time_kernel(clock, math.inf if best is None else best, first)
        return {"status": "ok", "message": message, "times": times, "error": error}

    def verify(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """{"path", "inputs", "reference", "shape", "dtype"} -> {"error"}; the data is fresh."""
        data = Data(payload)
        tensors = self._place(data)
        self._clock(payload["path"], tensors).run(1)
        return {"error": data.check(tensors[-1].numpy())}

    def interleave(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """{"kernels": {name: path}, "peers": [method, ...], "operator", "params", "rounds",
        "warm", "most"} -> {"times": {name: [seconds, ...]}, "missing": {method: why}}."""
        clocks = {name: self._clock(path) for name, path in payload["kernels"].items()}
        turns = payload["rounds"], payload["warm"], payload.get("most", 0)
        if not payload["peers"]:
            return {"times": interleave(clocks, *turns), "missing": {}}
        try:
            import torch
        except ImportError:  # it need not be on a machine that only serves its device
            times = interleave(clocks, *turns)
            why = "PyTorch is not installed where the device is"
            return {"times": times, "missing": dict.fromkeys(payload["peers"], why)}
        from flextensor import operators

        torch.set_num_threads(self.target.host_threads)
        operator = operators.lookup(payload["operator"])(**payload["params"])
        missing: dict[str, str] = {}
        with torch.inference_mode():
            for method in payload["peers"]:
                try:
                    call = peers.call(method, operator, self.data.inputs, self.target.torch_device)
                    if call is not None:
                        self._check_peer(call)
                        rest = peers.SPINS.get(method, 0.0)
                        clocks[method] = Clock(call, self.runtime, rest)
                except Exception as error:  # a library's failure must not cost the others theirs
                    missing[method] = f"{type(error).__name__}: {error}".splitlines()[0]
            times = interleave(clocks, *turns)
        return {"times": times, "missing": missing}

    def _check_peer(self, call: Call) -> None:
        """Raise `ValueError` unless a peer computes the operator too."""
        error = self.data.check(peers.array(call()))
        allowed = max(PEER_TOLERANCE, ROUNDING.get(self.data.output.dtype.name, 0.0))
        if error is None or error > allowed:
            raise ValueError(f"the result is wrong, relative error {error}")


RUNNER = Runner()


def write(
    folder: Path, inputs: Sequence[buffers.Array], reference: buffers.Array
) -> dict[str, Any]:
    """Save inputs and reference under `folder`; the payload parts that name the files."""
    folder.mkdir(parents=True)
    paths = [folder / f"input{i}.npy" for i in range(len(inputs))]
    for path, array in zip(paths, inputs, strict=True):
        np.save(path, array)
    np.save(folder / "reference.npy", reference)
    return {"inputs": list(map(str, paths)), "reference": str(folder / "reference.npy")}
