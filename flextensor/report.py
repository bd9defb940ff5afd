"""What a person sees: the live line of a running search, and the table of its result."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status as Spinner
from rich.table import Table

if TYPE_CHECKING:
    from flextensor.tuner import Progress


class Live:
    """One line on a terminal's stderr while a search runs; nothing when piped."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._console = Console(stderr=True)
        shown = sys.stderr.isatty() and not quiet
        self._spinner = Spinner(label, console=self._console) if shown else None

    def __enter__(self) -> Live:
        if self._spinner:
            self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the line."""
        if self._spinner:
            self._spinner.stop()

    def update(self, progress: Progress) -> None:
        """Show where the search stands."""
        if self._spinner:
            self._spinner.update(f"{self._label}: {line(progress)}")


def line(p: Progress) -> str:
    """Progress as one line: trials, best, share of the roof, failures by kind, time left."""
    parts = [p.phase, f"{p.trials} trials"]
    if math.isfinite(p.best_seconds):
        parts.append(
            f"best {duration(p.best_seconds)}, {p.gflops:.1f} GFLOP/s ({p.peak_fraction:.0%})"
        )
    parts += [f"{count} {kind}" for kind, count in p.failures.items()]
    if p.budget_seconds is not None:
        parts.append(f"{max(p.budget_seconds - p.seconds, 0):.0f} s left at most")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads well."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The result's figures in words."""
    roof = "peak FLOP/s" if values["bound"] == "compute" else "memory bandwidth"
    torch = values["peers"].get("torch")
    failures = sum(values["failures"].values())
    error = values["max_rel_error"]
    speedup = f"{values['speedup']:.2f}x ({duration(torch)})" if torch else "not measured"
    return [
        ("workload", values["workload"]),
        ("device", values["device"]),
        ("latency", f"{duration(values['best_seconds'])}, spread {values['spread']:.1%}"),
        ("speed", f"{values['gflops']:.1f} GFLOP/s"),
        (f"share of {roof}", f"{values['peak_fraction']:.1%}"),
        ("speed-up over PyTorch", speedup),
        ("largest error", "not checked" if error is None else f"{error:.1e}"),
        ("verified", "yes" if values["verified"] else "no"),
        ("formulation", values["formulation"]),
        ("trials", f"{values['trials']}, {failures} failed"),
        ("tuning", f"{values['tuning_seconds']:.1f} s" + (", reused" if values["reused"] else "")),
    ]


def table(label: str, values: dict[str, Any]) -> None:
    """Print the result of a tuning on stdout."""
    shown = Table(title=label, show_header=False, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows(values):
        shown.add_row(name, value)
    Console().print(shown)
