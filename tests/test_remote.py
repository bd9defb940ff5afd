"""Measuring on another machine: a real server, which here is this machine's loopback."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import flextensor
from flextensor import Database
from flextensor.errors import DeviceError, InputError
from flextensor.measure import Candidate, Limits, LocalMeasurer
from flextensor.operators import Gemm, Workload
from flextensor.result import as_target
from flextensor.targets import Status, lookup, remote
from flextensor.tuner import Progress

STUBS = str(Path(__file__).parent / "targets")
GEMM = Gemm(m=40, n=56, k=24)
NO_ADDRESS = ["remote", "remote:", "remote:gpu", "remote:gpu:x", "remote::1"]
Server = subprocess.Popen[str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port: int = made.getsockname()[1]
        return port


@contextlib.contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    """(a server in a process of its own, how to measure by it)."""
    port = str(free_port())
    server = subprocess.Popen(
        [sys.executable, "-m", "flextensor", "serve", "--port", port],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        said = server.stdout.readline() + server.stdout.readline()
        if "remote code execution" not in said:
            server.kill()
            pytest.fail(f"no server: {said}{server.communicate()[1]}")
        yield server, f"remote:127.0.0.1:{port}"
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def measure() -> Iterator[str]:
    with serving() as (_, how):
        yield how


def test_a_tune_elsewhere_is_one_of_that_device(measure: str, tmp_path: Path) -> None:
    db, here = tmp_path / "t.db", lookup("llvm")
    result = flextensor.tune(GEMM, measure=measure, trials=3, db=db, cost_model="none")
    assert result.target.remote == measure.removeprefix("remote:")
    assert result.target.fingerprint == here.fingerprint
    values = result.json()
    assert values["verified"] and values["max_rel_error"] < 1e-5
    assert values["failures"] == {} and values["peers"]["torch"] > 0
    with Database(db) as database:
        assert len(database.trials(Workload(GEMM).key, here.fingerprint)) == 3
    with pytest.raises(DeviceError, match="runs where that is"):
        result.kernel  # noqa: B018 - the lookup is the test
    again = flextensor.load(GEMM, db=db)  # on the machine with the device, which is this one
    inputs = Workload(GEMM).inputs(0)
    assert abs(again.kernel(*inputs) - Workload(GEMM).reference(inputs)).max() < 1e-4


def test_a_device_with_blocks_and_weights_packed_ahead(measure: str, tmp_path: Path) -> None:
    values = flextensor.tune(
        GEMM, target="opencl", measure=measure, trials=2, db=tmp_path / "t.db", peers=False,
        prepacked=True, cost_model="none",
    ).json()  # fmt: skip
    assert values["verified"] and values["failures"] == {}
    assert values["target"] == "opencl"


def increment() -> Workload:
    sys.path.insert(0, STUBS)
    try:
        from faulty import Increment
    finally:
        sys.path.remove(STUBS)
    return Workload(Increment())


def test_a_kernel_that_crashes_or_hangs_there_costs_one_trial(
    measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", STUBS)
    target = as_target("llvm", None, measure)
    limits = Limits(run_seconds=2.0, builders=1)
    crash = Candidate("direct", {"extern": ("raise", 11)})
    good = Candidate("direct", {})
    candidates = [crash, Candidate("endless", {}), good]
    with LocalMeasurer(increment(), target, 1e-5, limits=limits, module="stub_worker") as made:
        crashed, hung, worked = made.measure(candidates)
        assert (crashed.status, crashed.message) == (Status.RUN_ERROR, "worker died: SIGSEGV")
        assert (hung.status, hung.message) == (Status.TIMEOUT, "no reply within 2 s")
        assert worked.ok and worked.times
        assert made.verify(good) < 1e-6
        with pytest.raises(DeviceError, match="SIGSEGV"):
            made.verify(crash)


def test_a_session_that_dies_leaves_the_server_to_the_next(measure: str) -> None:
    worker = remote.RemoteWorker(measure.removeprefix("remote:"))
    worker.start()
    children = psutil.Process().children(recursive=True)
    listens = [p for p in children if "popen_worker" in str(p.cmdline())]
    (session,) = (p for p in listens if p.parent() in listens)  # forked, so of the same name
    session.kill()
    with pytest.raises(remote.ConnectionLost, match="was lost; what was measured is kept"):
        worker.call("lookup", {"spec": "llvm", "threads": None}, 60)
    worker.kill()
    assert as_target("llvm", 1, measure).cores == 1


def test_a_machine_that_vanishes_is_noticed(measure: str) -> None:
    where = measure.removeprefix("remote:")
    worker = remote.RemoteWorker(where)
    worker.start()
    mine = [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.fd >= 0]
    (fd,) = (c.fd for c in mine if f"{c.raddr.ip}:{c.raddr.port}" == where)
    with socket.socket(fileno=os.dup(fd)) as connected:
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    worker.kill()


def test_one_tuner_has_the_device_and_the_next_is_told(
    measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = measure.removeprefix("remote:")
    worker = remote.RemoteWorker(where)
    worker.start()
    monkeypatch.setattr(remote, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(remote.Connection, "_shared", {})  # as another process has it
    with pytest.raises(DeviceError, match="does not answer: another tuner has the device"):
        as_target("llvm", None, measure)
    monkeypatch.undo()
    worker.kill()
    assert as_target("llvm", 1, measure).cores == 1


def test_what_is_wrong_there_is_one_line(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = measure.removeprefix("remote:")
    with pytest.raises(InputError, match=f"^{where}: no OpenCL device is called 'voodoo'"):
        as_target("opencl:voodoo", None, measure)
    with pytest.raises(InputError, match="^unknown measure of fpga 'run'"):
        as_target("fpga:vu9p", None, measure)
    with pytest.raises(InputError, match="needs a target in words"):
        as_target(lookup("llvm"), None, measure)
    monkeypatch.setattr(flextensor, "__version__", "0.0.0")
    with pytest.raises(DeviceError, match=f"^{where} has flextensor .* this machine 0.0.0: inst"):
        as_target("llvm", None, measure)
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(DeviceError, match="tune on that machine itself"):
        as_target("llvm", None, measure)


@pytest.mark.parametrize("measure", NO_ADDRESS)
def test_what_is_no_address_is_said(measure: str) -> None:
    with pytest.raises(InputError, match="is no remote:HOST:PORT"):
        as_target("llvm", None, measure)


def test_nobody_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    how = f"remote:127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "flextensor", "tune", "gemm", "--measure", how]
    done = subprocess.run(
        [*command, "--db", str(tmp_path / "t.db")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nobody listens at 127.0.0.1:")
    assert "flextensor serve" in done.stderr and len(done.stderr.splitlines()) == 1


def test_another_service_is_told_from_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
        talk = "import socket, sys; made = socket.socket(fileno=int(sys.argv[1])); " \
               "made.accept()[0].sendall(b'SSH-2.0-x')"  # fmt: skip
        fd = made.fileno()
        other = subprocess.Popen([sys.executable, "-c", talk, str(fd)], pass_fds=[fd])
        with pytest.raises(DeviceError, match="is no `flextensor serve`|[Cc]onnection reset"):
            as_target("llvm", None, f"remote:127.0.0.1:{port}")
        other.wait(60)


def test_a_server_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from flextensor.targets import rpc_server

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port}: Address already"):
            rpc_server.serve("127.0.0.1", port)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(DeviceError, match="psutil: pip install cloudpickle psutil"):
        rpc_server.serve("127.0.0.1", free_port())


def test_a_lost_server_loses_no_trial(tmp_path: Path) -> None:
    with serving() as (server, how), Database(tmp_path / "t.db") as database:
        target = as_target("llvm", None, how)

        def kill(progress: Progress) -> None:
            if progress.trials >= 8:
                server.kill()

        with pytest.raises(DeviceError, match="was lost; what was measured is kept"):
            flextensor.tune(
                GEMM, target=target, trials=400, db=database, cost_model="none", progress=kill
            )
        assert len(database.trials(Workload(GEMM).key, target.fingerprint)) >= 8
