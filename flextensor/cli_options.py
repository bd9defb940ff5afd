"""What commands have in common: options, checks of them, and the workloads that they name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flextensor.errors import InputError, check_positive, check_whole

if TYPE_CHECKING:
    from flextensor.operators.base import Operator
    from flextensor.operators.suites import Case

What = Annotated[str | None, typer.Argument(metavar="OPERATOR", help="a name, or file.py:function")]
Fields = Annotated[list[str] | None, typer.Argument(metavar="[field=value ...]")]
TargetOption = Annotated[str, typer.Option(help="where to run")]
EinsumOption = Annotated[str | None, typer.Option(metavar="EQUATION", help="a contraction")]
CaseOption = Annotated[str | None, typer.Option(metavar="SUITE/CASE", help="a case of a suite")]
SuiteOption = Annotated[str | None, typer.Option(metavar="NAME", help="all cases of a suite")]
CasesOption = Annotated[
    str | None, typer.Option(metavar="NAMES", help="only these cases of the suite, e.g. C1,C2")
]
ThreadsOption = Annotated[int | None, typer.Option(help="threads of the kernel")]
PrepackedOption = Annotated[
    bool, typer.Option("--prepacked", help="weights packed ahead, compared with those who do so")
]
MeasureOption = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="run, remote:HOST:PORT, or (some targets) model, rtl"),
]
TrialsOption = Annotated[int | None, typer.Option(help="points to measure in all")]
TotalOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="for all cases of a suite, shared by expected gain"),
]
TimeOption = Annotated[float | None, typer.Option(metavar="SECONDS", help="seconds to spend")]


def split(names: str | None) -> list[str] | None:
    """``"a, b"`` as ``["a", "b"]``."""
    return None if names is None else [name.strip() for name in names.split(",")]


def parse_fields(fields: list[str]) -> dict[str, str]:
    """``["m=64", "n=32"]`` as a dictionary; `InputError` for what is no field=value."""
    values: dict[str, str] = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"{text!r} is no field=value")
        if name in values:
            raise InputError(f"field {name} is given twice, as {values[name]} and {value}")
        values[name] = value
    return values


def operator_of(what: str, fields: list[str]) -> Operator:
    """The operator that a command names, by name or as file.py:function."""
    from flextensor.operators import from_file, parse

    values = parse_fields(fields)
    if ".py:" in what:
        return from_file(what, values)
    if what.endswith(".py"):
        raise InputError(f"name the function in {what} too, as {what}:my_op")
    return parse(what, values)


def workloads_of(
    what: str | None,
    fields: list[str] | None,
    einsum: str | None,
    case: str | None,
    suite: str | None,
) -> list[tuple[str, Operator]]:
    """What to tune, with a label each: one operator, one case, or the cases of a suite."""
    from flextensor import operators

    given = list(fields or [])
    chosen = {"--einsum": einsum, "--case": case, "--suite": suite}
    if len(both := [option for option, value in chosen.items() if value is not None]) > 1:
        raise InputError(f"{both[0]} and {both[1]} exclude each other")
    if einsum is not None:
        given = ([what] if what else []) + given
        return [("einsum", operators.parse("einsum", {"equation": einsum, **parse_fields(given)}))]
    if case is not None or suite is not None:
        if given:
            raise InputError(f"a case has all its fields; {given[0]!r} is one too many")
        if what is not None:
            operators.lookup(what)
        if case is not None:
            return [_agree(what, operators.case(case))]
        return [(c.full_name, c.operator) for c in operators.cases(str(suite), what)]
    if what is None:
        raise InputError(
            "name an OPERATOR, --einsum, --case or --suite; `flextensor ops` lists them"
        )
    return [(what, operator_of(what, given))]


def with_weights(work: list[tuple[str, Operator]]) -> list[tuple[str, Operator]]:
    """The workloads with weights that can be packed ahead; the others are named on stderr.
    `InputError` when none has any."""
    found = [(label, operator) for label, operator in work if operator.weights]
    if not found:
        raise InputError("--prepacked: no case has weights that could be packed ahead")
    if others := [label for label, operator in work if not operator.weights]:
        print(f"left out, without weights to pack ahead: {', '.join(others)}", file=sys.stderr)
    return found


def _agree(what: str | None, case: Case) -> tuple[str, Operator]:
    if what is not None and what != case.family:
        raise InputError(f"case {case.full_name} is a {case.family}, not a {what}")
    return case.full_name, case.operator


def check_numbers(
    trials: int | None, time: float | None, tolerance: float = 1.0, seed: int = 0
) -> None:
    """Raise `InputError` for a budget, tolerance or seed that makes no sense."""
    for option, value in {"--trials": trials, "--time": time, "--tolerance": tolerance}.items():
        check_positive(option, value)
    check_whole("--seed", seed, 0)


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send to stderr what a user's own operator prints: stdout is for results only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
