"""What other shapes of an operator taught: trials from the database, or shipped with the package.

The shipped trials are a folder for every breed of devices (`Target.breed`), in it one for every
chip (`Target.chip`), and in that a file for every operator, made from any database by

    python -m flextensor.experience TRIALS.db [TARGET]

Those of all chips guide a search on a device of the breed, for ratios between schedules travel
further than seconds: what another chip taught alone may mislead, and together with the device's
own it is as good as that (`flextensor.evaluation`). The shape that is tuned itself is never among
them.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor.database_records import distance, plain
from flextensor.errors import InputError, exit_code
from flextensor.operators import Workload, lookup, registry
from flextensor.targets import Status, Target, Trial

if TYPE_CHECKING:
    from flextensor.database import Database, WorkloadRow

FOLDER = Path(__file__).parent / "shipped"
NEAREST = 4
"""Shapes that guide a search."""
KEPT = 48
"""Trials of a shape and formulation that are shipped: half the fastest, half spread over all."""

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experience:
    """Another shape of the operator, and what was measured of it."""

    workload: Workload
    trials: tuple[Trial, ...]
    packs: bool = False
    """Whether the trials packed in every call what is packed ahead for the shape that is tuned:
    they say where to begin, and not how fast that is."""

    @property
    def best(self) -> dict[str, Mapping[str, Any]]:
        """The fastest config of every formulation that worked."""
        return {
            name: min(trials, key=lambda t: t.seconds).config
            for name, trials in by_formulation(t for t in self.trials if t.ok).items()
        }


def near(database: Database | None, workload: Workload, target: Target) -> list[Experience]:
    """Other shapes: the `NEAREST` of what this device measured, if there is a database, or its
    chip, as the package has it, nearest first; then those of every other chip of the breed."""
    if workload.operator.name not in registry():
        return []
    own = {} if database is None else _measured(database, workload, target)
    others: list[Experience] = []
    for folder in chips(target.breed):
        theirs = _shipped(workload, folder)
        if folder.name == target.chip:
            own = theirs | own  # what the device itself knows of a shape takes the place
        else:
            others += theirs.values()
    gaps = {key: _gap(workload, one.workload.params) for key, one in own.items()}
    nearest = sorted(own, key=lambda key: (gaps[key], key))[:NEAREST]
    return [*(own[key] for key in nearest), *others]


def _gap(workload: Workload, theirs: Params) -> float:
    """How far another shape is; infinite where it cannot guide this one, and of its own."""
    return distance(plain(workload.params), plain(theirs)) or math.inf


def _measured(database: Database, workload: Workload, target: Target) -> dict[str, Experience]:
    """Other shapes by their keys, with what this device measured of them."""
    name, params, ahead = workload.operator.name, plain(workload.params), workload.prepacked

    def same_mode(key: str, theirs: Params) -> bool:
        other = _workload(name, theirs, ahead)
        return other is not None and other.key == key

    found = {}
    for theirs, _ in database.neighbours(name, params, target.fingerprint, among=same_mode):
        other = _workload(name, theirs, ahead)
        if other is not None and (trials := database.sound(other.key, target.fingerprint)):
            found[other.key] = Experience(other, tuple(trials))
    return found


def _shipped(workload: Workload, folder: Path) -> dict[str, Experience]:
    """The `NEAREST` other shapes by their keys, with what a chip's folder has of them."""
    name, ahead = workload.operator.name, workload.prepacked
    every = shipped(name, folder)
    gaps = [(_gap(workload, theirs), place) for place, (theirs, _) in enumerate(every)]
    usable = (every[place] for gap, place in sorted(gaps) if math.isfinite(gap))
    made = ((_workload(name, theirs, ahead), trials) for theirs, trials in usable)
    known = (Experience(other, own, packs=ahead) for other, own in made if other is not None)
    return {one.workload.key: one for one in itertools.islice(known, NEAREST)}


def chips(breed: str) -> list[Path]:
    """The folders of a breed's chips of which trials are shipped."""
    return sorted((FOLDER / breed).glob("*"))


