"""What one block of a lowered kernel does, read from its TIR: arithmetic, and every access.

    for k in range(8):                              FMA: 8 x threads
        acc[0] = acc[0] + Y[k * 64 + ty * 4]   ->   shared load of Y, 8 times: addresses of all
                        * X[k * 64 + tx]            threads of a warp, so banks and sectors

Addresses are not analysed but computed, for every thread of one block inside the grid
and, to see what is used again, for a window of iterations of the innermost loops.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad

from flextensor.cost_models.gpu_memory import (
    WARP,
    Array,
    bank_cycles,
    merged,
    sectors,
    tile_accesses,
)
from flextensor.cost_models.gpu_values import value
from flextensor.schedulers.expression import children, loads
from flextensor.targets.launches import item_bytes
from flextensor.targets.rounding import ceil_div, round_up

WINDOW = 8
"""Iterations of the innermost loops for which addresses are computed: a sector has 8 floats."""
INNER = 0.618
"""Where in the grid the block stands that is looked at: the middle of a power of two is an edge of
whatever it is split into."""
DIVISION = 4
"""Instructions of an integer division by a constant that is no power of two: a high product, two
shifts, a multiply-add."""
UNROLLED = 8
"""Iterations of an innermost loop whose loads the compiler issues together at most."""
TILE_INSTRUCTIONS = 2
"""Of a product of tiles: two of 16 x 8 x 16."""
ROW_BYTES = 16
"""What a lane names of tiles in shared memory that a warp loads together (ldmatrix)."""
SPECIAL = frozenset("exp exp2 log log2 tanh sqrt rsqrt erf pow sigmoid".split())
"""Functions that the special units compute, or several instructions."""

_FLOAT = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)


@dataclasses.dataclass
class Work:
    """What one block does, in all its warps.

    Instructions are of whole warps. `shared_cycles` are those of the shared memory with bank
    conflicts, `l1_cycles` those of L1's tags and data. Sectors are of 32 bytes: `asked` by warps,
    `missed` what remains when the threads of a block find each other's data in L1, `stored` those
    that stores send on.
    """

    threads: int
    multiply_adds: float = 0.0
    special: float = 0.0
    tiles: float = 0.0
    """Products of 16 x 16 x 16 that a warp's matrix unit adds up."""
    integer: float = 0.0
    accesses: float = 0.0
    shared_cycles: float = 0.0
    l1_cycles: float = 0.0
    asked: float = 0.0
    missed: float = 0.0
    stored: float = 0.0
    barriers: float = 0.0
    rounds: float = 0.0
    """Times that a warp waits for loads of global memory."""

    @property
    def warps(self) -> int:
        """Warps of the block."""
        return ceil_div(self.threads, WARP)

    @property
    def instructions(self) -> float:
        """All instructions."""
        return (
            self.multiply_adds + self.special + self.tiles * TILE_INSTRUCTIONS
            + self.integer + self.accesses + self.barriers
        )  # fmt: skip


