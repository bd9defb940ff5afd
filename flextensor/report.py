"""What a person sees: the live line of a running search, and the table of its result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flextensor.operators.base import Operator
    from flextensor.tuner import Progress


class Live:
    """One line on a terminal's stderr while a search runs; nothing when piped."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._console = Console(stderr=True)
        shown = sys.stderr.isatty() and not quiet
        self._spinner = Spinner(self._text(""), console=self._console) if shown else None

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

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Remove the line while something else is printed."""
        self.stop()
        try:
            yield
        finally:
            if self._spinner:
                self._spinner.start()

    def update(self, progress: Progress, label: str | None = None) -> None:
        """Show where the search stands, and of which of several workloads."""
        self._label = label or self._label
        if self._spinner:
            self._spinner.update(self._text(line(progress)))

    def _text(self, said: str) -> Text:
        """One line whatever its length, and no markup: a label may hold brackets."""
        return Text(f"{self._label}: {said}", no_wrap=True, overflow="ellipsis")


def line(p: Progress) -> str:
    """Progress as one line: trials, best, share of the roof, time left, failures by kind."""
    of = "" if p.budget_trials is None else f"/{p.budget_trials}"
    parts = [f"{p.phase}, {p.trials}{of} trials"]
    if math.isfinite(p.best_seconds):
        parts.append(
            f"best {duration(p.best_seconds)}, {p.gflops:.1f} GFLOP/s ({p.peak_fraction:.0%})"
        )
    left = eta(p)
    if left is not None:
        parts.append(f"{left:.0f} s left")
    parts += [f"{count} {kind}" for kind, count in p.failures.items()]
    return ", ".join(parts)


def eta(p: Progress) -> float | None:
    """Seconds until the first budget is spent, at the pace so far; None while that is unknown."""
    left = []
    if p.budget_seconds is not None:
        left.append(max(p.budget_seconds - p.seconds, 0.0))
    done = p.trials - p.known
    if p.budget_trials is not None and done > 0:
        left.append(max(p.budget_trials - p.trials, 0) * p.seconds / done)
    return min(left, default=None)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads well."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result's figures in words."""
    roof = "peak FLOP/s" if values["bound"] == "compute" else "memory bandwidth"
    if values.get("measured", "run") == "run":
        roof = f"measured {roof}"
    ahead = ", weights packed ahead" if values.get("prepacked") else ""
    failures = ", ".join(f"{n} {kind}" for kind, n in values["failures"].items()) or "0 failed"
    twins = f", {values['twins']} of known programs" if values.get("twins") else ""
    error = values["max_rel_error"]
    return [
        ("workload", values["workload"]),
        ("device", values["device"]),
        ("latency", f"{duration(values['best_seconds'])}, spread {values['spread']:.1%}"),
        ("speed", f"{values['gflops']:.1f} GFLOP/s"),
        (f"share of {roof}", f"{values['peak_fraction']:.1%}"),
        (f"speed-up over PyTorch{ahead}", _speedup(values)),
        ("largest error", "not checked" if error is None else f"{error:.1e}"),
        ("verified", _verified(values)),
        ("formulation", values["formulation"]),
        ("trials", f"{values['trials']}, {failures}{twins}"),
        ("tuning", f"{values['tuning_seconds']:.1f} s{_spent(values)}"),
        ("reused", "yes, from the database" if values["reused"] else "no"),
        *([("modelled, not measured", values["modelled"])] if "modelled" in values else []),
        *design(values.get("design")),
    ]


def _speedup(values: Mapping[str, Any]) -> str:
    """Over the fastest method, with its time and how that scattered; or why there is none."""
    peers, spreads = values["peers"], values.get("peer_spreads", {})
    if not peers:
        why = "".join(f": {reason}" for reason in set(values.get("missing", {}).values()))
        return f"not measured{why}"
    fastest = min(peers, key=lambda peer: peers[peer])
    scatter = f", spread {spreads[fastest]:.1%}" if fastest in spreads else ""
    return f"{values['speedup']:.2f}x ({duration(peers[fastest])}{scatter})"


