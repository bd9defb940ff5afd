"""The space: sizes without listing, legal samples, neighbours, round trips, projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from flextensor.errors import IllegalConfigError
from flextensor.schedulers.space import Config, Later, Space, Value, choice, join, sizes


def space() -> Space:
    return Space(
        (sizes("tile", (1, 2, 4, 8)), sizes("unroll", (1, 2)), choice("order", ("ab", "ba"))),
        (lambda c: "too much" if int(c["tile"]) * int(c["unroll"]) > 8 else None,),
        ({"tile": 4, "unroll": 1, "order": "ab"},),
    )


def test_size_counts_without_listing() -> None:
    huge = Space(tuple(sizes(f"k{i}", range(100)) for i in range(20)))
    assert huge.size == 100**20


def test_samples_are_legal_distinct_and_all_that_there_are() -> None:
    found = space().sample(np.random.default_rng(0), 1000)
    assert len(found) == len(set(found)) == 14
    assert all(space().legal(p) for p in found)


def test_a_config_is_a_point_is_a_config() -> None:
    for point in space().sample(np.random.default_rng(0), 14):
        assert space().point(space().config(point)) == point


def test_neighbours_differ_in_one_knob_by_one_step_and_are_legal() -> None:
    around = space().neighbours((3, 0, 0))
    assert set(around) == {(2, 0, 0), (3, 0, 1)}


def test_samples_leave_out_what_is_known() -> None:
    every = space().sample(np.random.default_rng(0), 14)
    assert set(space().sample(np.random.default_rng(1), 14, set(every[:9]))) == set(every[9:])
    assert space().sample(np.random.default_rng(1), 14, set(every)) == []


def test_a_step_leads_to_every_neighbour_and_to_nothing_else() -> None:
    rng = np.random.default_rng(0)
    assert {space().step((3, 0, 0), rng) for _ in range(50)} == {(2, 0, 0), (3, 0, 1)}
    assert Space((sizes("one", (1,)),)).step((0,), rng) is None


def test_one_point_stands_for_all_that_write_the_same_program() -> None:
    """Parts 3 and 4 are the same; steps go over what changes nothing."""

    def rounded(config: Mapping[str, Value]) -> Config:
        return {**config, "parts": 3 if config["parts"] == 4 else config["parts"]}

    knobs = (sizes("parts", (2, 3, 4, 5)), choice("order", ("a", "b")))
    found = Space(knobs, canonical=rounded)
    assert found.representative((2, 1)) == (1, 1)
    assert sorted(found.sample(np.random.default_rng(0), 8)) == [
        (0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (3, 1)
    ]  # fmt: skip
    assert set(found.neighbours((1, 0))) == {(0, 0), (3, 0), (1, 1)}
    assert found.moved((3, 0), 0, 1) is None
    both = join({"x": found, "y": found})
    assert both.representative((2, 0, 2, 1)) == (1, 0, 1, 1)


def test_a_description_means_the_same_in_another_shapes_space() -> None:
    small, large = (
        Space((sizes("tile", values), choice("order", names)), features=lambda c: {"work": 2.0})
        for values, names in (((1, 3), ("a", "b")), ((3, 7, 15), ("b",)))
    )
    config: Config = {"tile": 3, "order": "b"}
    assert small.describe(config) == {"tile": 2.0, "order=b": 1.0, "work": 2.0}
    assert large.describe(config) == small.describe(config)


def test_encoding_has_one_number_per_size_and_one_per_choice() -> None:
    assert space().encode((3, 0, 1)) == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "config", [{"tile": 4}, {"tile": 3, "unroll": 1, "order": "ab"}, {"tyle": 4, "unroll": 1}]
)
def test_a_config_of_another_space_is_illegal(config: dict[str, int | str]) -> None:
    with pytest.raises(IllegalConfigError):
        space().point(config)


def test_projection_takes_the_nearest_value() -> None:
    assert space().project({"tile": 6, "order": "ba", "other": 1}) == (3, 0, 1)


def test_an_illegal_point_has_the_legal_ones_a_knob_away() -> None:
    """A tile of 8 with 2 steps is too much: fewer of either is not."""
    assert set(space().legal_nearby((3, 1, 0))) == {(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 0, 0)}
    assert space().legal_nearby((1, 1, 1)) == [(1, 1, 1)]
    never = Space((sizes("tile", (1, 2)),), (lambda c: "never",))
    assert never.legal_nearby((0,)) == []


def test_a_joint_space_keeps_knobs_constraints_and_seeds() -> None:
    both = join({"a": space(), "b": space()})
    assert both.size == space().size ** 2
    assert both.reason({**both.seeds[0], "b.tile": 8, "b.unroll": 2}) == "too much"
    assert both.reason(both.seeds[0]) is None


def test_seeds_are_worked_out_once_and_when_asked_for() -> None:
    asked = []

    def make() -> Iterator[Config]:
        asked.append(True)
        yield {"a": 1}
        yield {"a": 2}

    own = dataclasses.replace(Space((sizes("a", (1, 2)),)), seeds=Later(make))
    joint = join({"x": own})
    assert joint.has({"x.a": 2}) and not asked
    assert len(joint.seeds) == 2 and joint.seeds[1:] == ({"x.a": 2},)
    assert list(joint.seeds) == [{"x.a": 1}, {"x.a": 2}] and asked == [True]
