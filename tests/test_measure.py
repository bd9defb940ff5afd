from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import buffers, targets, timing
from flextensor.answers import FunctionMeasurer
from flextensor.builders import MOST, Builders
from flextensor.errors import DeviceError
from flextensor.folders import private_folder, remove
from flextensor.measure import (
    Candidate,
    Limits,
    LocalMeasurer,
    build_limit,
)
from flextensor.operators import Gemm, Workload
from flextensor.result import compile_kernel
from flextensor.targets import Status, Trial
from flextensor.targets.process import SetupFailed

STUBS = str(Path(__file__).parent / "targets")
LIMITS = Limits(build_seconds=8.0, run_seconds=2.0)


def increment() -> Workload:
    sys.path.insert(0, STUBS)
    try:
        from faulty import Increment
    finally:
        sys.path.remove(STUBS)
    return Workload(Increment())


def measurer(workload: Workload, **options: Any) -> LocalMeasurer:
    target = targets.lookup("llvm")
    return LocalMeasurer(workload, target, 1e-5, limits=LIMITS, module="stub_worker", **options)


@pytest.fixture(scope="module")
def stubs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", STUBS)
        yield


@pytest.fixture(scope="module")
def seen() -> list[Trial]:
    """What `on_trial` was given."""
    return []


@pytest.fixture(scope="module")
def local(stubs: None, seen: list[Trial]) -> Iterator[LocalMeasurer]:
    with measurer(increment(), on_trial=seen.append) as made:
        yield made


def extern(*call: Any) -> Candidate:
    return Candidate("direct", {"extern": call})


def build(fault: str) -> Candidate:
    return Candidate("direct", {"fault": fault})


GOOD = Candidate("direct", {})
FAULTS = [
    (build("illegal"), Status.ILLEGAL, "tile 7 exceeds 4"),
    (build("raise"), Status.BUILD_ERROR, "ValueError: no such block"),
    (build("die"), Status.BUILD_ERROR, "worker died: SIGSEGV"),
    (build("hang"), Status.TIMEOUT, "no reply within 8 s"),
    (build("print"), Status.OK, ""),
    (extern("raise", 11), Status.RUN_ERROR, "worker died: SIGSEGV"),
    (extern("puts", "from a kernel"), Status.OK, ""),
    (extern("exit", 0), Status.RUN_ERROR, "worker died: exit status 0"),
    (extern("no_such_function"), Status.RUN_ERROR, "no_such_function"),
    (Candidate("wrong", {}), Status.WRONG_RESULT, "relative error"),
    (Candidate("nan", {}), Status.WRONG_RESULT, "the output holds NaN or inf"),
    (Candidate("hungry", {}), Status.RUN_ERROR, "worker died: SIGABRT .*bad_alloc"),
    (Candidate("endless", {}), Status.TIMEOUT, "no reply within 2 s"),
    (GOOD, Status.OK, ""),
]


def test_every_fault_is_one_trial_with_a_reason(local: LocalMeasurer, seen: list[Trial]) -> None:
    import re

    candidates = [candidate for candidate, _, _ in FAULTS]
    trials = local.measure(candidates)
    assert [t.status for t in trials] == [status for _, status, _ in FAULTS]
    for trial, (candidate, status, reason) in zip(trials, FAULTS, strict=True):
        assert (trial.formulation, trial.config) == (candidate.formulation, candidate.config)
        assert re.search(reason, trial.message), trial.message
        assert "\n" not in trial.message
        assert bool(trial.times) == trial.ok == (status is Status.OK)
    assert sorted(map(id, seen)) == sorted(map(id, trials))
    assert not list(local.folder.glob("*.so"))


def test_a_candidate_that_is_clearly_slower_is_abandoned(local: LocalMeasurer) -> None:
    slow, too = Candidate("slow", {}), Candidate("slow", {"extern": ("puts", "another program")})
    full, short = local.measure([slow])[0], local.measure([too], best_seconds=1e-7)[0]
    assert full.ok and short.ok
    assert len(full.times) >= timing.MIN_REPEATS and full.message == ""
    assert len(short.times) == 1
    assert "times slower than the best" in short.message


