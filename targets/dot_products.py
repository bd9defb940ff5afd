"""Instructions of x86 that sum groups of products for every lane, as LLVM calls them, and how fast.

vpdpbusd  (AVX512-VNNI)    sums[i] += sum over g < 4 of uint8(a[i, g]) * int8(b[i, g])
vdpbf16ps (AVX512-BF16)    sums[i] += sum over g < 2 of bfloat16(a[i, g]) * bfloat16(b[i, g])
"""

from __future__ import annotations

from typing import Any

NEEDS = {"int8": ("avx512vnni", 4), "bfloat16": ("avx512bf16", 2)}
"""By dtype: the feature of a CPU, by its LLVM name, and the products of a group."""
SUMS = {"int8": "int32", "bfloat16": "float32"}
"""What products of a dtype are summed in."""
VNNI = "llvm.x86.avx512.vpdpbusd.512"
BFLOAT16 = "flextensor_dot_bfloat16"
DEFINE_BFLOAT16 = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @flextensor_dot_bfloat16(<16 x float> %sums, <16 x i32> %a, <16 x i32> %b) {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %z = call <16 x float>
    @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %z
}
"""
"""What a kernel imports that calls `BFLOAT16`. TVM lets float32 take the place of every bfloat16
before LLVM sees it, so that bits pass as int32, to a function that LLVM inlines."""


def chains(dtype: str, cores: int, count: int, steps: int) -> Any:
    """An IRModule that keeps the instruction of a dtype busy: every core, out[chain, lane] = the
    sum over `steps` of the groups x[lane] * x[lane], of `count` independent chains."""
    import tvm
    from tvm.script import tirx as T

    size, sums = NEEDS[dtype][1], SUMS[dtype]
    vector, bits = f"{sums}x16", f"{dtype}x{16 * size}"

    @T.prim_func(s_tir=True)
    def int8(x: T.handle, out: T.handle) -> None:
        X = T.match_buffer(x, (16 * size,), dtype)
        OUT = T.match_buffer(out, (cores, count, 16), sums)
        for core in T.parallel(cores):
            for chain in T.unroll(count):
                OUT[core, chain, T.ramp(0, 1, 16)] = T.broadcast(T.int32(0), 16)
            for _ in range(steps):
                for chain in T.unroll(count):
                    OUT[core, chain, T.ramp(0, 1, 16)] = T.call_llvm_pure_intrin(
                        T.llvm_lookup_intrinsic_id(VNNI),
                        OUT.vload([core, chain, 0], dtype=vector),
                        X.vload([0], dtype=bits),
                        X.vload([0], dtype=bits),
                        dtype=vector,
                    )

    @T.prim_func(s_tir=True)
    def bfloat16(x: T.handle, out: T.handle) -> None:
        X = T.match_buffer(x, (16 * size,), dtype)
        OUT = T.match_buffer(out, (cores, count, 16), sums)
        for core in T.parallel(cores, annotations={"pragma_import_llvm": DEFINE_BFLOAT16}):
            for chain in T.unroll(count):
                OUT[core, chain, T.ramp(0, 1, 16)] = T.broadcast(T.float32(0), 16)
            for _ in range(steps):
                for chain in T.unroll(count):
                    OUT[core, chain, T.ramp(0, 1, 16)] = T.call_pure_extern(
                        vector,
                        BFLOAT16,
                        OUT.vload([core, chain, 0], dtype=vector),
                        T.reinterpret(X.vload([0], dtype=bits), dtype="int32x16"),
                        T.reinterpret(X.vload([0], dtype=bits), dtype="int32x16"),
                    )

    func = int8 if dtype == "int8" else bfloat16
    noalias = {"global_symbol": "main", "tirx.noalias": True}
    return tvm.IRModule({"main": func.with_attrs(noalias)})
