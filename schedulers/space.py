"""The space of schedules: knobs, constraints, points and configs.

A `Space` never lists its points: sizes, samples and neighbours come from the knobs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from flextensor.errors import IllegalConfigError, unknown

if TYPE_CHECKING:
    import numpy as np

Value = int | str
Config = dict[str, Value]
"""One value per knob, by name. JSON as it stands."""
Point = tuple[int, ...]
"""One index per knob: the same decision as a `Config`, as explorers see it."""
Constraint = Callable[[Mapping[str, Value]], str | None]
"""Takes a config, gives None when it is legal and else the reason why not, in one line."""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One decision. `ordered` knobs are sizes, whose neighbours are the next smaller and larger;
    the others are choices, each the neighbour of each."""

    name: str
    values: tuple[Value, ...]
    ordered: bool = True

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"knob {self.name} needs distinct values, has {self.values}")

    @property
    def ways(self) -> Sequence[int]:
        """The directions to move in: down and up, or to any value of a choice."""
        return (-1, 1) if self.ordered else range(len(self.values))

    def nearest(self, value: Value) -> int:
        """The index of `value`, or of the value nearest to it (by ratio; first for a choice)."""
        if value in self.values:
            return self.values.index(value)
        if not self.ordered or not isinstance(value, int):
            return 0
        wanted = math.log2(max(value, 1))
        gaps = [abs(math.log2(max(int(v), 1)) - wanted) for v in self.values]
        return gaps.index(min(gaps))


def sizes(name: str, values: Iterable[int]) -> Knob:
    """A knob of increasing sizes."""
    return Knob(name, tuple(sorted(set(values))))


def choice(name: str, values: Iterable[Value]) -> Knob:
    """A knob of unordered choices, the default first."""
    return Knob(name, tuple(dict.fromkeys(values)), ordered=False)


class Later(Sequence[Config]):
    """Configs that are worked out when one is asked for: of another shape's space a search wants to
    know what its trials were like, and not where it would begin."""

    def __init__(self, make: Callable[[], Iterable[Config]]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> tuple[Config, ...]:
        return tuple(self._make())

    @overload
    def __getitem__(self, index: int) -> Config: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Config]: ...
    def __getitem__(self, index: int | slice) -> Config | Sequence[Config]:
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)


