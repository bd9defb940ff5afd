"""What an unscheduled `tvm.tirx.PrimFunc` says by itself: its key, its arithmetic, its result."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flextensor.operators.workload import aligned

if TYPE_CHECKING:
    import numpy as np


PLAIN: dict[str, Any] = {"kind": "llvm", "opt-level": 1}
"""The target of unscheduled programs.

LLVM's own vectoriser stays off: at -O3 it turns some tiny unrolled programs (`Bilinear` 4x5x2x2,
``two_stage``) into modules that its verifier refuses, and a reference should be plain anyway.
"""
GUARDS = ("prim.if_then_else", "prim.likely")
"""Calls that compute nothing: a condition, and the values that it chooses from."""


def structural_key(program: Any) -> str:
    """16 hex digits that equal programs share, whatever their buffers and variables are called."""
    import tvm_ffi

    nameless = program.without_attr("global_symbol")
    return f"{tvm_ffi.structural_hash(nameless, map_free_vars=True) & (2**64 - 1):016x}"


def flops(program: Any) -> int:
    """Operations: those in every block's body times the block's iterations."""
    import tvm_ffi
    from tvm import s_tir

    blocks: list[Any] = []
    tvm_ffi.structural_walk(program.body, (s_tir.SBlock, blocks.append))
    return sum(
        math.prod(int(v.dom.extent) for v in block.iter_vars) * _operations(block)
        for block in blocks
        if not _holds_block(block.body)
    )


def _holds_block(body: Any) -> bool:
    import tvm_ffi
    from tvm import s_tir

    inner: list[Any] = []
    tvm_ffi.structural_walk(body, (s_tir.SBlock, inner.append))
    return bool(inner)


def _operations(block: Any) -> int:
    """Operations in the body of a block, each occurrence: of floats, and of integers too where it
    stores integers, but for those that only say which element is read, or whether one is."""
    import tvm_ffi
    from tvm import ir, tirx
    from tvm.ir.expr import TensorLoad

    kinds = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min, ir.Call)
    found: list[Any] = []

    def count(part: Any, types: tuple[str, ...]) -> None:
        def choose(condition: Any, *values: Any) -> Any:
            count(condition, ("float",))
            for value in values:
                count(value, types)
            return tvm_ffi.WalkResult.SKIP

        def operation(node: Any) -> Any:
            if isinstance(node, ir.Call) and getattr(node.op, "name", "") in GUARDS:
                return choose(*node.args)
            if any(kind in str(node.ty) for kind in types):
                found.append(node)
            return None

        entries = (
            (TensorLoad, lambda load: tvm_ffi.WalkResult.SKIP),
            (tirx.Select, lambda s: choose(s.condition, s.true_value, s.false_value)),
            (kinds, operation),
        )
        tvm_ffi.structural_walk(part, entries, order="pre")

    whole = any("int" in str(written.source.dtype) for written in block.writes)
    count(block.body, ("float", "int") if whole else ("float",))
    return len(found)


def float64_reference(program: Any, inputs: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The output of the unscheduled `program` for `inputs`, computed in float64 where it can be.

    Where LLVM or TVM refuses the float64 version, the program's own precision is used.
    """
    import numpy as np
    import tvm

    try:
        wide = promote(program)
        run = tvm.compile(wide, target=PLAIN)
    except Exception:  # an intrinsic without a float64 version, in TVM or in LLVM
        wide, run = program, tvm.compile(program, target=PLAIN)
    *params, output = wide.params
    arrays = [aligned(x, str(p.dtype)) for x, p in zip(inputs, params, strict=True)]
    out = aligned(np.zeros([int(n) for n in output.shape]), str(output.dtype))
    run(*arrays, out)
    return out.astype(np.float64)


def promote(program: Any) -> Any:
    """`program` with float64 for every narrower floating-point type."""
    from tvm import ir

    # every node names its dtype in the graph form, and nothing else has such a pair
    narrow = re.compile(r'"dtype":\s*"b?float(16|32)"')
    return ir.load_json(narrow.sub('"dtype":"float64"', ir.save_json(program)))
