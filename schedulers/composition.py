"""A whole program scheduled: who takes which stage, and the joint space of all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tvm
from tvm import te
from tvm.s_tir import Schedule

from flextensor.errors import IllegalConfigError, UnsupportedError
from flextensor.schedulers import transposition
from flextensor.schedulers.base import StageSchedule
from flextensor.schedulers.contraction import ContractionScheduler
from flextensor.schedulers.dot_contraction import DotContractionScheduler
from flextensor.schedulers.engine import EngineScheduler
from flextensor.schedulers.gpu_contraction import GpuContractionScheduler
from flextensor.schedulers.gpu_reduction import GpuReductionScheduler
from flextensor.schedulers.gpu_spatial import GpuSpatialScheduler
from flextensor.schedulers.gpu_tensor_core import GpuTensorCoreScheduler
from flextensor.schedulers.prepack import constants, split
from flextensor.schedulers.program import Program, Stage, Tensors, fusable, inlinable, read, unread
from flextensor.schedulers.reduction import ReductionScheduler
from flextensor.schedulers.space import Config, Later, Space, Value, join, share
from flextensor.schedulers.spatial import SpatialScheduler
from flextensor.schedulers.tile_contraction import TileContractionScheduler
from flextensor.schedulers.transform import TransformScheduler
from flextensor.schedulers.window import WindowScheduler
from flextensor.targets.base import Target

SCHEDULERS = (
    EngineScheduler(),
    GpuTensorCoreScheduler(),
    GpuContractionScheduler(),
    GpuReductionScheduler(),
    GpuSpatialScheduler(),
    WindowScheduler(),
    TileContractionScheduler(),
    DotContractionScheduler(),
    ContractionScheduler(),
    ReductionScheduler(),
    TransformScheduler(),
    SpatialScheduler(),
)
"""Asked in turn for every stage."""
Pair = tuple[StageSchedule, StageSchedule]
"""A producer and its only consumer."""


@dataclasses.dataclass(frozen=True)
class Composition:
    """The stages that are scheduled, in order, each with the last consumer fused into it."""

    func: Any
    program: Program | None
    parts: tuple[tuple[StageSchedule, Stage], ...]
    space: Space

    @classmethod
    def of(cls, func: Any, target: Target) -> Composition:
        """Assign every stage of a program. A program that is no list of stages runs as it is, on a
        target that runs plain loops.

        `UnsupportedError` where the target cannot compute with what the program is given.
        """
        for dtype in {str(p.dtype) for p in func.params}:
            if not target.computes(dtype):
                raise UnsupportedError(f"{target.device} has no {dtype}; choose dtype=float32")
        program = read(func)
        if program is None:
            if target.threads_per_block or target.multipliers:
                what = f"{target.device} has no way to compute {unread(func)}"
                raise UnsupportedError(f"{what}: it is no map, and no sum, product, max or min")
            return cls(func, None, (), Space((), seeds=({},)))
        parts: list[tuple[StageSchedule, Stage]] = []
        done: set[str] = set()
        for stage in program.stages:
            if stage.name in done or inlinable(program, stage):
                continue
            part = next(t for s in SCHEDULERS if (t := s.take(program, stage, target)))
            final = part.last
            done.update(s.name for s in part.covers)
            if part.fuses:
                for consumer in fusable(program, part.last):
                    done.add(consumer.name)
                    final = consumer
            parts.append((part, final))
        if program.terms > 1 and all(part.terms == 1 for part, _ in parts):
            raise UnsupportedError(f"{target.device} multiplies nothing here in terms of bfloat16")
        return cls(func, program, tuple(parts), _joint(program, [part for part, _ in parts]))

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
            own = share(config, part.stage.name)
            part.write(own, tensors, final)
            configs.append(own)
        output = tensors.tensor(self.program.output)
        sch = Schedule(te.create_prim_func([*tensors.placeholders, output]))
        for (part, _), own in reversed(list(zip(self.parts, configs, strict=True))):
            part.arrange(own, sch)
        transposition.carry_out(sch)
        func = sch.mod["main"]
        for part, _ in self.parts:
            func = part.wrap(func)
        module = split(func, constants(self.func))
        for (part, _), own in zip(self.parts, configs, strict=True):
            for name, note in part.notes(own).items():
                module["main"] = module["main"].with_attr(name, note)
        return module


def _joint(program: Program, parts: list[StageSchedule]) -> Space:
    """The space of all parts together, in which a producer fits the tasks of its consumer."""
    space = join({part.stage.name: part.space for part in parts}, _roles(parts))
    pairs: list[Pair] = []
    for part in reversed(parts):  # a consumer is fitted to its own consumer first
        after = program.consumers(part.last)
        consumer = next((c for c in parts if len(after) == 1 and c.covers[0] is after[0]), None)
        if consumer is not None:
            pairs.append((part, consumer))
    own = space.seeds
    space = dataclasses.replace(
        space,
        constraints=space.constraints + tuple(functools.partial(_misfit, *pair) for pair in pairs),
        features=functools.partial(_features, space, pairs),
        canonical=functools.partial(_canonical, space, pairs),
    )
    return dataclasses.replace(space, seeds=Later(lambda: _seeds(space, own, parts, pairs)))


def _seeds(
    space: Space, seeds: Sequence[Config], parts: list[StageSchedule], pairs: list[Pair]
) -> Iterator[Config]:
    """The legal ones of the parts' seeds, paired, in all variants, fitted to each other."""
    for part in parts:
        producers = [producer for producer, consumer in pairs if consumer is part]
        seeds = [
            seed | {f"{part.stage.name}.{knob}": value for knob, value in variant.items()}
            for seed in seeds
            for variant in part.variants(
                any(p.inside(share(seed, p.stage.name)) for p in producers)
            )
        ]
    for part, consumer in pairs:
        seeds = [seed | _fitted(part, consumer, seed) for seed in seeds]
    return (seed for seed in seeds if space.reason(seed) is None)


