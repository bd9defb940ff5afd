from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flextensor.targets.process import (
    NOT_INHERITED,
    Call,
    RemoteError,
    SetupFailed,
    Worker,
    WorkerDied,
    WorkerTimeout,
    run_all,
)

ENV = {"PYTHONPATH": str(Path(__file__).parent)}


def echo_worker(*setup: Call) -> Worker:
    return Worker(setup, ENV, memory_bytes=1 << 30, module="echo_worker")


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = echo_worker(("remember", {"color": "blue"}))
    yield made
    made.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_calls_share_a_process_and_its_set_up(worker: Worker) -> None:
    first, second = (worker.call("echo", {"n": n}, 10) for n in (1, 2))
    assert first == {"pid": worker.pid, "calls": 1, "n": 1, "color": "blue"}
    assert second == {"pid": worker.pid, "calls": 2, "n": 2, "color": "blue"}


def test_a_process_that_cannot_be_started_leaves_nothing_open(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refused)
        with pytest.raises(SetupFailed, match="starts no worker: Resource temporarily unavailable"):
            worker.start()
        assert os.listdir("/proc/self/fd") == before
    assert worker.call("echo", {"n": 1}, 10)["calls"] == 1


def test_payloads_bigger_than_a_pipe(worker: Worker) -> None:
    text = "é" * 300_000
    assert worker.call("echo", {"text": text}, 10)["text"] == text


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_death_is_named_and_the_next_call_gets_a_new_process(
    worker: Worker, number: signal.Signals
) -> None:
    with pytest.raises(WorkerDied, match=f"worker died: {number.name} .last words."):
        worker.call("die", {"signal": number}, 10)
    assert worker.call("echo", {}, 10)["color"] == "blue"


def test_an_exit_is_a_death(worker: Worker) -> None:
    with pytest.raises(WorkerDied, match="worker died: exit status 3"):
        worker.call("leave", {"status": 3}, 10)


def test_a_death_between_calls_is_noticed(worker: Worker) -> None:
    pid = worker.call("echo", {}, 10)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert worker.call("echo", {}, 10)["pid"] != pid


def test_a_hang_is_killed(worker: Worker) -> None:
    pid = worker.call("echo", {}, 10)["pid"]
    with pytest.raises(WorkerTimeout, match=r"no reply within 0\.2 s"):
        worker.call("spin", {}, 0.2)
    assert gone(pid)
    assert worker.call("echo", {}, 10)["pid"] != pid


def test_an_exception_keeps_the_process(worker: Worker) -> None:
    with pytest.raises(RemoteError, match=r"^ValueError: first line$") as caught:
        worker.call("fail", {"message": "first line\nsecond line"}, 10)
    assert caught.value.kind == "ValueError"
    assert worker.call("echo", {}, 10)["calls"] == 1


def test_an_unknown_method_is_an_error(worker: Worker) -> None:
    with pytest.raises(RemoteError, match="KeyError: 'nonsense'"):
        worker.call("nonsense", {}, 10)


def test_what_a_kernel_prints_is_no_reply(worker: Worker) -> None:
    assert worker.call("chatter", {"lines": 50_000}, 10) == {}
    assert worker.call("echo", {"n": 1}, 10)["n"] == 1


def test_memory_is_bounded(worker: Worker) -> None:
    with pytest.raises(RemoteError, match="MemoryError"):
        worker.call("eat", {"bytes": 2 << 30}, 10)
    assert worker.call("eat", {"bytes": 1 << 20}, 10)["bytes"] == 1 << 20


def test_a_set_up_that_fails_is_an_error_of_the_call() -> None:
    worker = echo_worker(("fail", {"message": "no device"}))
    for _ in range(2):
        with pytest.raises(SetupFailed, match="no device"):
            worker.call("echo", {}, 10)
    assert worker.pid is None


def test_a_death_during_the_set_up_is_no_fault_of_the_call() -> None:
    worker = echo_worker(("die", {"signal": signal.SIGSEGV}))
    with pytest.raises(SetupFailed, match="worker died: SIGSEGV"):
        worker.call("echo", {}, 10)


def test_set_up_added_to_a_running_worker(worker: Worker) -> None:
    pid = worker.call("echo", {}, 10)["pid"]
    worker.add_setup("remember", {"shape": "round"})
    reply = worker.call("echo", {}, 10)
    assert (reply["pid"], reply["shape"]) == (pid, "round")
    worker.kill()
    assert worker.call("echo", {}, 10)["shape"] == "round"


def test_a_pool_loses_only_the_call_that_died() -> None:
    workers = [echo_worker() for _ in range(2)]
    calls: list[Call] = [("echo", {"n": n}) for n in range(6)]
    calls[2] = ("die", {"signal": signal.SIGSEGV})
    try:
        replies = dict(run_all(workers, calls, 10))
    finally:
        for worker in workers:
            worker.kill()
    assert isinstance(replies.pop(2), WorkerDied)
    assert sorted(replies) == [0, 1, 3, 4, 5]
    assert all(isinstance(r, dict) and r["n"] == n for n, r in replies.items())


def test_an_interrupted_pool_answers_no_stale_reply(worker: Worker) -> None:
    worker.call("echo", {}, 10)
    pool = run_all([worker], [("echo", {"n": 1}), ("wait", {"seconds": 5})], 10)
    next(pool)
    pool.close()  # type: ignore[attr-defined]
    assert worker.call("echo", {"n": 3}, 10)["n"] == 3


PARENT = """
import sys, threading, time
from flextensor.targets.process import Worker
workers = []
def start():
    worker = Worker(module="echo_worker")
    print(worker.call("echo", {}, 20)["pid"], flush=True)
    worker.submit("spin", {}, 1000)
    workers.append(worker)
if sys.argv[1] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
workers[0].collect()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_no_worker_outlives_a_killed_parent(where: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, where],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENV,
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        assert alive(pid)
        parent.kill()
        parent.wait()
    assert gone(pid)


def test_an_interrupt_from_the_terminal_does_not_reach_workers(worker: Worker) -> None:
    pid = worker.call("echo", {}, 10)["pid"]
    assert os.getpgid(pid) == os.getsid(pid) == pid


def test_a_worker_inherits_no_thread_count_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ATEN_CPU_CAPABILITY"):
        monkeypatch.setenv(name, "1")
    worker = Worker([], {"OMP_NUM_THREADS": "2"})
    inherited = {k: v for k, v in worker._env.items() if k.startswith(NOT_INHERITED)}
    assert inherited == {"OMP_NUM_THREADS": "2"}
