"""A PrimFunc read as a list of stages, and written back as TVM computes.

Schedulers decide from this structure and never from an operator's name.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import te, tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad
from tvm.s_tir.stmt import SBlock, SBlockRealize

from flextensor.operators.workload import TERMS
from flextensor.schedulers import prepack
from flextensor.schedulers.expression import Linear, address, linear, rewrite, walk


@dataclasses.dataclass(frozen=True)
class Iterator:
    """One loop of a stage: its variable, its extent, and whether it reduces."""

    var: Any
    extent: int
    reduction: bool = False


@dataclasses.dataclass(frozen=True)
class Stage:
    """One block: `buffer[spatial] = value`, or `buffer[spatial] = combine over reduction(value)`.

    `combiner` is ``sum``, ``max``, ``min``, ``prod`` or None for a stage without a reduction.
    """

    name: str
    buffer: Any
    spatial: tuple[Iterator, ...]
    reduction: tuple[Iterator, ...]
    value: Any
    combiner: str | None = None

    @property
    def points(self) -> int:
        """Iterations of the whole loop nest."""
        return math.prod(i.extent for i in (*self.spatial, *self.reduction))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the buffer written."""
        return tuple(i.extent for i in self.spatial)

    @functools.cached_property
    def nodes(self) -> tuple[Any, ...]:
        """Every node of the value; walked once, for every scheduler asks."""
        return tuple(walk(self.value))

    @functools.cached_property
    def loads(self) -> tuple[Any, ...]:
        """Every buffer load of the value, outermost first."""
        return tuple(node for node in self.nodes if isinstance(node, TensorLoad))

    def at(self, indices: list[Any], load: Callable[[Any, list[Any]], Any]) -> Any:
        """The value of an elementwise stage at `indices`, its loads replaced through `load`."""
        assert self.combiner is None
        replace = {it.var: index for it, index in zip(self.spatial, indices, strict=True)}
        return rewrite(self.value, replace, load)


@dataclasses.dataclass(frozen=True)
class Program:
    """Stages in order of computation, between input buffers and one output buffer."""

    inputs: tuple[Any, ...]
    output: Any
    stages: tuple[Stage, ...]
    constants: frozenset[Any] = frozenset()
    """Inputs that never change, so that whatever is computed from them alone costs nothing."""
    terms: int = 1
    """Terms of bfloat16 whose sum may stand for a float32 value that is multiplied."""

    def producer(self, buffer: Any) -> Stage | None:
        """The stage that writes `buffer`; None for an input."""
        return next((s for s in self.stages if s.buffer.same_as(buffer)), None)

    def fixed(self, buffer: Any) -> bool:
        """Whether a buffer depends on constants alone, where there are any; None, which is no plain
        one, does not."""
        if buffer is None or not self.constants:
            return False
        stage = self.producer(buffer)
        if stage is None:
            return buffer in self.constants
        return all(self.fixed(load.source) for load in stage.loads)

    def consumers(self, stage: Stage) -> list[Stage]:
        """The stages that read what `stage` writes."""
        return [s for s in self.stages if any(b.source.same_as(stage.buffer) for b in s.loads)]


def inlinable(program: Program, stage: Stage) -> bool:
    """Whether a stage moves data of the inputs, or maps it by cheap arithmetic, and so is inlined
    where it is read.

    What reads a buffer more than once, or takes integer quotients or remainders of what it reads,
    is no such stage: inlined, it would be computed again.
    """
    if stage.combiner or stage.buffer.same_as(program.output):
        return False
    read = stage.loads
    if any(a.source.same_as(b.source) for a, b in itertools.combinations(read, 2)):
        return False
    for load in read:
        producer = program.producer(load.source)
        if producer is not None and not inlinable(program, producer):
            return False
    divided = [n.a for n in stage.nodes if isinstance(n, (tirx.FloorDiv, tirx.FloorMod))]
    if any(isinstance(n, TensorLoad) for value in divided for n in walk(value)):
        return False
    calls = [n for n in stage.nodes if isinstance(n, Call)]
    return all(getattr(c.op, "name", "") == "prim.if_then_else" for c in calls)


def reindexed(program: Program, stage: Stage) -> bool:
    """Whether a stage only renames the elements of an input, as a transposed or a mirrored weight:
    to read it is to read one element at affine indices, without a condition."""
    value = stage.value
    if stage.combiner or not isinstance(value, TensorLoad):
        return False
    if any(linear(index) is None for index in value.indices):
        return False
    producer = program.producer(value.source)
    return producer is None or reindexed(program, producer)


