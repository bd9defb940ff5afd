"""The seam between a built kernel and who calls it: load a file, place arrays, wait."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Placed(Protocol):
    """An array in the memory of a device."""

    def numpy(self) -> Array:
        """A copy in the memory of the host."""

    def copyfrom(self, array: Array) -> object:
        """Overwrite it with an array of the same shape and dtype."""


Functions = Mapping[str, Callable[..., object]]
"""What `Target.build` compiled, by name; a function takes its buffers in the order of the
program's parameters, each a `Placed` or an array of the host (in place, or copied there and back).
It may return before the device is done."""


class Runtime(ABC):
    """What runs kernels of one target in this process, and the clock that they are timed by."""

    repeat_seconds: float = 0.002
    """A repeat lasts at least this long, in as many calls as that takes; the default suits the
    clock of the host."""

    @abstractmethod
    def load(self, path: Path) -> Functions:
        """The functions of a file that the target built."""

    @abstractmethod
    def place(self, array: Array) -> Placed:
        """A copy of `array` in the memory of the device."""

    @abstractmethod
    def sync(self) -> None:
        """Wait until the device has done everything that was called."""

    def passed(self, array: Array) -> Any:
        """An array of the host as functions take it, on the same memory."""
        return array

    def ready(self) -> None:  # noqa: B027 - a hook
        """Prepare the thread that is about to call functions; cheap once that is done."""

    def seconds(self, call: Callable[[], object], number: int) -> float:
        """Seconds per call over `number` calls in a row, on the clock of the host; caches are as
        the call before left them."""
        start = time.perf_counter()
        for _ in range(number):
            call()
        self.sync()
        return (time.perf_counter() - start) / number


def as_tensor(array: Array) -> Any:
    """An array of the host as TVM's functions take it, on the same memory: NumPy hands on no
    bfloat16 but as the bits that it is."""
    import tvm

    if array.dtype.name != "bfloat16":
        return array
    return tvm.runtime.from_dlpack(array.view("uint16"))._create_view(array.shape, "bfloat16")


SHARED_CPUS = -3
"""TVM's name for threads that may run on any of a list of CPUs."""
_pool = threading.local()
"""`threads` of TVM's pool of the thread that looks, once they are arranged."""


class TVMRuntime(Runtime):
    """Shared libraries on a device of TVM's own runtime, whose parallel loops have `threads`
    threads on whatever CPUs the process may use."""

    def __init__(self, device: Any, threads: int) -> None:
        """`device` is a `tvm.runtime.Device`."""
        self._device, self._threads = device, threads

    def sync(self) -> None:
        """Wait for the device."""
        self._device.sync()

    def passed(self, array: Array) -> Any:
        """An array, or a tensor on its memory."""
        return as_tensor(array)

    def ready(self) -> None:
        """Arrange TVM's pool, of which every thread that calls has its own.

        Left alone it has half of the CPUs, or OMP_NUM_THREADS, and the thread that calls is bound
        to as many; one that has started never grows. An environment that says how many threads
        there are, and whether they are bound, is followed: that of a worker, see
        `flextensor.targets.Target.environment`.
        """
        if getattr(_pool, "threads", 0) == self._threads:
            return
        said = os.environ.get("TVM_NUM_THREADS") == str(self._threads)
        if not (said and "TVM_BIND_THREADS" in os.environ):
            import tvm

            cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
            arrange = tvm.get_global_func("runtime.config_threadpool")
            arrange(SHARED_CPUS, self._threads, cpus)
        _pool.threads = self._threads

    def load(self, path: Path) -> Any:
        """The functions of a shared library."""
        import tvm

        return tvm.runtime.load_module(str(path))

    def place(self, array: Array) -> Any:
        """A copy of `array` as a `tvm.runtime.Tensor`."""
        import tvm

        return tvm.runtime.tensor(array, self._device)
