"""A whole program scheduled: who takes which stage, and the joint space of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import te
from tvm.ir import Call
from tvm.s_tir import Schedule

from flextensor.errors import IllegalConfigError
from flextensor.schedulers.base import StageSchedule
from flextensor.schedulers.contraction import ContractionScheduler
from flextensor.schedulers.expression import loads, walk
from flextensor.schedulers.program import Program, Stage, Tensors, read
from flextensor.schedulers.reduction import ReductionScheduler
from flextensor.schedulers.space import Space, Value, join
from flextensor.schedulers.spatial import SpatialScheduler
from flextensor.targets.base import Target

SCHEDULERS = (ContractionScheduler(), ReductionScheduler(), SpatialScheduler())
"""Asked in turn for every stage."""


@dataclasses.dataclass(frozen=True)
class Composition:
    """The stages that are scheduled, in order, each with the last consumer fused into it."""

    func: Any
    program: Program | None
    parts: tuple[tuple[StageSchedule, Stage], ...]
    space: Space

    @classmethod
    def of(cls, func: Any, target: Target) -> Composition:
        """Assign every stage of a program. A program that is no list of stages runs as it is."""
        program = read(func)
        if program is None:
            return cls(func, None, (), Space(()))
        parts: list[tuple[StageSchedule, Stage]] = []
        done: set[str] = set()
        for stage in program.stages:
            if stage.name in done or movable(program, stage):
                continue
            part = next(t for s in SCHEDULERS if (t := s.take(program, stage, target)))
            final = stage
            if part.fuses:
                for consumer in fusable(program, stage):
                    done.add(consumer.name)
                    final = consumer
            parts.append((part, final))
        return cls(func, program, tuple(parts), join({p.stage.name: p.space for p, _ in parts}))

    def schedule(self, config: Mapping[str, Value]) -> Any:
        """The program with `config` carried out; see `flextensor.schedulers.schedule`."""
        self.space.point(config)
        reason = self.space.reason(config)
        if reason is not None:
            raise IllegalConfigError(reason)
        if self.program is None:
            return tvm.IRModule({"main": self.func})
        tensors = Tensors(self.program)
        configs = []
        for part, final in self.parts:
            prefix = f"{part.stage.name}."
            own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
            part.write(own, tensors, final)
            configs.append(own)
        output = tensors.tensor(self.program.output)
        sch = Schedule(te.create_prim_func([*tensors.placeholders, output]))
        for (part, _), own in reversed(list(zip(self.parts, configs, strict=True))):
            part.arrange(own, sch)
        return sch.mod


def movable(program: Program, stage: Stage) -> bool:
    """Whether a stage only moves data of the inputs, and so is inlined where it is read."""
    if stage.combiner or stage.buffer.same_as(program.output):
        return False
    for load in loads(stage.value):
        producer = program.producer(load.source)
        if producer is not None and not movable(program, producer):
            return False
    calls = [n for n in walk(stage.value) if isinstance(n, Call)]
    return all(getattr(c.op, "name", "") == "prim.if_then_else" for c in calls)


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
        reads = [b for b in loads(consumer.value) if b.source.same_as(current.buffer)]
        own = [i.var for i in consumer.spatial]
        if not all(len(r.indices) == len(own) for r in reads) or not all(
            _same(index, var, it.extent)
            for r in reads
            for index, var, it in zip(r.indices, own, consumer.spatial, strict=True)
        ):
            break
        if any(program.producer(b.source) not in (None, current) for b in loads(consumer.value)):
            break
        chain.append(consumer)
        current = consumer
    return chain


def _same(index: Any, var: Any, extent: int) -> bool:
    return bool(index.same_as(var)) or extent == 1