def steps(program: Program, buffer: Any, access: Sequence[Linear]) -> dict[Any, int]:
    """Elements of memory between neighbours along each variable, where an input is read at affine
    indices, through stages that only rename its elements; none of what a stage stores."""
    stage = program.producer(buffer)
    if stage is not None:
        if not reindexed(program, stage):
            return {}
        own = {it.var: form for it, form in zip(stage.spatial, access, strict=True)}
        inner = []
        for index in stage.value.indices:
            form = linear(index)
            assert form is not None
            place = Linear({}, form.constant)
            for var, coefficient in form.terms.items():
                place = place.plus(own[var], coefficient)
            inner.append(place)
        return steps(program, stage.value.source, inner)
    return dict(address(access, buffer.shape).terms)


def fusable(program: Program, stage: Stage) -> list[Stage]:
    """The chain of elementwise consumers that read the stage at their own indices only."""
    chain: list[Stage] = []
    current = stage
    while len(consumers := program.consumers(current)) == 1 and not current.buffer.same_as(
        program.output
    ):
        (consumer,) = consumers
        if consumer.combiner or consumer.shape != stage.shape:
            break
        reads = [b for b in consumer.loads if b.source.same_as(current.buffer)]
        own = [i.var for i in consumer.spatial]
        if not all(len(r.indices) == len(own) for r in reads) or not all(
            _same(index, var, it.extent)
            for r in reads
            for index, var, it in zip(r.indices, own, consumer.spatial, strict=True)
        ):
            break
        if any(program.producer(b.source) not in (None, current) for b in consumer.loads):
            break
        chain.append(consumer)
        current = consumer
    return chain


def _same(index: Any, var: Any, extent: int) -> bool:
    return bool(index.same_as(var)) or extent == 1


_COMBINERS = {tirx.Add: "sum", tirx.Mul: "prod", tirx.Max: "max", tirx.Min: "min"}


def read(func: Any) -> Program | None:
    """The stages of a PrimFunc, or None when it has a block that is no such stage.

    Taken: one root block whose blocks store once, at distinct block variables, optionally as a
    commutative update of what stands there. That is all that TVM's computes give.
    """
    if not isinstance(func.body, SBlockRealize):
        return None
    stages: list[Stage] = []
    for leaf in _leaves(func.body.block.body):
        stage = _stage(leaf)
        if stage is None:
            return None
        stages.append(stage)
    written = [s.buffer for s in stages]
    inputs = [p for p in func.params if not any(b.same_as(p) for b in written)]
    outputs = [p for p in func.params if any(b.same_as(p) for b in written)]
    if len(outputs) != 1 or not stages:
        return None
    constants = frozenset(func.params[p] for p in prepack.constants(func))
    return Program(tuple(inputs), outputs[0], tuple(_unique_names(stages)), constants, _terms(func))


def unread(func: Any) -> str:
    """The name of what keeps `read` from taking a PrimFunc."""
    if not isinstance(func.body, SBlockRealize):
        return str(func.attrs["global_symbol"])
    root = func.body.block
    found = next((leaf for leaf in _leaves(root.body) if _stage(leaf) is None), root)
    return str((found if isinstance(found, SBlock) else root).name_hint)


def _terms(func: Any) -> int:
    attributes = func.attrs or {}
    return int(attributes[TERMS]) if TERMS in attributes else 1


def _unique_names(stages: list[Stage]) -> list[Stage]:
    seen: dict[str, int] = {}
    named = []
    for stage in stages:
        count = seen[stage.name] = seen.get(stage.name, -1) + 1
        named.append(dataclasses.replace(stage, name=f"{stage.name}{count or ''}"))
    return named


def _leaves(stmt: Any) -> list[Any]:
    """The innermost blocks in order, and what is no loop nest around one block."""
    if isinstance(stmt, tirx.SeqStmt):
        return [leaf for part in stmt.seq for leaf in _leaves(part)]
    if isinstance(stmt, tirx.For):
        return _leaves(stmt.body)
    if isinstance(stmt, SBlockRealize):
        return [stmt.block]
    return [stmt]


def _stage(leaf: Any) -> Stage | None:
    store = leaf.body if isinstance(leaf, SBlock) else None
    if not isinstance(store, tirx.BufferStore):
        return None
    bounds = [n for v in leaf.iter_vars for n in (v.dom.min, v.dom.extent)]
    if not all(isinstance(n, tirx.IntImm) for n in bounds):
        return None
    iterators, places = _iterators(leaf, store)
    spatial: list[Iterator] = []
    for index in store.indices:
        found = next((i for i in iterators if i.var.same_as(index) and not i.reduction), None)
        if found is None or any(found.var.same_as(s.var) for s in spatial):
            return None
        spatial.append(found)
    if len(spatial) != sum(not i.reduction for i in iterators):
        return None
    reduction = tuple(i for i in iterators if i.reduction)
    value, combiner = store.value, None
    if reduction:
        combiner = _COMBINERS.get(type(value))
        if combiner is None or leaf.init is None or not _neutral(combiner, leaf.init.value):
            return None
        value = _other_than(value, store)
        if value is None:
            return None
    if places:
        value = rewrite(value, places)
    name = str(leaf.name_hint).replace(".", "_")
    return Stage(name, store.buffer, tuple(spatial), reduction, value, combiner)


