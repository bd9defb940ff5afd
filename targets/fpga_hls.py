"""The same engine as OpenCL C for HLS: the sizes and offsets of a design before ``hls/engine.cl``.

Memory holds what the RTL reads, without the filling of words to whole beats: A and B as elements,
C as accumulators of the type `sum`.
"""

from __future__ import annotations

from pathlib import Path

from flextensor.targets.engine import Digits, Engine
from flextensor.targets.rounding import ceil_div

TEMPLATE = Path(__file__).parent / "hls" / "engine.cl"
TYPES = {"int8": ("char", "int"), "int16": ("short", "long"), "float32": ("float", "float")}
"""OpenCL C types of an element and of an accumulator."""


def kernel(engine: Engine) -> str:
    """The kernel ``engine(a_memory, b_memory, c_memory)``, one work item."""
    item, total = TYPES[engine.dtype]
    lines = [f"typedef {item} item;", f"typedef {total} sum;"]
    lines += [f"#define {name} {value}" for name, value in sizes(engine).items()]
    lines += [
        f"static int {name}_offset(int i) {{ return {offset(digits)}; }}"
        for name, digits in (("group", engine.groups), ("row", engine.rows), ("tap", engine.taps))
    ]
    return "\n".join(lines) + "\n\n" + TEMPLATE.read_text()


def sizes(e: Engine) -> dict[str, object]:
    """Every constant of the template."""
    groups, outer, inner, k_tiles = e.loops
    overlap = "__attribute__((xcl_dataflow))" if min(e.a_buffers, e.b_buffers) == 2 else ""
    return {
        "PE_M": e.pe_m, "PE_N": e.pe_n, "PE_K": e.pe_k, "DEPTHWISE": int(e.depthwise),
        "LANES": e.pe_n if e.depthwise else e.pe_k,
        "A_WORDS": e.m_steps * e.k_words, "B_WORDS": e.n_steps * e.k_words,
        "C_WORDS": e.m_steps * e.n_steps,
        "GROUPS": groups, "OUTER": outer, "INNER": inner,
        "ROWS_INNER": int(e.stationary == "weight"), "B_KEPT": int(e.stationary == "weight"),
        "A_KEPT": int(e.stationary == "input"),
        "M_TILES": e.m_tiles, "N_TILES": e.n_tiles, "K_TILES": k_tiles,
        "TILE_M": e.tile_m, "M_EDGE": e.m_edge, "N_STEPS": e.n_steps, "N_EDGE": e.n_edge,
        "K_WORDS": e.k_words, "K_EDGE": e.k_edge, "TAPS": e.taps.count,
        "COLUMN_STEPS": ceil_div(e.columns, e.pe_n), "BLOCK": e.block, "OVERLAP": overlap,
    }  # fmt: skip


def offset(digits: Digits) -> str:
    """The offset of value number i of a nest of counters, in C.

    >>> offset(Digits((4, 3), (10, 1)))
    'i / 3 * 10 + i % 3 * 1'
    """
    terms, inner = [], digits.count
    for place, (extent, stride) in enumerate(zip(digits.extents, digits.strides, strict=True)):
        inner //= extent
        digit = "i" if inner == 1 else f"i / {inner}"
        terms.append(f"{digit}{f' % {extent}' if place else ''} * {stride}")
    return " + ".join(terms) or "0"
