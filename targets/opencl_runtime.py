"""Programs of OpenCL on one device: compiled, their buffers bound, their kernels launched."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.targets.launches import Function, Program

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array


class OpenCLRuntime:
    """A context and a queue, in order, of one device."""

    def __init__(self, device: Any) -> None:
        """`device` is a `pyopencl.Device`."""
        import pyopencl as cl

        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)

    def compile(self, source: str) -> Any:
        """OpenCL C as a `pyopencl.Program`; `pyopencl.RuntimeError` with the compiler's words."""
        import pyopencl as cl

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of the compiler on generated code
            return cl.Program(self.context, source).build()

    def load(self, path: Path) -> dict[str, OpenCLFunction]:
        """The functions of a file that `OpenCL.build` wrote."""
        program = Program.loads(path.read_text())
        built = self.compile(program.source)
        return {
            name: OpenCLFunction(self, built, function)
            for name, function in program.functions.items()
        }

    def place(self, array: Array) -> OpenCLBuffer:
        """A copy of `array` in the memory of the device."""
        return OpenCLBuffer(self, array)

    def sync(self) -> None:
        """Wait until every kernel is done."""
        self.queue.finish()


class OpenCLBuffer:
    """An array in the memory of a device."""

    def __init__(self, runtime: OpenCLRuntime, array: Array) -> None:
        import pyopencl as cl

        self._runtime, self._shape, self._dtype = runtime, array.shape, array.dtype
        self.memory = cl.Buffer(runtime.context, cl.mem_flags.READ_WRITE, max(array.nbytes, 1))
        self.copyfrom(array)

    def numpy(self) -> Array:
        """A copy in the memory of the host."""
        import numpy as np

        array: Array = np.empty(self._shape, self._dtype)
        self.copyto(array)
        return array

    def copyto(self, array: Array) -> None:
        """Overwrite an array of the host."""
        import numpy as np
        import pyopencl as cl

        whole = array if array.flags.c_contiguous else np.empty(self._shape, self._dtype)
        cl.enqueue_copy(self._runtime.queue, whole, self.memory)
        if whole is not array:
            np.copyto(array, whole)

    def copyfrom(self, array: Array) -> None:
        """Overwrite it with an array of the same shape and dtype."""
        import numpy as np
        import pyopencl as cl

        if (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"cannot copy {array.dtype}{array.shape} to {self._shape}")
        cl.enqueue_copy(self._runtime.queue, self.memory, np.ascontiguousarray(array))


class OpenCLFunction:
    """One function of a loaded program: its kernels, launched in turn."""

    def __init__(self, runtime: OpenCLRuntime, program: Any, function: Function) -> None:
        import pyopencl as cl

        self._runtime, self._function = runtime, function
        self._kernels = [cl.Kernel(program, launch.kernel) for launch in function.launches]
        self._workspaces = [
            cl.Buffer(runtime.context, cl.mem_flags.READ_WRITE, size)
            for size in function.sizes[function.parameters :]
        ]
        self._bound: tuple[Any, ...] = ()

    def __call__(self, *buffers: Any) -> None:
        """Launch on buffers of the device, without waiting; arrays of the host are copied there
        and, when kernels write them, back."""
        placed = [
            b if isinstance(b, OpenCLBuffer) else OpenCLBuffer(self._runtime, b) for b in buffers
        ]
        self._bind(tuple(b.memory for b in placed))
        self._launch()
        for position in self._function.written:
            if placed[position] is not buffers[position]:
                placed[position].copyto(buffers[position])

    def _bind(self, memory: tuple[Any, ...]) -> None:
        if len(memory) != self._function.parameters:
            raise ValueError(f"takes {self._function.parameters} buffers, got {len(memory)}")
        if memory == self._bound:
            return
        for have, need in zip(memory, self._function.sizes, strict=False):
            if have.size < need:
                raise ValueError(f"a buffer of {have.size} bytes is too small, needs {need}")
        everything = [*memory, *self._workspaces]
        for kernel, launch in zip(self._kernels, self._function.launches, strict=True):
            kernel.set_args(*(everything[position] for position in launch.arguments))
        self._bound = memory

    def _launch(self) -> None:
        import pyopencl as cl

        for kernel, launch in zip(self._kernels, self._function.launches, strict=True):
            extents = tuple(g * b for g, b in zip(launch.grid, launch.block, strict=True))
            cl.enqueue_nd_range_kernel(self._runtime.queue, kernel, extents, launch.block)
