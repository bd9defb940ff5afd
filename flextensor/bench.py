"""`bench`: every case of a suite beside its peers, as raw data, a table and a picture."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextensor import bench_plots, convergence, report
from flextensor.bench_page import markdown
from flextensor.errors import DeviceError, InputError
from flextensor.results import header, make, now, write

if TYPE_CHECKING:
    from flextensor.builders import Builders
    from flextensor.database import Database
    from flextensor.operators.suites import Case
    from flextensor.result import Result
    from flextensor.targets import Target

TOLERANCE = 1e-4
"""That of `tune`, unless another one is asked for."""
INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def run(
    suite: str,
    *,
    family: str | None,
    names: Sequence[str] | None,
    target: str,
    time: float | None,
    trials: int | None,
    threads: int | None,
    out: Path,
    db: Path | None,
    peers: Sequence[str] | None = None,
    peer_trials: int = 64,
    prepacked: bool = False,
    dtype: str | None = None,
    tolerance: float = TOLERANCE,
    command: Sequence[str],
) -> int:
    """Tune every case; write OUT/data.json after each, then the table and the picture.

    A case that fails is recorded with its reason. A run that was killed goes on where it stood:
    what is solved answers from the database, and what was recorded of that result on the same
    machine with the same versions stays until it is measured again. `peers` are measured besides
    the one that `tune` compares with; `prepacked` takes the cases that have weights, and packs them
    ahead; `dtype` takes those that have one, in that one; `tolerance` is that of `tune`.
    Returns the exit code: 1 when a case failed.
    """
    from flextensor import operators, peer_libraries, tuner
    from flextensor.builders import Builders
    from flextensor.cli_options import with_weights
    from flextensor.peers import methods
    from flextensor.result import opened
    from flextensor.targets import lookup

    wanted = methods(peers or ())
    if prepacked and peers and set(peers) != {"torch-prepacked"}:
        raise InputError("--prepacked is compared with torch-prepacked only")
    chosen = operators.cases(suite, family, names, dtype)
    if prepacked:
        kept = {label for label, _ in with_weights([(c.full_name, c.operator) for c in chosen])}
        chosen = [c for c in chosen if c.full_name in kept]
    device = lookup(target, threads)
    peer_libraries.check(wanted, device)
    make(out)
    peak = device.bound(dtype or "float32")  # as `result.roofline`
    device.remeasure(peak)
    data = {
        **header(device, command, peak),
        "prepacked": prepacked,
        "dtype": dtype or "float32",
        "tolerance": tolerance,
        "cases": [],
    }
    done = {c["case"]: c for c in _recorded(out / "data.json", data)}
    order = [c.full_name for c in operators.cases(suite)]
    code = 0
    with opened(db) as database, Builders(device) as builders:
        for number, case in enumerate(chosen, 1):
            label = f"[{number}/{len(chosen)}] {case.full_name}"
            try:
                values = _measure(
                    case,
                    label,
                    device,
                    trials,
                    time,
                    database,
                    builders,
                    peers,
                    peer_trials,
                    prepacked,
                    tolerance,
                )
            except (tuner.Interrupted, KeyboardInterrupt):
                code = INTERRUPTED
                break
            if values.get("reused") and not peers:  # nothing was measured now
                values = _newest(values, done.get(case.full_name))
            if "failure" in values:
                code, said = 1, f"failed: {values['failure']}"
            else:
                said = summary(values)
            print(f"{label:24s}{said}", file=sys.stderr, flush=True)
            done[case.full_name] = values
            data["cases"] = [done[name] for name in order if name in done]
            write(out / "data.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    data["cases"] = [done[name] for name in order if name in done]
    write(out / "README.md", markdown(suite, data))
    bench_plots.speedups(data["cases"], out / "speedup.png")
    bench_plots.roofline(data, out / "roofline.png")
    return code


def folder(
    suite: str,
    target: str,
    prepacked: bool = False,
    dtype: str | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Where the results of a suite go unless something else is said: results/<suite>, under a
    folder of the target's kind where that is no CPU, and named by what is special about them."""
    kind = target.partition(":")[0]
    root = Path("results") if kind == "llvm" else Path("results") / kind
    special = [*["prepacked"] * prepacked, *([dtype] if dtype else [])]
    if tolerance != TOLERANCE:
        special.append(f"within-{tolerance:g}")
    return root / "-".join([suite, *special])


