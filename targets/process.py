"""Worker processes: where candidates are compiled and run, so that they can crash and hang.

A worker is a subprocess that speaks JSON lines over two private pipes (stdout and stderr of a
kernel cannot corrupt them; their last lines are kept for messages). It is started on demand,
killed with its process group on a time-out, and replaced by the next call.

    WorkerError                  a call that brought no reply
    ├── WorkerTimeout            no reply in time; the worker was killed
    ├── WorkerDied               the worker ended by itself, e.g. by SIGSEGV
    ├── RemoteError              the method raised; `kind` is the exception's class name
    └── SetupFailed              no worker could be started: no fault of the call
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flextensor
from flextensor.errors import DeviceError

ROOT = Path(flextensor.__file__).resolve().parent.parent
"""The folder that workers import this very flextensor from, whatever their current folder."""
STARTUP_SECONDS = 120.0
"""Time that a worker may need for its imports and its set-up calls on a busy machine."""
NOT_INHERITED = ("OPENBLAS_", "GOTO_", "MKL_", "OMP_", "GOMP_", "KMP_", "ATEN_", "ONEDNN_", "DNNL_")
"""Prefixes of variables that would take threads or instructions from libraries in a worker."""
NOISE = ('File "', "!!!!", "Fatal Python error")
TAIL_BYTES = 4096
"""Bytes of a worker's own output that are kept."""

Call = tuple[str, Mapping[str, Any]]
"""A method and its payload."""


class WorkerError(DeviceError):
    """A call that brought no reply."""


class WorkerTimeout(WorkerError):
    """No reply in time; the worker was killed."""


class WorkerDied(WorkerError):
    """The worker ended by itself."""


class RemoteError(WorkerError):
    """The method raised; `kind` is the name of the exception's class, `reason` its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.reason = kind, message


class SetupFailed(WorkerError):
    """No worker could be started, or a set-up call failed: no fault of the call."""


class Endpoint(ABC):
    """Who answers calls one at a time: a process of this machine (`Worker`), or one of another
    (`flextensor.targets.remote`). `setup` holds the calls that are made after every start."""

    setup: list[Call]

    @property
    @abstractmethod
    def fds(self) -> list[int]:
        """What to `select` on before `collect`, until the `deadline`."""

    @property
    @abstractmethod
    def deadline(self) -> float:
        """When, on the monotonic clock, `collect` has something to say at the latest."""

    @abstractmethod
    def start(self) -> None:
        """Start the process and its set-up unless it runs."""

    @abstractmethod
    def add_setup(self, method: str, payload: Mapping[str, Any]) -> None:
        """One more set-up call: on a running worker before its next call, and at every start."""

    @abstractmethod
    def submit(self, method: str, payload: Mapping[str, Any], timeout: float) -> None:
        """Send a call; its `timeout` (seconds) counts from the end of the set-up."""

    @abstractmethod
    def collect(self) -> dict[str, Any] | None:
        """The reply to the submitted call if it is there, else None; raises `WorkerError`."""

    @abstractmethod
    def kill(self) -> None:
        """End the process and everything it started; the next call starts a new one."""

    def call(self, method: str, payload: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Call a method and wait for its reply, `timeout` seconds; raises `WorkerError`."""
        ((_, reply),) = run_all([self], [(method, payload)], timeout)
        if isinstance(reply, WorkerError):
            raise reply
        return reply