def test_a_program_that_was_run_is_not_run_again(
    local: LocalMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    run = local._run

    def spied(candidate: Candidate, *given: Any) -> Trial:
        ran.append(candidate.config)
        return run(candidate, *given)

    monkeypatch.setattr(local, "_run", spied)
    call = {"extern": ("puts", "once")}
    first, second = local.measure([Candidate("direct", {**call, "way": way}) for way in (1, 2)])
    (third,) = local.measure([Candidate("direct", {**call, "way": 3})])
    (other,) = local.measure([Candidate("direct", {"extern": ("puts", "twice")})])
    assert ran == [first.config, other.config]
    assert not first.twin and not other.twin and first.ok and first.run_seconds > 0
    for twin in (second, third):
        assert (twin.times, twin.error, twin.status) == (first.times, first.error, first.status)
        assert twin.twin and twin.run_seconds == 0 < twin.build_seconds
    assert [t.config["way"] for t in (first, second, third)] == [1, 2, 3]
    crash = {"extern": ("raise", 6)}
    died, again = local.measure([Candidate("direct", {**crash, "way": way}) for way in (1, 2)])
    assert died.status is again.status is Status.RUN_ERROR
    assert again.message == f"same program as an earlier trial: {died.message}"


def test_verify_reports_the_error_on_fresh_inputs(local: LocalMeasurer) -> None:
    assert local.verify(GOOD) < 1e-6
    assert 0.05 < local.verify(Candidate("wrong", {})) < 1
    assert local.verify(Candidate("nan", {})) == math.inf
    with pytest.raises(DeviceError, match="SIGSEGV"):
        local.verify(extern("raise", 11))


def test_a_candidate_is_built_once_into_a_library(local: LocalMeasurer) -> None:
    import tvm

    path, again = local.built([GOOD, GOOD])
    assert path == again == local.built([GOOD])[0]
    x, y = np.ones(64, "float32"), buffers.empty((64,), "float32")
    tvm.runtime.load_module(str(path))["main"](buffers.aligned(x), y)
    assert (y == 2).all()
    with pytest.raises(DeviceError, match="no such block"):
        local.built([GOOD, build("raise")])


def test_compare_times_candidates_and_pytorch_in_turns(stubs: None) -> None:
    workload = Workload(Gemm(m=33, n=35, k=37))
    with measurer(workload) as local:
        times, missing = local.compare({"a": GOOD, "b": GOOD}, ["torch", "blas"], rounds=2, most=2)
    assert missing == {}
    assert {name: len(values) for name, values in times.items()} == {
        "a": 6, "b": 6, "torch": 6, "blas": 6,
    }  # fmt: skip
    assert all(value > 0 for values in times.values() for value in values)


@pytest.mark.parametrize("taken", [["stuck", "fine"], ["stuck", "stuck"], ["fine"]])
def test_times_that_say_nothing_are_taken_once_more_in_a_fresh_process(
    taken: list[str], stubs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a library whose threads wait for each other, in all rounds of a process or in none."""
    times = {"stuck": [1.0, 9.0, 1.0, 9.0], "fine": [2.0] * 4}
    asked: list[str] = []
    killed: list[int] = []

    def ask(method: str, *rest: object) -> dict[str, object]:
        asked.append(taken[len(asked)])
        return {"times": {"a": [1.0] * 4, "torch": times[asked[-1]]}, "missing": {}}

    with measurer(increment()) as local:
        monkeypatch.setattr(local, "built", lambda candidates: [])
        monkeypatch.setattr(local, "_ask", ask)
        monkeypatch.setattr(local._runner, "kill", lambda: killed.append(len(asked)))
        found, _ = local.compare({}, ["torch"])
        assert asked == taken and killed == [1] * (len(taken) - 1)
    assert found["torch"] == times[taken[-1]]


def test_a_missing_compiler_is_one_clear_error(
    stubs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with (
        measurer(increment()) as local,
        pytest.raises(DeviceError, match="^no C compiler or linker found"),
    ):
        local.measure([GOOD])


def test_close_removes_files_and_processes(stubs: None) -> None:
    local = measurer(increment())
    local.measure([GOOD])
    local.close()
    assert not local.folder.exists()


def test_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead = tmp_path / f"flextensor-{done.pid}-x"
    for folder in (dead, tmp_path / f"flextensor-{os.getpid()}-x", tmp_path / "flextensor-other"):
        folder.mkdir()
    made = private_folder(tmp_path)
    assert made.is_dir()
    assert not dead.exists()
    assert len(list(tmp_path.iterdir())) == 3


HOLDS = """
import sys, time
from pathlib import Path
from flextensor.folders import private_folder

print(private_folder(Path(sys.argv[1])), flush=True)
time.sleep(600)
"""


def test_a_folder_is_its_processs_while_that_lives_whatever_its_number(tmp_path: Path) -> None:
    """The number may be that of a process in another container, with the same /tmp."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            made = Path(other.stdout.readline().strip())
            assert made.name.startswith(f"flextensor-{other.pid}-")
            held = made.rename(tmp_path / f"flextensor-{dead.pid}-x")
            own = private_folder(tmp_path)
            assert held.is_dir() and own.is_dir()
        finally:
            other.kill()
    again = private_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, again])


def test_a_folder_that_is_removed_holds_nothing_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    made = private_folder(tmp_path)
    for _ in range(2):
        remove(made)
    assert not made.exists() and os.listdir("/proc/self/fd") == before


def full(*_: Any, **__: Any) -> None:
    """As `ndarray.tofile` has it."""
    raise OSError("4096 requested and 0 written")


