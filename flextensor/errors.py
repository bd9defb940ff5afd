"""The errors that FlexTensor raises on purpose.

    FlexTensorError              every error below; the command line exits with 2
    ├── InputError               what the caller asked for does not exist or makes no sense
    │   └── UnsupportedError     an operator that a target, or this machine, cannot compute
    ├── IllegalConfigError       a configuration that breaks a constraint of its space
    ├── DeviceError              a device, compiler or worker that is needed is not there
    └── DatabaseError            a schedule database that cannot be read or written

A message is one line: what is wrong, where, and what to do. A failed *measurement* is no error:
it is a `flextensor.targets.Trial` with a status and a reason.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable


class FlexTensorError(Exception):
    """Any error raised on purpose, with a one-line message for a person."""


class InputError(FlexTensorError):
    """What the caller asked for does not exist or makes no sense."""


class UnsupportedError(InputError):
    """An operator that a target, or this machine, cannot compute; another operator may do."""


class IllegalConfigError(FlexTensorError):
    """A configuration that breaks a constraint of its space."""


class DeviceError(FlexTensorError):
    """A device, compiler or worker process that is needed is not there."""


class DatabaseError(FlexTensorError):
    """A schedule database that cannot be read or written."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` that names the nearest known names, or all of them when none is near.

    >>> str(unknown("operator", "gem", ["gemm", "gemv", "shift"]))
    "unknown operator 'gem'; did you mean gemm, gemv?"
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {what} {name!r}; {hint}")


def check_positive(what: str, value: float | None) -> None:
    """Raise `InputError` for a number that is given and not finite and greater than 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{what} must be greater than 0, got {value}")


def check_whole(what: str, value: int | None, least: int) -> None:
    """Raise `InputError` for a number that is given and no integer of at least `least`."""
    if value is not None and not (isinstance(value, int) and value >= least):
        raise InputError(f"{what} must be a whole number of at least {least}, got {value}")


def exit_code(action: Callable[[], object]) -> int:
    """Do it: 0 when that is done; 2, and one line on stderr, for an error made for people."""
    try:
        action()
    except FlexTensorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
