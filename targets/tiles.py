"""Tile registers of x86 (AMX): eight matrices of 16 rows of 64 bytes, as LLVM calls them.

tdpbssd    sums[i, j] += sum over k < 64 of int8(a[i, k]) * int8(b[k // 4, j, k % 4])
tdpbf16ps  sums[i, j] += sum over k < 32 of bfloat16(a[i, k]) * bfloat16(b[k // 2, j, k % 2])

Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flextensor.targets.dot_products import SUMS

ROWS = 16
"""Rows of a tile, and 32-bit sums in a row of one."""
ROW_BYTES = 64
REGISTERS = 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What multiplies tiles of one dtype."""

    feature: str
    """The feature of a CPU, by its LLVM name."""
    depth: int
    """Products that are summed in every sum at a time: elements in a row of a tile."""
    part: int
    """Neighbours along the reduction that lie together in both tiles: 32 bits."""
    intrinsic: str
    """The LLVM intrinsic: sums, rows, lanes."""


INSTRUCTIONS = {
    "int8": Instruction("amx-int8", 64, 4, "llvm.x86.tdpbssd"),
    "bfloat16": Instruction("amx-bf16", 32, 2, "llvm.x86.tdpbf16ps"),
}
"""By dtype."""

BEGIN = "flextensor_tiles_begin"
END = "flextensor_tiles_end"
_CONFIG = "\\01\\00" + "\\00" * 14 + "\\40\\00" * 8 + "\\00" * 16 + "\\10" * 8 + "\\00" * 8
"""Palette 1, and for every register 64 bytes in a row, then 16 rows."""
DEFINE = f"""
@flextensor_tiles = private constant [64 x i8]
  c"{_CONFIG}", align 64
@flextensor_tiles_asked = internal global i8 0
declare i64 @syscall(i64, i64, i64)
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
define i32 @{BEGIN}() {{
  %asked = load i8, ptr @flextensor_tiles_asked
  %first = icmp eq i8 %asked, 0
  br i1 %first, label %ask, label %set
ask:
  %answer = call i64 @syscall(i64 158, i64 4131, i64 18)
  store i8 1, ptr @flextensor_tiles_asked
  br label %set
set:
  call void @llvm.x86.ldtilecfg(ptr @flextensor_tiles)
  ret i32 0
}}
define i32 @{END}() {{
  call void @llvm.x86.tilerelease()
  ret i32 0
}}
"""
"""What a kernel imports that has tiles. A thread calls `BEGIN` before it has any, and `END` after
it. Linux lets a process have them that asked: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)."""


def products(dtype: str, cores: int, steps: int) -> Any:
    """An IRModule that keeps the multipliers of a dtype busy: on every core, `steps` times, four
    tiles of sums of the products of tiles 4 and 5 with tiles 6 and 7, which have x.

    x is (16, 16) words; out is (cores, 16, 16), of the sums in tile 0.
    """
    import tvm
    from tvm.script import tirx as T

    multiply, sums = INSTRUCTIONS[dtype].intrinsic, SUMS[dtype]

    @T.prim_func(s_tir=True)
    def main(x: T.handle, out: T.handle) -> None:
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        X = T.match_buffer(x, (ROWS, ROWS), "uint32")
        OUT = T.match_buffer(out, (cores, ROWS, ROWS), sums)
        for core in T.parallel(cores, annotations={"pragma_import_llvm": DEFINE}):
            T.evaluate(T.call_extern("int32", BEGIN))
            for tile in T.unroll(4):
                T.evaluate(
                    T.call_llvm_intrin(
                        T.llvm_lookup_intrinsic_id("llvm.x86.tilezero"),
                        T.Cast("int8", tile), dtype="void",
                    )
                )  # fmt: skip
                T.evaluate(
                    T.call_llvm_intrin(
                        T.llvm_lookup_intrinsic_id("llvm.x86.tileloadd64"),
                        T.Cast("int8", tile + 4), X.access_ptr("r"), T.Cast("int64", ROW_BYTES),
                        dtype="void",
                    )
                )  # fmt: skip
            for _ in range(steps):
                for tile in T.unroll(4):
                    T.evaluate(
                        T.call_llvm_intrin(
                            T.llvm_lookup_intrinsic_id(multiply),
                            T.Cast("int8", tile), T.Cast("int8", 4 + tile // 2),
                            T.Cast("int8", 6 + tile % 2), dtype="void",
                        )
                    )  # fmt: skip
            T.evaluate(
                T.call_llvm_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.x86.tilestored64"),
                    T.Cast("int8", 0), OUT.access_ptr("w", offset=core * ROWS * ROWS),
                    T.Cast("int64", ROW_BYTES), dtype="void",
                )
            )  # fmt: skip
            T.evaluate(T.call_extern("int32", END))

    return tvm.IRModule({"main": main})
