"""Folders of results: what every file says about itself, and how it is written."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.errors import InputError

if TYPE_CHECKING:
    from flextensor.targets import Target

PACKAGES = ("flextensor", "apache-tvm", "apache-tvm-ffi", "torch", "xgboost", "numpy")


def header(device: Target, command: Sequence[str], dtype: str = "float32") -> dict[str, Any]:
    """Machine, command, date and versions: what every file of results begins with. The peak is
    that of `dtype`."""
    return {
        "machine": {
            "device": device.device, "fingerprint": device.fingerprint,
            "system": platform.platform(), "conditions": device.conditions,
            "peak_gflops": device.peak_flops(dtype) / 1e9,
            "bandwidth_gbs": device.bandwidth() / 1e9,
        },
        "command": shlex.join(command),
        "date": now(),
        "versions": {package: _version(package) for package in PACKAGES},
    }  # fmt: skip


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def make(folder: Path) -> None:
    """Make the folder of the results now, not after an hour of tuning."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise InputError(f"--out {folder}: cannot write there: {error.strerror}") from error


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    os.replace(part, path)
