"""What other operators teach: what is shipped is what is made, and it ranks what nobody saw."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from flextensor import cost_models, evaluation, lessons
from flextensor.experience import FOLDER
from flextensor.operators import Conv2d, Workload
from flextensor.ranking import spearman
from flextensor.schedulers import space
from flextensor.schedulers.space import Space

SHIPPED = FOLDER / "llvm"


def test_shipped_lessons_are_those_of_the_shipped_trials(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "gemm.jsonl.gz", tmp_path)
    made = list(lessons.made(tmp_path, lessons.MACHINE))
    lessons.save(made, tmp_path / lessons.FILE)
    loaded = lessons.load(tmp_path / lessons.FILE)
    shipped = [one for one in lessons.load(SHIPPED / lessons.FILE) if one.operator == "gemm"]
    assert loaded == shipped, "the spaces changed: renew it by python -m flextensor.lessons"
    assert [len(one.examples) for one in made] == [len(one.examples) for one in loaded]
    described, label = loaded[0].examples[0]
    again, exact = made[0].examples[0]
    assert described == pytest.approx(again) and label == pytest.approx(exact)


def test_an_operator_learns_from_others_and_never_from_itself() -> None:
    every = lessons.load(SHIPPED / lessons.FILE)
    flops = 10**9
    taught = lessons.foreign("conv2d", "direct", flops, "llvm")
    others = {one.operator for one in every if one.formulation == "direct"} - {"conv2d"}
    from_conv3d = [one for one in every if one.operator == "conv3d" and one.formulation == "direct"]
    nearest = min(from_conv3d, key=lambda one: abs(math.log(one.flops / flops)))
    assert all(example in taught for example in nearest.examples)
    farthest = max(from_conv3d, key=lambda one: abs(math.log(one.flops / flops)))
    assert farthest.examples[0] not in taught
    assert len(taught) < sum(len(one.examples) for one in every) / 2
    assert len(others) > 10
    assert lessons.foreign("conv2d", "direct", 0, "llvm")  # a copy has no arithmetic
    assert lessons.foreign("conv2d", "direct", flops, "opencl") == []


def test_what_others_taught_ranks_a_program_that_nobody_measured() -> None:
    """A small tile is slow on every operator: the model says so before any trial of a conv2d."""
    workload = Workload(Conv2d(in_channels=64, out_channels=64, height=28, width=28, kernel=3))
    found = space(workload.prim_func(), lessons.MACHINE)
    model = cost_models.create("xgboost", found)
    model.study(lessons.foreign("conv2d", "direct", workload.flops, "llvm"))
    seed = found.seeds[0]
    small = {**seed, "conv2d.rows": 1, "conv2d.vectors": 1}
    good, bad = model.predict([found.point(seed), found.point(small)])
    assert good < bad


def test_scores_are_of_ranks_and_of_first_picks() -> None:
    sample = evaluation.Sample("gemm", {}, "direct", 1, Space(()), [(0,)] * 4, [4, 1, 2, 8])
    perfect = evaluation.score(sample, [2.0, 0.0, 1.0, 3.0])
    assert perfect.spearman == pytest.approx(1.0) and (perfect.top1, perfect.top8) == (1.0, 1.0)
    backwards = evaluation.score(sample, [-2.0, 0.0, -1.0, -3.0])
    assert backwards.spearman == pytest.approx(-1.0)
    assert (backwards.top1, backwards.top8) == (1 / 8, 1.0)
    assert evaluation.score(sample, [0.0] * 4).spearman == 0.0


def test_equal_values_share_their_rank() -> None:
    a = np.array([1.0, 2.0, 2.0, 3.0])
    assert spearman(a, np.array([1.0, 2.5, 2.5, 4.0])) == pytest.approx(1.0)
    assert spearman(a, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9486833)
