"""Programs of OpenCL on one device: compiled, their buffers bound, their kernels launched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError
from flextensor.targets.device_function import DeviceBuffer, DeviceFunction
from flextensor.targets.launches import Function, Program
from flextensor.targets.runtime import Runtime

if TYPE_CHECKING:
    from flextensor.targets.runtime import Array


class OpenCLRuntime(Runtime):
    """A context and a queue, in order, of one device, and the device's own clock."""

    def __init__(self, device: Any) -> None:
        """`device` is a `pyopencl.Device`."""
        import pyopencl as cl

        self.context = cl.Context([device])
        profiling = cl.command_queue_properties.PROFILING_ENABLE
        self.queue = cl.CommandQueue(self.context, properties=profiling)

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

    def memory(self, size: int) -> Any:
        """A `pyopencl.Buffer` of so many bytes; `DeviceError` where the device has no room."""
        import pyopencl as cl

        try:
            return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, max(size, 1))
        except cl.Error as error:
            raise DeviceError(f"OpenCL: {error} for {size} bytes") from None

    def sync(self) -> None:
        """Wait until every kernel is done."""
        self.queue.finish()

    def seconds(self, call: Callable[[], object], number: int) -> float:
        """Seconds per call over `number` calls in a row, by profiling events: from the end of what
        was queued before to the end of the last call, on the clock of the device."""
        import pyopencl as cl

        before = cl.enqueue_marker(self.queue)
        for _ in range(number):
            call()
        after = cl.enqueue_marker(self.queue)
        after.wait()
        return float(after.profile.end - before.profile.end) * 1e-9 / number


class OpenCLBuffer(DeviceBuffer):
    """An array in the memory of a device."""

    def __init__(self, runtime: OpenCLRuntime, array: Array) -> None:
        self._runtime, self.memory = runtime, runtime.memory(array.nbytes)
        super().__init__(int(self.memory.size), array.shape, array.dtype)
        self.copyfrom(array)

    def read(self, array: Array) -> None:
        """Copy all of it to a contiguous array of the host."""
        import pyopencl as cl

        cl.enqueue_copy(self._runtime.queue, array, self.memory)

    def write(self, array: Array) -> None:
        """Copy a contiguous array of the host, all of it, here."""
        import pyopencl as cl

        cl.enqueue_copy(self._runtime.queue, self.memory, array)


class OpenCLFunction(DeviceFunction):
    """One function of a loaded program on a device."""

    buffer = OpenCLBuffer

    def __init__(self, runtime: OpenCLRuntime, program: Any, function: Function) -> None:
        import pyopencl as cl

        super().__init__(function)
        if any(launch.shared for launch in function.launches):
            raise DeviceError("OpenCL has no local memory whose size is given at launch")
        self._runtime = runtime
        self._kernels = [cl.Kernel(program, launch.kernel) for launch in function.launches]
        own = function.sizes[function.parameters :]
        self._workspaces = [runtime.memory(size) for size in own]
        self._bound: tuple[Any, ...] = ()

    def place(self, array: Array) -> OpenCLBuffer:
        """A copy of `array` in the memory of the device."""
        return self._runtime.place(array)

    def launch(self, buffers: Sequence[OpenCLBuffer]) -> None:
        """Launch every kernel, without waiting."""
        import pyopencl as cl

        self._bind(tuple(buffer.memory for buffer in buffers))
        for kernel, launch in zip(self._kernels, self.function.launches, strict=True):
            extents = tuple(g * b for g, b in zip(launch.grid, launch.block, strict=True))
            cl.enqueue_nd_range_kernel(self._runtime.queue, kernel, extents, launch.block)

    def _bind(self, memory: tuple[Any, ...]) -> None:
        """Set the arguments of every kernel, unless they are these already."""
        if memory == self._bound:
            return
        everything = [*memory, *self._workspaces]
        for kernel, launch in zip(self._kernels, self.function.launches, strict=True):
            kernel.set_args(*(everything[position] for position in launch.arguments))
        self._bound = memory
