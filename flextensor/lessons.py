"""What other operators taught: how fast their configs were beside the schedulers' estimates.

A config is described by role (`Space.describe`): the register tile of a matrix product means in a
convolution what it means in an einsum, so that trials of one operator guide the search of
another, a user's own included. The descriptions of all shipped trials are shipped too, for to
make the spaces again would take seconds; they are made from those trials by

    python -m flextensor.lessons
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flextensor.cost_models import Example
from flextensor.cost_models.learned import examples
from flextensor.experience import FOLDER, Experience, chips, shipped
from flextensor.operators import Workload, lookup
from flextensor.search import Lane
from flextensor.targets import Target
from flextensor.targets.llvm import LLVM

if TYPE_CHECKING:
    from flextensor.schedulers import Space

FILE = "lessons.npz"
MACHINES = {
    cpu.chip: cpu
    for cpu in (
        LLVM(
            cores=2, vector_bits=512, vector_registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20,
            l3_bytes=480 << 20, max_unroll=512, mcpu="sapphirerapids",
        ),
        LLVM(
            cores=2, vector_bits=512, vector_registers=32, l1_bytes=32 << 10, l2_bytes=1 << 20,
            l3_bytes=32 << 20, max_unroll=512, mcpu="znver4",
        ),
        LLVM(
            cores=2, vector_bits=256, vector_registers=16, l1_bytes=32 << 10, l2_bytes=512 << 10,
            l3_bytes=32 << 20, max_unroll=512, mcpu="znver3",
        ),
    )
}  # fmt: skip
"""The CPUs that the shipped trials come from, by chip, in so far as schedulers ask."""
SHAPES = 2
"""Shapes of every other operator that a search learns from, of each chip: those nearest in
arithmetic."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What was measured of one formulation of one shape."""

    operator: str
    formulation: str
    flops: int
    examples: Sequence[Example]


def foreign(
    operator: str, formulation: str, flops: int, folders: Sequence[Path], aliases: bool = True
) -> list[Lesson]:
    """What a formulation may learn from other operators, of what the folders of chips hold.

    Another operator may be the same computation under another name: a 1x1 convolution is one with
    any dilation, and the same matrix product in one, two and three dimensions. An experiment that
    is to say what a new shape may hope for leaves such `aliases` out, all shapes with exactly as
    many `flops`.
    """
    chosen = []
    for folder in folders:
        others = [o for o in load(folder / FILE) if o.formulation == formulation]
        others = [o for o in others if o.operator != operator and (aliases or o.flops != flops)]
        others.sort(key=lambda lesson: abs(math.log(max(lesson.flops, 1) / max(flops, 1))))
        for name in dict.fromkeys(lesson.operator for lesson in others):
            chosen += [o for o in others if o.operator == name][:SHAPES]
    return chosen


def teach(
    lanes: Sequence[Lane],
    workload: Workload,
    target: Target,
    others: Sequence[Experience],
    aliases: bool = True,
) -> None:
    """Let the models of a workload's formulations learn from other operators (`foreign`) and from
    other shapes.

    Other operators' packing cost time, and so did that of shipped trials: they teach nothing where
    it is done ahead.
    """
    from flextensor.schedulers import space

    for lane in lanes:
        if not workload.prepacked:
            name, folders = workload.operator.name, chips(target.breed)
            for lesson in foreign(name, lane.name, workload.flops, folders, aliases):
                lane.study(lesson.examples)
        opened: dict[str, Space] = {}
        for other in (o for o in others if not o.packs):
            own = [t for t in other.trials if t.formulation == lane.name]
            if own and other.workload.has(lane.name):
                key = other.workload.key
                if key not in opened:
                    opened[key] = space(other.workload.prim_func(lane.name), target)
                lane.recall(opened[key], [t for t in own if opened[key].has(t.config)])


def made(folder: Path, target: Target) -> Iterator[Lesson]:
    """The lessons of all shipped trials in a folder, as this version's spaces describe them."""
    from flextensor.schedulers import spaces

    for path in sorted(folder.glob("*.jsonl.gz")):
        operator = path.name.removesuffix(".jsonl.gz")
        for params, trials in shipped(operator, folder):
            workload = Workload(lookup(operator)(**params))
            for formulation, found in spaces(workload, target).items():
                own = [t for t in trials if t.formulation == formulation]
                known = [t for t in own if found.has(t.config)]
                described = [found.describe(t.config) for t in known]
                taught = examples(described, [t.seconds for t in known])
                if taught:
                    yield Lesson(operator, formulation, workload.flops, taught)


def save(lessons: Sequence[Lesson], path: Path) -> None:
    """Write lessons: one column of numbers for every name, nan where an example has none."""
    every = [example for lesson in lessons for example in lesson.examples]
    names = list(dict.fromkeys(name for described, _ in every for name in described))
    values = np.full((len(names), len(every)), math.nan, dtype=np.float32)
    place = {name: row for row, name in enumerate(names)}
    for column, (described, _) in enumerate(every):
        for name, value in described.items():
            values[place[name], column] = value
    np.savez_compressed(
        path,
        names=np.array(names),
        values=values,
        labels=np.array([label for _, label in every], dtype=np.float32),
        counts=np.array([len(lesson.examples) for lesson in lessons]),
        operators=np.array([lesson.operator for lesson in lessons]),
        formulations=np.array([lesson.formulation for lesson in lessons]),
        flops=np.array([lesson.flops for lesson in lessons]),
    )


@functools.cache
def load(path: Path) -> Sequence[Lesson]:
    """The lessons in a file; none where there is no file."""
    if not path.is_file():
        return ()
    with np.load(path) as stored:
        names, values, labels = stored["names"].tolist(), stored["values"], stored["labels"]
        heads = zip(
            stored["operators"].tolist(), stored["formulations"].tolist(),
            stored["flops"].tolist(), stored["counts"].tolist(), strict=True,
        )  # fmt: skip
        lessons, first = [], 0
        for operator, formulation, flops, count in heads:
            taught = []
            for column in range(first, first + count):
                known = zip(names, values[:, column].tolist(), strict=True)
                described = {name: value for name, value in known if not math.isnan(value)}
                taught.append((described, float(labels[column])))
            lessons.append(Lesson(operator, formulation, flops, taught))
            first += count
    return lessons


def main() -> None:
    """``python -m flextensor.lessons``: renew what is shipped, after a change of the spaces."""
    for chip, machine in MACHINES.items():
        folder = FOLDER / machine.breed / chip
        lessons = list(made(folder, machine))
        save(lessons, folder / FILE)
        print(f"{chip}: {sum(len(lesson.examples) for lesson in lessons)} examples")


if __name__ == "__main__":
    main()
