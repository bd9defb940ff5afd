"""Tiles that matrix units multiply out of the registers of a warp's lanes, as intrinsics.

    for i, j, k in 16 x 16 x 16:                                   two of 16 x 8 x 16:
        C[i, j] += float32(A[i, k]) * float32(B[k, j])    ->       CUDA: mma.sync.m16n8k16

Where each element is, is known (`place`), so that what comes after takes the sums from registers.
Panels in shared memory are read by ldmatrix: a lane names one of 32 rows of 16 bytes, and gets
what it multiplies of four tiles of 8 x 8 that they are, each turned about where the panel lies so.
As `matrix_intrinsics`, written anew because TVM's take half a minute to import.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from flextensor.schedulers.intrinsics import registered

SHORT = {"float16": "fp16", "bfloat16": "bf16"}
"""What TVM calls dtypes where it writes PTX."""


def place(i: Any, j: Any) -> tuple[Any, Any]:
    """(number, lane) of element (i, j) of a tile of the left factor or of the sums.

    PTX ISA, "Matrix Fragments for mma.m16n8k16": two instructions have 8 columns of sums each.
    """
    return 4 * (j // 8) + (i // 8) * 2 + j % 2, 4 * (i % 8) + (j % 8) // 2


def _place_right(k: Any, j: Any) -> tuple[Any, Any]:
    """(number, lane) of element (k, j) of a tile of the right factor, which lies by columns."""
    return 4 * (j // 8) + (k // 8) * 2 + k % 2, 4 * (j % 8) + (k % 8) // 2


PLACES = {"y": place, "x": _place_right}
"""Of the left and of the right factor."""


def layout(side: str | None) -> Any:
    """The indices of an element in what a warp holds of a side, or of the sums for None: those of
    a tile, and then `place`."""
    where = PLACES[side] if side else place

    def at(*given: Any) -> list[Any]:
        *outer, i, j = given
        return [*outer, i // 16, j // 16, *where(i % 16, j % 16)]

    return at


@functools.cache
def load(side: str, transposed: bool, dtype: str) -> str:
    """A tile of a side, from a panel that has its rows as columns if it is `transposed`."""
    where = PLACES[side]

    @T.prim_func(s_tir=True)
    def row(c: T.handle, a: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        C = T.match_buffer(c, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:8, 0:32])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    number, lane = T.meta_var(where(vi, vj))
                    T.reads(A[vi, vj])
                    T.writes(C[number, lane])
                    C[number, lane] = A[vi, vj]

    @T.prim_func(s_tir=True)
    def column(c: T.handle, a: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        C = T.match_buffer(c, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:8, 0:32])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    number, lane = T.meta_var(where(vi, vj))
                    T.reads(A[vj, vi])
                    T.writes(C[number, lane])
                    C[number, lane] = A[vj, vi]

    # the panel's rows in the order of the lanes: both halves of a column of tiles, or of a row
    def named(lane: Any, pitch: Any) -> Any:
        if transposed:
            return (lane % 8 + lane // 16 * 8) * pitch + lane // 8 % 2 * 8
        return lane % 16 * pitch + lane // 16 * 8

    by_columns = transposed if side == "y" else not transposed

    @T.prim_func(s_tir=True)
    def given(c: T.handle, a: T.handle) -> None:
        s1, s0 = T.int32(), T.int32()
        A = T.match_buffer(
            a,
            (16, 16),
            dtype,
            strides=[s1, s0],
            align=64,
            offset_factor=16,
            scope="shared.dyn",
        )
        C = T.match_buffer(c, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:8, 0:32])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(
                    T.ptx_legacy.ldmatrix(
                        by_columns,
                        4,
                        ".b16",
                        C.data,
                        C.elem_offset + lane,
                        A.access_ptr("r"),
                        named(lane, s1),
                        dtype=dtype,
                    )
                )

    name = f"lanes_{side}_{'column' if transposed else 'row'}_{dtype}"
    return registered(name, column if transposed else row, given)


@functools.cache
def multiply(dtype: str) -> str:
    """The product of two tiles, added to the sums."""
    short = SHORT[dtype]
    right = _place_right

    @T.prim_func(s_tir=True)
    def wanted(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        B = T.match_buffer(b, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        C = T.match_buffer(c, (8, 32), "float32", align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:8, 0:32], A[0:8, 0:32], B[0:8, 0:32])
            T.writes(C[0:8, 0:32])
            for i, j, k in T.grid(16, 16, 16):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    number, lane = T.meta_var(place(vi, vj))
                    number_a, lane_a = T.meta_var(place(vi, vk))
                    number_b, lane_b = T.meta_var(right(vk, vj))
                    T.reads(C[number, lane], A[number_a, lane_a], B[number_b, lane_b])
                    T.writes(C[number, lane])
                    C[number, lane] = C[number, lane] + T.Cast(
                        "float32", A[number_a, lane_a]
                    ) * T.Cast("float32", B[number_b, lane_b])

    @T.prim_func(s_tir=True)
    def given(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        B = T.match_buffer(b, (8, 32), dtype, align=64, offset_factor=16, scope="warp")
        C = T.match_buffer(c, (8, 32), "float32", align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:8, 0:32], A[0:8, 0:32], B[0:8, 0:32])
            T.writes(C[0:8, 0:32])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                for half in T.unroll(2):
                    T.evaluate(
                        T.ptx_legacy.mma(
                            "m16n8k16",
                            "row",
                            "col",
                            short,
                            short,
                            "fp32",
                            A.data,
                            A.elem_offset + lane,
                            B.data,
                            B.elem_offset + half * 128 + lane,
                            C.data,
                            C.elem_offset + half * 128 + lane,
                            False,
                            dtype="float32",
                        )
                    )

    return registered(f"lanes_multiply_{dtype}", wanted, given)
