"""The scheduler's seam: a stage and a target in, knobs out; a config in, computes and loops out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from flextensor.schedulers.program import Program, Stage, Tensors
from flextensor.schedulers.space import Config, Space, Value
from flextensor.targets.base import Target

Extents = Callable[[int], int]
"""Elements along a dimension of a stage's output that one task of its consumer needs."""
Pieces = Callable[[Any, int], int]
"""Elements along a dimension of a buffer that one task reads; 0 when that is not known."""


class StageSchedule(ABC):
    """One stage of one program, or a few in a row, as one scheduler would run them on a target.

    `space` has the decisions. A config is carried out in two steps, since the layout of data is
    a matter of what is computed, and the order of loops is not: `write` gives the TVM computes,
    and, once all stages stand in one PrimFunc, `arrange` transforms the loops of its blocks.
    """

    stage: Stage
    space: Space
    terms: int = 1
    """Terms of bfloat16 whose sum stands for a value that is multiplied."""
    fuses: ClassVar[bool] = False
    """Whether `write` can fuse elementwise consumers into the last stage."""

    @property
    def covers(self) -> tuple[Stage, ...]:
        """The stages that are scheduled together, in order of computation."""
        return (self.stage,)

    @property
    def last(self) -> Stage:
        """The last of the stages, which others read."""
        return self.covers[-1]

    def elements(self, config: Mapping[str, Value], dimension: int) -> int:
        """Elements along a dimension of what the first stage reads that one task needs; 0 when
        no producer can run inside the tasks."""
        return 0

    def readers(
        self, config: Mapping[str, Value], buffer: Any, along: Collection[int] = ()
    ) -> float:
        """Tasks that read the same element of a buffer, or elements that differ only `along`
        some dimensions, in the mean where windows overlap; 0 when that is not known."""
        return 0

    def parts_of(self, config: Mapping[str, Value], buffer: Any) -> float:
        """How many times what one task reads of a buffer goes into it; 1 when that is not
        known."""
        return 1

    def piece(self, config: Mapping[str, Value], wanted: Extents, buffer: Any, d: int) -> int:
        """Elements along dimension `d` of a buffer that one task reads, of which the stage's own
        consumer has so many of its output `wanted`; 0 when that is not known."""
        return 0

    def width(self, config: Mapping[str, Value], buffer: Any) -> int:
        """Elements of a buffer that vectors of one tile read in place; 0 when none do."""
        return 0

    def misfit(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> str | None:
        """Why the stage cannot run as `config` says beside its consumer; None when it can."""
        return None

    def fitted(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> Config:
        """The config nearest to `config` that fits the tasks of the consumer."""
        return dict(config)

    def beside(
        self, config: Mapping[str, Value], consumer: StageSchedule, theirs: Mapping[str, Value]
    ) -> dict[str, float]:
        """Those features of the space that the consumer's tasks change."""
        return {}

    def same(self, config: Mapping[str, Value], pieces: Pieces) -> Config:
        """The first of all configs that write the same program, where `pieces` of a buffer along a
        dimension are read by one task of the consumer."""
        return dict(config)

    def inside(self, config: Mapping[str, Value]) -> bool:
        """Whether the stage runs in its consumer's tasks."""
        return False

    def variants(self, holds: bool) -> tuple[Config, ...]:
        """Decisions, in parts of configs, that a seed of the program is offered with; `holds` says
        whether a producer runs in the tasks."""
        return ({},)

    def notes(self, config: Mapping[str, Value]) -> Mapping[str, str]:
        """Attributes of the scheduled PrimFunc, for a target that builds more than its loops."""
        return {}

    @abstractmethod
    def write(self, config: Mapping[str, Value], tensors: Tensors, final: Stage) -> None:
        """Add the stage's computes and let `tensors` know what stands for its output.

        `final` is the last stage, or the last of the elementwise consumers fused into it.
        """

    @abstractmethod
    def arrange(self, config: Mapping[str, Value], sch: Any) -> None:
        """Schedule the blocks that `write` made, in `sch`, a `tvm.s_tir.Schedule`."""

    def wrap(self, func: Any) -> Any:
        """The scheduled PrimFunc, with what no transformation of loops could add."""
        return func


class Scheduler(ABC):
    """A way to run stages of some structure. Asked in turn; None means "not mine"."""

    @abstractmethod
    def take(self, program: Program, stage: Stage, target: Target) -> StageSchedule | None:
        """The stage as this scheduler would run it, or None when it is not its kind of stage."""
