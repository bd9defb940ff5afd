"""Weights packed ahead of time: a scheduled program split into what packs and what computes.

main(data, weight, out):           pack(weight, packed):
    packed = f(weight)        ->       packed = f(weight)
    out = g(data, packed)          main(data, weight, packed, out):
                                       out = g(data, packed)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

from flextensor.operators.workload import CONSTANTS


def constants(func: Any) -> tuple[int, ...]:
    """Positions of the inputs that never change between two calls; none unless marked."""
    return tuple(map(int, (func.attrs or {}).get(CONSTANTS, ())))


def split(func: Any, positions: Sequence[int]) -> Any:
    """An IRModule of ``main``, which takes what is packed before its output, and, when the
    schedule packs a constant input in a loop nest of its own, of ``pack``.

    `func` is scheduled: one root block, whose body is a row of loop nests.
    """
    root = func.body.block
    *inputs, output = func.params
    fixed = [inputs[i] for i in positions]
    if not fixed:
        return tvm.IRModule({"main": func})
    nests = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    ahead, rest, known = [], [], set(fixed)
    for nest in nests:
        read, written = _buffers(nest)
        if read - written <= known and written <= set(root.alloc_buffers):
            ahead.append(nest)
            known |= written
        else:
            rest.append(nest)
    used = set().union(*(read for read, _ in map(_buffers, rest)))
    inside = set().union(*(read | written for read, written in map(_buffers, ahead)))
    packed = [b for b in root.alloc_buffers if b in inside and b in used]
    if not packed:
        return tvm.IRModule({"main": func})
    own = [b for b in root.alloc_buffers if b in inside and b not in used]
    others = [b for b in root.alloc_buffers if b not in inside]
    return tvm.IRModule(
        {
            "main": _function("main", [*inputs, *packed, output], others, rest),
            "pack": _function("pack", [*fixed, *packed], own, ahead),
        }
    )


def _buffers(stmt: Any) -> tuple[set[Any], set[Any]]:
    """What a statement reads, and what it writes; of what was tensorized, its blocks say so, and
    the names that it gives to parts of buffers do not count."""
    read: set[Any] = set()
    written: set[Any] = set()
    names: set[Any] = set()

    def matched(block: Any) -> None:
        if block.match_buffers:
            read.update(region.source for region in block.reads)
            written.update(region.source for region in block.writes)
            names.update(part.buffer for part in block.match_buffers)

    tvm_ffi.structural_walk(stmt, (tvm.s_tir.SBlock, matched))
    tvm_ffi.structural_walk(stmt, (TensorLoad, lambda load: read.add(load.source)))
    tvm_ffi.structural_walk(stmt, (tirx.BufferStore, lambda store: written.add(store.buffer)))
    return read - names, written - names


def _function(name: str, params: list[Any], own: list[Any], nests: list[Any]) -> Any:
    body = nests[0] if len(nests) == 1 else tirx.SeqStmt(nests)
    block = tvm.s_tir.SBlock([], [], [], "root", body, alloc_buffers=own)
    func = tirx.PrimFunc(params, tvm.s_tir.SBlockRealize([], True, block))
    return func.with_attrs({"global_symbol": name, "s_tir": True, "tirx.noalias": True})


def packed(module: Any, func: Any) -> list[tuple[list[int], str]]:
    """Shapes and dtypes of what ``pack`` of a scheduled `func` writes; nothing without ``pack``."""
    names = {var.name_hint: function for var, function in module.functions.items()}
    if "pack" not in names:
        return []
    written = names["pack"].params[len(constants(func)) :]
    return [([int(n) for n in buffer.shape], str(buffer.dtype)) for buffer in written]
