"""How well the cost model guesses what it has not seen: other shapes, other families.

    python -m flextensor.evaluation [results/cost-model [znver4]]

The trials are those that the package ships of a chip, this CPU if none is named. A shape is held
out; the model learns from the four nearest other shapes of its operator and from other operators,
as measured on every chip of the breed, as a search does before its first trial, or from a part of
that; then it ranks what was measured of the shape. Other models stand beside it:
`flextensor.evaluation_objectives`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flextensor import cost_models, lessons
from flextensor import evaluation_objectives as objectives
from flextensor.database_records import distance
from flextensor.errors import InputError, exit_code
from flextensor.experience import NEAREST, by_formulation, chips, shipped
from flextensor.operators import Workload, lookup
from flextensor.ranking import regret, spearman
from flextensor.results import header, make, write
from flextensor.schedulers import spaces
from flextensor.schedulers.space import Point, Space
from flextensor.targets import Target
from flextensor.targets import lookup as target_of

FEWEST = 16
"""Measured points of a shape's formulation, below which a ranking says nothing."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One formulation of one shape, with what was measured of it."""

    operator: str
    params: Mapping[str, Any]
    formulation: str
    flops: int
    space: Space
    points: Sequence[Point]
    seconds: Sequence[float]


def samples(folder: Path, target: Target) -> Iterator[Sample]:
    """Every shipped shape and formulation with at least `FEWEST` points that worked."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        operator = path.name.removesuffix(".jsonl.gz")
        for params, trials in shipped(operator, folder):
            workload = Workload(lookup(operator)(**params))
            own = by_formulation(t for t in trials if t.ok)
            for name, found in spaces(workload, target).items():
                measured = [t for t in own.get(name, ()) if found.has(t.config)]
                known = {found.point(t.config): t.seconds for t in measured}
                if len(known) >= FEWEST:
                    points, seconds = list(known), list(known.values())
                    yield Sample(operator, params, name, workload.flops, found, points, seconds)


def score(guesses: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """How well guesses rank times: "spearman" is the rank correlation; "top1" and "top8" the speed
    of the point that they like best, and of the best of their first eight, as shares of the
    fastest."""
    top1, top8 = (1 / regret(guesses, seconds, picks) for picks in (1, 8))
    return {"spearman": spearman(guesses, seconds), "top1": top1, "top8": top8}


def kin(sample: Sample, every: Sequence[Sample]) -> list[Sample]:
    """The nearest other shapes of a sample's operator, in the same formulation."""
    same = [
        s for s in every if (s.operator, s.formulation) == (sample.operator, sample.formulation)
    ]
    gaps = [(distance(sample.params, s.params), place) for place, s in enumerate(same)]
    return [same[place] for _, place in sorted((g, p) for g, p in gaps if g)][:NEAREST]


def taught(
    sample: Sample, every: Mapping[Path, Sequence[Sample]], aliases: bool = False
) -> objectives.Lessons:
    """What a model may learn of a sample's formulation from the folders of chips."""
    what = sample.operator, sample.formulation, sample.flops
    others = lessons.foreign(*what, list(every), aliases)
    near = [shape for own in every.values() for shape in kin(sample, own)]
    return objectives.Lessons(
        [lesson.examples for lesson in others],
        [(shape.space, shape.points, shape.seconds) for shape in near],
    )


def evaluate(machine: Target) -> list[dict[str, Any]]:
    """Scores of every sample of a machine's chip, by what the model learned from."""
    every = {folder: list(samples(folder, machine)) for folder in chips(machine.breed)}
    rest = dict(every)
    own = {folder: rest.pop(folder) for folder in every if folder.name == machine.chip}
    rows = []
    for number, sample in enumerate(itertools.chain(*own.values())):
        both = taught(sample, every)
        learned = {
            "none": objectives.Lessons([], []),
            "shapes": objectives.Lessons([], both.near),
            "operators": objectives.Lessons(both.foreign, []),
            "both": both,
            "aliases": taught(sample, every, aliases=True),
            "chip": taught(sample, own),
            "chips": taught(sample, rest),
        }
        scores = {}
        for name, known in learned.items():
            model = known.teach(cost_models.create("xgboost", sample.space))
            scores[name] = score(model.predict(sample.points), sample.seconds)
        row = {
            "operator": sample.operator, "params": dict(sample.params),
            "formulation": sample.formulation, "points": len(sample.points), "scores": scores,
        }  # fmt: skip
        if len(sample.points) >= objectives.FEWEST:
            row["objectives"] = objectives.judged(
                sample.space, sample.points, sample.seconds, both, score, number
            )
        rows.append(row)
        print(f"{sample.operator} {sample.formulation}: {scores}", file=sys.stderr)
    return rows


LESSONS = {
    "none": "nothing learned",
    "shapes": "near shapes",
    "operators": "other operators",
    "both": "both",
    "aliases": "both, with aliases",
    "chip": "both, of this chip alone",
    "chips": "both, of other chips alone",
}
"""What a model learned from."""


def markdown(data: Mapping[str, Any]) -> str:
    """The table: one row for every operator, and for all."""
    rows = data["rows"]
    head = " | ".join(f"{label}: rho, top 1, top 8" for label in LESSONS.values())
    lines = [
        "# The cost model on what it has not seen",
        "",
        f"`{data['command']}`, {data['date']}. {len(rows)} formulations of"
        f" {len({(r['operator'], json.dumps(r['params'])) for r in rows})} shapes,"
        f" {sum(r['points'] for r in rows)} measured points: what the package ships for"
        f" `{data['chip']}` and worked, where a formulation has {FEWEST} of them."
        " The model ranks the points of a shape that it has not seen: by the schedulers'"
        f" estimate alone, after learning from the {NEAREST} nearest other shapes of the operator,"
        f" from {lessons.SHAPES} shapes of every other operator, and from both, as measured on"
        " every chip of the breed, and, in the last columns, on this one or on the others alone"
        " (nothing where there is no other). Aliases are shapes of other operators with exactly as"
        " many operations, among them the same computation under another name (a 1x1 convolution"
        " is one with any dilation); a search learns from them where there are any, a new shape has"
        " none, and they are left out but for one column. rho: Spearman's rank correlation, mean."
        " Top 1, top 8: the speed of the first pick, and of the best of the first eight, as a share"
        " of the fastest point; medians. Half the shipped points of a shape are its fastest ones,"
        " which are the hard ones to rank.",
        "",
        f"| operator | n | {head} |",
        "| --- | ---: |" + " ---: |" * len(LESSONS),
    ]
    families = dict.fromkeys(r["operator"] for r in rows)
    groups = {**{f: [r for r in rows if r["operator"] == f] for f in families}, "all": rows}
    for name, own in groups.items():
        cells = [
            objectives.cell([r["scores"][h] for r in own if h in r["scores"]]) for h in LESSONS
        ]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *objectives.table(rows)]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """``python -m flextensor.evaluation [OUT [CHIP]]``."""
    out = Path(arguments[0]) if arguments else Path("results/cost-model")
    target = target_of("llvm")
    chip = arguments[1] if len(arguments) > 1 else target.chip
    if chip not in lessons.MACHINES:
        known = ", ".join(lessons.MACHINES)
        raise InputError(f"no trials of {chip} are shipped; there are those of {known}")
    make(out)
    command = ["python", "-m", "flextensor.evaluation", *arguments]
    rows = evaluate(lessons.MACHINES[chip])
    data = {**header(target, command), "chip": chip, "rows": rows}
    write(out / "data.json", json.dumps(data) + "\n")
    write(out / "README.md", markdown(data))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
