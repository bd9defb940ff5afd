"""The CUDA driver by ctypes: the cards that are there, and programs on one of them.

Only what a tuner needs of libcuda, which every card's driver brings: no toolkit, no CuPy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError
from flextensor.targets.cuda_program import CudaProgram
from flextensor.targets.device_function import DeviceFunction
from flextensor.targets.launches import Function

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array

MOST_DYNAMIC_SHARED = 8
"""CUfunction_attribute: blocks get no more unless they say so; 48 KiB is what all may have."""
# CUdevice_attribute
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76


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


class CudaRuntime:
    """A context of this process on one card; kernels run in turn on its default stream."""

    def __init__(self, index: int) -> None:
        self.cuda = driver()
        if self.cuda is None:
            raise DeviceError("no CUDA device found on this machine")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.ask("cuDeviceGet", ctypes.byref(device), index)
        self.ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.ask("cuCtxSetCurrent", context)

    def ask(self, function: str, *arguments: Any) -> None:
        """Call the driver; `DeviceError` with its words when it refuses."""
        ask(self.cuda, function, *arguments)

    def load(self, path: Path) -> dict[str, CudaFunction]:
        """The functions of a file that `CUDA.build` wrote."""
        built = CudaProgram.loads(path.read_text())
        if built.binary is None:
            raise DeviceError(f"{path} holds no machine code")
        module = ctypes.c_void_p()
        self.ask("cuModuleLoadData", ctypes.byref(module), built.binary.cubin)
        functions = built.program.functions
        return {name: CudaFunction(self, module, f) for name, f in functions.items()}

    def place(self, array: Array) -> CudaBuffer:
        """A copy of `array` in the memory of the card."""
        buffer = CudaBuffer(self, array.nbytes, array.shape, array.dtype)
        buffer.copyfrom(array)
        return buffer

    def sync(self) -> None:
        """Wait until every kernel is done; `DeviceError` when one failed."""
        self.ask("cuCtxSynchronize")


class CudaBuffer:
    """Memory of a card, freed with the object."""

    def __init__(
        self, runtime: CudaRuntime, size: int, shape: tuple[int, ...] = (), dtype: Any = "uint8"
    ) -> None:
        self._runtime, self.size, self._shape, self._dtype = runtime, size, shape, dtype
        self.pointer = ctypes.c_uint64()
        runtime.ask("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(max(size, 1)))

    def __del__(self) -> None:
        if self.pointer.value:
            self._runtime.cuda.cuMemFree_v2(self.pointer)

    def numpy(self) -> Array:
        """A copy in the memory of the host."""
        import numpy as np

        array: Array = np.empty(self._shape, self._dtype)
        self.copyto(array)
        return array

    def copyto(self, array: Array) -> None:
        """Overwrite an array of the host."""
        import numpy as np

        whole = array if array.flags.c_contiguous else np.empty(self._shape, self._dtype)
        host = ctypes.c_void_p(whole.ctypes.data)
        self._runtime.ask("cuMemcpyDtoH_v2", host, self.pointer, ctypes.c_size_t(self.size))
        if whole is not array:
            np.copyto(array, whole)

    def copyfrom(self, array: Array) -> None:
        """Overwrite it with an array of the same shape and dtype."""
        import numpy as np

        if (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"cannot copy {array.dtype}{array.shape} to {self._shape}")
        whole = np.ascontiguousarray(array)
        host = ctypes.c_void_p(whole.ctypes.data)
        self._runtime.ask("cuMemcpyHtoD_v2", self.pointer, host, ctypes.c_size_t(self.size))


class CudaFunction(DeviceFunction):
    """One function of a loaded program on a card."""

    buffer = CudaBuffer

    def __init__(self, runtime: CudaRuntime, module: ctypes.c_void_p, function: Function) -> None:
        super().__init__(function)
        self._runtime, self._kernels = runtime, []
        for launch in function.launches:
            kernel = ctypes.c_void_p()
            runtime.ask("cuModuleGetFunction", ctypes.byref(kernel), module, launch.kernel.encode())
            if launch.shared:
                runtime.ask("cuFuncSetAttribute", kernel, MOST_DYNAMIC_SHARED, launch.shared)
            self._kernels.append(kernel)
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
            addresses = (ctypes.c_void_p * len(pointers))(*map(ctypes.addressof, pointers))
            sizes = (*launch.grid, *launch.block, launch.shared)
            self._runtime.ask("cuLaunchKernel", kernel, *sizes, None, addresses, None)
