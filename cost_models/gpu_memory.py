"""What an access of all threads of a block costs: sectors of L1 and L2, banks of shared memory.

Addresses are bytes, one of each thread, -1 where a thread does not take part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WARP = 32
SECTOR = 32
"""Bytes that a cache moves at least."""
L1_SECTORS = 4
"""Sectors that L1 gives in a cycle: 128 bytes."""
WORD = 4
"""Bytes of one bank of shared memory."""


def sectors(address: Array, size: int) -> tuple[float, float, float]:
    """(sectors that the warps of a block ask for, those that are distinct for all of them over a
    window of iterations, cycles of L1), each per iteration.

    `address` are bytes by iteration and thread, -1 where a thread does not take part. A warp that
    reads neighbours asks for 4 sectors, one that reads a column of a matrix for 32. L1 takes a
    cycle for every 4 sectors of a warp, and one at least.
    """
    iterations = len(address)
    parts = np.arange(0, max(size, 1), SECTOR)
    every = np.where(address[..., None] < 0, -1, (address[..., None] + parts) // SECTOR)
    warps = np.sort(every.reshape(iterations, -1, WARP * len(parts)), axis=-1)
    first = np.ones_like(warps, bool)
    first[..., 1:] = warps[..., 1:] != warps[..., :-1]
    asked = np.count_nonzero(first & (warps >= 0), axis=-1)
    cycles = np.ceil(asked / L1_SECTORS).sum()
    distinct = np.count_nonzero(np.unique(every) >= 0)
    return asked.sum() / iterations, distinct / iterations, cycles / iterations


def merged(accesses: list[tuple[Array, int]]) -> list[tuple[Array, int]]:
    """Neighbouring words of shared memory as the vectors that the compiler makes of them.

    X[t * 4], X[t * 4 + 1], X[t * 4 + 2], X[t * 4 + 3]   ->   one access of 16 bytes
    """
    waiting = sorted(accesses, key=lambda a: int(a[0].max()))
    found: list[tuple[Array, int]] = []
    while waiting:
        address, size = waiting.pop(0)
        for vector in (16, 8):
            steps = range(1, vector // size)
            neighbours = [_after(waiting, address, size, step) for step in steps]
            aligned = bool((address[address >= 0] % vector == 0).all())
            if size < vector and aligned and all(n is not None for n in neighbours):
                waiting = [w for i, w in enumerate(waiting) if i not in neighbours]
                size = vector
                break
        found.append((address, size))
    return found


def _after(waiting: list[tuple[Array, int]], address: Array, size: int, step: int) -> int | None:
    wanted = np.where(address < 0, -1, address + step * size)
    for place, (other, own) in enumerate(waiting[:64]):
        if own == size and np.array_equal(other, wanted):
            return place
    return None


def bank_cycles(address: Array, size: int) -> float:
    """Cycles that shared memory takes for an access of all warps of a block.

    Four bytes from each of 32 banks in a cycle; a word that several threads want is read once,
    different words of one bank one after the other. Vectors of 8 and 16 bytes go by half and
    quarter warps.
    """
    words = max(size // WORD, 1)
    group = WARP // words
    lanes = address.reshape(-1, group)
    every = np.where(lanes[..., None] < 0, -1, lanes[..., None] // WORD + np.arange(words))
    rows = np.sort(every.reshape(len(lanes), -1), axis=-1)
    first = np.ones_like(rows, bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    taken = first & (rows >= 0)
    counts = np.zeros((len(rows), WARP), np.int64)
    row, column = np.nonzero(taken)
    np.add.at(counts, (row, rows[row, column] % WARP), 1)
    return float(counts.max(axis=1).sum())


def tile_accesses(threads: int, pitch: int, size: int) -> list[tuple[Array, int]]:
    """What a warp touches of a tile of 16 x 16 elements of `size` bytes in shared memory, rows
    `pitch` bytes apart: offsets of every thread from the tile, and bytes.

    Of half, the 32 threads name the 32 halves of the rows, 16 bytes each (LDSM). Of float, a thread
    has neighbours in four quarters of the tile.
    """
    lane = np.arange(-(-threads // WARP) * WARP) % WARP
    if size == 2:
        return [(lane % 16 * pitch + lane // 16 * 16, 16)]
    own = lane // 4 * pitch + lane % 4 * 2 * size
    parts = [(row, column) for row in (0, 8) for column in (0, 8)]
    return [(own + row * pitch + column * size, 2 * size) for row, column in parts]