def hints(others: Sequence[Experience]) -> dict[str, list[Mapping[str, Any]]]:
    """The best configs of other shapes by formulation, in the order of the shapes."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for other in others:
        for formulation, config in other.best.items():
            found.setdefault(formulation, []).append(config)
    return found


def _workload(name: str, params: Params, prepacked: bool) -> Workload | None:
    """The workload, or None when this version's operator has other fields."""
    try:
        return Workload(lookup(name)(**params), prepacked)
    except (InputError, TypeError):
        return None


def workload_of(row: WorkloadRow) -> Workload | None:
    """The workload of a database's row, or None when this version knows no such one."""
    made = (_workload(row.operator, row.params, ahead) for ahead in (False, True))
    return next((w for w in made if w is not None and w.key == row.key), None)


@functools.cache
def shipped(operator: str, folder: Path) -> Sequence[tuple[Params, tuple[Trial, ...]]]:
    """The trials in a folder of an operator, by the parameters of the shape."""
    path = folder / f"{operator}.jsonl.gz"
    if not path.is_file():
        return ()
    shapes: dict[str, list[Trial]] = defaultdict(list)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            params, formulation, config, seconds = json.loads(line)
            status = Status.RUN_ERROR if seconds is None else Status.OK
            times = () if seconds is None else (seconds,)
            shapes[json.dumps(params)].append(Trial(formulation, config, status, times))
    return [(json.loads(params), tuple(trials)) for params, trials in shapes.items()]


def by_formulation(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Trials in lists by their formulation."""
    found: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        found[trial.formulation].append(trial)
    return found


def ship(database: Database, folder: Path, spec: str = "llvm") -> dict[str, int]:
    """Write what is worth keeping of every trial of a database that a target's chip measured into
    the chip's folder, in that of its breed; the number of lines by operator.

    Trials that this version's spaces do not know are left out, and those with weights packed
    ahead too, whose packing costs nothing.
    """
    from flextensor.schedulers import spaces
    from flextensor.targets import lookup as target

    device = target(spec)
    lines: dict[str, list[str]] = defaultdict(list)
    for row in database.workloads():
        parts = row.target.split("/")
        if parts[0] != device.kind or device.chip not in parts or "/model" in row.target:
            continue
        workload = workload_of(row)
        if workload is None or workload.prepacked:
            continue
        trials = by_formulation(database.sound(row.key, row.target))
        for formulation, found in spaces(workload, device).items():
            known = [t for t in trials.get(formulation, ()) if found.has(t.config)]
            own = sorted(known, key=lambda t: t.seconds)
            rest = own[KEPT // 2 :]
            spread = rest[:: max(1, math.ceil(len(rest) / (KEPT // 2)))]
            for trial in own[: KEPT // 2] + spread:
                seconds = float(f"{trial.seconds:.4g}") if trial.ok else None
                entry = [plain(workload.params), formulation, dict(trial.config), seconds]
                lines[row.operator].append(json.dumps(entry, separators=(",", ":")))
    out = folder / device.breed / device.chip
    out.mkdir(parents=True, exist_ok=True)
    for operator, own_lines in lines.items():
        text = "\n".join(sorted(own_lines)) + "\n"
        data = gzip.compress(text.encode(), mtime=0)
        (out / f"{operator}.jsonl.gz").write_bytes(data)
    return {operator: len(own_lines) for operator, own_lines in lines.items()}


def main(arguments: Sequence[str]) -> None:
    """``python -m flextensor.experience TRIALS.db [TARGET]``: renew the shipped trials of a
    target's chip, by default of this CPU."""
    from flextensor.database import Database

    if len(arguments) not in (1, 2):
        raise InputError("name one database: python -m flextensor.experience TRIALS.db [TARGET]")
    path, *spec = arguments
    if not Path(path).is_file():
        raise InputError(f"{path}: no such database")
    with Database(path) as database:
        for operator, count in sorted(ship(database, FOLDER, *spec).items()):
            print(f"{operator}: {count} trials")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