def _measure(
    case: Case,
    label: str,
    device: Target,
    trials: int | None,
    time: float | None,
    database: Database,
    builders: Builders,
    peers: Sequence[str] | None,
    peer_trials: int,
    prepacked: bool,
    tolerance: float,
) -> dict[str, Any]:
    """The JSON object of one case, with its failure where its peers cannot be timed beside it; or
    its name, operator and the reason of its failure."""
    from flextensor import tuner

    try:
        with report.Live(label) as live:
            result = tuner.tune(
                case.operator, target=device, trials=trials, time=time, db=database,
                prepacked=prepacked, tolerance=tolerance, builders=builders, progress=live.update,
            )  # fmt: skip
    except tuner.Interrupted:
        raise
    except Exception as error:  # a fault in one case must not cost the others their results
        return {"case": case.full_name, "operator": case.family, "failure": _reason(error)}
    values: dict[str, Any] = {"date": now(), **report.finite(result.json())}
    if peers:
        try:
            found = beside(result, peers, peer_trials, builders)
            _race(found, result, database)
            values["beside"] = found
        except Exception as error:  # nor one beside its peers the case its own
            values["failure"] = _reason(error)
    return {**values, "case": case.full_name}


def _reason(error: Exception) -> str:
    """Why a case failed, in one line."""
    reason = " ".join(str(error).split()) or "no reason given"
    kind = "" if type(error).__module__ == "flextensor.errors" else f"{type(error).__name__}: "
    return kind + reason


def _newest(values: dict[str, Any], recorded: dict[str, Any] | None) -> dict[str, Any]:
    """What was recorded of a result that the database has, with its peers; the result alone where
    that is of another search or of another timing, or says of a failure."""
    if recorded is None or "failure" in recorded:
        return values
    same = all(recorded.get(n) == values.get(n) for n in ("session", "best_seconds"))
    return recorded if same else values


def beside(
    result: Result, peers: Sequence[str], trials: int, builders: Builders | None = None
) -> dict[str, Any]:
    """A result's kernel and peers, timed in turns: medians in seconds.

    {"seconds", "peers": {peer: {"method", "seconds", "ratio"}}, "methods": {method: seconds},
    "missing": {method: why it failed}, "searches": {method: {"trials", "seconds"}}}; a ratio
    above 1 says that the kernel is faster. A peer that cannot compute the operator is left out;
    one that searches measures `trials` candidates.
    """
    from flextensor import peer_libraries
    from flextensor.measure import Candidate, LocalMeasurer
    from flextensor.peers import fastest, methods

    wanted = methods(peers)
    built = peer_libraries.built(wanted)
    own = Candidate(result.values["formulation"], result.values["config"])
    libraries: dict[str, Path] = {}
    searches: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with LocalMeasurer(result.workload, result.target, math.inf, builders=builders) as measurer:
        for method in built:
            path = measurer.folder / f"{method}.so"
            try:
                if took := peer_libraries.build(method, measurer, trials, path):
                    searches[method] = took
                libraries[method] = path
            except DeviceError as error:
                failed[method] = str(error)
        calls = [method for method in wanted if method not in built]
        times, missing = measurer.compare({"flextensor": own}, calls, libraries=libraries)
    medians = {name: statistics.median(t) for name, t in times.items()}
    seconds = medians.pop("flextensor")
    found = {peer: fastest(peer, medians) for peer in peers}
    return {
        "seconds": seconds,
        "peers": {
            peer: {"method": best[0], "seconds": best[1], "ratio": best[1] / seconds}
            for peer, best in found.items()
            if best is not None
        },
        "methods": medians,
        "missing": missing | failed,
        "searches": searches,
    }


def _race(found: dict[str, Any], result: Result, database: Database) -> None:
    """Add to what a peer's search took when the search of a result had a kernel as fast as the
    peer's: "overtaken", wall seconds since it began, or None where it never had. Nothing is added
    where the database does not have that search, or it went on from an earlier one's trials."""
    raced = found["searches"].keys() & found["methods"].keys()
    if not raced:
        return
    runs = convergence.searches(database.everything(), result.target.fingerprint, newest=True)
    own = next((run for run in runs if run["case"] == result.workload.key), None)
    if own is not None and not own["known"]:
        for method in raced:
            slower = found["methods"][method] / found["seconds"]
            found["searches"][method]["overtaken"] = convergence.overtakes(own, slower)


def _recorded(path: Path, today: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases in an older `path`, if the same versions measured them on the same machine."""
    try:
        old = json.loads(path.read_text())
        same = (
            old["machine"]["fingerprint"] == today["machine"]["fingerprint"]
            and old["versions"] == today["versions"]
            and old.get("prepacked", False) == today["prepacked"]
            and old.get("dtype", "float32") == today["dtype"]
            and old.get("tolerance", TOLERANCE) == today["tolerance"]
        )
        return [dict(c) for c in old["cases"] if "case" in c] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def summary(values: Mapping[str, Any]) -> str:
    """One case as one line."""
    speedup = f"{values['speedup']:.2f}x" if values["speedup"] else "-"
    return (
        f"{report.duration(values['best_seconds']):>10s} {values['gflops']:8.1f} GFLOP/s"
        f" {speedup:>8s} {values['trials']:4d} trials {values['tuning_seconds']:6.1f} s"
        + (" reused" if values["reused"] else "")
    )
