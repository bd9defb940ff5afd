"""The main program of a worker process: ``python -m flextensor.worker``, see `targets.process`.

Two roles share it. A builder schedules and compiles (`target`, `program`, `build`); a runner
checks and times (`load`, `run`, `verify`, `interleave`, see `flextensor.timing`). Payloads and
results are JSON values; paths are strings.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flextensor.errors import IllegalConfigError
from flextensor.lean import import_tvm

Payload = Mapping[str, Any]
Handler = Callable[[Payload], dict[str, Any]]

PR_SET_PDEATHSIG = 1


def one_line(error: BaseException, limit: int = 300) -> str:
    """The reason of an exception as one line; of TVM's pages of text the telling line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if line.startswith(("Error message:", "Check failed", "error:"))
    ]
    text = (telling or lines or [type(error).__name__])[0]
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Builder:
    """Schedules and compiles candidates of the programs that it was given."""

    def __init__(self) -> None:
        self._target: Any = None
        self._programs: dict[str, Any] = {}
        self._read: dict[str, Any] = {}

    def target(self, payload: Payload) -> dict[str, Any]:
        """{"target": dumped target} -> {}; raises `DeviceError` without a compiler."""
        import_tvm()  # here, so that no build pays for it
        from flextensor import targets

        self._target = targets.load(payload["target"])
        self._target.check()
        return {}

    def program(self, payload: Payload) -> dict[str, Any]:
        """{"name", "path": a file of `tvm.ir.save_json`} -> {}."""
        import tvm

        self._programs[payload["name"]] = tvm.ir.load_json(Path(payload["path"]).read_text())
        self._read.pop(payload["name"], None)
        return {}

    def scheduled(self, payload: Payload) -> Any:
        """{"program", "config"} -> the program with the config carried out.

        A program is read once: that of a Winograd convolution takes as long to read as a config of
        it takes to schedule and lower, and a builder is given hundreds.
        """
        from flextensor.schedulers.composition import Composition

        name = payload["program"]
        if name not in self._read:
            self._read[name] = Composition.of(self._programs[name], self._target)
        return self._read[name].schedule(payload["config"])

    def build(self, payload: Payload) -> dict[str, Any]:
        """{"program", "config", "out"} -> {"status", "message", "seconds", "digest": what the
        compiled program is known by}."""
        from flextensor import compiled

        def write() -> dict[str, Any]:
            program, out = self._programs[payload["program"]], Path(payload["out"])
            compiled.write(self.scheduled(payload), program, self._target, out)
            return {"message": "", "digest": compiled.digest(out)}

        return attempted(write)

    def model(self, payload: Payload) -> dict[str, Any]:
        """{"program", "config"} -> {"status", "message", "seconds", "time": modelled seconds}."""
        from flextensor.cost_models import gpu

        def judge() -> dict[str, Any]:
            module = self.scheduled(payload)
            found = gpu.judge(self._target, module).prediction
            return {"message": found.summary, "time": found.seconds}

        return attempted(judge)


def attempted(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an action found, with "status" and "seconds"; its failure is one too."""
    start = time.perf_counter()
    try:
        found = {"status": "ok", **action()}
    except IllegalConfigError as error:
        found = {"status": "illegal", "message": one_line(error)}
    except Exception as error:
        found = {"status": "build_error", "message": f"{type(error).__name__}: {one_line(error)}"}
    return {**found, "seconds": time.perf_counter() - start}


def handlers() -> dict[str, Handler]:
    """Every method of a worker by name; heavy modules are imported by the first call."""
    builder = Builder()

    def runner(method: str) -> Handler:
        def call(payload: Payload) -> dict[str, Any]:
            from flextensor import timing

            result: dict[str, Any] = getattr(timing.RUNNER, method)(payload)
            return result

        return call

    named: dict[str, Handler] = {
        "target": builder.target,
        "program": builder.program,
        "build": builder.build,
        "model": builder.model,
        "lookup": lookup,
        "peak": peak,
        "library": library,
        "simulate": simulate,
        "synthesise": synthesise,
    }
    return named | {name: runner(name) for name in ("load", "run", "verify", "interleave")}


def library(payload: Payload) -> dict[str, Any]:
    """See `flextensor.peer_libraries.run`."""
    from flextensor import peer_libraries

    return peer_libraries.run(payload)


def lookup(payload: Payload) -> dict[str, Any]:
    """{"spec", "threads"} -> {"target": dumped}: a device of this machine, for another."""
    import_tvm()
    from flextensor import targets

    return {"target": targets.dump(targets.lookup(payload["spec"], payload["threads"]))}


def peak(payload: Payload) -> dict[str, Any]:
    """{"target", "what": "bandwidth" or a dtype} -> {"value": bytes/s or FLOP/s}."""
    from flextensor import targets

    return {"value": targets.load(payload["target"]).measure(payload["what"])}


def simulate(payload: Payload) -> dict[str, Any]:
    """{"path", "a", "b", "c", "limit"} -> {"cycles", "seconds"}; see `targets.verilator`."""
    from flextensor.targets import verilator

    start = time.perf_counter()
    path, a, b, c = (Path(payload[name]) for name in ("path", "a", "b", "c"))
    cycles = verilator.simulate(path, a, b, c, payload["limit"])
    return {"cycles": cycles, "seconds": time.perf_counter() - start}


def synthesise(payload: Payload) -> dict[str, Any]:
    """{"engine", "part"} -> {"dsp", "bram18", "lut", "ff"}; see `targets.yosys`."""
    from flextensor.targets import yosys
    from flextensor.targets.engine import Engine

    return yosys.synthesise(Engine.load(payload["engine"]), payload["part"])


def die_with_parent(lifeline: int, parent: int) -> None:
    """End this process when its parent ends, in whatever way, even inside a kernel.

    Nothing is ever written to `lifeline`: its other end closes when the parent is gone, and
    Linux then sends SIGIO, whose default action is to end the process. The parent-death signal
    follows the *thread* that started the worker, so it is only set (`parent` is not 0) when
    that was the main thread; it also covers a fork of the parent that keeps the pipe open.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    already_closed = select.select([lifeline], [], [], 0)[0]
    if already_closed or (parent and os.getppid() != parent):
        sys.exit(1)


def serve(requests: int, replies: int, methods: Mapping[str, Handler]) -> None:
    """Answer JSON lines from one descriptor on the other until the first one ends."""
    with os.fdopen(requests, "rb") as calls, os.fdopen(replies, "wb") as answers:
        for line in calls:
            call = json.loads(line)
            try:
                reply: dict[str, Any] = {"result": methods[call["method"]](call["payload"])}
            except Exception as error:
                reply = {"error": type(error).__name__, "message": one_line(error)}
            answers.write(json.dumps(reply).encode() + b"\n")
            answers.flush()


def main(arguments: list[str]) -> None:
    """Serve: file descriptors of requests, replies and lifeline, memory limit, parent or 0."""
    requests, replies, lifeline, memory, parent = map(int, arguments)
    die_with_parent(lifeline, parent)
    if memory:
        # Private writable memory. RLIMIT_AS would also count the address space that libraries
        # only reserve (torch: tens of GB).
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    serve(requests, replies, handlers())


if __name__ == "__main__":
    main(sys.argv[1:])
