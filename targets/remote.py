"""Running kernels on another machine: the tuning side of `flextensor.targets.rpc_server`.

A `RemoteWorker` is a worker process of that machine. Files that a payload names are sent before it,
each once, and stay there until the worker ends. Workers of one machine share a session of TVM's
RPC; a server has one at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import stat
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flextensor
from flextensor import targets
from flextensor.errors import DeviceError, FlexTensorError, InputError
from flextensor.targets import process
from flextensor.targets.base import Target
from flextensor.targets.process import Call, Endpoint, RemoteError, SetupFailed, Worker, WorkerError

SCHEME = "remote:"
KEY = "flextensor"
"""What a client of TVM's RPC must ask for; other servers of TVM have other keys."""
FUNCTION = "flextensor.rpc"
"""The function of a server that answers: JSON in, JSON out."""
CONNECT_SECONDS = 10.0
"""What a handshake may take; a server that has a session answers nobody else."""
LOOKUP_SECONDS = 60.0
ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
"""After a minute (seconds; milliseconds in the last) without a sign of the other machine, a
connection is lost; by default both sides would wait for hours."""
POLL_SECONDS = 0.5
"""How long the server waits for a reply before it answers that there is none yet: what Ctrl-C may
have to wait for."""
FILES = ("path", "inputs", "reference", "kernels")
"""Parts of a payload that name files."""


class ConnectionLost(SetupFailed):
    """The server or the network is gone: no fault of the call."""


def address(measure: str | None) -> str | None:
    """HOST:PORT of a ``remote:HOST:PORT``, None for another way to measure; `InputError` for what
    is meant as the former and is not."""
    if measure is None or measure.partition(":")[0] != SCHEME[:-1]:
        return None
    host, _, port = measure.removeprefix(SCHEME).rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(
            f"{measure!r} is no remote:HOST:PORT, the address of a machine's `flextensor serve`"
        )
    return f"{host}:{port}"


def versions() -> dict[str, str]:
    """What both sides must have the same of: the payloads are those of one version."""
    tvm = importlib.metadata.version("apache-tvm")
    return {"flextensor": flextensor.__version__, "apache-tvm": tvm}


def lookup(spec: str, threads: int | None, where: str) -> Target:
    """`targets.lookup` on the machine at `where`: its device, to build for here and run there.

    Raises `InputError` and `DeviceError` as there, and when nobody serves there.
    """
    worker = RemoteWorker(where)
    try:
        reply = worker.call("lookup", {"spec": spec, "threads": threads}, LOOKUP_SECONDS)
        machine = worker.machine
    except RemoteError as error:
        kind = InputError if error.kind in ("InputError", "UnsupportedError") else DeviceError
        raise kind(f"{where}: {error.reason}") from None
    finally:
        worker.kill()
    target = targets.load({**reply["target"], "remote": where}).measured_by("run")
    if target.kind == "llvm" and machine != platform.machine():
        raise DeviceError(
            f"{where} is {machine}, and kernels for its CPU would be linked here, on "
            f"{platform.machine()}: tune on that machine itself"
        )
    return target


def runner(
    target: Target, folder: Path, memory_bytes: int = 0, module: str = "flextensor.worker"
) -> Endpoint:
    """The worker that runs kernels of `target`, on this machine with files in `folder`, or on the
    machine that has the device; that one runs `flextensor.worker` whatever `module` says."""
    if target.remote:
        return RemoteWorker(target.remote, target, memory_bytes)
    return Worker((), target.environment(folder), memory_bytes, module)


