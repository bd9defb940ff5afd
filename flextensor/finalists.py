"""The end of a tuning: which trials are timed again, and how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flextensor.answers import config_key
from flextensor.errors import DeviceError
from flextensor.measure import Candidate, LocalMeasurer
from flextensor.targets import Trial
from flextensor.targets.process import SetupFailed

MOST = 3
"""Trials that are timed again in turns."""
SLOWER = 2.0
"""How many times slower than the fastest a long trial may be, to be one of them: seven turns of a
formulation that had lost took longer than the search."""
LONG_SECONDS = 5e-3
"""From which a trial is long; shorter ones cost nothing, and may be noise by more than that."""


def once(trials: Iterable[Trial]) -> list[Trial]:
    """Of every schedule the latest trial."""
    return list({config_key(trial): trial for trial in trials}.values())


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """What worked, fastest first; of one program the trial that was run."""
    ran = {t.times for t in trials if not t.twin}
    worked = (t for t in trials if t.ok and not (t.twin and t.times in ran))
    return sorted(worked, key=lambda t: t.seconds)


def groups(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """What is timed together, of trials fastest first: a few at a time, and of long ones none that
    took twice as long as the first."""
    rest = list(trials)
    while rest:
        limit = max(SLOWER * rest[0].seconds, LONG_SECONDS)
        group = [t for t in rest[:MOST] if t.seconds < limit or t is rest[0]]
        yield group
        rest = rest[len(group) :]


def revoked(trial: Trial, now: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """What a trial that worked is `now`, and all others of its program among `trials` are too."""
    same = (t for t in trials if t.twin and t.ok and t.times == trial.times and t is not trial)
    return [now, *(now.as_twin(t.formulation, t.config, t.build_seconds) for t in same)]


def in_turns(
    measurer: LocalMeasurer, finalists: Mapping[str, Candidate], peers: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, DeviceError]]:
    """`LocalMeasurer.compare`; where the process of all dies, for a kernel or for a peer, seconds
    of the kernels alone, each in a process of its own, and what failed there."""
    try:
        return *measurer.compare(finalists, peers), {}
    except SetupFailed:  # the worker or its machine is gone, whatever the kernels
        raise
    except DeviceError as error:
        missing = {peer: f"a comparison failed: {error}" for peer in peers}
    times: dict[str, list[float]] = {}
    failed: dict[str, DeviceError] = {}
    for name, candidate in finalists.items():
        try:
            times |= measurer.compare({name: candidate})[0]
        except SetupFailed:
            raise
        except DeviceError as error:
            failed[name] = error
    return times, missing, failed