class Worker(Endpoint):
    """One worker process.

    `setup` calls are made after every start; `env` is added to the environment; `memory_bytes`
    bounds the data that the process may allocate (0: unbounded).
    """

    def __init__(
        self,
        setup: Sequence[Call] = (),
        env: Mapping[str, str] | None = None,
        memory_bytes: int = 0,
        module: str = "flextensor.worker",
    ) -> None:
        self.setup = list(setup)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        self._env = kept | dict(env or {})
        paths = (str(ROOT), self._env.get("PYTHONPATH"))
        self._env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._arguments = [sys.executable, "-P", "-m", module]
        self._memory = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._fds: list[int] = []
        self._pending = 0
        self._lines: list[bytes] = []
        self._partial = self._tail = b""
        self._timeout = self._deadline = math.inf

    @property
    def pid(self) -> int | None:
        """Process id, or None while no process runs."""
        return self._process.pid if self._process else None

    @property
    def fds(self) -> list[int]:
        """What to `select` on: the replies and the worker's own output."""
        return self._fds[1:3]

    @property
    def deadline(self) -> float:
        """When, on the monotonic clock, the pending call times out."""
        return self._deadline

    @property
    def tail(self) -> str:
        """The last line that the worker printed itself, TVM's backtraces left out."""
        lines = map(str.strip, self._tail.decode(errors="replace").splitlines())
        return next(
            (line for line in reversed([*lines]) if line and not line.startswith(NOISE)), ""
        )

    def start(self) -> None:
        """Start the process and its set-up unless it runs; returns at once."""
        if self._process and self._process.poll() is None:
            return
        self.kill()
        try:
            self._open()
        except OSError as error:
            raise SetupFailed(f"the system starts no worker: {error.strerror}") from error
        for fd in self._fds[1:3]:
            os.set_blocking(fd, False)
        self._lines, self._partial, self._tail = [], b"", b""
        self._pending = 0
        self._deadline = time.monotonic() + STARTUP_SECONDS
        for method, payload in self.setup:
            self._write(method, payload)

    def _open(self) -> None:
        """Start the process, with this side of its pipes in `_fds`; where that fails, none is left
        open."""
        fds: list[int] = []
        try:
            for _ in range(4):
                fds += os.pipe()
            call, requests, replies, reply, output, said, lifeline, life = fds
            theirs = (call, reply, lifeline)
            in_main = threading.current_thread() is threading.main_thread()
            options = [*map(str, theirs), str(self._memory), str(os.getpid() if in_main else 0)]
            self._process = subprocess.Popen(
                [*self._arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._env,
                pass_fds=theirs,
                start_new_session=True,
            )
            self._fds = [requests, replies, output, life]
        finally:
            for fd in set(fds) - set(self._fds):
                os.close(fd)

    def add_setup(self, method: str, payload: Mapping[str, Any]) -> None:
        """One more set-up call: on a running worker before its next call, and at every start."""
        self.setup.append((method, payload))
        if self._process and self._process.poll() is None:
            self._deadline = time.monotonic() + STARTUP_SECONDS
            self._write(method, payload)

    def submit(self, method: str, payload: Mapping[str, Any], timeout: float) -> None:
        """Send a call; its `timeout` (seconds) counts from the end of the set-up."""
        self.start()
        self._timeout, self._tail = timeout, b""
        if not self._pending:
            self._deadline = time.monotonic() + timeout
        self._write(method, payload)

    def collect(self) -> dict[str, Any] | None:
        """The reply to the submitted call if it is there, else None; raises `WorkerError`."""
        ended = self._drain()
        while self._lines:
            reply = json.loads(self._lines.pop(0))
            self._pending -= 1
            if self._pending == 1:
                self._deadline = time.monotonic() + self._timeout
            if "error" in reply:
                self._deadline = math.inf
                if self._pending:
                    self.kill()
                    raise SetupFailed(reply["message"])
                raise RemoteError(reply["error"], reply["message"])
            if not self._pending:
                self._deadline = math.inf
                result: dict[str, Any] = reply["result"]
                return result
        starting = self._pending > 1
        if ended:
            raise (SetupFailed if starting else WorkerDied)(self._obituary())
        if time.monotonic() > self._deadline:
            self.kill()
            if starting:
                raise SetupFailed(f"worker did not start within {STARTUP_SECONDS:.3g} s")
            raise WorkerTimeout(f"no reply within {self._timeout:.3g} s")
        return None

    def kill(self) -> None:
        """End the process and everything it started; the next call starts a new one."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for fd in self._fds:
            os.close(fd)
        self._process, self._fds, self._pending = None, [], 0
        self._deadline = math.inf

    def _write(self, method: str, payload: Mapping[str, Any]) -> None:
        self._pending += 1
        line = json.dumps({"method": method, "payload": payload}) + "\n"
        data = line.encode()
        with contextlib.suppress(BrokenPipeError):  # it died: `collect` says how
            while data:
                data = data[os.write(self._fds[0], data) :]

    def _drain(self) -> bool:
        """Read what is there; True when the worker closed its replies."""
        self._tail = (self._tail + _read(self._fds[2])[0])[-TAIL_BYTES:]
        data, ended = _read(self._fds[1])
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._lines += lines
        return ended

    def _obituary(self) -> str:
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.returncode
        self._tail = (self._tail + _read(self._fds[2])[0])[-TAIL_BYTES:]
        self.kill()
        how = f"exit status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        said = self.tail[:200]
        return f"worker died: {how}" + (f" ({said})" if said else "")


def _read(fd: int) -> tuple[bytes, bool]:
    """(what a non-blocking pipe holds, whether its writers are gone)."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return b"".join(chunks), False
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)


def run_all(
    workers: Sequence[Endpoint], calls: Sequence[Call], timeout: float
) -> Iterator[tuple[int, dict[str, Any] | WorkerError]]:
    """Spread `calls` over `workers`; yields (index of the call, reply or error) as they end."""
    waiting = list(enumerate(calls))[::-1]
    idle = list(workers)
    busy: dict[Endpoint, int] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                index, (method, payload) = waiting.pop()
                worker = idle.pop()
                worker.submit(method, payload, timeout)
                busy[worker] = index
            _sleep(busy)
            for worker in list(busy):
                try:
                    reply: dict[str, Any] | WorkerError | None = worker.collect()
                except WorkerError as error:
                    reply = error
                if reply is not None:
                    idle.append(worker)
                    yield busy.pop(worker), reply
    finally:
        for worker in busy:  # interrupted: what it answers later would be taken for another reply
            worker.kill()


def _sleep(busy: Mapping[Endpoint, int]) -> None:
    """Wait until a worker says something or the first deadline passes."""
    poll = select.poll()  # `select.select` knows no descriptors beyond 1023
    for fd in (fd for worker in busy for fd in worker.fds):
        poll.register(fd, select.POLLIN)
    wait = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
    poll.poll(1000 * min(wait + 0.001, 3600.0))