def _roles(parts: list[StageSchedule]) -> dict[str, str]:
    """What every stage is scheduled as: ``contraction0``, ``transform0``, ``transform1``..."""
    seen: Counter[str] = Counter()
    roles = {}
    for part in parts:
        kind = type(part).__name__.removesuffix("Schedule").lower()
        roles[part.stage.name] = f"{kind}{seen[kind]}"
        seen[kind] += 1
    return roles


def _features(space: Space, pairs: list[Pair], config: Mapping[str, Value]) -> dict[str, float]:
    """The features of all parts, as they are beside their consumers."""
    found = space.features(config)
    for part, consumer in pairs:
        theirs = share(config, consumer.stage.name)
        changed = part.beside(share(config, part.stage.name), consumer, theirs)
        found |= {f"{part.stage.name}.{name}": value for name, value in changed.items()}
    return found


def _canonical(space: Space, pairs: list[Pair], config: Mapping[str, Value]) -> Config:
    """The first config that writes the same program: of each part alone, then beside its consumer,
    whose tasks may be parts of that one's own consumer's."""
    found = space.canonical(config)
    after = {part.stage.name: consumer for part, consumer in pairs}
    for part, consumer in pairs:
        outer = after.get(consumer.stage.name, consumer)  # itself is in nobody's tasks
        wanted = functools.partial(outer.elements, share(found, outer.stage.name))
        pieces = functools.partial(consumer.piece, share(found, consumer.stage.name), wanted)
        same = part.same(share(found, part.stage.name), pieces)
        found |= {f"{part.stage.name}.{knob}": value for knob, value in same.items()}
    return found


def _misfit(
    part: StageSchedule, consumer: StageSchedule, config: Mapping[str, Value]
) -> str | None:
    theirs = share(config, consumer.stage.name)
    return part.misfit(share(config, part.stage.name), consumer, theirs)


def _fitted(part: StageSchedule, consumer: StageSchedule, config: Mapping[str, Value]) -> Config:
    theirs = share(config, consumer.stage.name)
    own = part.fitted(share(config, part.stage.name), consumer, theirs)
    return {f"{part.stage.name}.{knob}": value for knob, value in own.items()}
