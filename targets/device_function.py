"""A function of a loaded program on a device with a memory of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.targets.launches import Function

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array


class DeviceBuffer(ABC):
    """Memory of a device that holds an array of `size` bytes."""

    def __init__(self, size: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.size, self._shape, self._dtype = size, shape, dtype

    @abstractmethod
    def read(self, array: Array) -> None:
        """Copy all of it to a contiguous array of the host."""

    @abstractmethod
    def write(self, array: Array) -> None:
        """Copy a contiguous array of the host, all of it, here."""

    def numpy(self) -> Array:
        """A copy in the memory of the host."""
        import numpy as np

        array: Array = np.empty(self._shape, self._dtype)
        self.read(array)
        return array

    def copyto(self, array: Array) -> None:
        """Overwrite an array of the host."""
        if array.flags.c_contiguous:
            self.read(array)
        else:
            array[...] = self.numpy()

    def copyfrom(self, array: Array) -> None:
        """Overwrite it with an array of the same shape and dtype."""
        import numpy as np

        if (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"cannot copy {array.dtype}{array.shape} to {self._shape}")
        self.write(np.ascontiguousarray(array))


class DeviceFunction(ABC):
    """Kernels that are launched in turn; `buffer` is the class of the device's buffers."""

    buffer: ClassVar[type[Any]]

    def __init__(self, function: Function) -> None:
        self.function = function

    @abstractmethod
    def place(self, array: Array) -> Any:
        """A copy of an array in the memory of the device."""

    @abstractmethod
    def launch(self, buffers: Sequence[Any]) -> None:
        """Launch every kernel on buffers of the device, one for each parameter."""

    def __call__(self, *buffers: Any) -> None:
        """Launch on buffers of the device, without waiting; arrays of the host are copied there
        and, when kernels write them, back."""
        if len(buffers) != self.function.parameters:
            raise ValueError(f"takes {self.function.parameters} buffers, got {len(buffers)}")
        placed: list[DeviceBuffer] = [
            b if isinstance(b, self.buffer) else self.place(b) for b in buffers
        ]
        for have, need in zip(placed, self.function.sizes, strict=False):
            if have.size < need:
                raise ValueError(f"a buffer of {have.size} bytes is too small, needs {need}")
        self.launch(placed)
        for position in self.function.written:
            if placed[position] is not buffers[position]:
                placed[position].copyto(buffers[position])