def test_no_room_for_inputs_is_one_clear_line(stubs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with measurer(increment()) as local:
        monkeypatch.setattr("numpy.save", full)
        with pytest.raises(SetupFailed, match=r"cannot write inputs to .* \(4096 requested"):
            local.measure([GOOD])


def test_no_room_for_a_program_is_one_clear_line(
    stubs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with measurer(increment()) as local:
        monkeypatch.setattr(Path, "write_text", lambda *_: os.mkdir("/"))
        with pytest.raises(SetupFailed, match="cannot write .*program0.json: File exists"):
            local.measure([GOOD])


def test_a_thread_that_cannot_be_had_is_one_clear_line(
    stubs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with measurer(increment()) as local:
        monkeypatch.setattr(local._pool, "submit", refused)
        with pytest.raises(SetupFailed, match="the system starts no thread: can't start"):
            local.start()


def test_no_temporary_folder_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match=r"no temporary folder \(No such file .*set TMPDIR"):
        private_folder(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(DeviceError, match=r"no temporary folder \(No usable temporary directory"):
        private_folder()
    workload, target = increment(), targets.lookup("llvm")
    with pytest.raises(DeviceError, match="cannot build the kernel: .*No usable temporary dir"):
        compile_kernel(workload, target, {"formulation": "direct", "config": {}})


def test_a_function_is_a_landscape() -> None:
    failure = Trial("direct", {"x": 0}, Status.TIMEOUT)
    landscape = FunctionMeasurer(lambda c: failure if not c.config["x"] else 1.0 / c.config["x"])
    trials = landscape.measure([Candidate("direct", {"x": x}) for x in (0, 2)])
    assert trials[0] is failure
    assert trials[1].seconds == 0.5


@pytest.mark.parametrize(
    "got, want, error",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0, math.inf], [1.0, 2.0], math.inf),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([1.0], [1.0, 1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(got: list[float], want: list[float], error: float) -> None:
    assert buffers.relative_error(np.array(got, "float32"), np.array(want)) == error


def test_a_measurer_rests_and_goes_on_while_another_uses_the_builders(stubs: None) -> None:
    target = targets.lookup("llvm")
    first, second = Workload(Gemm(m=8, n=4, k=4)), Workload(Gemm(m=4, n=8, k=2))
    with Builders(target, 1, module="stub_worker") as builders:
        own, other = (
            LocalMeasurer(w, target, 1e-4, module="stub_worker", builders=builders)
            for w in (first, second)
        )
        with own, other:
            for turn in "first", "second":
                for one, resting in ((own, other), (other, own)):
                    resting.rest()
                    assert one.measure([extern("puts", turn)])[0].ok
                    assert one._runner.pid and not resting._runner.pid  # type: ignore
            assert len(list(builders.folder.glob("program*.json"))) == 2


def test_workloads_share_builders_that_survive_a_crash(stubs: None) -> None:
    target, work = targets.lookup("llvm"), (Gemm(m=8, n=4, k=4), Gemm(m=4, n=8, k=2))
    pids = []
    with Builders(target, 1, module="stub_worker") as builders:
        for operator in (*work, *work):
            with LocalMeasurer(Workload(operator), target, 1e-4, builders=builders) as own:
                assert own.measure([GOOD])[0].ok
                pids += builders.pids
                if len(pids) == 2:
                    assert own.measure([build("die")])[0].status is Status.BUILD_ERROR
        first, second, third, fourth = pids
        assert first == second != third == fourth
    assert builders.pids == [None]


def test_a_build_may_take_what_builds_of_the_workload_take() -> None:
    assert build_limit([0.1] * 15, 15.0) == 15.0  # too few to say
    assert build_limit([0.1] * 16, 15.0) == 3.0
    assert build_limit([1.0] * 16, 15.0) == 8.0
    assert build_limit([0.1] * 20 + [1.0] * 10, 15.0) == 8.0
    assert build_limit([4.0] * 16, 15.0) == 15.0


def test_a_run_may_take_what_its_arithmetic_takes() -> None:
    """20 GFLOP/s of a thread, four calls: nothing more for a small product, minutes for a large."""
    target = targets.lookup("llvm", 1)
    limits = []
    for n in 64, 8192:
        workload = Workload(Gemm(m=n, n=n, k=n))
        with LocalMeasurer(workload, target, 1e-5, limits=LIMITS) as large:
            limits += [large._run_limit(math.inf), large._run_limit(0.001)]
    assert limits[0] < 3 and limits[1] < 3
    assert 4 * 2 * 8192**3 / 20e9 < limits[2] < 250  # the transfer of 800 MB is in it
    assert limits[3] < 20


def test_no_more_builders_are_started_than_have_work() -> None:
    many = dataclasses.replace(targets.lookup("llvm"), cores=96)
    with Builders(many) as builders:
        assert len(builders.pids) == MOST == 16
    with Builders(many, count=20) as builders:
        assert len(builders.pids) == 20
