"""The driver's side of CUDA, on a stand-in for libcuda whose kernels run in emulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_driver import StandIn

from flextensor import targets
from flextensor.errors import DeviceError
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import schedule, space
from flextensor.targets import CUDA, cuda_driver
from flextensor.targets.cuda_driver import CudaFunction
from flextensor.targets.cuda_emulation import compiled
from flextensor.targets.cuda_program import CudaProgram

GEMM = Workload(Gemm(m=19, n=23, k=17))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    library = StandIn()
    monkeypatch.setattr(cuda_driver, "driver", lambda: library)
    yield library


def built(card: StandIn, path: Path) -> tuple[Any, CudaFunction]:
    """The runtime of the card and a GEMM on it."""
    target = targets.lookup("cuda")
    func = GEMM.prim_func()
    target.build(schedule(func, target, space(func, target).seeds[1]), path)
    card.kernels = compiled(CudaProgram.loads(path.read_text()).program.source)
    runtime = target.runtime()
    return runtime, runtime.load(path)["main"]  # type: ignore[return-value]


def test_the_card_is_found_with_its_numbers(card: StandIn) -> None:
    target = targets.lookup("cuda")
    assert isinstance(target, CUDA)
    assert (target.name, target.arch, target.cores, target.index) == ("Stand-in", "sm_80", 6, 0)
    assert targets.lookup("cuda:sm_80") == target
    assert targets.present()["cuda:0"] == target
    target.check()


def test_a_program_runs_on_placed_buffers_and_on_arrays(card: StandIn, tmp_path: Path) -> None:
    runtime, main = built(card, tmp_path / "kernel.so")
    a, b = GEMM.inputs(0)
    want = GEMM.reference([a, b])
    out = runtime.place(np.full(want.shape, np.nan, "float32"))
    placed = [runtime.place(x) for x in (a, b)]
    main(*placed, out)
    runtime.sync()
    np.testing.assert_allclose(out.numpy(), want, atol=1e-4)
    placed[0].copyfrom(2 * a)
    main(*placed, out)
    np.testing.assert_allclose(out.numpy(), 2 * want, atol=1e-4)
    wide = np.full((19, 46), np.nan, "float32")
    main(a, b, wide[:, ::2])
    np.testing.assert_allclose(wide[:, ::2], want, atol=1e-4)
    assert np.isnan(wide[:, 1::2]).all()


def test_what_does_not_fit_is_refused(card: StandIn, tmp_path: Path) -> None:
    runtime, main = built(card, tmp_path / "kernel.so")
    a, b = GEMM.inputs(0)
    with pytest.raises(ValueError, match="takes 3 buffers, got 2"):
        main(a, b)
    with pytest.raises(ValueError, match="too small, needs"):
        main(a[1:], b, b)
    with pytest.raises(ValueError, match=r"cannot copy float64"):
        runtime.place(a).copyfrom(a.astype("float64"))


def test_memory_is_freed(card: StandIn) -> None:
    runtime = targets.lookup("cuda").runtime()
    buffer = runtime.place(np.zeros(8, "float32"))
    assert len(card.memory) == 1
    del buffer
    assert not card.memory


def test_what_the_driver_refuses_is_one_line(card: StandIn, tmp_path: Path) -> None:
    target = CUDA.from_spec("cuda")
    runtime = target.runtime()
    card.failure = 700
    with pytest.raises(DeviceError, match="cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        runtime.sync()
    card.failure = 999
    with pytest.raises(DeviceError, match="cuCtxSynchronize: error 999"):
        runtime.sync()
    with pytest.raises(DeviceError, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        dataclasses.replace(target, index=1).runtime()


def test_calls_are_timed_by_events_after_a_flush(
    card: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "FLUSH_BYTES", 64)
    runtime = targets.lookup("cuda").runtime()
    assert runtime.seconds(lambda: card.said.append("call"), 2) == pytest.approx(1.5e-3)
    assert card.said == 2 * ["flush", "event 1", "call", "event 2"]
    card.failure = 700
    with pytest.raises(DeviceError, match="cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        runtime.seconds(lambda: None, 1)


def test_without_a_driver_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: None)
    assert cuda_driver.cards() == []
    with pytest.raises(DeviceError, match="no CUDA device found"):
        cuda_driver.CudaRuntime(0)
