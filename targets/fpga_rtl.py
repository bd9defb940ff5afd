"""The Verilog of an engine: the units of ``rtl/*.v``, joined and sized for one design.

    port a -> row_loader  -> PE_M memories -\
    port b -> word_loader -> memory ---------> array -> accumulators -> memory -> result_store
                                                 ^ array_control                    -> port c

The ports: a request of one beat (`*_read`, `*_address` in beats, taken when `*_ready`), answered in
order by `*_valid` and `*_data`; the write port of C is always ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flextensor.targets.engine import BYTES, SUM_BYTES, Digits, Engine
from flextensor.targets.rounding import ceil_div

FOLDER = Path(__file__).parent / "rtl"
TOP = "engine"


def sources() -> list[Path]:
    """The parametric modules that a design is made of."""
    return sorted(FOLDER.glob("*.v"))


def verilog(engine: Engine) -> str:
    """The top module; its units are in `sources`."""
    name = "depthwise_array" if engine.depthwise else "gemm_array"
    lanes = {} if engine.depthwise else {"PE_K": engine.pe_k, "TREE": engine.tree}
    array = {
        "PE_M": engine.pe_m,
        "PE_N": engine.pe_n,
        **lanes,
        "BITS": bits(engine),
        "SUM": sums(engine),
    }
    a_words, b_words, c_words = engine.words
    values = {
        "A_BYTES": engine.a_port, "B_BYTES": engine.b_port, "C_BYTES": engine.c_port,
        "A_WORD": engine.a_beats * engine.a_port, "B_WORD": engine.b_beats * engine.b_port,
        "A_BITS": 8 * engine.a_word, "B_BITS": 8 * engine.b_word, "C_BITS": 8 * engine.c_word,
        "A_DEPTH": a_words, "B_DEPTH": b_words, "C_DEPTH": c_words,
        "PE_M": engine.pe_m, "COUNT": engine.pe_m * engine.pe_n, "SUM": sums(engine),
        "DELAY": engine.pipeline - 1, "PARTIAL": int(engine.k_tiles > 1),
    }  # fmt: skip
    units = {
        "ROW_LOADER": _set(_row_loader(engine)),
        "WORD_LOADER": _set(_word_loader(engine)),
        "CONTROL": _set(_control(engine)),
        "STORE": _set(_store(engine)),
        "ARRAY": f"{name} #({_set(array)})",
    }
    text = (FOLDER / "engine.v.in").read_text()
    for key, value in {**units, **{k: str(v) for k, v in values.items()}}.items():
        text = text.replace(f"@{key}@", value)
    return text


def bits(engine: Engine) -> int:
    """Bits of an operand."""
    return 8 * BYTES[engine.dtype]


def sums(engine: Engine) -> int:
    """Bits of an accumulator."""
    return 8 * SUM_BYTES[engine.dtype]


def _set(parameters: Mapping[str, object]) -> str:
    return ", ".join(f".{name}({value})" for name, value in parameters.items())


def _walk(loops: tuple[int, int, int, int]) -> dict[str, object]:
    return dict(zip(("GROUPS", "OUTER", "INNER", "K"), loops, strict=True))


def _double(buffers: int) -> int:
    return int(buffers == 2)


def _vector(values: tuple[int, ...]) -> str:
    """32-bit numbers as one constant, the innermost digit in the lowest bits."""
    return "{" + ", ".join(f"32'd{value % 2**32}" for value in values) + "}"


def _digits(prefix: str, digits: Digits) -> dict[str, object]:
    some = digits if digits.extents else Digits((1,), (0,))
    return {
        f"{prefix}D": len(some.extents),
        f"{prefix}_EXTENT": _vector(some.extents),
        f"{prefix}_STEP": _vector(some.steps),
    }


def _rows_inner(engine: Engine) -> int:
    return int(engine.stationary == "weight")


def _row_loader(e: Engine) -> dict[str, object]:
    beats = e.a_beats
    return {
        **_walk(e.a_loops), "ROWS_INNER": _rows_inner(e),
        "PE_M": e.pe_m, "TILE_M": e.tile_m, "M_EDGE": e.m_edge,
        "K_WORDS": e.k_words, "K_EDGE": e.k_edge, "BEATS": beats,
        "HALF": e.m_steps * e.k_words, "DOUBLE": _double(e.a_buffers),
        "N_STRIDE": beats * e.block,
        "BYTES": e.a_port, "WORD": beats * e.a_port,
        **_digits("G", e.groups.scaled(beats)), **_digits("R", e.rows.scaled(beats)),
        **_digits("T", e.taps.scaled(beats, beats)),
    }  # fmt: skip


def _word_loader(e: Engine) -> dict[str, object]:
    return {
        **_walk(e.b_loops), "RESTART": 1 - _rows_inner(e),
        "N_STEPS": e.n_steps, "N_EDGE": e.n_edge,
        "K_WORDS": e.k_words, "K_EDGE": e.k_edge, "BEATS": e.b_beats,
        "HALF": e.n_steps * e.k_words, "DOUBLE": _double(e.b_buffers),
        "BYTES": e.b_port, "WORD": e.b_beats * e.b_port,
    }  # fmt: skip


def _steps(e: Engine) -> dict[str, object]:
    return {
        "M_STEPS": e.m_steps, "M_EDGE": ceil_div(e.m_edge, e.pe_m),
        "N_STEPS": e.n_steps, "N_EDGE": e.n_edge,
    }  # fmt: skip


def _control(e: Engine) -> dict[str, object]:
    return {
        **_walk(e.loops), "ROWS_INNER": _rows_inner(e),
        "A_KEPT": int(e.stationary == "input"), "B_KEPT": _rows_inner(e),
        **_steps(e), "K_WORDS": e.k_words, "K_EDGE": e.k_edge,
        "A_HALF": e.m_steps * e.k_words, "B_HALF": e.n_steps * e.k_words,
        "C_HALF": e.m_steps * e.n_steps, "A_DOUBLE": _double(e.a_buffers),
        "B_DOUBLE": _double(e.b_buffers), "C_DOUBLE": _double(e.c_buffers),
    }  # fmt: skip


def _store(e: Engine) -> dict[str, object]:
    groups, outer, inner, _ = e.loops
    return {
        "GROUPS": groups, "OUTER": outer, "INNER": inner, "ROWS_INNER": _rows_inner(e),
        **_steps(e), "BEATS": e.c_beats, "HALF": e.m_steps * e.n_steps,
        "DOUBLE": _double(e.c_buffers), "BYTES": e.c_port, "WORD": e.c_word,
    }  # fmt: skip
