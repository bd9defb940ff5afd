"""What multiplies in a contraction: how its register tiles may be cut, and what they cost."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flextensor.targets.base import Target

if TYPE_CHECKING:
    from flextensor.schedulers.contraction_space import Plan

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28)

SMALL_TILES = (("m", 2, 2), ("n", 2, 2), ("m", 1, 4), ("n", 1, 4), ("m", 1, 1))
TILES = {
    32: (
        ("m", 8, 2), ("n", 7, 2), ("n", 12, 2), ("m", 12, 2), ("n", 6, 4), ("m", 4, 4),
        ("n", 14, 1), ("m", 4, 2), ("n", 4, 2), *SMALL_TILES,
    ),
    16: (
        ("m", 4, 2), ("n", 2, 4), ("n", 4, 2), ("m", 4, 3), ("m", 6, 2), ("n", 6, 2),
        ("m", 5, 2), ("n", 5, 2), ("m", 2, 4), ("n", 4, 3), *SMALL_TILES,
    ),
}  # fmt: skip
"""Where the lanes are, rows and vectors of the register tiles that seeds begin with, by vector
registers: a CPU has the tiles of the largest number that it has. Of 16: all but the
small ones have eight sums or more, which keep the multipliers busy; estimates order them."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What multiplies: vector registers, of which a register tile has rows x vectors of sums."""

    rows: tuple[int, ...] = ROWS
    vectors: tuple[int, ...] = (1, 2, 3, 4, 6)
    block: int = 8
    """The shortest block of the reduction."""
    ahead: bool = False
    """Whether seeds pack whole operands first, and not what a task needs: elements that take
    longer to pack than to multiply."""

    def registers(self, plan: Plan) -> int:
        """Registers that a register tile takes: accumulators, lane vectors, one broadcast."""
        return plan.rows.tile * plan.vectors + plan.vectors + 1

    def available(self, target: Target) -> tuple[int, str]:
        """How many of what kind of registers there are."""
        return target.vector_registers, "vector registers"

    def crowded(self, plan: Plan, target: Target) -> str | None:
        """Why a register tile does not fit; None when it does."""
        needed, (has, kind) = self.registers(plan), self.available(target)
        return f"tile needs {needed} {kind}, has {has}" if needed > has else None

    def spills(self, plan: Plan, target: Target) -> bool:
        """Whether sums leave their registers: LLVM takes two turns of a long loop of single steps
        at a time, for which rows that are read in place take one register more than a full tile
        leaves; and it keeps rows that a window reads again in the unrolled body, for which a full
        tile leaves none."""
        left = self.available(target)[0] - self.registers(plan)
        if plan.rows_ahead and left <= 1:
            return True
        return (
            left == 0 and plan.row_layout == "inline" and plan.steps == 1 and not plan.window_loops
        )

    def first_tiles(self, target: Target) -> tuple[tuple[str, int, int], ...]:
        """Where the lanes are, rows and vectors of the register tiles that seeds begin with."""
        return TILES[max((n for n in TILES if n <= target.vector_registers), default=min(TILES))]

    def instructions(self, plan: Plan) -> int:
        """Instructions that a register tile takes for one step of the reduction."""
        return plan.rows.tile * plan.vectors

    def rate(self, plan: Plan) -> float:
        """The expected share of the peak: eight multiply-adds must be in flight, two begin in a
        cycle; half of what two loads in a cycle take, and a turn of the loop, adds up."""
        multiply = plan.rows.tile * plan.vectors / 2
        loads = (plan.rows.tile + plan.vectors) / 2
        return multiply / (max(multiply, 4.0) + loads / 2 + 1 / plan.steps)

    def products(self, plan: Plan) -> float:
        """Products of a row and a lane in one cycle of a core, at the peak."""
        return 2.0 * plan.vector


VECTORS = Unit()
