"""A whole program scheduled: who takes which stage, and the joint space of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import te
from tvm.s_tir import Schedule

from flextensor.errors import IllegalConfigError
from flextensor.schedulers.base import StageSchedule
from flextensor.schedulers.contraction import ContractionScheduler
from flextensor.schedulers.program import Program, Stage, Tensors, fusable, movable, read
from flextensor.schedulers.reduction import ReductionScheduler
from flextensor.schedulers.space import Space, Value, join
from flextensor.schedulers.spatial import SpatialScheduler
from flextensor.schedulers.transform import TransformScheduler
from flextensor.targets.base import Target

SCHEDULERS = (
    ContractionScheduler(),
    ReductionScheduler(),
    TransformScheduler(),
    SpatialScheduler(),
)
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
            final = part.last
            done.update(s.name for s in part.covers)
            if part.fuses:
                for consumer in fusable(program, part.last):
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
