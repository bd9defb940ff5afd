"""The processes that schedule and compile candidates; they may serve one workload after another."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.folders import private_folder, remove
from flextensor.targets import Target, dump
from flextensor.targets.process import Call, SetupFailed, Worker, WorkerError, run_all

if TYPE_CHECKING:
    from flextensor.operators.workload import Workload

MEMORY_BYTES = 4 << 30
"""What one of them may allocate."""
MOST = 16
"""Processes of a target at most, and candidates of a batch, however many cores there are."""


class Builders:
    """Worker processes of one target, started at the first use. A process takes seconds to start
    and more at its first build, which a suite pays once when its workloads share them.

    `count` is the number of processes (0: the target's). Raises `DeviceError` when none can start
    or a compiler is missing.
    """

    def __init__(
        self,
        target: Target,
        count: int = 0,
        memory_bytes: int = MEMORY_BYTES,
        module: str = "flextensor.worker",
    ) -> None:
        self.target, self._count = target, count
        self._memory, self._module = memory_bytes, module
        self._workload: Workload | None = None
        self._programs: set[str] = set()
        self._paths: dict[tuple[str, str], Path] = {}

    @functools.cached_property
    def folder(self) -> Path:
        """Where the processes have their temporary files."""
        return private_folder()

    @functools.cached_property
    def _setup(self) -> list[Call]:
        return [("target", {"target": dump(self.target)})]

    @functools.cached_property
    def _workers(self) -> list[Worker]:
        env = self.target.environment(self.folder)
        return [
            Worker(self._setup, env, self._memory, self._module)
            for _ in range(self._count or min(self.target.builders, MOST))
        ]

    @property
    def pids(self) -> list[int | None]:
        """Of every process; None where one does not run."""
        return [worker.pid for worker in self._workers]

    def start(self) -> None:
        """Start every process; returns at once."""
        for worker in self._workers:
            worker.start()

    def serve(self, workload: Workload) -> None:
        """Build for this workload from now on."""
        if workload is self._workload:
            return
        self._workload = workload
        self._programs.clear()
        for worker in self._begun:
            worker.setup[:] = self._setup  # what starts anew need not know of older programs

    def call(
        self, method: str, formulations: Sequence[str], payloads: Sequence[Mapping[str, Any]],
        seconds: float,
    ) -> Iterator[tuple[int, dict[str, Any] | WorkerError]]:  # fmt: skip
        """Call a builder's method for a candidate of each of the formulations, all in parallel and
        each within `seconds`; (index, reply or why there is none) as they end."""
        for formulation in sorted(set(formulations) - self._programs):
            self._add(formulation)
        calls = [
            (method, {"program": formulation, **payload})
            for formulation, payload in zip(formulations, payloads, strict=True)
        ]
        return run_all(self._workers, calls, seconds)

    def _add(self, formulation: str) -> None:
        """Give a formulation to every process, now and after every restart."""
        import tvm

        assert self._workload is not None
        key = self._workload.key, formulation
        if key not in self._paths:  # never written twice: a process may not have read it yet
            path = self.folder / f"program{len(self._paths)}.json"
            text = tvm.ir.save_json(self._workload.prim_func(formulation))
            try:
                path.write_text(text)
            except OSError as error:
                raise SetupFailed(f"cannot write {path}: {error.strerror}") from error
            self._paths[key] = path
        self._programs.add(formulation)
        for worker in self._workers:
            worker.add_setup("program", {"name": formulation, "path": str(self._paths[key])})

    def rest(self) -> None:
        """Stop every process until the next use."""
        for worker in self._begun:
            worker.kill()

    def close(self) -> None:
        """Stop every process, and remove the files."""
        self.rest()
        if "folder" in self.__dict__:
            remove(self.folder)

    @property
    def _begun(self) -> list[Worker]:
        """The processes, if there were any yet."""
        return self._workers if "_workers" in self.__dict__ else []

    def __enter__(self) -> Builders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
