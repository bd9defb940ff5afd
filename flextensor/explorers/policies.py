"""What Q-methods learned, in a file: the weights of one network for every kind of space.

A later search begins with the network of its kind of space, and explores no more than one that has
seen many trials. The file is read as plain tensors (`weights_only`): nothing in it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flextensor.errors import InputError
from flextensor.explorers import Explorer
from flextensor.explorers.q_method import QMethod


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
