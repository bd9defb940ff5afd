"""How TVM knows instructions that take the place of loops."""

from __future__ import annotations

from tvm.s_tir import TensorIntrin


def registered(name: str, wanted: object, given: object) -> str:
    """The name of an intrinsic, for `Schedule.tensorize`: blocks that look like `wanted` become
    `given`."""
    TensorIntrin.register(f"flextensor_{name}", wanted, given)
    return f"flextensor_{name}"
