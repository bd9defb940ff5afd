"""How long a stage takes on a device with thread blocks, from the sizes of its plan alone.

    cycles of a block = together(issue, multiply-adds, shared memory, way to L2)
    seconds           = waves of resident blocks on the busiest core, at 1 GHz

A guess in microseconds that ranks thousands of plans before any is lowered; the model of kernels
(`flextensor.cost_models.gpu`) reads what a plan became, and takes a thousand times as long. Cycles
are those of NVIDIA's multiprocessors since Volta; a device whose threads take turns (`Target.warp`
of 1) computes, loads and copies one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set

from flextensor.schedulers.gpu_plan import Plan, Tile
from flextensor.schedulers.gpu_tensor_core_plan import TILE
from flextensor.schedulers.gpu_tensor_core_plan import Plan as MatrixPlan
from flextensor.targets.base import Target
from flextensor.targets.rounding import ceil_div, round_up

CLOCK = 1e9
LAUNCH_SECONDS = 4e-6
"""Between two kernels, at that clock."""
FAR, NEAR, BARRIER, USE = 500.0, 100.0, 60.0, 30.0
"""Cycles from a load to its value, from L2 and from L1; of a barrier; from shared memory to a
multiply-add."""
WORD, LINE = 4, 128
"""Bytes of an element, and those that L1 and shared memory give a warp in a cycle."""
FILL_BYTES = 64
"""What a core takes from L2 in a cycle."""
REGISTERS, THREADS, BLOCKS, SHARED = 65536, 2048, 32, 200 << 10
"""What a core has: registers, resident threads and blocks, bytes of shared memory."""
SPARE_REGISTERS = 20
"""What a compiler takes beside those of the plan."""
HALF_BYTES, MATRIX_CYCLES = 2, 3.0
"""Bytes of half an element, and cycles of a core for 16 x 16 x 16 of them."""
GATHER, CHAIN = 24, 60.0
"""Instructions of half an element that is gathered, its address and what guards it, and cycles that
a warp takes for them alone."""
VECTORS, GATHERED, STRIDED, TURN = 16, 16.0, 3.0, 2.5
"""Of a CPU: vector registers that any has, cycles of an element whose address takes divisions, of
one that a vector is put together of, and of a multiply-add whose sum is in memory."""
ISSUES = 4
"""Warp instructions in a cycle."""
ORDER = 3
"""Of the norm by which overlapping times combine, an assumption; infinity is a roofline, which
calls all balanced kernels equal."""


def together(*times: float) -> float:
    """The time of what overlaps, though never wholly: the norm of order `ORDER` of the times,
    between their maximum and their sum; two equal ones take 1.26 times as long as one."""
    most = max(times)
    return most * sum((t / most) ** ORDER for t in times) ** (1 / ORDER) if most else 0.0


def waves(blocks: int, resident: int, busy: float, latency: float) -> float:
    """Cycles of a core that gets `blocks`, of which `resident` share it at a time.

    n blocks side by side take together(n x busy, busy + latency): either a part of the core is
    never idle, or the chain of one block's waits is longer. What is left over is a wave of its own,
    however few it is.
    """

    def wave(count: int) -> float:
        return together(count * busy, busy + latency) if count else 0.0

    full, rest = divmod(blocks, resident)
    return full * wave(resident) + wave(rest)


@dataclasses.dataclass(frozen=True)
class Block:
    """What a block takes: cycles that it keeps its core busy, cycles of its chain of waits,
    threads, registers of a thread as planned, bytes of shared memory."""

    busy: float
    latency: float
    threads: int
    registers: int = 0
    shared: int = 0

    def seconds(self, blocks: int, target: Target) -> float:
        """A kernel of so many blocks: waves of those that a core holds, on the busiest core."""
        share = ceil_div(blocks, target.cores)
        cycles = waves(share, self._resident(target.warp), self.busy, self.latency)
        return cycles / CLOCK + LAUNCH_SECONDS

    def _resident(self, warp: int) -> int:
        threads = round_up(self.threads, warp)
        registers = min(255, round_up(self.registers + SPARE_REGISTERS, 8))
        fitting = min(BLOCKS, THREADS // threads, REGISTERS // (registers * threads))
        return max(1, min(fitting, SHARED // (self.shared + 1024)))


@dataclasses.dataclass(frozen=True)
class Access:
    """How the operand of a side is read from memory."""

    contiguous: bool
    """Whether neighbours of the side lie together."""
    gathered: bool
    """Whether an address takes divisions, as those of an image do."""
    width: int = 1
    """Elements that are copied to a panel at a time."""

    @property
    def address(self) -> int:
        """Instructions of an address."""
        return 8 if self.gathered else 1


def seconds(
    plan: Plan,
    tiles: int,
    outputs: int,
    accesses: Mapping[str, Access],
    target: Target,
) -> float:
    """A guess for all `tiles` of a plan; parts of the reduction leave a sum of each of the
    `outputs` to a kernel of its own."""
    blocks = tiles * plan.k_split
    if target.warp == 1:
        return _in_turns(plan, blocks, accesses, target)
    busy, latency = _block(plan, accesses, target)
    block = Block(busy, latency, plan.threads, plan.registers, WORD * plan.shared)
    found = block.seconds(blocks, target)
    if plan.k_split > 1:
        found += moving_seconds(WORD * outputs * 2 * plan.k_split, target)  # written and read
    return found


def moving_seconds(size: int, target: Target) -> float:
    """A kernel more, for which so many bytes come and go."""
    return LAUNCH_SECONDS + size / (target.cores * FILL_BYTES * CLOCK)


def _in_turns(plan: Plan, blocks: int, accesses: Mapping[str, Access], target: Target) -> float:
    """A device whose threads take turns. Sums that a thread holds as vectors are the compiler's
    to keep; those that it would make of neighbouring threads go to memory with every barrier."""
    work = blocks * plan.y.block * plan.x.block * plan.k_blocks * plan.k_tile
    if plan.lanes > 1:
        spilled = plan.accumulators // plan.lanes > VECTORS - 2
        cycles = work / plan.lanes * (3 if spilled else 1)
    else:
        cycles = work * (TURN if plan.staged and plan.threads > 1 else 4 / target.lanes())
    for side, loads in (("y", work / plan.x.own), ("x", work / plan.y.own)):
        access = accesses[side]
        if side not in plan.staged and access.gathered:
            cycles += loads * GATHERED
        elif side == "y" or plan.lanes == 1:  # an element of Y is one for all of X's vector
            cycles += loads
        else:
            together = access.contiguous or side in plan.staged
            cycles += loads * (1 / plan.lanes if together else STRIDED)
    for side, row in zip(plan.staged, plan.rows, strict=True):
        copies = blocks * plan.k_blocks * plan.k_tile * row
        cycles += copies * (GATHERED if accesses[side].gathered else 2 + 2 / accesses[side].width)
    waves = ceil_div(blocks, target.cores) * target.cores / blocks
    return cycles * waves / (target.cores * CLOCK)


def _block(plan: Plan, accesses: Mapping[str, Access], target: Target) -> tuple[float, float]:
    """(cycles that a block keeps its core busy, cycles of its chain of waits)."""
    steps, warps = plan.k_blocks * plan.k_tile, ceil_div(plan.threads, target.warp)
    issue, local = float(plan.accumulators * steps), 0.0  # of each warp
    across = {
        "x": min(target.warp, plan.x.threads),
        "y": min(ceil_div(target.warp, plan.x.threads), plan.y.threads),
    }
    for side, tile in (("y", plan.y), ("x", plan.x)):
        own, access = tile.own, accesses[side]
        if side in plan.staged:
            issue += steps * own / _width(tile)
            local += steps * own / _width(tile) * _lines(tile, across[side])
            copied = plan.k_blocks * plan.k_tile * tile.block / plan.threads
            moves = 1 if plan.panels > 1 else 2  # no register on the way
            issue += copied * (moves + access.address) / access.width
            local += copied * (2 if access.contiguous or plan.pad else 6)
        else:
            issue += steps * own * (1 + access.address)
            rows = _lines(tile, across[side]) if access.contiguous else across[side]
            local += steps * own * rows
    compute = plan.accumulators * steps * target.warp / target.lanes()
    fill = plan.copied * plan.k_blocks * WORD / FILL_BYTES
    busy = together(warps * issue / ISSUES, warps * compute, warps * local, fill)
    return busy, _waits(plan, busy)


def _width(tile: Tile) -> int:
    """Elements that one load takes from a panel."""
    return next(width for width in (4, 2, 1) if tile.inner % width == 0)


def _lines(tile: Tile, threads: int) -> float:
    """Cycles of a load of neighbouring threads, each of elements `inner` apart."""
    apart = tile.inner if threads > 1 else _width(tile)
    return max(1.0, threads * apart * WORD / LINE)


def _waits(plan: Plan, busy: float) -> float:
    """A block's chain: panels that come from memory and barriers, or loads of what is not staged;
    and multiply-adds that wait for shared memory, unless others are there to be issued."""
    steps = plan.k_blocks * plan.k_tile
    waits = (2 - len(plan.staged)) * steps / plan.k_unroll * NEAR + steps / plan.k_unroll * USE
    if plan.staged:
        hidden = plan.ahead * busy / plan.k_blocks
        waits += plan.k_blocks * (BARRIER + max(0.0, FAR - hidden))
    return waits


def matrix_seconds(
    plan: MatrixPlan, batch: int, widths: Mapping[str, int], gathered: Set[str], target: Target
) -> float:
    """A guess for `batch` contractions of half precision on matrix units; `widths` are the elements
    that are copied at a time for each side, and `gathered` the sides whose addresses divide."""
    steps = plan.k_blocks * plan.k_steps
    fragments = plan.y.fragments + plan.x.fragments
    multiply = plan.warps * steps * plan.y.fragments * plan.x.fragments * MATRIX_CYCLES
    local = plan.warps * steps * fragments * HALF_BYTES * TILE * TILE / LINE
    issue, moved = float(plan.warps * steps * (fragments + 2)), 0.0
    chain = 0.0
    for side in ("y", "x"):
        copied = steps * TILE * plan.band(side).block
        lines = HALF_BYTES * copied / LINE
        address = GATHER if side in gathered else 1
        issue += copied / widths[side] * (3 + address) / target.warp
        if side in gathered and widths[side] == 1:
            chain += copied / plan.threads * CHAIN
        local += lines * (1 if widths[side] * HALF_BYTES >= WORD else 2)
        moved += HALF_BYTES * copied
    stored = plan.y.block * plan.x.block
    local += 2 * stored * WORD / LINE if plan.way.staged else 0.0
    issue += stored * plan.way.store_instructions / target.warp
    busy = together(issue / ISSUES, multiply, local, moved / FILL_BYTES)
    hidden = (plan.stages - 1) * busy / plan.k_blocks
    latency = FAR + chain + plan.k_blocks * (BARRIER + max(0.0, FAR - hidden))
    block = Block(busy, latency, plan.threads, plan.registers, plan.shared_bytes)
    return block.seconds(plan.k_split * batch * plan.y.blocks * plan.x.blocks, target)


def spatial_seconds(points: int, steps: int, loads: int, threads: int, target: Target) -> float:
    """A guess for a stage of `points` outputs, one a thread, each of `steps` of a reduction that
    load so many elements."""
    instructions = steps * (1 + loads * (1 + Access(True, True).address)) + 8
    warps = ceil_div(threads, target.warp)
    busy = warps * together(instructions / ISSUES, steps * loads)
    if target.warp == 1:
        return points * instructions / (target.cores * target.lanes() * CLOCK)
    block = Block(busy, min(steps, 4) * FAR, threads)
    return block.seconds(ceil_div(points, threads), target)
