"""Trials to store, and what every test of the database does with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flextensor.database import Database
from flextensor.errors import DatabaseError
from flextensor.targets.base import Status, Trial

ASSETS = Path(__file__).parent / "assets"
PARAMS = {"m": 64, "n": 64, "k": 64}
HERE = ("gemm(m=64, n=64, k=64)", "llvm-here")


def ok(seconds: float = 1e-3, tile: int = 1) -> Trial:
    return Trial("direct", {"tile": tile}, Status.OK, (seconds,), error=1e-7)


def failure(status: Status = Status.BUILD_ERROR, tile: int = 1) -> Trial:
    return Trial("direct", {"tile": tile}, status, message=f"it was {status}")


def add(database: Database, *trials: Trial, key: str = HERE[0]) -> None:
    for trial in trials:
        database.add(key, "gemm", PARAMS, HERE[1], trial)


def refused(*arguments: Any, action: Callable[..., Any] = Database, **options: Any) -> str:
    """The message of the `DatabaseError` that an action raises: one line, whatever was wrong."""
    with pytest.raises(DatabaseError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
