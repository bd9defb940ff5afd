"""A stand-in for CuPy on a machine without a card: the `.cu` beside a cubin runs in emulation.

Only what `flextensor.bundle_runner` and `flextensor.hosts.cuda_host` use. Arrays are NumPy's,
events take a millisecond.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from flextensor.targets.cuda_emulation import compiled
from flextensor.targets.launches import Launch

asarray, asnumpy = np.array, np.asarray
full, zeros, empty = np.full, np.zeros, np.empty


class Event:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Device:
    id = 0

    def synchronize(self) -> None:
        pass


def properties(device: int) -> dict[str, Any]:
    major, minor = os.environ.get("STAND_IN_CAPABILITY", "8.0").split(".")
    return {
        "name": b"Stand-in", "multiProcessorCount": 4, "major": int(major), "minor": int(minor)
    }  # fmt: skip


cuda = SimpleNamespace(
    Event=Event,
    Device=Device,
    get_elapsed_time=lambda start, end: 1.0,
    runtime=SimpleNamespace(getDeviceProperties=properties, getDeviceCount=lambda: 1),
)


class RawModule:
    def __init__(self, path: str) -> None:
        assert Path(path).read_bytes()[:4] == b"\x7fELF"
        self.kernels = compiled(Path(path).with_suffix(".cu").read_text())

    def get_function(self, name: str) -> Any:
        kernel = self.kernels[name]

        return Kernel(name, kernel)


class Kernel:
    """A function of a module; it has 48 KiB of dynamic shared memory unless told otherwise."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel = name, kernel

    def __call__(self, grid: Any, block: Any, arguments: Any, shared_mem: int = 0) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self.kernel(Launch(self.name, (), grid, block, shared_mem), arguments)
