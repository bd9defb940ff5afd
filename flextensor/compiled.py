"""A compiled kernel on disk: what its target built and, beside it, what it wants packed ahead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import DeviceError, InputError

if TYPE_CHECKING:
    from flextensor.buffers import Array
    from flextensor.targets import Target
    from flextensor.targets.runtime import Runtime


def build(func: Any, target: Target, config: Mapping[str, Any], path: Path) -> None:
    """Schedule a PrimFunc and compile it into the library `path`.

    Raises `IllegalConfigError`, and `DeviceError` when linking fails.
    """
    from flextensor.schedulers import schedule

    write(schedule(func, target, config), func, target, path)


def write(module: Any, func: Any, target: Target, path: Path) -> None:
    """Compile what `func` was scheduled to into the library `path`; `DeviceError` when linking
    fails."""
    from flextensor.schedulers import prepack

    target.build(module, path)
    constants = prepack.constants(func)
    if constants:
        note = {"constants": constants, "packed": prepack.packed(module, func)}
        path.with_suffix(".json").write_text(json.dumps(note))


def digest(path: Path) -> str:
    """Names the program that `build` wrote: the same for the same code, in any process. Two configs
    of which one only says more about what is never done have one digest."""
    found = hashlib.sha256(path.read_bytes())
    note = path.with_suffix(".json")
    if note.is_file():
        found.update(note.read_bytes())
    return found.hexdigest()


def remove(path: Path) -> None:
    """Delete what `build` wrote."""
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


class Library:
    """A library that `build` wrote, loaded: ``main(*inputs, *packed, out)``."""

    def __init__(self, path: Path, runtime: Runtime) -> None:
        """Raises `InputError` when there is none, `DeviceError` when it cannot be loaded."""
        if not path.is_file():
            raise InputError(f"no kernel library at {path}")
        self._runtime = runtime
        try:
            self._module = runtime.load(path)
        except Exception as error:
            raise DeviceError(f"cannot load {path}: {_reason(error)}") from error
        self.main = self._module["main"]
        note = path.with_suffix(".json")
        known = json.loads(note.read_text()) if note.is_file() else {}
        self.constants: list[int] = known.get("constants", [])
        """Positions of the inputs that are packed ahead."""
        self._packed: list[tuple[list[int], str]] = known.get("packed", [])

    def call(self, arrays: Sequence[Array]) -> None:
        """``main`` on arrays of the host, the output last."""
        self._runtime.ready()
        self.main(*map(self._runtime.passed, arrays))

    def pack(self, weights: Sequence[Any]) -> list[Array]:
        """The constant inputs as ``main`` wants them, behind the inputs."""
        from flextensor.buffers import empty

        arrays = [empty(shape, dtype) for shape, dtype in self._packed]
        if arrays:
            self._runtime.ready()
            self._module["pack"](*weights, *map(self._runtime.passed, arrays))
        return arrays


def _reason(error: Exception) -> str:
    """The first line of an error that names one, as a compiler's log has it; or else its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error:")), "".join(lines[-1:]))