class RemoteWorker(Endpoint):
    """A worker process on the machine at `where`, with the environment of `target`.

    `DeviceError` from `start` when nobody serves there, `ConnectionLost` when that ends later.
    """

    def __init__(self, where: str, target: Target | None = None, memory_bytes: int = 0) -> None:
        self.setup: list[Call] = []
        self.where = where
        self._target = None if target is None else targets.dump(target)
        self._memory = memory_bytes
        self._connection: Connection | None = None
        self._number = 0
        self._there: set[str] = set()

    @property
    def fds(self) -> list[int]:
        """None: `collect` waits for the server itself."""
        return []

    @property
    def deadline(self) -> float:
        """Now; the server watches the time of a call."""
        return 0.0

    @property
    def machine(self) -> str:
        """The other machine's architecture, e.g. ``x86_64``; it is connected."""
        assert self._connection
        return self._connection.machine

    def start(self) -> None:
        """Connect, send the files of the set-up and start the process, unless it runs."""
        if self._connection is None:
            self._connection = Connection.shared(self.where)
            self._number = next(self._connection.numbers)
            try:
                self._ask("open", target=self._target, memory=self._memory)
                for method, payload in self.setup:
                    self._ask("add_setup", method=method, payload=self._sent(payload))
            except BaseException:
                self.kill()  # or the next start would take it for a whole one
                raise
        self._ask("start")

    def add_setup(self, method: str, payload: Mapping[str, Any]) -> None:
        """One more set-up call: on a running worker before its next call, and at every start."""
        self.setup.append((method, payload))
        if self._connection is not None:
            self._ask("add_setup", method=method, payload=self._sent(payload))

    def submit(self, method: str, payload: Mapping[str, Any], timeout: float) -> None:
        """Send files and a call; its `timeout` counts from the end of the set-up, over there."""
        self.start()
        self._ask("submit", method=method, payload=self._sent(payload), timeout=timeout)

    def collect(self) -> dict[str, Any] | None:
        """The reply if it comes within `POLL_SECONDS`, else None; raises `WorkerError`."""
        reply: dict[str, Any] | None = self._ask("collect", seconds=POLL_SECONDS)["reply"]
        return reply

    def kill(self) -> None:
        """End the process, remove its files, and disconnect unless another worker is connected."""
        connection, self._connection = self._connection, None
        self._there.clear()
        if connection is not None:
            with contextlib.suppress(FlexTensorError):
                connection.ask("close", worker=self._number)
            connection.release()

    def _ask(self, what: str, **values: Any) -> dict[str, Any]:
        assert self._connection
        return self._connection.ask(what, worker=self._number, **values)

    def _sent(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """`payload` with its files sent, and named as they are called there."""
        return {k: self._send(v) if k in FILES else v for k, v in payload.items()}

    def _send(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._send_file(Path(value))
        if isinstance(value, Mapping):
            return {name: self._send(path) for name, path in value.items()}
        return [self._send(path) for path in value]

    def _send_file(self, path: Path) -> str:
        """The name of a file there; a library's note goes with it (`flextensor.compiled`)."""
        assert self._connection
        note = path.with_suffix(".json")
        parts = [path, *([note] if note.is_file() else [])]
        blobs = [bytearray(part.read_bytes()) for part in parts]
        digest = hashlib.sha256(b"".join(hashlib.sha256(blob).digest() for blob in blobs))
        stem = f"{self._number}/{digest.hexdigest()[:32]}"
        if stem not in self._there:
            for part, blob in zip(parts, blobs, strict=True):
                self._connection.upload(stem + part.suffix, blob)
            self._there.add(stem)
        return stem + path.suffix


class Connection:
    """A session with a server, shared by the workers of this process that are on its machine."""

    _shared: dict[str, Connection] = {}
    _sharing = threading.Lock()

    def __init__(self, where: str) -> None:
        host, port = _split(where)
        _shake_hands(host, port)
        self.where, self.numbers, self._users = where, itertools.count(), 0
        self._calls = threading.Lock()  # a session has one call at a time
        from tvm import rpc

        try:
            self._session = rpc.connect(host, port, KEY)
            _watch_all(host, port)
            self._function = self._session.get_function(FUNCTION)
        except Exception as error:
            raise DeviceError(f"{where} does not serve: {last_line(error)}") from None
        said = self.ask("hello")
        self.machine: str = said["machine"]
        _check(where, said["versions"])

    @classmethod
    def shared(cls, where: str) -> Connection:
        """The connection with a server, made unless there is one; `release` ends its use."""
        with cls._sharing:
            if where not in cls._shared:
                cls._shared[where] = cls(where)
            cls._shared[where]._users += 1
            return cls._shared[where]

    def release(self) -> None:
        """Disconnect when nobody is left who uses it."""
        with self._sharing:
            self._users -= 1
            if not self._users:
                self._drop()

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """What the server answers; raises the `WorkerError` that it has, or `ConnectionLost`."""
        request = json.dumps({"what": what, **values})
        reply = json.loads(self._talk(lambda: str(self._function(request))))
        if "error" in reply:
            raise _error(**reply)
        result: dict[str, Any] = reply["result"]
        return result

    def upload(self, name: str, blob: bytearray) -> None:
        """Write a file there, below the folder of the session."""
        self._talk(lambda: self._session.upload(blob, name))

    def _talk(self, action: Any) -> Any:
        with self._calls:
            if self._function is None:
                raise self._lost()
            try:
                return action()
            except Exception:
                self._drop()
                raise self._lost() from None
            except BaseException:  # Ctrl-C: the reply would be taken for the next call's
                self._drop()
                raise

    def _drop(self) -> None:
        """TVM disconnects when nothing refers to a session any more."""
        self._session = self._function = None
        if self._shared.get(self.where) is self:
            del self._shared[self.where]

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(
            f"the connection with {self.where} was lost; what was measured is kept: "
            "see to `flextensor serve` there, and run this again"
        )


def watch(connected: socket.socket) -> None:
    """Let the system tell when the other side is gone without a word."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ALIVE.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _watch_all(host: str, port: int) -> None:
    """`watch` this process's connections with a server: TVM keeps the socket of a session to
    itself, but the system lists it."""
    peers = {found[4][:2] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # closed since, or not connected
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as copy:
                    if copy.getpeername()[:2] in peers:
                        watch(copy)


def _split(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    return host.strip("[]"), int(port)


def _check(where: str, theirs: Mapping[str, str]) -> None:
    """Raise `DeviceError` unless both machines have the same versions."""
    for name, own in versions().items():
        if theirs.get(name) != own:
            raise DeviceError(
                f"{where} has {name} {theirs.get(name)} and this machine {own}: install the same"
            )


def _error(error: str, message: str, kind: str = "") -> WorkerError:
    """The error of a worker there, as its own class."""
    if error == "RemoteError":
        return RemoteError(kind, message)
    made: WorkerError = getattr(process, error)(message)
    return made


def last_line(error: BaseException) -> str:
    """The last line of an exception of TVM's, which begins with its backtrace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _shake_hands(host: str, port: int) -> None:
    """Raise `DeviceError` unless a server of TVM's RPC is there and free.

    TVM's own client waits forever where nobody answers. This one asks for a key that no server has,
    which a free one refuses at once, and which costs it no session.
    """
    from tvm.rpc import base

    where = f"{host}:{port}"
    key = b"client:nobody"
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as made:
            made.sendall(struct.pack("<ii", base.RPC_MAGIC, len(key)) + key)
            (code,) = struct.unpack("<i", base.recvall(made, 4))
    except TimeoutError:
        raise DeviceError(
            f"{where} does not answer: another tuner has the device, or there is no "
            "`flextensor serve` there"
        ) from None
    except (OSError, UnicodeError) as error:  # the latter for what can be no host's name
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(
            f"nobody listens at {where} ({reason}): start `flextensor serve` on the machine with "
            "the device, and forward the port (ssh -L)"
        ) from None
    if code != base.RPC_CODE_MISMATCH:
        raise DeviceError(f"who listens at {where} is no `flextensor serve`")
