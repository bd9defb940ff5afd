"""The CUDA driver by ctypes: the cards that are there, and programs on one of them.

Only what a tuner needs of libcuda, which every card's driver brings: no toolkit, no CuPy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError
from flextensor.targets.cuda_program import CudaProgram
from flextensor.targets.device_function import DeviceBuffer, DeviceFunction
from flextensor.targets.launches import Function
from flextensor.targets.runtime import Runtime

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array

Three = tuple[int, int, int]

MOST_DYNAMIC_SHARED = 8
"""CUfunction_attribute: blocks get no more unless they say so; 48 KiB is what all may have."""
# CUdevice_attribute
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76
FLUSH_BYTES = 256 << 20
"""What is overwritten before a call: twice the largest L2, and 0.1 ms of the fastest memory."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A card: its number for the driver, its name, compute capability and multiprocessors."""

    index: int
    name: str
    architecture: str
    multiprocessors: int


@functools.cache
def driver() -> Any:
    """libcuda, initialised, or None where there is none or it finds no card."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def cards() -> list[Card]:
    """Every card of this machine; none without a driver."""
    library, count = driver(), ctypes.c_int()
    if library is None or library.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_card(library, index) for index in range(count.value)]


def _card(library: Any, index: int) -> Card:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    ask(library, "cuDeviceGet", ctypes.byref(device), index)
    ask(library, "cuDeviceGetName", name, len(name), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        ask(library, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    architecture = f"sm_{attribute(MAJOR)}{attribute(MINOR)}"
    return Card(index, name.value.decode(), architecture, attribute(MULTIPROCESSORS))


def ask(library: Any, function: str, *arguments: Any) -> None:
    """Call the driver; `DeviceError` with its words when it refuses."""
    code = getattr(library, function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {code}"
        raise DeviceError(f"CUDA: {function}: {reason}")


class CudaRuntime(Runtime):
    """A context of this process on one card; kernels run in turn on its default stream.

    It is the primary context, so that PyTorch, in the same process, shares memory, stream and
    clock with it.
    """

    repeat_seconds = 0.0
    """The card's own events time a single call."""

    def __init__(self, index: int) -> None:
        self.cuda = driver()
        if self.cuda is None:
            raise DeviceError("no CUDA device found on this machine")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.ask("cuDeviceGet", ctypes.byref(device), index)
        self.ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.ask("cuCtxSetCurrent", context)
        self._events: tuple[ctypes.c_void_p, ctypes.c_void_p] | None = None

    def ask(self, function: str, *arguments: Any) -> None:
        """Call the driver; `DeviceError` with its words when it refuses."""
        ask(self.cuda, function, *arguments)

    def load(self, path: Path) -> dict[str, CudaFunction]:
        """The functions of a file that `CUDA.build` wrote."""
        built = CudaProgram.loads(path.read_text())
        if built.binary is None:
            raise DeviceError(f"{path} holds no machine code")
        module = self.module(built.binary.cubin)
        functions = built.program.functions
        return {name: CudaFunction(self, module, f) for name, f in functions.items()}

    def module(self, cubin: bytes) -> ctypes.c_void_p:
        """Machine code, loaded."""
        module = ctypes.c_void_p()
        self.ask("cuModuleLoadData", ctypes.byref(module), cubin)
        return module

    def kernel(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A kernel of loaded machine code."""
        kernel = ctypes.c_void_p()
        self.ask("cuModuleGetFunction", ctypes.byref(kernel), module, name.encode())
        return kernel

    def launch(
        self,
        kernel: ctypes.c_void_p,
        grid: Three,
        block: Three,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Launch a kernel, without waiting; arguments are ctypes values, `shared` the bytes of
        shared memory that are sized at launch."""
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.ask("cuLaunchKernel", kernel, *grid, *block, shared, None, addresses, None)

    def place(self, array: Array) -> CudaBuffer:
        """A copy of `array` in the memory of the card."""
        buffer = CudaBuffer(self, array.nbytes, array.shape, array.dtype)
        buffer.copyfrom(array)
        return buffer

    def sync(self) -> None:
        """Wait until every kernel is done; `DeviceError` when one failed."""
        self.ask("cuCtxSynchronize")

    def seconds(self, call: Callable[[], object], number: int) -> float:
        """Seconds per call on the clock of the card, L2 overwritten before each of them.

        While the card overwrites, the host launches: its latency is in no time.
        """
        start, end = self._clock()
        total, elapsed = 0.0, ctypes.c_float()
        for _ in range(number):
            self.ask("cuMemsetD8Async", self._flush.pointer, 0, ctypes.c_size_t(FLUSH_BYTES), None)
            self.ask("cuEventRecord", start, None)
            call()
            self.ask("cuEventRecord", end, None)
            self.ask("cuEventSynchronize", end)
            self.ask("cuEventElapsedTime", ctypes.byref(elapsed), start, end)
            total += elapsed.value * 1e-3
        return total / number

    def _clock(self) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
        """Two events, made with the buffer that overwrites L2 when first something is timed."""
        if self._events is None:
            self._flush = CudaBuffer(self, FLUSH_BYTES)
            start, end = ctypes.c_void_p(), ctypes.c_void_p()
            for event in (start, end):
                self.ask("cuEventCreate", ctypes.byref(event), 0)
            self._events = start, end
        return self._events


class CudaBuffer(DeviceBuffer):
    """Memory of a card, freed with the object."""

    def __init__(
        self, runtime: CudaRuntime, size: int, shape: tuple[int, ...] = (), dtype: Any = "uint8"
    ) -> None:
        super().__init__(size, shape, dtype)
        self._runtime = runtime
        self.pointer = ctypes.c_uint64()
        try:
            runtime.ask("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(max(size, 1)))
        except DeviceError as error:
            raise DeviceError(f"{error} for {size} bytes") from None

    def __del__(self) -> None:
        if self.pointer.value:
            self._runtime.cuda.cuMemFree_v2(self.pointer)

    def read(self, array: Array) -> None:
        """Copy all of it to a contiguous array of the host."""
        host = ctypes.c_void_p(array.ctypes.data)
        self._runtime.ask("cuMemcpyDtoH_v2", host, self.pointer, ctypes.c_size_t(self.size))

    def write(self, array: Array) -> None:
        """Copy a contiguous array of the host, all of it, here."""
        host = ctypes.c_void_p(array.ctypes.data)
        self._runtime.ask("cuMemcpyHtoD_v2", self.pointer, host, ctypes.c_size_t(self.size))


class CudaFunction(DeviceFunction):
    """One function of a loaded program on a card."""

    buffer = CudaBuffer

    def __init__(self, runtime: CudaRuntime, module: ctypes.c_void_p, function: Function) -> None:
        super().__init__(function)
        self._runtime = runtime
        self._kernels = [runtime.kernel(module, launch.kernel) for launch in function.launches]
        for kernel, launch in zip(self._kernels, function.launches, strict=True):
            if launch.shared:
                runtime.ask("cuFuncSetAttribute", kernel, MOST_DYNAMIC_SHARED, launch.shared)
        own = function.sizes[function.parameters :]
        self._workspaces = [CudaBuffer(runtime, size) for size in own]

    def place(self, array: Array) -> CudaBuffer:
        """A copy of `array` in the memory of the card."""
        return self._runtime.place(array)

    def launch(self, buffers: Sequence[CudaBuffer]) -> None:
        """Launch every kernel, without waiting."""
        everything = [*buffers, *self._workspaces]
        for kernel, launch in zip(self._kernels, self.function.launches, strict=True):
            pointers = [everything[position].pointer for position in launch.arguments]
            extents = (launch.grid, launch.block)
            self._runtime.launch(kernel, *extents, pointers, launch.shared)