def _verified(values: Mapping[str, Any]) -> str:
    """What computed and was checked."""
    measured = values.get("measured", "run")
    if measured == "model":
        checked = "yes, in emulation" if values["verified"] else "no"
        return f"{checked}; the time is predicted by a model"
    how = " by simulation" if measured == "rtl" else ""
    return f"yes{how}" if values["verified"] else "no"


def design(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What is known of a design for an FPGA in words; nothing for kernels."""
    if values is None:
        return []
    clock, has = f"{values['clock_mhz']:.0f} MHz, an assumption", values["available"]
    busy = ", ".join(f"{n} {c:,}" for n, c in values["busy"].items())
    taken = ", ".join(f"{n} of {has[name]} {name}" for name, n in values["resources"].items())
    found = [
        ("throughput", f"{values['gmacs']:.1f} GMAC/s in {values['dtype']} at {clock}"),
        ("bound", values["bound"]),
        ("cycles", f"{values['cycles']:,}, predicted {values['predicted_cycles']:,}"),
        ("busy", busy),
        ("multipliers", f"{values['multipliers']}, used {values['array_use']:.1%} of the time"),
        ("takes of what it may", taken),
    ]
    if "synthesised" in values:
        names = ", ".join(f"{n} {name}" for name, n in values["synthesised"].items())
        found.append(("synthesised", names))
    return found


def _spent(values: Mapping[str, Any]) -> str:
    """What a search spent its time on, and why it ended, where the result says."""
    shares = values.get("shares", {})
    spent = "".join(f", {share:.0%} {name}" for name, share in shares.items())
    return spent + (f"; ended: {values['stopped']}" if "stopped" in values else "")


def table(label: str, values: Mapping[str, Any]) -> None:
    """Print the result of a tuning on stdout."""
    shown = Table(title=Text(label), show_header=False, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows(values):
        shown.add_row(name, Text(value))
    Console().print(shown)


class Rows:
    """The results of a suite on stdout, one row each as they come, within 80 columns."""

    _FORMAT = "{:<16}{:>9}{:>9}{:>8}{:>9}{:>9}{:>7}{:>7} {}"
    _HEAD = ("case", "latency", "GFLOP/s", "roof", "x torch", "error", "trials", "s", "")

    def __init__(self) -> None:
        self._started = False

    def __call__(self, label: str, values: Mapping[str, Any]) -> None:
        """Print the row of one case, the first below a header."""
        if not self._started:
            print(self._FORMAT.format(*self._HEAD).rstrip())
        self._started = True
        error, speedup = values["max_rel_error"], values["speedup"]
        notes = "" if values["verified"] else "?"
        cells: Sequence[str] = (
            label,
            duration(values["best_seconds"]),
            f"{values['gflops']:.1f}",
            f"{values['peak_fraction']:.0%}{'c' if values['bound'] == 'compute' else 'm'}",
            "-" if speedup is None else f"{speedup:.2f}",
            "-" if error is None else f"{error:.0e}",
            str(values["trials"]),
            f"{values['tuning_seconds']:.0f}",
            notes + ("r" if values["reused"] else ""),
        )
        print(self._FORMAT.format(*cells).rstrip(), flush=True)


def finite(value: Any) -> Any:
    """`value` with null for what JSON cannot write: infinities and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(values: Mapping[str, Any]) -> str:
    """A result as one line of strict JSON."""
    return json.dumps(finite(values), allow_nan=False)


def json_line(label: str, values: Mapping[str, Any]) -> None:
    """Print a result on stdout as one JSON object; the object has its own label."""
    print(to_json(values), flush=True)


def operator(cls: type[Operator]) -> None:
    """Print what an operator computes, its fields, and the cases of suites that it has."""
    from flextensor.operators.suites import cases, suites

    print(f"{cls.name}: {' '.join((cls.__doc__ or '').split())}\n")
    for field in dataclasses.fields(cls):
        print(f"  {field.name:16s}{field.type!s:6s}default {field.default}")
    for suite in suites():
        names = [c.full_name for c in cases(suite) if c.family == cls.name]
        if names:
            print(f"\n  --case {' '.join(names)}")
