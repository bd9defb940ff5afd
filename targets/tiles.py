"""Tile registers of x86 (AMX): eight matrices of 16 rows of 64 bytes, as LLVM calls them.

tdpbssd    sums[i, j] += sum over k < 64 of int8(a[i, k]) * int8(b[k // 4, j, k % 4])
tdpbf16ps  sums[i, j] += sum over k < 32 of bfloat16(a[i, k]) * bfloat16(b[k // 2, j, k % 2])

Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.
"""

from __future__ import annotations

import dataclasses

ROWS = 16
"""Rows of a tile, and 32-bit sums in a row of one."""
ROW_BYTES = 64
REGISTERS = 8


@dataclasses.dataclass(frozen=True)
class Unit:
    """What multiplies tiles of one dtype."""

    feature: str
    """The feature of a CPU, by its LLVM name."""
    depth: int
    """Products that are summed in every sum at a time: elements in a row of a tile."""
    part: int
    """Neighbours along the reduction that lie together in both tiles: 32 bits."""
    multiply: str
    """The LLVM intrinsic: sums, rows, lanes."""


UNITS = {
    "int8": Unit("amx-int8", 64, 4, "llvm.x86.tdpbssd"),
    "bfloat16": Unit("amx-bf16", 32, 2, "llvm.x86.tdpbf16ps"),
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
