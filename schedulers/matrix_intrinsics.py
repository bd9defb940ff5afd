"""Tiles that matrix units load, multiply and store, as intrinsics for `Schedule.tensorize`.

    for i, j, k in 16 x 16 x 16:                                 tvm_mma_sync(C, .., A, .., B, ..)
        C[i, j] += float32(A[i, k]) * float32(B[k, j])    ->     CUDA: wmma::mma_sync

TVM has the same, for every device and dtype in one import that takes half a minute; a worker that
starts anew has no half minute. A fragment holds its tile as it is multiplied, also where the panel
in shared memory lies transposed: that is the load's matter.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from flextensor.schedulers.intrinsics import registered


@functools.cache
def load(side: str, transposed: bool, dtype: str) -> str:
    """A tile of a side, from a panel that has its rows as columns if it is `transposed`."""
    scope = {"y": "wmma.matrix_a", "x": "wmma.matrix_b"}[side]
    layout = "col_major" if transposed else "row_major"

    @T.prim_func(s_tir=True)
    def row(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope=scope)
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vi, vj]

    @T.prim_func(s_tir=True)
    def column(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope=scope)
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vj, vi]

    @T.prim_func(s_tir=True)
    def given(a: T.handle, c: T.handle) -> None:
        s1, s0, d1, d0 = T.int32(), T.int32(), T.int32(), T.int32()
        A = T.match_buffer(
            a,
            (16, 16),
            dtype,
            strides=[s1, s0],
            align=64,
            offset_factor=16,
            scope="shared.dyn",
        )
        C = T.match_buffer(
            c, (16, 16), dtype, strides=[d1, d0], align=64, offset_factor=16, scope=scope
        )
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_load_matrix_sync(
                    C.data,
                    16,
                    16,
                    16,
                    C.elem_offset // d1 // 16 * (d1 // 16) + C.elem_offset % d1 // 16,
                    A.access_ptr("r", ptr_type=dtype),
                    s1,
                    layout,
                    dtype="void",
                )
            )

    return registered(f"matrix_load_{side}_{layout}_{dtype}", column if transposed else row, given)


@functools.cache
def zero() -> str:
    """The sums of a tile before anything is added."""

    @T.prim_func(s_tir=True)
    def wanted(c: T.handle) -> None:
        C = T.match_buffer(
            c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator"
        )
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("zero"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = T.float32(0)

    @T.prim_func(s_tir=True)
    def given(c: T.handle) -> None:
        d1, d0 = T.int32(), T.int32()
        C = T.match_buffer(
            c,
            (16, 16),
            "float32",
            strides=[d1, d0],
            align=64,
            offset_factor=16,
            scope="wmma.accumulator",
        )
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_fill_fragment(
                    C.data,
                    16,
                    16,
                    16,
                    C.elem_offset // d1 // 16 * (d1 // 16) + C.elem_offset % d1 // 16,
                    T.float32(0),
                    dtype="void",
                )
            )

    return registered("matrix_zero", wanted, given)


@functools.cache
def multiply(dtype: str) -> str:
    """The product of two tiles, added to the sums."""

    @T.prim_func(s_tir=True)
    def wanted(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.matrix_a")
        B = T.match_buffer(b, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.matrix_b")
        C = T.match_buffer(
            c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator"
        )
        with T.sblock("root"):
            T.reads(C[0:16, 0:16], A[0:16, 0:16], B[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j, k in T.grid(16, 16, 16):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    C[vi, vj] = C[vi, vj] + T.Cast("float32", A[vi, vk]) * T.Cast(
                        "float32", B[vk, vj]
                    )

    @T.prim_func(s_tir=True)
    def given(a: T.handle, b: T.handle, c: T.handle) -> None:
        a1, a0, b1, b0 = T.int32(), T.int32(), T.int32(), T.int32()
        c1, c0 = T.int32(), T.int32()
        A = T.match_buffer(
            a,
            (16, 16),
            dtype,
            strides=[a1, a0],
            align=64,
            offset_factor=16,
            scope="wmma.matrix_a",
        )
        B = T.match_buffer(
            b,
            (16, 16),
            dtype,
            strides=[b1, b0],
            align=64,
            offset_factor=16,
            scope="wmma.matrix_b",
        )
        C = T.match_buffer(
            c,
            (16, 16),
            "float32",
            strides=[c1, c0],
            align=64,
            offset_factor=16,
            scope="wmma.accumulator",
        )
        with T.sblock("root"):
            T.reads(C[0:16, 0:16], A[0:16, 0:16], B[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_mma_sync(
                    C.data,
                    C.elem_offset // c1 // 16 * (c1 // 16) + C.elem_offset % c1 // 16,
                    A.data,
                    A.elem_offset // a1 // 16 * (a1 // 16) + A.elem_offset % a1 // 16,
                    B.data,
                    B.elem_offset // b1 // 16 * (b1 // 16) + B.elem_offset % b1 // 16,
                    C.data,
                    C.elem_offset // c1 // 16 * (c1 // 16) + C.elem_offset % c1 // 16,
                    dtype="void",
                )
            )

    return registered(f"matrix_multiply_{dtype}", wanted, given)


@functools.cache
def store() -> str:
    """The sums of a tile to shared memory."""

    @T.prim_func(s_tir=True)
    def wanted(c: T.handle, s: T.handle) -> None:
        C = T.match_buffer(
            c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator"
        )
        S = T.match_buffer(s, (16, 16), "float32", align=64, offset_factor=16, scope="shared.dyn")
        with T.sblock("root"):
            T.reads(C[0:16, 0:16])
            T.writes(S[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("store"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    S[vi, vj] = C[vi, vj]

    @T.prim_func(s_tir=True)
    def given(c: T.handle, s: T.handle) -> None:
        c1, c0, s1, s0 = T.int32(), T.int32(), T.int32(), T.int32()
        C = T.match_buffer(
            c,
            (16, 16),
            "float32",
            strides=[c1, c0],
            align=64,
            offset_factor=16,
            scope="wmma.accumulator",
        )
        S = T.match_buffer(
            s,
            (16, 16),
            "float32",
            strides=[s1, s0],
            align=64,
            offset_factor=16,
            scope="shared.dyn",
        )
        with T.sblock("root"):
            T.reads(C[0:16, 0:16])
            T.writes(S[0:16, 0:16])
            T.evaluate(
                T.tvm_store_matrix_sync(
                    C.data,
                    16,
                    16,
                    16,
                    C.elem_offset // c1 // 16 * (c1 // 16) + C.elem_offset % c1 // 16,
                    S.access_ptr("w", ptr_type="float32"),
                    s1,
                    "row_major",
                    dtype="void",
                )
            )

    return registered("matrix_store", wanted, given)
