"""Dot products of small groups of narrow numbers, as intrinsics for `Schedule.tensorize`.

    for i, g in 16 x 4:                                              vpdpbusd  (AVX512-VNNI)
        C[i] += int32(B[i, g]) * int32(A[g])                   ->
    for i, g in 16 x 2:                                              vdpbf16ps (AVX512-BF16)
        C[i] += float32(B[i, g]) * float32(A[g])

See `flextensor.targets.dot_products`.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from flextensor.schedulers.intrinsics import registered
from flextensor.targets.dot_products import BFLOAT16, VNNI


@functools.cache
def dot(lanes: str, rows: str, scope: str) -> str:
    """The products of a row's group with every lane's, added to the sums in `scope`; `lanes` and
    `rows` are dtypes: uint8 and int8 either way, or both uint16, the bits of bfloat16."""
    if lanes == "uint16":
        return _bfloat16(scope)
    of_rows, of_lanes = f"{rows}x4", f"{lanes}x64"

    @T.prim_func(s_tir=True)
    def wanted(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), rows, offset_factor=1)
        B = T.match_buffer(b, (16, 4), lanes, offset_factor=1)
        C = T.match_buffer(c, (16,), "int32", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(C[0:16], B[0:16, 0:4], A[0:4])
            T.writes(C[0:16])
            for i, k in T.grid(16, 4):
                with T.sblock("dot"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.Cast("int32", B[vi, vk]) * T.Cast("int32", A[vk])

    @T.prim_func(s_tir=True)
    def rows_raised(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), rows, offset_factor=1)
        B = T.match_buffer(b, (16, 4), lanes, offset_factor=1)
        C = T.match_buffer(c, (16,), "int32", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(C[0:16], B[0:16, 0:4], A[0:4])
            T.writes(C[0:16])
            C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(VNNI),
                C.vload([0], dtype="int32x16"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], of_rows), dtype="int32"), 16),
                    dtype="int8x64",
                ),
                T.reinterpret(B.vload([0, 0], dtype=of_lanes), dtype="int8x64"),
                dtype="int32x16",
            )

    @T.prim_func(s_tir=True)
    def lanes_raised(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), rows, offset_factor=1)
        B = T.match_buffer(b, (16, 4), lanes, offset_factor=1)
        C = T.match_buffer(c, (16,), "int32", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(C[0:16], B[0:16, 0:4], A[0:4])
            T.writes(C[0:16])
            C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(VNNI),
                C.vload([0], dtype="int32x16"),
                T.reinterpret(B.vload([0, 0], dtype=of_lanes), dtype="int8x64"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], of_rows), dtype="int32"), 16),
                    dtype="int8x64",
                ),
                dtype="int32x16",
            )

    given = rows_raised if rows == "uint8" else lanes_raised
    return registered(f"dot_{lanes}_{rows}_{scope}", wanted, given)


def _bfloat16(scope: str) -> str:
    @T.prim_func(s_tir=True)
    def wanted(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (16, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (16,), "float32", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(C[0:16], B[0:16, 0:2], A[0:2])
            T.writes(C[0:16])
            for i, k in T.grid(16, 2):
                with T.sblock("dot"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.Cast(
                        "float32", T.reinterpret(B[vi, vk], dtype="bfloat16")
                    ) * T.Cast("float32", T.reinterpret(A[vk], dtype="bfloat16"))

    @T.prim_func(s_tir=True)
    def given(b: T.handle, a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (16, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (16,), "float32", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(C[0:16], B[0:16, 0:2], A[0:2])
            T.writes(C[0:16])
            C[T.ramp(T.int32(0), 1, 16)] = T.call_pure_extern(
                "float32x16",
                BFLOAT16,
                C.vload([0], dtype="float32x16"),
                T.broadcast(T.reinterpret(A.vload([0], "uint16x2"), dtype="int32"), 16),
                T.reinterpret(B.vload([0, 0], dtype="uint16x32"), dtype="int32x16"),
            )

    return registered(f"dot_bfloat16_{scope}", wanted, given)
