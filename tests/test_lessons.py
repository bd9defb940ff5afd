"""What other operators teach: what is shipped is what is made, and it ranks what nobody saw."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from flextensor import cost_models, evaluation, lessons
from flextensor.experience import FOLDER, chips
from flextensor.operators import Conv2d, Workload, case
from flextensor.ranking import spearman
from flextensor.schedulers import space
from flextensor.targets import Target

CHIP = lessons.MACHINES["sapphirerapids"]
SHIPPED = FOLDER / CHIP.breed / CHIP.chip


@pytest.mark.parametrize("machine", lessons.MACHINES.values(), ids=list(lessons.MACHINES))
def test_shipped_lessons_are_those_of_the_shipped_trials(machine: Target, tmp_path: Path) -> None:
    folder = FOLDER / machine.breed / machine.chip
    shutil.copy(folder / "gemm.jsonl.gz", tmp_path)
    made = list(lessons.made(tmp_path, machine))
    lessons.save(made, tmp_path / lessons.FILE)
    loaded = lessons.load(tmp_path / lessons.FILE)
    shipped = [one for one in lessons.load(folder / lessons.FILE) if one.operator == "gemm"]
    assert loaded == shipped, "the spaces changed: renew it by python -m flextensor.lessons"
    assert [len(one.examples) for one in made] == [len(one.examples) for one in loaded]
    described, label = loaded[0].examples[0]
    again, exact = made[0].examples[0]
    assert described == pytest.approx(again) and label == pytest.approx(exact)


def test_an_operator_learns_from_others_and_never_from_itself() -> None:
    every = lessons.load(SHIPPED / lessons.FILE)
    flops = 10**9
    chosen = lessons.foreign("conv2d", "direct", flops, [SHIPPED])
    assert {one.operator for one in chosen} == {
        one.operator for one in every if one.formulation == "direct"
    } - {"conv2d"}
    taught = [example for one in chosen for example in one.examples]
    from_conv3d = [one for one in every if one.operator == "conv3d" and one.formulation == "direct"]
    nearest = min(from_conv3d, key=lambda one: abs(math.log(one.flops / flops)))
    assert all(example in taught for example in nearest.examples)
    farthest = max(from_conv3d, key=lambda one: abs(math.log(one.flops / flops)))
    assert farthest.examples[0] not in taught
    assert len(taught) < sum(len(one.examples) for one in every) / 2
    assert len({one.operator for one in chosen}) > 10
    assert lessons.foreign("conv2d", "direct", 0, [SHIPPED])  # a copy has no arithmetic
    assert lessons.foreign("conv2d", "direct", flops, chips("opencl")) == []


def test_an_alias_is_left_out_where_a_new_shape_is_judged() -> None:
    """A 1x1 convolution is the same with dilation 1, of which the paper has one, and 2."""
    flops = Workload(case("paper/C5").operator).flops
    assert flops == Workload(case("paper/DIL1").operator).flops
    taught = lessons.foreign("conv2d", "direct", flops, [SHIPPED])
    assert flops in {one.flops for one in taught if one.operator == "dilated_conv2d"}
    apart = lessons.foreign("conv2d", "direct", flops, [SHIPPED], aliases=False)
    assert flops not in {one.flops for one in apart}
    assert {one.operator for one in apart} == {one.operator for one in taught}


def test_every_chip_teaches_as_much() -> None:
    folders = chips(CHIP.breed)
    assert len(folders) == 2
    both = lessons.foreign("conv2d", "winograd4", 10**9, folders)
    apart = [lessons.foreign("conv2d", "winograd4", 10**9, [folder]) for folder in folders]
    assert all(apart) and both == [*apart[0], *apart[1]]


def test_what_others_taught_ranks_programs_that_nobody_measured() -> None:
    """Before any trial of a conv2d the ranks of its points are better foretold than by the estimate
    alone, by correlation with what was measured: the mean of all shapes and formulations."""
    every = evaluation.samples(SHIPPED, CHIP)
    found = [sample for sample in every if sample.operator == "conv2d"]
    assert len(found) > 20
    taught, alone = [], []
    for sample in found:
        model = cost_models.create("xgboost", sample.space)
        alone.append(spearman(model.predict(sample.points), sample.seconds))
        for lesson in lessons.foreign("conv2d", sample.formulation, sample.flops, [SHIPPED], False):
            model.study(lesson.examples)
        taught.append(spearman(model.predict(sample.points), sample.seconds))
    assert np.mean(taught) > np.mean(alone) > 0.5


def test_what_others_taught_says_that_a_small_tile_is_slow() -> None:
    """As it is on every operator."""
    workload = Workload(Conv2d(in_channels=64, out_channels=64, height=28, width=28, kernel=3))
    found = space(workload.prim_func(), CHIP)
    model = cost_models.create("xgboost", found)
    for lesson in lessons.foreign("conv2d", "direct", workload.flops, [SHIPPED]):
        model.study(lesson.examples)
    seed = found.seeds[0]
    small = {**seed, "conv2d.rows": 1, "conv2d.vectors": 1}
    good, bad = model.predict([found.point(seed), found.point(small)])
    assert bad - good > 0.5  # measured on a Zen 4: 2 ** 0.9 times as slow


def test_scores_are_of_ranks_and_of_first_picks() -> None:
    seconds = [4.0, 1.0, 2.0, 8.0]
    perfect = evaluation.score([2.0, 0.0, 1.0, 3.0], seconds)
    assert perfect == {"spearman": pytest.approx(1.0), "top1": 1.0, "top8": 1.0}
    backwards = evaluation.score([-2.0, 0.0, -1.0, -3.0], seconds)
    assert backwards == {"spearman": pytest.approx(-1.0), "top1": 1 / 8, "top8": 1.0}
    assert evaluation.score([0.0] * 4, seconds)["spearman"] == 0.0


def test_equal_values_share_their_rank() -> None:
    a = np.array([1.0, 2.0, 2.0, 3.0])
    assert spearman(a, np.array([1.0, 2.5, 2.5, 4.0])) == pytest.approx(1.0)
    assert spearman(a, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9486833)
