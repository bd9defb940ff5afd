"""``flextensor serve``: TVM's RPC server with a function of ours, which runs worker processes.

Kernels run in workers (`flextensor.targets.process`), never in the process of a session: one that
crashes or hangs costs its trial. Whoever reaches the port can do here what this user can.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import platform
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flextensor import targets
from flextensor.errors import DeviceError, InputError
from flextensor.targets.process import ROOT, RemoteError, Worker, WorkerError
from flextensor.targets.remote import FUNCTION, KEY, last_line, versions, watch

PR_SET_PDEATHSIG = 1


class Session:
    """What one client has here: workers by number, each with a folder of the session's."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}

    def answer(self, request: str) -> str:
        """{"what", ...} -> {"result"} or {"error", "message"}, as JSON text."""
        call = json.loads(request)
        try:
            reply = {"result": getattr(self, f"_{call.pop('what')}")(**call)}
        except RemoteError as error:
            reply = {"error": "RemoteError", "kind": error.kind, "message": error.reason}
        except WorkerError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:  # it would reach the client as pages of TVM's
            reply = {"error": "SetupFailed", "message": f"{type(error).__name__}: {error}"}
        return json.dumps(reply)

    def _hello(self) -> dict[str, Any]:
        return {"versions": versions(), "machine": platform.machine()}

    def _open(self, worker: int, target: Mapping[str, Any] | None, memory: int) -> dict[str, Any]:
        folder = Path.cwd() / str(worker)
        folder.mkdir()
        env = {"TMPDIR": str(folder)}
        if target is not None:
            env = targets.load(target).environment(folder)
        self._workers[worker] = Worker((), env, memory)
        return {}

    def _start(self, worker: int) -> dict[str, Any]:
        self._workers[worker].start()
        return {}

    def _add_setup(self, worker: int, method: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        self._workers[worker].add_setup(method, payload)
        return {}

    def _submit(
        self, worker: int, method: str, payload: Mapping[str, Any], timeout: float
    ) -> dict[str, Any]:
        self._workers[worker].submit(method, payload, timeout)
        return {}

    def _collect(self, worker: int, seconds: float) -> dict[str, Any]:
        """{"reply": of the submitted call, or None when it has none after `seconds`}."""
        found, end = self._workers[worker], time.monotonic() + seconds
        while (reply := found.collect()) is None and (left := end - time.monotonic()) > 0:
            due = max(0.0, found.deadline - time.monotonic()) + 0.001
            select.select(found.fds, [], [], min(left, due))
        return {"reply": reply}

    def _close(self, worker: int) -> dict[str, Any]:
        self._workers.pop(worker).kill()
        shutil.rmtree(str(worker), ignore_errors=True)
        return {}


def serve(host: str, port: int) -> None:
    """Serve until this process is interrupted; prints where, once others can connect.

    Raises `InputError` when the port cannot be had, `DeviceError` when the server cannot start.
    """
    _check_packages()
    _check_port(host, port)
    from tvm import rpc

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # `finally` ends the server's processes
    paths = (str(ROOT), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        server = rpc.Server(
            host, port, port + 1, key=KEY, silent=True, server_init_callback=initialise
        )
    except Exception as error:
        raise DeviceError(f"TVM's RPC server did not start: {last_line(error)}") from None
    try:
        found = [spec for spec, target in targets.present().items() if "run" in target.measures]
        print(f"serving {', '.join(found)} at {host}:{port}, for --measure remote:HOST:{port}")
        print(
            "RPC is remote code execution, for every user of this machine too: keep the port on "
            "loopback (ssh -L "
            f"{port}:localhost:{port} THIS-MACHINE) or in a network that you trust",
            flush=True,
        )
        while server.proc.is_alive():
            time.sleep(0.5)
    finally:
        server.terminate()
    raise DeviceError("TVM's RPC server ended")


def _check_packages() -> None:
    try:
        import cloudpickle  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"TVM's RPC server needs {error.name}: pip install cloudpickle psutil"
        ) from None


def _check_port(host: str, port: int) -> None:
    """TVM would take another port, or fail with a page of text."""
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}:{port}: {reason}") from None


def initialise() -> None:
    """In the process that listens, which forks one for each session: register our function there,
    and mend what TVM 0.27 leaves broken."""
    import tvm_ffi
    from tvm.rpc import server

    _end_with_parent()
    multiprocessing.set_start_method("fork", force=True)  # sessions inherit what is registered
    tvm_ffi.register_global_func(FUNCTION, Session().answer, override=True)
    serving, loop = server._serving, server._serve_loop

    def patient(sock: socket.socket, *rest: Any) -> None:
        """A session that dies raises in the thread that listens, and nobody would be served."""
        folder = os.getcwd()
        watch(sock)
        try:
            serving(sock, *rest)
        except RuntimeError as error:
            print(f"a session ended badly: {error}", file=sys.stderr, flush=True)
        finally:
            os.chdir(folder)
            with contextlib.suppress(OSError):
                sock.close()

    def session(*arguments: Any) -> None:
        """Without it a session, and the port that it inherits, outlive a killed server."""
        _end_with_parent()
        loop(*arguments)

    server._serving, server._serve_loop = patient, session


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