def of_block(kernel: Any, grid: tuple[int, ...], block: tuple[int, ...]) -> Work:
    """The work of one block of a lowered `tvm.tirx.PrimFunc` of a device."""
    reader = _Reader(grid, block)
    reader.statement(kernel.body, _Place())
    return reader.finished()


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a statement stands: loops around it, outermost first, and conditions."""

    loops: tuple[tuple[Any, int], ...] = ()
    conditions: tuple[tuple[Any, bool], ...] = ()
    """Each with the value that it must have."""

    @property
    def times(self) -> int:
        """How often it is reached."""
        return math.prod(extent for _, extent in self.loops)

    def where(self, condition: Any, holds: bool) -> _Place:
        """The same place under one more condition."""
        return dataclasses.replace(self, conditions=(*self.conditions, (condition, holds)))


@dataclasses.dataclass
class _Body:
    """Accesses of a stretch of statements without loop or barrier, each address once."""

    place: _Place
    found: dict[tuple[Any, ...], tuple[Array, int, bool]] = dataclasses.field(default_factory=dict)
    waits: bool = False
    """Whether loads of global memory are waited for here, and not fetched for later."""


class _Reader:
    """Walks a kernel; `values` has every variable for all threads and a window of iterations."""

    def __init__(self, grid: tuple[int, ...], block: tuple[int, ...]) -> None:
        self.threads = math.prod(block)
        self.work = Work(self.threads)
        t = np.arange(round_up(self.threads, WARP))
        self.inside = t < self.threads
        self.thread = {
            "threadIdx.x": t % block[0],
            "threadIdx.y": t // block[0] % block[1],
            "threadIdx.z": t // block[0] // block[1],
        }
        self.block = {f"blockIdx.{a}": int(INNER * n) for a, n in zip("xyz", grid, strict=True)}
        self.values: dict[Any, Any] = {}
        self.bound: dict[Any, Any] = {}
        self.bodies: list[_Body] = []
        self.divided: set[tuple[int, bytes]] = set()
        self.synchronised = 0
        self.fetched: dict[str, tuple[_Body, int]] = {}
        """What loads into registers go with, and how many barriers stood before."""

    def statement(self, stmt: Any, place: _Place) -> None:
        """Read one statement."""
        if isinstance(stmt, tirx.SeqStmt):
            for part in stmt.seq:
                self.statement(part, place)
        elif isinstance(stmt, tirx.AttrStmt):
            if stmt.attr_key in ("thread_extent", "virtual_thread"):
                tag, var = str(stmt.node.thread_tag), stmt.node.var
                self.values[var] = self.thread[tag] if tag in self.thread else self.block[tag]
            self.statement(stmt.body, place)
        elif isinstance(stmt, tirx.For):
            self._loop(stmt, place)
        elif isinstance(stmt, tirx.IfThenElse):
            self._branch(stmt, place)
        elif isinstance(stmt, tirx.BufferStore):
            self._store(stmt, place)
        elif isinstance(stmt, tirx.Evaluate):
            self._evaluate(stmt, place)
        elif isinstance(stmt, tirx.Bind):
            self.bound[stmt.var] = stmt.value  # read where it is used: loops differ

    def _loop(self, loop: Any, place: _Place) -> None:
        extent = int(loop.extent)
        inner = dataclasses.replace(place, loops=(*place.loops, (loop.loop_var, extent)))
        self._window(inner.loops)
        self._open(inner)
        self.statement(loop.body, inner)
        self._window(place.loops)
        self._open(place)

    def _window(self, loops: tuple[tuple[Any, int], ...]) -> None:
        """The innermost loops vary over a window, the others stand in their middle."""
        steps = _steps(loops)
        table = np.indices(steps).reshape(len(loops), math.prod(steps))
        for (var, extent), own, row in zip(loops, steps, table, strict=True):
            self.values[var] = row[:, None] if own > 1 else np.asarray(extent // 2)

    def _active(self, place: _Place) -> Any:
        """The threads that get there, for every iteration of the window."""
        found: Any = self.inside
        for condition, holds in place.conditions:
            value = self.value(condition)
            found = np.logical_and(found, value if holds else np.logical_not(value))
        return found

    def _open(self, place: _Place) -> None:
        self.bodies.append(_Body(place))

    def _branch(self, stmt: Any, place: _Place) -> None:
        for holds, body in ((True, stmt.then_case), (False, stmt.else_case)):
            if body is not None:
                self.statement(body, place.where(stmt.condition, holds))

    def _store(self, stmt: Any, place: _Place) -> None:
        self._arithmetic(stmt.value, place)
        self._loads(stmt.value, place)
        self._access(stmt.buffer, stmt.indices, place, True)
        self._waits(stmt)

    def _waits(self, stmt: Any) -> None:
        """A value that is loaded into a register is waited for where it is read: if that is
        behind another barrier, what stands between hides the wait."""
        read = [load.source for load in loads(stmt.value)]
        local = {str(b.name) for b in read if str(b.scope()) == "local"}
        for name in local & set(self.fetched):
            body, before = self.fetched[name]
            body.waits |= before == self.synchronised
        if any(str(b.scope()) in ("", "global") for b in read):
            target, own = str(stmt.buffer.name), self.bodies[-1]
            if str(stmt.buffer.scope()) != "local" or target in local:
                own.waits = True
            else:
                self.fetched[target] = own, self.synchronised

    def _evaluate(self, stmt: Any, place: _Place) -> None:
        if not isinstance(stmt.value, Call):
            return
        name, args = stmt.value.op.name.rpartition(".")[2], stmt.value.args
        if name == "tvm_storage_sync":
            self.work.barriers += place.times * self.work.warps
            self.synchronised += 1
            self._open(place)
        elif name == "tvm_mma_sync":
            self.work.tiles += place.times * self.work.warps
        elif name == "mma":  # 16 x 8 x 16
            self.work.tiles += place.times * self.work.warps / TILE_INSTRUCTIONS
        elif name == "ldmatrix":
            pointer, offset = args[5:7]
            (row,) = pointer.args
            start = (self.value(row.indices[0]) + self.value(offset)) * item_bytes(row.source)
            self._found(row.source, start, ROW_BYTES, place, False)
        elif name in ("tvm_load_matrix_sync", "tvm_store_matrix_sync"):
            (load,), pitch = args[5].args, int(args[6])
            buffer, store = load.source, name == "tvm_store_matrix_sync"
            size = item_bytes(buffer)
            start = self.value(load.indices[0]) * size
            for offset, width in tile_accesses(self.threads, pitch * size, size):
                self._found(buffer, start + offset, width, place, store)
        elif name == "cp_async_raw":
            to, at, source, start, width, *inside = args
            reads = place.where(inside[0], True) if inside else place
            for pointer, index, where in ((to, at, place), (source, start, reads)):
                (buffer,) = pointer.args
                address = self.value(index) * item_bytes(buffer)
                self._found(buffer, address, int(width), where, pointer is to, waits=False)

    def _loads(self, expr: Any, place: _Place) -> None:
        """Every load of an expression, those of a guarded value for the threads that pass."""
        if isinstance(expr, Call) and expr.op.name == "prim.if_then_else":
            condition, then, other = expr.args
            self._loads(condition, place)
            self._loads(then, place.where(condition, True))
            self._loads(other, place.where(condition, False))
            return
        if isinstance(expr, TensorLoad):
            self._access(expr.source, expr.indices, place, False)
        for child in children(expr):
            self._loads(child, place)

    def _access(self, buffer: Any, indices: Any, place: _Place, store: bool) -> None:
        if str(buffer.scope()) == "local":
            return
        (index,) = indices
        wide = isinstance(index, tirx.Ramp)
        size = item_bytes(buffer)
        start = self.value(index.base if wide else index) * size
        self._found(buffer, start, size * int(index.lanes) if wide else size, place, store)

    def _found(
        self, buffer: Any, start: Any, size: int, place: _Place, store: bool, waits: bool = True
    ) -> None:
        """Note an access of `size` bytes from `start` on; nobody `waits` for asynchronous copies,
        of which others are under way."""
        address = np.where(self._active(place), start, -1)
        if not self.bodies:
            self._open(place)
        name = buffer.data.name if hasattr(buffer.data, "name") else str(buffer.name)
        key = (name, str(buffer.scope()), store, address.tobytes())
        self.bodies[-1].found.setdefault(key, (np.atleast_2d(address), size, waits))

    def _arithmetic(self, expr: Any, place: _Place) -> None:
        """A product that is added costs nothing beside the addition."""
        operations = special = 0
        for node in _outside_indices(expr):
            if isinstance(node, _FLOAT) and str(node.ty).startswith("float"):
                fused = isinstance(node, tirx.Add | tirx.Sub) and (
                    isinstance(node.a, tirx.Mul) or isinstance(node.b, tirx.Mul)
                )
                operations += _lanes(node) * (0 if fused else 1)
            elif isinstance(node, Call) and str(node.op.name).rpartition(".")[2] in SPECIAL:
                special += 1
        self.work.multiply_adds += operations * place.times * self.work.warps
        self.work.special += special * place.times * self.work.warps

    def value(self, expr: Any) -> Any:
        """An integer or boolean expression, for every iteration and thread."""
        return value(expr, self.values, self.bound, self._divide)

    def _divide(self, found: Any) -> None:
        """Count a division once a body, and once a window where it is the same in all of it."""
        if not self.bodies:
            return
        key = (len(self.bodies), np.asarray(found).tobytes())
        if key in self.divided:
            return
        self.divided.add(key)
        table = np.atleast_2d(found)
        same = len(table) == 1 or bool((table == table[:1]).all())
        place = self.bodies[-1].place
        times = place.times / (math.prod(_steps(place.loops)) if same else 1)
        self.work.integer += DIVISION * times * self.work.warps

    def finished(self) -> Work:
        """The work, when all accesses are known."""
        for body in self.bodies:
            self._finish(body)
        return self.work

    def _finish(self, body: _Body) -> None:
        work, times, loaded = self.work, body.place.times, False
        shared: dict[tuple[str, bool], list[tuple[Array, int]]] = {}
        for (name, scope, store, _), (address, size, waits) in body.found.items():
            if scope.startswith("shared"):
                shared.setdefault((name, store), []).append((address[0], size))
                continue
            asked, missed, cycles = sectors(address, size)
            work.l1_cycles += cycles * times
            work.accesses += times * work.warps
            work.asked += asked * times
            if store:
                work.stored += asked * times
            else:
                work.missed += missed * times
                loaded |= waits
        for accesses in shared.values():
            for address, size in merged(accesses):
                work.accesses += times * work.warps
                work.shared_cycles += bank_cycles(address, size) * times
        if loaded and body.waits:
            innermost = body.place.loops[-1][1] if body.place.loops else 1
            work.rounds += times / min(innermost, UNROLLED)


def _outside_indices(expr: Any) -> list[Any]:
    """The nodes of an expression that compute its value, and no address."""
    found = [expr]
    if not isinstance(expr, TensorLoad):
        for child in children(expr):
            found += _outside_indices(child)
    return found


def _lanes(node: Any) -> int:
    """Elements of a vector value."""
    _, _, lanes = str(node.ty).partition("x")
    return int(lanes) if lanes.isdigit() else 1


def _steps(loops: tuple[tuple[Any, int], ...]) -> list[int]:
    """Iterations of each loop, outermost first, for which addresses are computed."""
    found: list[int] = []
    left = WINDOW
    for _, extent in reversed(loops):
        found.insert(0, max(min(extent, left), 1))
        left //= found[0]
    return found
