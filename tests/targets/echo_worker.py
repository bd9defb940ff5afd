"""A worker without TVM: methods that answer, die, hang, print and eat."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from flextensor import worker

STATE: dict[str, Any] = {"calls": 0}


def echo(payload: Mapping[str, Any]) -> dict[str, Any]:
    STATE["calls"] += 1
    return {"pid": os.getpid(), **STATE, **payload}


def remember(payload: Mapping[str, Any]) -> dict[str, Any]:
    STATE.update(payload)
    return {}


def die(payload: Mapping[str, Any]) -> dict[str, Any]:
    print("last words", flush=True)
    os.kill(os.getpid(), payload["signal"])
    return {}


def leave(payload: Mapping[str, Any]) -> dict[str, Any]:
    sys.exit(payload["status"])


def spin(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Burn a core inside one C call, as an endless kernel does."""
    return {"sum": sum(range(1 << 62))}


def fail(payload: Mapping[str, Any]) -> dict[str, Any]:
    raise ValueError(payload["message"])


def chatter(payload: Mapping[str, Any]) -> dict[str, Any]:
    for fd in (1, 2):
        os.write(fd, b'{"result": {}}\n' * payload["lines"])
    return {}


def eat(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"bytes": len(b"x" * payload["bytes"])}


def wait(payload: Mapping[str, Any]) -> dict[str, Any]:
    time.sleep(payload["seconds"])
    return echo({})


METHODS: dict[str, worker.Handler] = {
    f.__name__: f for f in (echo, remember, die, leave, spin, fail, chatter, eat, wait)
}

if __name__ == "__main__":
    worker.handlers = lambda: METHODS
    worker.main(sys.argv[1:])
