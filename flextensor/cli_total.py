"""``tune --suite NAME --total SECONDS``: the cases of a suite within one budget."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flextensor.cli_options import stdout_kept
from flextensor.errors import FlexTensorError, InputError, check_positive

if TYPE_CHECKING:
    from flextensor.operators.base import Operator
    from flextensor.report import Live
    from flextensor.result import Result
    from flextensor.shares import Outcome
    from flextensor.tuner import Progress

Show = Callable[[str, Any], None]


def check_total(
    total: float | None, time: float | None, suite: str | None, policy: Path | None
) -> None:
    """Raise `InputError` for a total that is no time, or that has nothing to be shared by."""
    check_positive("--total", total)
    if total is not None and time is not None:
        raise InputError("--time (of each case) and --total (of all) exclude each other")
    if total is not None and suite is None:
        raise InputError("--total is shared by cases: it needs a --suite; one workload has --time")
    if total is not None and policy is not None:
        raise InputError("--policy is of one search after another: --total has them take turns")


def tune_suite(
    work: Sequence[tuple[str, Operator]],
    total: float,
    live: Live,
    show: Show,
    finish: Callable[[Result], Result],
    **asked: Any,
) -> None:
    """Tune all, show each when it ends, by `finish`; exit code 2 when one failed, 130 on Ctrl-C."""
    from flextensor import tuner_all
    from flextensor.shares import AllInterrupted

    labels = [label for label, _ in work]
    errors: list[str] = []

    def failed(label: str, error: FlexTensorError) -> None:
        print(f"error: {label}: {error}", file=sys.stderr)
        errors.append(label)

    def ended(place: int, outcome: Outcome) -> None:
        with live.aside():
            if isinstance(outcome, FlexTensorError):
                failed(labels[place], outcome)
                return
            try:
                values = finish(outcome).json()
            except FlexTensorError as error:
                failed(labels[place], error)
                return
            shown.add(place)
            with contextlib.redirect_stdout(stdout):
                show(labels[place], values)

    def told(place: int, progress: Progress) -> None:
        live.update(progress, labels[place])

    shown: set[int] = set()
    stdout = sys.stdout
    operators = [operator for _, operator in work]
    try:
        with live, stdout_kept():
            tuner_all.tune_all(operators, total=total, progress=told, done=ended, **asked)
    except AllInterrupted as stop:
        for place, outcome in enumerate(stop.results):
            if outcome is not None and not isinstance(outcome, FlexTensorError):
                if place not in shown:
                    show(labels[place], outcome.json())
        raise typer.Exit(130) from None
    if errors:
        raise typer.Exit(2)
