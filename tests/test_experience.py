"""What other shapes teach a search: from the database first, then from the shipped trials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from flextensor import experience, lessons
from flextensor.database import Database
from flextensor.operators import FunctionOperator, Gemm, Operator, Workload, registry
from flextensor.schedulers import space
from flextensor.targets import Status, Target, Trial, lookup

TARGET = lookup("llvm", 2)
ANOTHER = f"llvm/another/{TARGET.chip}/of this chip"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "trials.db") as database:
        yield database


def add(database: Database, operator: Operator, target: str, seconds: list[float]) -> None:
    """One trial per entry, at the seeds of the plain formulation; infinite ones failed."""
    workload = Workload(operator)
    seeds = space(workload.prim_func(), TARGET).seeds
    for value, config in zip(seconds, seeds, strict=False):
        ok = math.isfinite(value)
        trial = Trial("direct", config, Status.OK if ok else Status.TIMEOUT, (value,) if ok else ())
        database.add(workload.key, operator.name, workload.params, target, trial)


@pytest.fixture
def nothing_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experience, "FOLDER", tmp_path / "none")


@pytest.mark.usefixtures("nothing_shipped")
def test_nearest_shapes_of_this_device_come_first_and_the_own_never(database: Database) -> None:
    here = TARGET.fingerprint
    for size in (64, 96, 512):
        add(database, Gemm(m=size, n=64, k=64), here, [1e-3, 5e-4, math.inf])
    add(database, Gemm(m=65, n=64, k=64), ANOTHER, [1e-3])
    found = experience.near(database, Workload(Gemm(m=64, n=64, k=64)), TARGET)
    assert [one.workload.params["m"] for one in found] == [96, 512]
    assert [t.seconds for t in found[0].trials] == [1e-3, 5e-4, math.inf]
    assert found[0].best == {"direct": found[0].trials[1].config}
    assert experience.hints(found) == {"direct": [one.best["direct"] for one in found]}
    ahead = Workload(Gemm(m=64, n=64, k=64), prepacked=True)
    assert experience.near(database, ahead, TARGET) == []


@pytest.mark.usefixtures("nothing_shipped")
def test_what_was_refuted_guides_nobody(database: Database, tmp_path: Path) -> None:
    other = Workload(Gemm(m=96, n=64, k=64))
    add(database, other.operator, TARGET.fingerprint, [1e-3, 5e-4])
    fast = min(database.trials(other.key, TARGET.fingerprint), key=lambda t: t.seconds)
    wrong = Trial("direct", fast.config, Status.WRONG_RESULT, message="it differs")
    database.add(other.key, "gemm", other.params, TARGET.fingerprint, wrong)
    (found,) = experience.near(database, Workload(Gemm(m=64, n=64, k=64)), TARGET)
    assert [t.seconds for t in found.trials] == [1e-3, math.inf]
    assert found.best == {"direct": found.trials[0].config} != {"direct": fast.config}
    assert experience.ship(database, tmp_path / "shipped") == {"gemm": 2}
    ((_, shipped),) = experience.shipped("gemm", tmp_path / "shipped" / TARGET.breed / TARGET.chip)
    assert sorted(t.seconds for t in shipped) == [1e-3, math.inf]


@pytest.mark.usefixtures("nothing_shipped")
def test_shapes_without_trials_of_the_mode_take_no_place(database: Database) -> None:
    """Four nearer shapes were only tuned with their weights packed ahead."""
    here = TARGET.fingerprint
    for size in (60, 62, 66, 68):
        ahead = Workload(Gemm(m=size, n=64, k=64), prepacked=True)
        trial = Trial("direct", space(ahead.prim_func(), TARGET).seeds[0], Status.OK, (1e-3,))
        database.add(ahead.key, "gemm", ahead.params, here, trial)
    add(database, Gemm(m=512, n=64, k=64), here, [1e-3])
    found = experience.near(database, Workload(Gemm(m=64, n=64, k=64)), TARGET)
    assert [one.workload.params["m"] for one in found] == [512]


def prepacked(database: Database, size: int) -> Workload:
    """A shape with one trial with its weights packed ahead."""
    ahead = Workload(Gemm(m=size, n=64, k=64), prepacked=True)
    trial = Trial("direct", space(ahead.prim_func(), TARGET).seeds[0], Status.OK, (1e-3,))
    database.add(ahead.key, "gemm", ahead.params, TARGET.fingerprint, trial)
    return ahead


@pytest.mark.usefixtures("nothing_shipped")
def test_a_far_shape_of_the_mode_is_seen_behind_many_of_the_other(database: Database) -> None:
    for size in range(65, 74):
        add(database, Gemm(m=size, n=64, k=64), TARGET.fingerprint, [1e-3])
    far = prepacked(database, 512)
    found = experience.near(database, Workload(Gemm(m=64, n=64, k=64), prepacked=True), TARGET)
    assert [one.workload for one in found] == [far] and not found[0].packs


def test_shipped_trials_say_where_a_prepacked_search_begins_and_not_how_fast(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add(database, Gemm(m=96, n=64, k=64), ANOTHER, [2e-3])
    experience.ship(database, tmp_path / "shipped")
    monkeypatch.setattr(experience, "FOLDER", tmp_path / "shipped")
    prepacked(database, 80)
    taught: list[list[float]] = []

    class Lane:
        name = "direct"

        def study(self, examples: object) -> None:
            pass

        def recall(self, space: object, trials: list[Trial]) -> None:
            taught.append([t.seconds for t in trials])

    for ahead, recalled in ((True, [[1e-3]]), (False, [[2e-3]])):
        taught.clear()
        tuned = Workload(Gemm(m=64, n=64, k=64), prepacked=ahead)
        found = experience.near(database, tuned, TARGET)
        assert [one.packs for one in found] == ([False, True] if ahead else [False])
        assert len(experience.hints(found)["direct"]) == len(found)
        lessons.teach([Lane()], tuned, TARGET, found)  # type: ignore[list-item]
        assert taught == recalled


@pytest.mark.usefixtures("nothing_shipped")
def test_a_users_own_operator_has_no_others(database: Database) -> None:
    from tvm import te

    def twice(n: int = 8) -> list[object]:
        a = te.placeholder((n,), name="a")
        return [a, te.compute((n,), lambda i: a[i] + a[i])]

    workload = Workload(FunctionOperator(twice, {}))
    assert experience.near(database, workload, TARGET) == []


def test_what_is_shipped_is_read_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add(database, Gemm(m=96, n=64, k=64), ANOTHER, [2e-3, math.inf, 1e-3])
    add(database, Gemm(m=64, n=64, k=64), ANOTHER, [1e-3])
    stranger = Trial("direct", {"an old": "knob"}, Status.OK, (1e-6,))
    odd = Workload(Gemm(m=96, n=64, k=64))
    database.add(odd.key, "gemm", odd.params, ANOTHER, stranger)
    database.add("x", "no operator", {}, ANOTHER, stranger)
    add(database, Gemm(m=32, n=64, k=64), f"another kind/{TARGET.chip}", [1e-3])
    add(database, Gemm(m=32, n=64, k=64), "llvm/another/chip", [1e-3])
    assert experience.ship(database, tmp_path / "shipped") == {"gemm": 4}
    shipped = tmp_path / "shipped" / TARGET.breed / TARGET.chip
    first = (shipped / "gemm.jsonl.gz").read_bytes()
    experience.ship(database, tmp_path / "shipped")
    assert (shipped / "gemm.jsonl.gz").read_bytes() == first
    monkeypatch.setattr(experience, "FOLDER", tmp_path / "shipped")
    (found,) = experience.near(database, Workload(Gemm(m=64, n=64, k=64)), TARGET)
    assert found.workload == odd
    assert sorted(t.seconds for t in found.trials) == [1e-3, 2e-3, math.inf]


def test_chips_of_a_breed_teach_together_the_devices_own_first(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The nearest shapes of each chip; the device's own trials of a shape instead of its chip's."""
    chips = ("a chip", TARGET.chip)
    for number, chip in enumerate(chips, 1):
        for size in (65, 66, 67, 68, 69):
            add(database, Gemm(m=size, n=64, k=64), f"llvm/another/{chip}", [number * 1e-3])
        monkeypatch.setattr(type(TARGET), "chip", chip)
        experience.ship(database, tmp_path / "shipped")
    monkeypatch.setattr(experience, "FOLDER", tmp_path / "shipped")

    def found() -> list[tuple[int, float]]:
        near = experience.near(database, Workload(Gemm(m=64, n=64, k=64)), TARGET)
        return [(int(one.workload.params["m"]), one.trials[0].seconds) for one in near]

    assert found() == [(m, s) for s in (2e-3, 1e-3) for m in (65, 66, 67, 68)]
    add(database, Gemm(m=66, n=64, k=64), TARGET.fingerprint, [5e-4])
    add(database, Gemm(m=70, n=64, k=64), TARGET.fingerprint, [5e-4])
    here = [(65, 2e-3), (66, 5e-4), (67, 2e-3), (68, 2e-3)]
    assert found() == [*here, *((m, 1e-3) for m in (65, 66, 67, 68))]


@pytest.mark.parametrize("machine", lessons.MACHINES.values(), ids=list(lessons.MACHINES))
@pytest.mark.parametrize("name", sorted(registry()))
def test_what_the_package_ships_fits_this_versions_spaces(name: str, machine: Target) -> None:
    folder = experience.FOLDER / machine.breed / machine.chip
    for params, trials in experience.shipped(name, folder)[:2]:
        workload = Workload(registry()[name](**params))
        for formulation, own in experience.by_formulation(trials).items():
            found = space(workload.prim_func(formulation), machine)
            known = [found.has(t.config) for t in own]
            assert sum(known) > 0.8 * len(known)
            assert any(t.ok for t in own)


@pytest.mark.parametrize("machine", lessons.MACHINES.values(), ids=list(lessons.MACHINES))
def test_most_operators_have_shipped_trials(machine: Target) -> None:
    folder = experience.FOLDER / machine.breed / machine.chip
    assert sum(bool(experience.shipped(name, folder)) for name in registry()) >= 10
