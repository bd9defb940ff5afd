"""A worker whose scheduler obeys the configuration: faults on demand, see `schedule`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from flextensor import worker
from flextensor.errors import IllegalConfigError


def schedule(program: Any, target: Any, config: Mapping[str, Any]) -> Any:
    """`program` with the fault that `config` names at build time, or a C call in the kernel."""
    import tvm

    fault = config.get("fault", "")
    if fault == "illegal":
        raise IllegalConfigError("tile 7 exceeds 4")
    if fault == "raise":
        raise ValueError("no such block\nand a page of text")
    if fault == "die":
        os.kill(os.getpid(), 11)
    if fault == "hang":
        time.sleep(1000)
    if fault == "print":
        print('{"result": "not a reply"}', flush=True)
    if "extern" in config:
        program = with_extern(program, *config["extern"])
    return tvm.IRModule({"main": program.with_attr("global_symbol", "main")})


def with_extern(program: Any, name: str, *arguments: int | str) -> Any:
    """`program` that calls a C function first."""
    from tvm import tirx

    call = tirx.Evaluate(tirx.call_extern("int32", name, *arguments))
    realize = program.body
    block = realize.block
    body = tirx.SeqStmt([call, block.body])
    changed = type(block)([], block.reads, block.writes, block.name_hint, body, None,
                          block.alloc_buffers)  # fmt: skip
    return program.with_body(type(realize)(realize.iter_values, realize.predicate, changed))


if __name__ == "__main__":
    worker.Builder.scheduled = lambda self, payload: schedule(  # type: ignore[method-assign]
        self._programs[payload["program"]], self._target, payload["config"]
    )
    worker.main(sys.argv[1:])
