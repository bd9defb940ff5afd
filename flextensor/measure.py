"""The measuring seam: candidates in, trials out. A test replaces it by a fake or a replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flextensor.targets.base import Trial


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A point to measure: a formulation and a configuration of its space."""

    formulation: str
    config: Mapping[str, Any]


class Measurer(Protocol):
    """Builds and times candidates. Never raises for a bad candidate: that is a `Trial`."""

    def measure(self, candidates: Sequence[Candidate], best_seconds: float) -> list[Trial]:
        """One trial per candidate, in order.

        A candidate clearly slower than `best_seconds` (median, may be inf) is abandoned early:
        its trial is ``ok`` with fewer times.
        """

    def close(self) -> None:
        """Stop every worker process."""