def _iterators(block: SBlock, store: Any) -> tuple[list[Iterator], dict[Any, Any]]:
    """The loops of a block, each from 0 on, and what takes the place of variables in its value.

    A loop of one iteration counts for none: a window of one place, and what TVM has around the
    store of a scalar. Those along the output stay, and one of a reduction.

        for r in [-1, 2):  a[i + r]   ->   for r in [0, 3):  a[i + (r - 1)]
    """
    iterators: list[Iterator] = []
    places: dict[Any, Any] = {}
    reduced = [v for v in block.iter_vars if v.iter_type == 2]
    longest = max(reduced, key=lambda v: int(v.dom.extent), default=None)
    for v in block.iter_vars:
        reduces, start, extent = v.iter_type == 2, int(v.dom.min), int(v.dom.extent)
        stored = any(v.var.same_as(index) for index in store.indices)
        if extent == 1 and not stored and not v.same_as(longest):
            places[v.var] = v.dom.min
            continue
        iterators.append(Iterator(v.var, extent, reduces))
        if start:
            places[v.var] = v.var + start
    return iterators, places


def _neutral(combiner: str, start: Any) -> bool:
    """Whether a reduction starts from the combiner's neutral element, and so can start anywhere."""
    if not isinstance(start, (tirx.IntImm, tirx.FloatImm)):
        return False
    if combiner in ("sum", "prod"):
        return bool(start.value == (combiner == "prod"))
    dtype = str(start.ty.dtype)
    if combiner == "max":
        return bool(start.value <= tirx.min_value(dtype).value)
    return bool(start.value >= tirx.max_value(dtype).value)


def _other_than(value: Any, store: Any) -> Any:
    """The operand of an update that is not the old value of the place stored to."""
    for old, term in ((value.a, value.b), (value.b, value.a)):
        if isinstance(old, TensorLoad) and old.source.same_as(store.buffer):
            if all(a.same_as(b) for a, b in zip(old.indices, store.indices, strict=True)):
                return term
    return None


def reduce(combiner: str, value: Any, axes: list[Any]) -> Any:
    """A TVM reduction of `value` over `axes` by the named combiner."""
    if combiner == "prod":
        product = te.comm_reducer(
            lambda a, b: a * b, lambda dtype: tvm.tirx.const(1, dtype), name="prod"
        )
        return product(value, axis=axes)
    return {"sum": te.sum, "max": te.max, "min": te.min}[combiner](value, axis=axes)


class Tensors:
    """TVM tensors standing for the buffers of a program while it is written anew."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.placeholders = [
            te.placeholder(b.shape, dtype=b.dtype, name=str(b.name)) for b in program.inputs
        ]
        self._pairs: list[tuple[Any, Any]] = list(
            zip(program.inputs, self.placeholders, strict=True)
        )

    def set(self, buffer: Any, access: Any) -> None:
        """Let `access` (a tensor, or a function of the indices) stand for `buffer`."""
        self._pairs.append((buffer, access))

    def tensor(self, buffer: Any) -> Any:
        """What stands for `buffer` now."""
        return next(access for known, access in reversed(self._pairs) if known.same_as(buffer))

    def load(self, buffer: Any, indices: list[Any]) -> Any:
        """The load of `buffer` at `indices`; what has no tensor is inlined from its stage."""
        for known, access in reversed(self._pairs):
            if known.same_as(buffer):
                return access(*indices)
        stage = self.program.producer(buffer)
        assert stage is not None, f"no tensor stands for {buffer.name}"
        return stage.at(indices, self.load)

    def written(self, stage: Stage, value: Callable[..., Any], final: Stage) -> None:
        """The output of a stage of such values (of the indices), written by the last of those that
        are fused into it, `final`, as ``<stage>_out``."""
        name = f"{stage.name}_out"
        self.set(stage.buffer, value)
        if final is stage:
            self.set(stage.buffer, te.compute(stage.shape, value, name=name))
        else:
            self.plain(final, name=name)

    def plain(self, stage: Stage, name: str | None = None) -> Any:
        """The stage as it stands, as one TVM compute; registers the tensor."""
        axes = [te.reduce_axis((0, i.extent), name=str(i.var.name)) for i in stage.reduction]

        def body(*indices: Any) -> Any:
            replace = {i.var: index for i, index in zip(stage.spatial, indices, strict=True)}
            replace |= {i.var: axis.var for i, axis in zip(stage.reduction, axes, strict=True)}
            value = rewrite(stage.value, replace, self.load)
            return reduce(stage.combiner, value, axes) if stage.combiner else value

        tensor = te.compute(stage.shape, body, name=name or stage.name)
        self.set(stage.buffer, tensor)
        return tensor
