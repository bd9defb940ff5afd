"""What Q-methods learned, in a file: the weights of one network for every kind of space.

A later search begins with the network of its kind of space, and explores no more than one that has
seen many trials. The file is read as plain tensors (`weights_only`): nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flextensor.errors import InputError
from flextensor.explorers import Explorer
from flextensor.explorers.q_method import QMethod


def check(policy: str | Path | None, explorer: str) -> None:
    """Raise `InputError` for a policy that the explorer would not follow, or that cannot be kept:
    the end of a search is too late to say so."""
    if policy is None:
        return
    if explorer != "q-method":
        raise InputError(f"a policy is followed by the explorer q-method, and not by {explorer}")
    folder = Path(policy).absolute().parent
    if not folder.is_dir():
        raise InputError(f"{policy}: cannot be written, its folder does not exist")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{policy}: cannot be written, its folder is read-only")


@contextlib.contextmanager
def followed(explorers: Sequence[Explorer], policy: str | Path | None) -> Iterator[None]:
    """Let explorers start from a policy, and add what they learned, however the search ends. Where
    that cannot be written any more it is a warning: what the search found is worth more."""
    if policy is None:
        yield
        return
    start(explorers, Path(policy))
    try:
        yield
    finally:
        try:
            keep(explorers, Path(policy))
        except InputError as error:
            warnings.warn(str(error), stacklevel=3)


def start(explorers: Iterable[Explorer], path: Path) -> int:
    """Start every Q-method from what the file has of its kind of space; how many it had something
    for. A file that is not there yet has nothing; `InputError` for one that holds no policies."""
    stored = _read(path)
    known = [e for e in explorers if isinstance(e, QMethod) and e.kind in stored]
    for explorer in known:
        try:
            explorer.follow(stored[explorer.kind])
        except (RuntimeError, AttributeError, TypeError) as error:  # whatever torch meets in it
            raise InputError(f"{path}: a policy for another network") from error
    return len(known)


def keep(explorers: Iterable[Explorer], path: Path) -> None:
    """Add what Q-methods learned to the file; the latest of a kind of space stays. `InputError`
    when it cannot be written."""
    import torch

    learned = {e.kind: e.weights for e in explorers if isinstance(e, QMethod) and e.weights}
    if not learned:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({**_read(path), **learned}, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write the policies: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """Weights by kind of space."""
    import torch

    if not path.exists():
        return {}
    try:
        found = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises whatever it meets in a file that is not its own
        raise InputError(f"{path}: not saved policies: {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not saved policies")
    return found
