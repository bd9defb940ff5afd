"""Temporary folders of this process, removed by the next one when this one dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from flextensor.errors import DeviceError

PREFIX = "flextensor-"
"""Temporary folders are called flextensor-<pid>-<random>."""
LOCK = ".lock"
"""The file of a folder that its process holds locked. The pid says little: containers that share
/tmp may each have processes of their own by the same numbers."""

_held: dict[Path, int] = {}
"""Descriptors of the locks of this process's folders."""


def private_folder(root: Path | None = None) -> Path:
    """A new temporary folder of this process; those of dead processes are removed first.
    `DeviceError` when there can be none."""
    try:
        root = root or Path(tempfile.gettempdir())
        for folder in root.glob(f"{PREFIX}[0-9]*-*"):
            if _abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
        return _locked(Path(tempfile.mkdtemp(prefix=f"{PREFIX}new-", dir=root)))
    except OSError as error:
        reason = error.strerror or error
        raise DeviceError(
            f"no temporary folder ({reason}): set TMPDIR to a folder that has room"
        ) from error


def remove(folder: Path) -> None:
    """Remove a folder of this process with what is in it; removing twice is fine."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _held:
        os.close(_held.pop(folder))


def _locked(made: Path) -> Path:
    """A new folder under its final name, which it gets once it is locked."""
    lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.replace("new", str(os.getpid()), 1)))
    except OSError:
        os.close(lock)
        raise
    _held[folder] = lock
    return folder


def _abandoned(folder: Path) -> bool:
    """Whether nobody holds the lock; of a folder without one, whether its process is dead."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        return pid.isdigit() and not _alive(int(pid))
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
