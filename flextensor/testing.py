"""Conformance suites of the seams: a new member passes one by overriding its fixtures.

class TestMine(flextensor.testing.TargetCase):
    @pytest.fixture
    def target(self):
        return Mine(...)

`OperatorCase` takes an operator, `SchedulerCase` a program that the scheduler is for, `TargetCase`
and `DeviceCase` a target, `ExplorerCase` and `CostModelCase` a factory over any space.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor import targets
from flextensor.buffers import empty, poison, relative_error
from flextensor.cost_models import CostModel
from flextensor.explorers import Explorer
from flextensor.operators import Operator, Workload, parse
from flextensor.operators.program import PLAIN
from flextensor.schedulers.base import Scheduler
from flextensor.schedulers.space import Point, Space, choice, sizes
from flextensor.targets import Target
from flextensor.targets.runtime import as_tensor
from flextensor.testing_targets import DeviceCase as DeviceCase
from flextensor.testing_targets import TargetCase as TargetCase


class OperatorCase:
    """What every operator must do. Give a small instance: its unscheduled programs are run."""

    @pytest.fixture
    def operator(self) -> Operator:
        """The operator under test."""
        raise NotImplementedError

    def test_every_formulation_computes_the_reference(self, operator: Operator) -> None:
        import tvm

        workload = Workload(operator)
        inputs = workload.inputs(seed=7)
        want = workload.reference(inputs)
        assert want.shape == workload.buffers[-1].shape
        for formulation in workload.formulations:
            got = empty(want.shape, workload.buffers[-1].dtype)
            poison(got)
            tvm.compile(workload.prim_func(formulation), target=PLAIN)(
                *map(as_tensor, (*inputs, got))
            )
            assert relative_error(got, want) <= workload.tolerance(1e-4), formulation

    def test_its_text_gives_it_back(self, operator: Operator) -> None:
        workload = Workload(operator)
        assert parse(operator.name, {k: str(v) for k, v in workload.params.items()}) == operator
        assert workload.key.startswith(f"{operator.name}(")
        assert "\n" not in workload.key
        assert pickle.loads(pickle.dumps(workload)) == workload

    def test_its_fields_are_plain_and_frozen(self, operator: Operator) -> None:
        fields = dataclasses.fields(operator)
        assert type(operator).__doc__
        assert fields and {f.type for f in fields} <= {"int", "bool", "str"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(operator, fields[0].name, 3)

    def test_its_programs_have_the_same_buffers(self, operator: Operator) -> None:
        workload = Workload(operator)
        assert workload.formulations[0] == "direct"
        assert workload.flops >= 0
        assert workload.bytes > 0
        for formulation in workload.formulations:
            params = workload.prim_func(formulation).params
            assert [tuple(int(n) for n in p.shape) for p in params] == [
                b.shape for b in workload.buffers
            ]
            assert [str(p.dtype) for p in params] == [b.dtype for b in workload.buffers]
            assert workload.prim_func(formulation) is workload.prim_func(formulation)

    def test_its_inputs_follow_the_seed(self, operator: Operator) -> None:
        workload = Workload(operator)
        first, again, other = workload.inputs(1), workload.inputs(1), workload.inputs(2)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])
        for array, spec in zip(first, workload.buffers[:-1], strict=True):
            assert (array.shape, str(array.dtype)) == (spec.shape, spec.dtype)
            assert array.flags.c_contiguous
            assert array.ctypes.data % 64 == 0


class SchedulerCase:
    """What every scheduler must do with a program that holds a stage of its kind."""

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        """The scheduler under test."""
        raise NotImplementedError

    @pytest.fixture
    def target(self) -> Target:
        """The target to schedule for."""
        return targets.lookup("llvm")

    @pytest.fixture
    def runner(self, target: Target) -> Target:
        """The target that kernels run on, where `target` is one that this machine lacks."""
        return target

    @pytest.fixture
    def workload(self) -> Workload:
        """A small workload, of awkward sizes where the scheduler says it takes any."""
        raise NotImplementedError

    @pytest.fixture
    def formulation(self, workload: Workload) -> str:
        """The formulation of the workload."""
        return workload.formulations[0]

    @pytest.fixture
    def func(self, workload: Workload, formulation: str) -> Any:
        """The program under test."""
        return workload.prim_func(formulation)

    def test_it_takes_a_stage(self, scheduler: Scheduler, func: Any, target: Target) -> None:
        from flextensor.schedulers.program import read

        program = read(func)
        assert program is not None
        assert any(scheduler.take(program, stage, target) for stage in program.stages)

    def test_what_it_calls_legal_computes_the_reference(
        self, workload: Workload, func: Any, runner: Target, tmp_path: Path
    ) -> None:
        from flextensor.schedulers import schedule, space

        found = space(func, runner)
        seeds = [found.point(s) for s in found.seeds if found.reason(s) is None]
        points = [*seeds[:2], *found.sample(np.random.default_rng(0), 4)]
        assert points
        inputs = workload.inputs(0)
        want = workload.reference(inputs)
        runtime, ran, tolerance = runner.runtime(), 0, workload.tolerance(1e-4)
        for point in points:
            module = schedule(func, runner, found.config(point))
            path = tmp_path / f"kernel{ran}.so"  # a loaded path is not loaded again
            try:
                runner.build(module, path)
            except Exception:  # what TVM cannot build becomes a trial with its reason
                continue
            got = empty(want.shape, workload.buffers[-1].dtype)
            poison(got)
            runtime.load(path)["main"](*map(runtime.passed, (*inputs, got)))
            assert relative_error(got, want) <= tolerance, found.config(point)
            ran += 1
        assert 2 * ran > len(points), f"only {ran} of {len(points)} legal points could be built"

    def test_what_it_calls_legal_can_be_scheduled(self, func: Any, target: Target) -> None:
        from flextensor.schedulers import schedule, space

        found = space(func, target)
        for point in found.sample(np.random.default_rng(2), 24):
            schedule(func, target, found.config(point))

    def test_it_writes_the_same_program_twice(self, func: Any, target: Target) -> None:
        from flextensor.schedulers import schedule, space

        config = space(func, target).seeds[0]
        first, second = (schedule(func, target, config).script() for _ in range(2))
        assert first == second

    def test_it_keeps_the_order_of_the_arguments(self, func: Any, target: Target) -> None:
        from flextensor.schedulers import schedule, space

        module = schedule(func, target, space(func, target).seeds[0])
        shapes = [[int(e) for e in p.shape] for p in module["main"].params]
        assert shapes == [[int(e) for e in p.shape] for p in func.params]

    def test_its_space_knows_its_points(self, func: Any, target: Target) -> None:
        from flextensor.schedulers import space

        found = space(func, target)
        for point in found.sample(np.random.default_rng(1), 8):
            config = found.config(point)
            assert found.point(json.loads(json.dumps(config))) == point
            assert all(math.isfinite(v) for v in found.features(config).values())


def bowl_space() -> Space:
    """A space of 131072 points; `bowl` has its optimum in it."""
    knobs = (*(sizes(f"k{i}", range(1, 17)) for i in range(4)), choice("order", ("a", "b")))
    return Space(knobs, seeds=({"k0": 1, "k1": 1, "k2": 1, "k3": 1, "order": "b"},))


def bowl(space: Space, point: Point) -> float:
    """Seconds of a point of `bowl_space`: 1 ms at k = 5, 6, 7, 8 and order a, else more."""
    config = space.config(point)
    gaps = [math.log2(int(config[f"k{i}"]) / (5 + i)) for i in range(4)]
    return 1e-3 * (1 + sum(g * g for g in gaps)) * (1 if config["order"] == "a" else 1.5)


class ExplorerCase:
    """What every explorer must do."""

    @pytest.fixture
    def create(self) -> Callable[[Space, np.random.Generator], Explorer]:
        """The explorer under test, over a space, with its random generator."""
        raise NotImplementedError

    def test_it_proposes_fresh_legal_distinct_points(self, create: Any) -> None:
        space = bowl_space()
        explorer = create(space, np.random.default_rng(0))
        seen: set[Point] = set()
        for _ in range(5):
            points = explorer.ask(16)
            assert 0 < len(points) == len(set(points)) <= 16
            assert not seen & set(points)
            assert all(space.legal(p) for p in points)
            seen |= set(points)
            explorer.tell(points, [bowl(space, p) for p in points])

    def test_it_ends_when_everything_was_told(self, create: Any) -> None:
        tiny = Space((sizes("a", (1, 2)), sizes("b", (1, 2))))
        explorer = create(tiny, np.random.default_rng(0))
        seen: set[Point] = set()
        while points := explorer.ask(10):
            assert not seen & set(points)
            seen |= set(points)
            explorer.tell(points, [math.inf] * len(points))
        assert len(seen) == 4

    def test_it_never_proposes_what_is_illegal(self, create: Any) -> None:
        space = dataclasses.replace(
            bowl_space(), constraints=(lambda c: "odd" if int(c["k0"]) % 2 else None,)
        )
        explorer = create(space, np.random.default_rng(0))
        for _ in range(4):
            points = explorer.ask(8)
            assert points and all(space.legal(p) for p in points)
            explorer.tell(points, [bowl(space, p) for p in points])

    def test_the_same_seed_and_history_give_the_same_proposals(self, create: Any) -> None:
        def proposals() -> list[Sequence[Point]]:
            space, asked = bowl_space(), []
            explorer = create(space, np.random.default_rng(3))
            for _ in range(3):
                asked.append(explorer.ask(8))
                explorer.tell(asked[-1], [bowl(space, p) for p in asked[-1]])
            return asked

        assert proposals() == proposals()


class CostModelCase:
    """What every cost model must do."""

    @pytest.fixture
    def create(self) -> Callable[[Space], CostModel]:
        """The cost model under test, over a space."""
        raise NotImplementedError

    def test_it_scores_every_point(self, create: Any) -> None:
        space = bowl_space()
        model, points = create(space), space.sample(np.random.default_rng(0), 64)
        for told in (model.predict, model.rank):
            assert len(told(points)) == 64  # before it has seen anything
        model.fit(points, [*(bowl(space, p) for p in points[:-1]), math.inf])
        for told in (model.predict, model.rank):
            scores = told(points)
            assert len(scores) == 64
            assert all(math.isfinite(s) for s in scores)
            assert told([]) == []

    def test_it_survives_failures_alone(self, create: Any) -> None:
        space = bowl_space()
        model, points = create(space), space.sample(np.random.default_rng(0), 32)
        model.fit(points, [math.inf] * len(points))
        assert all(math.isfinite(s) for s in (*model.predict(points), *model.rank(points)))

    def test_the_same_points_have_the_same_scores(self, create: Any) -> None:
        space = bowl_space()
        points = space.sample(np.random.default_rng(0), 64)
        seconds = [bowl(space, p) for p in points]
        first, second = create(space), create(space)
        first.fit(points, seconds)
        second.fit(points, seconds)
        assert first.predict(points) == second.predict(points)
        assert first.rank(points) == second.rank(points)
