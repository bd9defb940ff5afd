"""Products of matrices in tile registers, as intrinsics for `Schedule.tensorize`.

A register tile of sums has R x V tiles of 16 x 16, and one step of the reduction loads R tiles of
rows and V of lanes. Sums never lie in memory while the reduction runs: the buffer in scope
``local`` that has them is a name for tiles 0 to R * V - 1, and is never written.

    for i, j in 16 R x 16 V:             C[i, j] = 0          ->  tilezero
    for i, j, k in 16 R x 16 V x 64:     C[i, j] +=           ->  tileloadd of A and B, tdpbssd
        int32(B[k // 4, j]) * int32(A[i, k // 4])                 (bfloat16: 32, 2, tdpbf16ps)
    for i, j in 16 R x 16 V:             Z[i, j] = C[i, j]    ->  tilestored of Z

See `flextensor.targets.tiles`.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from flextensor.schedulers.dot_contraction import product
from flextensor.schedulers.groups import in_word
from flextensor.schedulers.intrinsics import registered
from flextensor.targets.dot_products import SUMS
from flextensor.targets.tiles import INSTRUCTIONS, ROWS

ZERO, LOAD, STORE = "llvm.x86.tilezero", "llvm.x86.tileloadd64", "llvm.x86.tilestored64"


@functools.cache
def zero(rows: int, lanes: int, sums: str) -> str:
    """Sums in `rows` x `lanes` tiles, set to zero; `sums` is their dtype."""
    height, width, nothing = ROWS * rows, ROWS * lanes, tirx.const(0, sums)

    @T.prim_func(s_tir=True)
    def wanted(c: T.handle) -> None:
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:height, 0:width])
            for i, j in T.grid(height, width):
                with T.sblock("zero"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = nothing

    @T.prim_func(s_tir=True)
    def given(c: T.handle) -> None:
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:height, 0:width])
            for tile in T.unroll(rows * lanes):
                T.evaluate(
                    T.call_llvm_intrin(
                        T.llvm_lookup_intrinsic_id(ZERO), T.Cast("int8", tile), dtype="void"
                    )
                )

    return registered(f"tile_zero_{rows}_{lanes}_{sums}", wanted, given)


@functools.cache
def store(rows: int, lanes: int, sums: str) -> str:
    """Sums in `rows` x `lanes` tiles, to memory."""
    height, width = ROWS * rows, ROWS * lanes

    @T.prim_func(s_tir=True)
    def wanted(c: T.handle, z: T.handle) -> None:
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        Z = T.match_buffer(z, (height, width), sums, offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:height, 0:width])
            T.writes(Z[0:height, 0:width])
            for i, j in T.grid(height, width):
                with T.sblock("store"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    Z[vi, vj] = C[vi, vj]

    @T.prim_func(s_tir=True)
    def given(c: T.handle, z: T.handle) -> None:
        row, one = T.int32(), T.int32()
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        Z = T.match_buffer(z, (height, width), sums, strides=[row, one], offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:height, 0:width])
            T.writes(Z[0:height, 0:width])
            for r in T.unroll(rows):
                for v in T.unroll(lanes):
                    T.evaluate(
                        T.call_llvm_intrin(
                            T.llvm_lookup_intrinsic_id(STORE),
                            T.Cast("int8", r * lanes + v),
                            Z.access_ptr("w", offset=r * ROWS * row + v * ROWS),
                            T.Cast("int64", row * 4),
                            dtype="void",
                        )
                    )

    return registered(f"tile_store_{rows}_{lanes}_{sums}", wanted, given)


@functools.cache
def multiply(rows: int, lanes: int, dtype: str) -> str:
    """One step of the reduction: `rows` x `lanes` tiles of sums, of products of `dtype`, int8 or
    bfloat16, which lie in words."""
    it, height, width = INSTRUCTIONS[dtype], ROWS * rows, ROWS * lanes
    depth, part, intrinsic, words = it.depth, it.part, it.intrinsic, it.depth // it.part
    stored, sums = "int8" if dtype == "int8" else "uint16", SUMS[dtype]
    first, second = rows * lanes, rows * lanes + rows

    def multiplied(lane: object, row: object, position: object) -> object:
        """The product of the elements at a position of two words."""
        of_lane, of_row = (in_word(word, position, stored) for word in (lane, row))
        return product(dtype, of_lane, of_row)

    @T.prim_func(s_tir=True)
    def wanted(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (height, words), "uint32", offset_factor=1)
        B = T.match_buffer(b, (words, width), "uint32", offset_factor=1)
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:height, 0:width], B[0:words, 0:width], A[0:height, 0:words])
            T.writes(C[0:height, 0:width])
            for i, j, k in T.grid(height, width, depth):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    C[vi, vj] = C[vi, vj] + multiplied(
                        B[vk // part, vj], A[vi, vk // part], vk % part
                    )

    @T.prim_func(s_tir=True)
    def given(b: T.handle, a: T.handle, c: T.handle) -> None:
        row, one, lane, next_ = T.int32(), T.int32(), T.int32(), T.int32()
        A = T.match_buffer(a, (height, words), "uint32", strides=[row, one], offset_factor=1)
        B = T.match_buffer(b, (words, width), "uint32", strides=[lane, next_], offset_factor=1)
        C = T.match_buffer(c, (height, width), sums, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:height, 0:width], B[0:words, 0:width], A[0:height, 0:words])
            T.writes(C[0:height, 0:width])
            for v in T.unroll(lanes):
                T.evaluate(
                    T.call_llvm_intrin(
                        T.llvm_lookup_intrinsic_id(LOAD),
                        T.Cast("int8", second + v),
                        B.access_ptr("r", offset=v * ROWS),
                        T.Cast("int64", lane * 4),
                        dtype="void",
                    )
                )
            for r in T.unroll(rows):
                T.evaluate(
                    T.call_llvm_intrin(
                        T.llvm_lookup_intrinsic_id(LOAD),
                        T.Cast("int8", first + r),
                        A.access_ptr("r", offset=r * ROWS * row),
                        T.Cast("int64", row * 4),
                        dtype="void",
                    )
                )
                for v in T.unroll(lanes):
                    T.evaluate(
                        T.call_llvm_intrin(
                            T.llvm_lookup_intrinsic_id(intrinsic),
                            T.Cast("int8", r * lanes + v),
                            T.Cast("int8", first + r),
                            T.Cast("int8", second + v),
                            dtype="void",
                        )
                    )

    return registered(f"tile_multiply_{rows}_{lanes}_{dtype}", wanted, given)
