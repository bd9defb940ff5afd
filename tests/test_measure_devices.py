"""Faults of a device while it is measured: each costs one trial, and the next has a new worker.

Programs are written by hand: of OpenCL for PoCL, and of CUDA for a stand-in for libcuda.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_measure import STUBS, increment

from flextensor.errors import DeviceError
from flextensor.measure import Candidate, Limits, LocalMeasurer
from flextensor.targets import CUDA, Status, Target, Trial, lookup
from flextensor.targets.cuda_compiler import Binary
from flextensor.targets.cuda_driver import Card
from flextensor.targets.cuda_program import CudaProgram
from flextensor.targets.launches import Function, Launch, Program
from flextensor.targets.process import SetupFailed

SIZE = 64
OPENCL_C = """__kernel void main_kernel(volatile __global float* a, volatile __global float* b) {{
  int i = get_local_id(0);
  {}
}}
"""
BODIES = {
    "good": "b[i] = a[i] + 1;",
    "wrong": "b[i] = a[i];",
    "endless": "while (a[i] == a[i]) b[i] = a[i];",
}
HUNGRY = 1 << 40
"""Bytes of a workspace that no device has."""


def program(name: str, target: Target) -> str:
    """The file of a program, as the target builds it."""
    launch = Launch("main_kernel", (0, 1), (1, 1, 1), (SIZE, 1, 1))
    does, sizes = name, [4 * SIZE, 4 * SIZE]
    if name == "hungry":
        does, sizes = "good", [*sizes, HUNGRY]
    function = Function(2, tuple(sizes), (1,), (launch,))
    if isinstance(target, CUDA):
        found = Program("", {"main": function})
        return CudaProgram(found, Binary(b"\x7fELF" + does.encode(), {})).dumps()
    source = OPENCL_C.format(BODIES[does])
    return Program(source, {"main": function}).dumps()


class Prebuilt(LocalMeasurer):
    """Candidates are the programs that their formulations name, each run whether it was before or
    not; no builder is started."""

    def start(self) -> None:
        self._runner.start()

    def _build(
        self, candidates: Sequence[Candidate], paths: Sequence[Path]
    ) -> Iterable[tuple[int, dict[str, Any]]]:
        for index, (candidate, path) in enumerate(zip(candidates, paths, strict=True)):
            path.write_text(program(candidate.formulation, self.target))
            yield index, {"status": "ok", "seconds": 0.0, "digest": str(path)}

    @property
    def pid(self) -> int | None:
        """Of the runner."""
        return self._runner.pid  # type: ignore[attr-defined, no-any-return]


def measurer(target: Target, seen: list[Trial], **options: Any) -> Prebuilt:
    limits = Limits(run_seconds=30.0)
    return Prebuilt(increment(), target, 1e-5, limits=limits, on_trial=seen.append, **options)


@pytest.fixture
def seen() -> list[Trial]:
    """What `on_trial` was given."""
    return []


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, seen: list[Trial]) -> Iterator[Prebuilt]:
    """A card of CUDA."""
    monkeypatch.setenv("PYTHONPATH", f"{STUBS}:{Path(STUBS).parent}")
    target = CUDA._card(Card(0, "Stand-in", "sm_80", 6))
    with measurer(target, seen, module="card_worker") as made:
        yield made


def run(device: Prebuilt, *names: str) -> list[Trial]:
    return device.measure([Candidate(name, {}) for name in names])


def hang(device: Prebuilt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that never returns costs one trial, and its worker; the next has another."""
    pid = device.pid
    with monkeypatch.context() as patch:
        patch.setattr(device, "limits", Limits(run_seconds=0.25))
        patch.setattr(type(device.target), "first_call_seconds", 0.0)
        (lost,) = run(device, "endless")
    assert (lost.status, lost.times) == (Status.TIMEOUT, ())
    assert lost.message == "no reply within 0.25 s"
    assert run(device, "good")[0].ok
    assert pid and device.pid and device.pid != pid


def test_each_fault_of_a_card_costs_one_trial(
    card: Prebuilt, seen: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = run(card, "good", "misaligned", "good", "wrong", "hungry", "good")
    ok, failed, wrong = Status.OK, Status.RUN_ERROR, Status.WRONG_RESULT
    assert [t.status for t in trials] == [ok, failed, ok, wrong, failed, ok]
    assert [bool(t.times) for t in trials] == [t.ok for t in trials]
    lost = r"DeviceError: CUDA: cu\w+: CUDA_ERROR_MISALIGNED_ADDRESS"
    assert re.fullmatch(lost, trials[1].message)
    full = r".*: CUDA: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY for 1099511627776 bytes"
    assert re.fullmatch(full, trials[4].message)
    assert seen == trials
    hang(card, monkeypatch)


def test_a_card_that_was_lost_in_a_comparison_is_there_for_the_next(card: Prebuilt) -> None:
    good, lost = (Candidate(name, {}) for name in ("good", "misaligned"))
    with pytest.raises(DeviceError, match="CUDA_ERROR_MISALIGNED_ADDRESS"):
        card.compare({"good": good, "lost": lost}, rounds=1)
    assert card.verify(good) < 1e-6


def test_a_card_that_is_gone_ends_the_measurement_in_one_line(
    card: Prebuilt, seen: list[Trial], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was measured until then is told, that which lost the card included."""
    monkeypatch.setenv("STAND_IN_GONE", str(tmp_path / "gone"))
    with (
        measurer(card.target, seen, module="card_worker") as device,
        pytest.raises(SetupFailed, match="^no CUDA device found on this machine$"),
    ):
        run(device, "good", "misaligned", "good")
    assert [t.status for t in seen] == [Status.OK, Status.RUN_ERROR]


def test_each_fault_of_opencl_costs_one_trial(
    seen: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    with measurer(lookup("opencl"), seen) as device:
        good, wrong, full, last = run(device, "good", "wrong", "hungry", "good")
        assert good.ok and last.ok and wrong.status is Status.WRONG_RESULT
        assert full.status is Status.RUN_ERROR
        assert re.fullmatch(
            r".*: OpenCL: create_buffer failed: \w+ for 1099511627776 bytes", full.message
        )
        assert seen == [good, wrong, full, last]
        hang(device, monkeypatch)
