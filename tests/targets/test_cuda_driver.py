"""The driver's side of CUDA, on a stand-in for libcuda whose kernels run in emulation."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import targets
from flextensor.errors import DeviceError
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import schedule, space
from flextensor.targets import CUDA, cuda_driver
from flextensor.targets.cuda_driver import CudaFunction
from flextensor.targets.cuda_emulation import compiled
from flextensor.targets.cuda_program import CudaProgram
from flextensor.targets.launches import Launch

GEMM = Workload(Gemm(m=19, n=23, k=17))


class StandIn:
    """One card of compute capability 8.0 whose memory is the host's."""

    def __init__(self) -> None:
        self.kernels: dict[str, Any] = {}
        self.names: list[str] = []
        self.memory: dict[int, Any] = {}
        self.failure = 0
        self.events = 0
        self.said: list[str] = []
        self.allowed: dict[int, int] = {}

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if index == 0 else 101

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Stand-in"
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        value._obj.value = {16: 6, 75: 8, 76: 0}[which]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def cuModuleLoadData(self, module: Any, cubin: bytes) -> int:
        return 0 if cubin[:4] == b"\x7fELF" else 200

    def cuModuleGetFunction(self, kernel: Any, module: Any, name: bytes) -> int:
        self.names.append(name.decode())
        kernel._obj.value = len(self.names)
        return 0

    def cuFuncSetAttribute(self, kernel: Any, which: int, value: int) -> int:
        assert which == 8
        self.allowed[kernel.value] = value
        return 0

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        memory = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(memory)
        self.memory[pointer._obj.value] = memory
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:
        del self.memory[pointer.value]
        return 0

    def cuMemcpyHtoD_v2(self, pointer: Any, host: Any, size: Any) -> int:
        ctypes.memmove(pointer.value, host.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, host: Any, pointer: Any, size: Any) -> int:
        ctypes.memmove(host.value, pointer.value, size.value)
        return 0

    def cuLaunchKernel(self, kernel: Any, *rest: Any) -> int:
        grid, block, shared, addresses = rest[:3], rest[3:6], rest[6], rest[8]
        if shared > self.allowed.get(kernel.value, 48 << 10):
            return 1
        pointers = [ctypes.c_uint64.from_address(a).value for a in addresses]
        arrays = [np.frombuffer(self.memory[p], np.uint8) for p in pointers]
        name = self.names[kernel.value - 1]
        self.kernels[name](Launch(name, (), grid, block, shared), arrays)
        return 0

    def cuMemsetD8Async(self, pointer: Any, value: int, size: Any, stream: None) -> int:
        assert size.value == len(self.memory[pointer.value])
        self.said.append("flush")
        return 0

    def cuEventCreate(self, event: Any, flags: int) -> int:
        self.events += 1
        event._obj.value = self.events
        return 0

    def cuEventRecord(self, event: Any, stream: None) -> int:
        self.said.append(f"event {event.value}")
        return 0

    def cuEventSynchronize(self, event: Any) -> int:
        return self.failure

    def cuEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> int:
        assert start.value < end.value
        milliseconds._obj.value = 1.5
        return 0

    def cuCtxSynchronize(self) -> int:
        return self.failure

    def cuGetErrorName(self, code: int, text: Any) -> int:
        known = {700: b"CUDA_ERROR_ILLEGAL_ADDRESS", 101: b"CUDA_ERROR_INVALID_DEVICE"}
        text._obj.value = known.get(code)
        return 0


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
