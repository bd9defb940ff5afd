"""FPGA parts as data: what is on the chip, what memory a known board gives it, and who says so.

Block RAM is counted in 18 Kb blocks, which all of these families have (AMD pairs two of them into
a 36 Kb block, Lattice calls one an EBR); one is at most 36 bits wide and 512 words deep.
"""

from __future__ import annotations

import dataclasses

ULTRASCALE = "synth_xilinx -family xcup -flatten -noiopad -noclkbuf"


@dataclasses.dataclass(frozen=True)
class Part:
    """One chip on one board.

    `dsps` multiply 18 x 18 bits or more; `luts` have `lut_inputs` inputs; `memory_bytes` is the
    bandwidth of the board's memory in bytes/s, `clock` an assumption in Hz, for no tool here
    places and routes: what designs of this kind are said to reach on the family.
    """

    name: str
    dsps: int
    bram18: int
    luts: int
    lut_inputs: int
    memory_bytes: float
    clock: float
    synthesis: str
    """The command of yosys; its xcup is UltraScale+."""
    source: str


PARTS = {
    part.name: part
    for part in (
        Part(
            "vu9p", dsps=6840, bram18=4320, luts=1_182_240, lut_inputs=6,
            memory_bytes=76.8e9, clock=200e6, synthesis=ULTRASCALE,
            source="AMD XCVU9P, data sheet DS890 (UltraScale+ product table); "
            "4 x DDR4-2400, 64 data bits each, as on VCU1525 (UG1268) and Amazon EC2 F1",
        ),
        Part(
            "zu9eg", dsps=2520, bram18=1824, luts=274_080, lut_inputs=6,
            memory_bytes=17.0e9, clock=200e6, synthesis=ULTRASCALE,
            source="AMD XCZU9EG, data sheet DS891 (Zynq UltraScale+ product table); "
            "DDR4-2133, 64 bits, as on ZCU102 (UG1182)",
        ),
        Part(
            "ecp5-85k", dsps=156, bram18=208, luts=83_640, lut_inputs=4,
            memory_bytes=1.6e9, clock=60e6, synthesis="synth_ecp5",
            source="Lattice LFE5U-85, data sheet FPGA-DS-02012 (ECP5 family selection guide); "
            "DDR3-800, 16 bits; nextpnr gave 67 MHz for an array of 16 multipliers",
        ),
    )
}  # fmt: skip
"""Every part by its name in ``--target fpga:NAME``; the first is the paper's."""
