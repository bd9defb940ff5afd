"""Targets: where kernels run. `lookup` finds one by its specification, e.g. ``llvm``."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from flextensor.errors import unknown
from flextensor.targets.base import Status, Target, Trial

if TYPE_CHECKING:
    from flextensor.targets.fpga import FPGA
    from flextensor.targets.llvm import LLVM
    from flextensor.targets.opencl import OpenCL

__all__ = [
    "FPGA", "LLVM", "OpenCL", "Status", "Target", "Trial",
    "available", "dump", "load", "lookup", "present",
]  # fmt: skip

_HOME = {
    "fpga": ("flextensor.targets.fpga", "FPGA"),
    "llvm": ("flextensor.targets.llvm", "LLVM"),
    "opencl": ("flextensor.targets.opencl", "OpenCL"),
}
"""Kind -> (module, class); imported on first use."""


def available() -> tuple[str, ...]:
    """The kinds that `lookup` knows."""
    return tuple(sorted(_HOME))


def _family(kind: str) -> Any:
    if kind not in _HOME:
        raise unknown("target", kind, _HOME)
    module, name = _HOME[kind]
    return getattr(importlib.import_module(module), name)


def lookup(spec: str, threads: int | None = None) -> Target:
    """The target of `spec` (a kind, for some kinds with more behind a colon), or `InputError`."""
    return cast(Target, _family(spec.partition(":")[0]).from_spec(spec, threads))


def present() -> dict[str, Target]:
    """Every target of this machine by its specification; kinds without a device are left out."""
    return {spec: lookup(spec) for kind in available() for spec in _family(kind).specs()}


def dump(target: Target) -> dict[str, Any]:
    """`target` as JSON values."""
    return {"kind": target.kind, **dataclasses.asdict(target)}


def load(values: Mapping[str, Any]) -> Target:
    """The target that `dump` wrote."""
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name != "kind"
    }
    return cast(Target, _family(values["kind"])(**fields))


def __getattr__(name: str) -> Any:
    for module, attribute in _HOME.values():
        if attribute == name:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'flextensor.targets' has no attribute {name!r}")