@dataclasses.dataclass(frozen=True)
class Space:
    """All decisions of one formulation, the constraints among them, and good places to start.

    `features` gives what a cost model wants to know of a legal config beyond the knobs: numbers
    by name, computed without lowering anything. `canonical` gives one config for all that write
    the same program, so that none is measured twice; it is legal if they are. `roles` says, by the
    prefix of a joint space's names, what is scheduled there: ``gemm`` -> ``contraction0``.
    """

    knobs: tuple[Knob, ...]
    constraints: tuple[Constraint, ...] = ()
    seeds: Sequence[Config] = ()
    features: Callable[[Mapping[str, Value]], dict[str, float]] = lambda config: {}
    canonical: Callable[[Mapping[str, Value]], Config] = dict
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Points of the space, legal or not."""
        return math.prod(len(k.values) for k in self.knobs)

    def config(self, point: Sequence[int]) -> Config:
        """The named values of a point."""
        return {k.name: k.values[i] for k, i in zip(self.knobs, point, strict=True)}

    def point(self, config: Mapping[str, Value]) -> Point:
        """The point of a config; `IllegalConfigError` when a knob or value is not of this space."""
        self._check_names(config)
        for knob in self.knobs:
            if config[knob.name] not in knob.values:
                raise IllegalConfigError(
                    f"{knob.name}={config[knob.name]!r} is not in {knob.values}"
                )
        return tuple(k.values.index(config[k.name]) for k in self.knobs)

    def representative(self, point: Point) -> Point:
        """The one point for all that write the same program."""
        found = self._representatives.get(point)
        if found is None:
            config = self.canonical(self.config(point))
            found = tuple(k.values.index(config[k.name]) for k in self.knobs)
            self._representatives[point] = found
        return found

    def has(self, config: Mapping[str, Value]) -> bool:
        """Whether a config, of whatever version, is a legal one of this space."""
        try:
            self.point(config)
        except IllegalConfigError:
            return False
        return self.reason(config) is None

    def project(self, config: Mapping[str, Any]) -> Point:
        """The nearest point to a config of another space: unknown knobs dropped, missing ones
        at their first value. What a warm start from another workload becomes here."""
        return tuple(k.nearest(config[k.name]) if k.name in config else 0 for k in self.knobs)

    def legal_nearby(self, point: Point) -> list[Point]:
        """The point, if it is legal, else all legal ones that differ from it in one knob: a tile
        of a CPU with more registers needs fewer rows, or fewer vectors."""
        if self.legal(point):
            return [point]
        others = (
            (*point[:d], value, *point[d + 1 :])
            for d, knob in enumerate(self.knobs)
            for value in range(len(knob.values))
        )
        return [other for other in others if self.legal(other)]

    def starts(self, wanted: Iterable[Mapping[str, Any]]) -> tuple[Config, ...]:
        """Seeds: the legal ones among wanted configs, each at its nearest point, and once."""
        points = dict.fromkeys(map(self.project, wanted))
        return tuple(self.config(point) for point in points if self.legal(point))

    def reason(self, config: Mapping[str, Value]) -> str | None:
        """Why a config is illegal, or None when it is legal."""
        for constraint in self.constraints:
            reason = constraint(config)
            if reason is not None:
                return reason
        return None

    def legal(self, point: Sequence[int]) -> bool:
        """Whether a point breaks no constraint."""
        point = tuple(point)
        if point not in self._legal:
            self._legal[point] = self.reason(self.config(point)) is None
        return self._legal[point]

    @functools.cached_property
    def _representatives(self) -> dict[Point, Point]:
        """Those already found: walks come by the same points time and again."""
        return {}

    @functools.cached_property
    def _legal(self) -> dict[Point, bool]:
        """Whether points that were asked for are legal."""
        return {}

    def sample(
        self, rng: np.random.Generator, count: int, known: Container[Point] = ()
    ) -> list[Point]:
        """Up to `count` distinct programs, drawn from the legal points whose program is not
        `known`."""
        found: dict[Point, None] = {}
        tried: set[Point] = set()
        for _ in range(200):
            draws = [rng.integers(len(k.values), size=max(count, 64)) for k in self.knobs]
            for point in zip(*(d.tolist() for d in draws), strict=True):
                if point in tried:
                    continue
                tried.add(point)
                own = self.representative(point) if self.legal(point) else None
                if own is not None and own not in known:
                    found[own] = None
                    if len(found) == count:
                        return list(found)
            if len(tried) == self.size:
                break
        return list(found)

    def neighbours(self, point: Point) -> list[Point]:
        """Legal points that differ in one knob, by the fewest steps that change the program."""
        moves = dict.fromkeys(self.moved(point, *way) for way in self.ways)
        return [p for p in moves if p is not None and self.legal(p)]

    def step(self, point: Point, rng: np.random.Generator) -> Point | None:
        """One of `neighbours`, without looking at all of them; None where there is none."""
        ways = self.ways
        moves = (self.moved(point, *ways[i]) for i in rng.permutation(len(ways)).tolist())
        return next((p for p in moves if p is not None and self.legal(p)), None)

    @functools.cached_property
    def ways(self) -> list[tuple[int, int]]:
        """Every knob with every way to move it."""
        return [(d, way) for d, knob in enumerate(self.knobs) for way in knob.ways]

    def moved(self, point: Point, dimension: int, way: int) -> Point | None:
        """The nearest other program in one of the `ways` of a knob, legal or not, or None."""
        knob = self.knobs[dimension]
        steps = [way]
        if knob.ordered:
            steps = list(range(point[dimension] + way, len(knob.values) if way > 0 else -1, way))
        for index in steps:
            other = self.representative((*point[:dimension], index, *point[dimension + 1 :]))
            if other != point:
                return other
        return None

    def encode(self, point: Point) -> list[float]:
        """The point as numbers in [0, 1]: one per ordered knob, one-hot for a choice."""
        code: list[float] = []
        for knob, index in zip(self.knobs, point, strict=True):
            if knob.ordered:
                code.append(index / max(len(knob.values) - 1, 1))
            else:
                code.extend(float(i == index) for i in range(len(knob.values)))
        return code

    def describe(self, config: Mapping[str, Value]) -> dict[str, float]:
        """A config as numbers that mean the same in the space of another shape or operator, by
        role: log2(1 + value) of an ordered knob, 1 for the value of a choice, and the schedulers'
        features."""
        found: dict[str, float] = {}
        for knob in self.knobs:
            value = config[knob.name]
            if knob.ordered:
                found[knob.name] = math.log2(1 + int(value))
            else:
                found[f"{knob.name}={value}"] = 1.0
        found |= self.features(config)
        return {self._by_role(name): value for name, value in found.items()}

    def _by_role(self, name: str) -> str:
        prefix, dot, rest = name.partition(".")
        return f"{self.roles.get(prefix, prefix)}{dot}{rest}"

    def _check_names(self, config: Mapping[str, Value]) -> None:
        names = {k.name for k in self.knobs}
        for name in config:
            if name not in names:
                raise IllegalConfigError(str(unknown("knob", name, names)))
        if missing := names - set(config):
            raise IllegalConfigError(f"config lacks {', '.join(sorted(missing))}")


def share(config: Mapping[str, Any], name: str) -> Config:
    """The part of a joint config that belongs to one of its spaces."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}


def join(spaces: Mapping[str, Space], roles: Mapping[str, str] | None = None) -> Space:
    """One space of several, each one's knobs prefixed: ``rows`` of ``conv`` -> ``conv.rows``.

    Joint points are searched together; the first seeds of the parts are paired in order. `roles`
    has what a prefix is called in descriptions.
    """

    def constrain(name: str, inner: Constraint) -> Constraint:
        return lambda config: inner(share(config, name))

    def features(config: Mapping[str, Value]) -> dict[str, float]:
        return {
            f"{name}.{key}": value
            for name, space in spaces.items()
            for key, value in space.features(share(config, name)).items()
        }

    def canonical(config: Mapping[str, Value]) -> Config:
        return {
            f"{name}.{key}": value
            for name, space in spaces.items()
            for key, value in space.canonical(share(config, name)).items()
        }

    knobs = tuple(
        dataclasses.replace(k, name=f"{name}.{k.name}")
        for name, s in spaces.items()
        for k in s.knobs
    )
    constraints = tuple(constrain(n, c) for n, s in spaces.items() for c in s.constraints)

    def seeds() -> Iterator[Config]:
        for i in range(max((len(s.seeds) for s in spaces.values()), default=0)):
            yield {
                f"{name}.{key}": value
                for name, space in spaces.items()
                if space.knobs
                for key, value in space.seeds[min(i, len(space.seeds) - 1)].items()
            }

    return Space(knobs, constraints, Later(seeds), features, canonical, roles or {})
