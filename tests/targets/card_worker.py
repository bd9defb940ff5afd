"""A worker on a machine with one card, a stand-in, whose machine code is the name of what it does.

An error of a kernel is one of every call from then on, as it is on a card. With `STAND_IN_GONE` in
the environment, no later process finds a card: the file of that name is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from stand_in_driver import StandIn

from flextensor import worker
from flextensor.targets import cuda_driver

GONE = Path(os.environ.get("STAND_IN_GONE", "/nonexistent"))


class Card(StandIn):
    """One GiB of memory, and errors that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 1 << 30

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        failure = super().__getattribute__("__dict__").get("failure", 0)
        if not failure or not name.startswith("cu") or name == "cuGetErrorName":
            return found
        return lambda *arguments: failure

    def cuModuleLoadData(self, module: Any, cubin: bytes) -> int:
        self.kernels["main_kernel"] = getattr(self, cubin.removeprefix(b"\x7fELF").decode())
        return super().cuModuleLoadData(module, cubin)

    def good(self, launch: Any, arrays: Any) -> None:
        a, b = (array.view("float32") for array in arrays)
        b[:] = a + 1

    def wrong(self, launch: Any, arrays: Any) -> None:
        arrays[1][:] = arrays[0]

    def endless(self, launch: Any, arrays: Any) -> None:
        time.sleep(1000)

    def misaligned(self, launch: Any, arrays: Any) -> None:
        """Told later, to whoever waits for the kernel."""
        self.failure = 716
        if "STAND_IN_GONE" in os.environ:
            GONE.touch()


if __name__ == "__main__":
    card = Card()
    cuda_driver.driver = lambda: None if GONE.exists() else card  # type: ignore[assignment]
    cuda_driver.FLUSH_BYTES = 1 << 16
    worker.main(sys.argv[1:])
