"""A stand-in for libcuda, in Python: memory is the host's, kernels are functions on arrays."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from flextensor.targets.launches import Launch


class StandIn:
    """One card of compute capability 8.0 whose memory is the host's, at most `most` bytes of it at
    a time. `kernels` has what runs by the name of a kernel."""

    def __init__(self) -> None:
        self.kernels: dict[str, Any] = {}
        self.names: list[str] = []
        self.memory: dict[int, Any] = {}
        self.failure = 0
        self.events = 0
        self.said: list[str] = []
        self.allowed: dict[int, int] = {}
        self.most = 1 << 40

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
        if sum(map(len, self.memory.values())) + size.value > self.most:
            return 2
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
        known = {
            2: b"CUDA_ERROR_OUT_OF_MEMORY",
            101: b"CUDA_ERROR_INVALID_DEVICE",
            700: b"CUDA_ERROR_ILLEGAL_ADDRESS",
            716: b"CUDA_ERROR_MISALIGNED_ADDRESS",
        }
        text._obj.value = known.get(code)
        return 0
