"""The sizes of a contraction on matrix units, as they follow from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flextensor.schedulers.space import Value
from flextensor.targets.rounding import ceil_div

TILE = 16
"""Rows, columns and depth of what a warp multiplies at a time."""
WARP = 32
SKEW = 8
"""Elements between the rows of a panel, and of the staged sums: eight rows from there on, which a
matrix load reads together, lie in eight different places of the banks."""


@dataclasses.dataclass(frozen=True)
class Way:
    """What one kind of instructions takes beside products and sums."""

    staged: bool
    """Whether sums are written by way of shared memory."""
    operand_registers: int
    """32-bit registers of a thread for a fragment of an operand."""
    store_instructions: int
    """Instructions of a thread for one of its sums until it is in memory, an assumption."""


WAYS = {"wmma": Way(True, 8, 8), "mma": Way(False, 4, 6)}
"""By the value of the knob `unit`; wmma holds every element of an operand twice."""
SUM_REGISTERS = TILE * TILE // WARP
"""32-bit registers of a thread for a fragment of sums."""
SPARE_REGISTERS = 32
"""What a thread needs for addresses and loops."""


@dataclasses.dataclass(frozen=True)
class Band:
    """One side of the output as blocks of warps x fragments x 16 elements."""

    extent: int
    warps: int
    fragments: int

    @property
    def own(self) -> int:
        """Elements of a warp."""
        return self.fragments * TILE

    @property
    def block(self) -> int:
        """Elements of a block."""
        return self.warps * self.own

    @property
    def blocks(self) -> int:
        """Blocks that cover the side."""
        return ceil_div(self.extent, self.block)

    @property
    def padded(self) -> int:
        """Elements of all blocks."""
        return self.blocks * self.block


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every size that follows from a config."""

    y: Band
    x: Band
    k_extent: int
    k_steps: int
    """Tiles of the reduction in a panel."""
    stages: int
    """Panels in shared memory at a time."""
    rows: Mapping[str, bool]
    """Whether a side's panel has its elements as rows, and the reduction along them."""
    packed: bool = False
    """Whether a kernel of its own first lays the operand of Y out as rows, zero beyond its end."""
    laid: bool = False
    """Whether a kernel of its own also lays the operand of X out, as `Laid` tells."""
    k_split: int = 1
    """Parts of the reduction that blocks of their own compute."""
    unit: str = "wmma"
    """The instructions: one of `WAYS`, and of `gpu_tensor_core_units.UNITS`."""

    @property
    def way(self) -> Way:
        """What the instructions take."""
        return WAYS[self.unit]

    @property
    def k_tile(self) -> int:
        """Elements of the reduction in a panel."""
        return self.k_steps * TILE

    @property
    def k_blocks(self) -> int:
        """Panels along one part of the reduction."""
        return ceil_div(ceil_div(self.k_extent, self.k_tile), self.k_split)

    @property
    def k_padded(self) -> int:
        """Elements of the reduction in all panels of all parts."""
        return self.k_split * self.k_blocks * self.k_tile

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.y.warps * self.x.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * WARP

    def band(self, side: str) -> Band:
        """The blocks of ``y`` or ``x``."""
        return self.y if side == "y" else self.x

    def panel(self, side: str) -> tuple[int, int]:
        """Rows of a side's panel, and elements of a row."""
        shape = (self.band(side).block, self.k_tile)
        return shape if self.rows[side] else shape[::-1]

    def turns(self, side: str, width: int) -> int:
        """How often all threads copy a vector of `width` elements of a side's panel; 0 when that
        is no whole number."""
        rows, row = self.panel(side)
        turns, rest = divmod(rows * row, self.threads * width)
        return 0 if rest else turns

    @property
    def panel_bytes(self) -> int:
        """Shared memory of the panels of all stages."""
        sizes = (self.panel(side) for side in ("y", "x"))
        return self.stages * sum(rows * (row + SKEW) * 2 for rows, row in sizes)

    @property
    def staged_bytes(self) -> int:
        """Shared memory of the sums of one fragment of every warp's rows."""
        if not self.way.staged:
            return 0
        return self.y.warps * TILE * (self.x.block + SKEW) * 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: sums take the place of panels that are no longer read."""
        return max(self.panel_bytes, self.staged_bytes)

    @property
    def registers(self) -> int:
        """32-bit registers of a thread: of each fragment of sums and of operands, and a few."""
        sums = SUM_REGISTERS * self.y.fragments * self.x.fragments
        operands = self.way.operand_registers * (self.y.fragments + self.x.fragments)
        return sums + operands + SPARE_REGISTERS

    @classmethod
    def of(
        cls, config: Mapping[str, Value], extents: Mapping[str, int], rows: Mapping[str, bool]
    ) -> Plan:
        """The plan of a config; `extents` are those of ``y``, ``x``, ``k`` and, where X may be
        laid out, of ``laid``, the reduction as it then is."""
        bands = {
            side: Band(
                extents[side], int(config[f"{side}_warps"]), int(config[f"{side}_fragments"])
            )
            for side in ("y", "x")
        }
        packed, laid = config.get("packed") in ("y", "both"), config.get("packed") == "both"
        return cls(
            **bands,
            k_extent=extents["laid" if laid else "k"],
            k_steps=int(config["k_steps"]),
            stages=int(config["stages"]),
            rows={"y": packed or rows["y"], "x": laid or rows["x"]},
            packed=packed,
            laid=laid,
            k_split=int(config.get("k_split", 1)),
            unit=str(config.get("unit", "wmma")),
        )
