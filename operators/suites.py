"""Named suites of operators with their shapes: what results are reported on.

A suite is a file ``suites/<suite>.json``: for every operator a list of cases, each with a name
that is unique in the suite, the fields that are given, and its multiply-accumulates if known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flextensor.errors import InputError, unknown
from flextensor.operators.base import Operator, lookup

SMOKE = "smoke"
"""The suite of the first paper case of every family."""
_FOLDER = Path(__file__).parent / "suites"


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator of a suite; `macs` are its multiply-accumulates as published, if known."""

    suite: str
    name: str
    operator: Operator
    macs: int | None = None

    @property
    def full_name(self) -> str:
        """The name on the command line, e.g. ``paper/C8``."""
        return f"{self.suite}/{self.name}"

    @property
    def family(self) -> str:
        """The operator's name."""
        return self.operator.name


def suites() -> list[str]:
    """The names of all suites."""
    return sorted([SMOKE, *(path.stem for path in _FOLDER.glob("*.json"))])


def cases(
    suite: str,
    family: str | None = None,
    names: Sequence[str] | None = None,
    dtype: str | None = None,
) -> list[Case]:
    """The cases of a suite, those of one operator if `family` is given; only these `names`, in
    their order, if they are. A `dtype` takes the place of their own; operators that have none are
    left out.

    Raises `InputError` when there is no such suite, and no such family, case or dtype in it.
    """
    if suite not in suites():
        raise unknown("suite", suite, suites())
    every = list(_load(suite))
    if names is not None:
        every = [case(f"{suite}/{name}") for name in names]
    if family is not None:
        if family not in (families := {c.family for c in every}):
            raise unknown(f"family of suite {suite}", family, families)
        every = [c for c in every if c.family == family]
    if dtype is None:
        return every
    typed = [_typed(c, dtype) for c in every if _has_dtype(c)]
    if not typed:
        raise InputError(f"no case of {suite} that was asked for has a dtype")
    return typed


def case(full_name: str) -> Case:
    """The case called e.g. ``paper/C8``, or an `InputError` that names the nearest ones."""
    suite, slash, name = full_name.partition("/")
    if not slash:
        raise InputError(f"a case is written suite/name, as paper/C8; got {full_name!r}")
    found = {c.name: c for c in cases(suite)}
    if name not in found:
        raise unknown(f"case of suite {suite}", name, found)
    return found[name]


def _has_dtype(case: Case) -> bool:
    return any(field.name == "dtype" for field in dataclasses.fields(case.operator))


def _typed(case: Case, dtype: str) -> Case:
    """A case whose operator has another dtype."""
    operator: Any = dataclasses.replace(case.operator, **{"dtype": dtype})
    return dataclasses.replace(case, operator=operator)


@cache
def _load(suite: str) -> tuple[Case, ...]:
    if suite == SMOKE:
        first = {c.family: c for c in reversed(_load("paper"))}
        return tuple(dataclasses.replace(c, suite=SMOKE) for c in reversed(first.values()))
    tables = json.loads((_FOLDER / f"{suite}.json").read_text())["cases"]
    return tuple(_case(suite, family, dict(row)) for family, rows in tables.items() for row in rows)


def _case(suite: str, family: str, row: dict[str, object]) -> Case:
    name, macs = str(row.pop("name")), row.pop("macs", None)
    assert macs is None or isinstance(macs, int)
    return Case(suite, name, lookup(family)(**row), macs)
