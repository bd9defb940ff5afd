"""What an engine takes of a chip: multipliers, block RAM and lookup tables, by formula.

    DSP     processing elements * DSP blocks of a multiply-accumulate
    BRAM    sum over the buffers of ceil(bits / wide) * ceil(words / deep), in 18 Kb blocks of the
            shape wide x deep that takes the fewest
    LUT     a line fitted to what yosys makes of the Verilog of the generator

``results/fpga`` has them beside synthesis.
"""

from __future__ import annotations

import dataclasses

from flextensor.targets.engine import SUM_BYTES, Engine
from flextensor.targets.rounding import ceil_div

DSP_PER_MAC = {"int8": 1, "int16": 1, "float32": 5}
"""DSP blocks: 18 x 18 bits or more fit one. Vitis HLS takes 3 for a float32 product and 2 for a
sum (UG1399, floating-point cores on UltraScale+); no RTL of ours has these."""
SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""Bits and words of an 18 Kb block as a memory with one read and one write port."""

CONTROL_LUTS, ADDER_LUTS, ACCUMULATOR_LUTS = 1850, 0.6, 2.2
"""Of a whole engine, for a bit of the adder tree, for a bit of the accumulators (with the choice of
where they begin, and the store's multiplexer): fitted to 16 designs that yosys synthesised."""
FOUR_INPUTS = 2.0
"""Tables of four inputs for one of six."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Blocks of each kind; `bram18` are 18 Kb."""

    dsp: int
    bram18: int
    lut: int


def resources(engine: Engine, lut_inputs: int = 6) -> Resources:
    """What an engine takes, on a chip whose lookup tables have `lut_inputs` inputs."""
    return Resources(
        engine.multipliers * DSP_PER_MAC[engine.dtype], bram18(engine), luts(engine, lut_inputs)
    )


def blocks(bits: int, words: int) -> int:
    """18 Kb blocks of a memory with one read and one write port."""
    return min(ceil_div(bits, wide) * ceil_div(words, deep) for wide, deep in SHAPES)


def bram18(engine: Engine) -> int:
    """Blocks of all buffers: A has a bank for each row of the array; C is there twice where the
    reduction is cut, for earlier sums and the store are then read at the same time."""
    a, b, c = engine.words
    copies = 2 if engine.k_tiles > 1 else 1
    return (
        engine.pe_m * blocks(8 * engine.a_word, a)
        + blocks(8 * engine.b_word, b)
        + copies * blocks(8 * engine.c_word, c)
    )


def luts(engine: Engine, lut_inputs: int) -> int:
    """Lookup tables: control and addresses, adder trees, accumulators up to the store."""
    accumulators = engine.pe_m * engine.pe_n * 8 * SUM_BYTES[engine.dtype]
    adders = accumulators * (engine.pe_k - 1)
    six = CONTROL_LUTS + ADDER_LUTS * adders + ACCUMULATOR_LUTS * accumulators
    return round(six * (1 if lut_inputs == 6 else FOUR_INPUTS))
