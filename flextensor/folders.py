"""Temporary folders of this process, removed by the next one when this one dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from flextensor.errors import DeviceError

PREFIX = "flextensor-"
"""Temporary folders are called flextensor-<pid>-<random>."""


def private_folder(root: Path | None = None) -> Path:
    """A new temporary folder of this process; those of dead processes are removed first.
    `DeviceError` when there can be none."""
    try:
        return _made(root or Path(tempfile.gettempdir()))
    except OSError as error:
        reason = error.strerror or error
        raise DeviceError(
            f"no temporary folder ({reason}): set TMPDIR to a folder that has room"
        ) from error


def _made(root: Path) -> Path:
    for folder in root.glob(f"{PREFIX}[0-9]*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
