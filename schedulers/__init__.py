"""HOW: (program, target) -> Space; (program, target, config) -> scheduled IRModule.

A program is scheduled stage by stage: producers that only move data, or map it by cheap arithmetic,
are inlined, each remaining stage goes to the first scheduler that takes it, and elementwise
consumers are fused into it. The spaces of the stages are joined and searched together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flextensor.errors import UnsupportedError
from flextensor.schedulers.space import Config, Knob, Point, Space, Value

if TYPE_CHECKING:
    from flextensor.operators.workload import Workload
    from flextensor.targets.base import Target

__all__ = ["Config", "Knob", "Point", "Space", "Value", "schedule", "space", "spaces"]


def space(func: Any, target: Target) -> Space:
    """The schedule space of a `tvm.tirx.PrimFunc` on a target."""
    from flextensor.schedulers.composition import Composition

    return Composition.of(func, target).space


def spaces(workload: Workload, target: Target, tolerance: float = 1e-4) -> dict[str, Space]:
    """The space of every formulation that keeps a tolerance and that the target's schedulers take,
    by name; `UnsupportedError` with the reason when they take none."""
    names = list(workload.formulations)
    if target.tile_depth("bfloat16"):
        names += workload.in_terms(tolerance)
    found: dict[str, Space] = {}
    reasons: list[UnsupportedError] = []
    for name in names:
        try:
            found[name] = space(workload.prim_func(name), target)
        except UnsupportedError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return found


def schedule(func: Any, target: Target, config: Mapping[str, Value]) -> Any:
    """The PrimFunc with a config of its space carried out, as a `tvm.IRModule`.

    Its function is called ``main`` and takes the arguments of `func` in the same order; where
    constant inputs are packed ahead there is ``pack`` too, see `flextensor.schedulers.prepack`.
    Raises `IllegalConfigError` for a config that is not of the space or breaks a constraint.
    """
    from flextensor.schedulers.composition import Composition

    return Composition.of(func, target).schedule(config)
