"""Timing in turns: everybody gets the same number of repeats, and who spins gets time to stop."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flextensor import peers, timing
from flextensor.targets.runtime import Runtime
from flextensor.timing import Clock, Runner, interleave, time_kernel


class Host(Runtime):
    """Whose clock is that of the host, and which never has to wait."""

    def load(self, path: Path) -> Any:
        raise NotImplementedError

    def place(self, array: Any) -> Any:
        raise NotImplementedError

    def sync(self) -> None:
        pass


class Scripted(Clock):
    """A clock that says what it is told, and counts how often it was asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__(lambda: None, Host())
        self.seconds, self.asked = seconds, 0

    def run(self, number: int) -> float:
        self.asked += number
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "best", "repeats"),
    [(0.3, 0.05, 0), (0.05, 0.02, 1), (0.019, 1e-4, 1), (0.15, 0.14, 2), (0.4, 0.4, 2)],
)
def test_a_slow_candidate_costs_few_calls(seconds: float, best: float, repeats: int) -> None:
    """Nothing beyond its first call where that says enough; long calls need few repeats."""
    clock = Scripted(seconds)
    times, message = time_kernel(clock, best, first=seconds)
    assert message.startswith("abandoned") == (seconds > 2 * best)
    assert len(times) == max(repeats, 1)
    assert repeats or clock.asked == 0


def test_turns_are_shared_and_who_spins_is_given_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str | float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: order.append(seconds))
    clocks = {
        name: Clock(lambda name=name: order.append(name), Host(), rest)  # type: ignore[misc]
        for name, rest in (("ours", 0.0), ("blas", 0.5))
    }
    times = interleave(clocks, rounds=2, warm=0.0)
    assert {name: len(found) for name, found in times.items()} == {"ours": 6, "blas": 6}
    turns = [now for now, before in zip(order, [None, *order], strict=False) if now != before]
    assert turns == ["ours", 0.0, "blas", 0.5, "blas", 0.5, "ours", 0.0]


class Disturbed(Clock):
    """Takes twice as long in every other turn of two calls, of the first `until` calls."""

    def __init__(self, until: int) -> None:
        super().__init__(lambda: None, Host())
        self.until, self.ran = until, 0

    def run(self, number: int) -> float:
        self.ran += 1
        return 0.2 if self.ran <= self.until and (self.ran - 1) // 2 % 2 else 0.1


@pytest.mark.parametrize(("until", "rounds"), [(0, 4), (8, 11), (1000, 12)])
def test_what_scatters_is_timed_in_more_rounds(until: int, rounds: int) -> None:
    """Until the median means something, as many as are allowed, for all alike."""
    clocks = {"ours": Disturbed(until), "torch": Disturbed(0)}
    times = interleave(clocks, rounds=4, warm=0.0, most=12)
    assert len(times["ours"]) == rounds  # a call of 0.1 s is timed once a turn
    assert times["torch"] == [0.1] * rounds


class Tick(Clock):
    """Every call takes as long on a clock that all share."""

    now = 0.0

    def __init__(self, *seconds: float) -> None:
        super().__init__(lambda: None, Host())
        self.seconds = [*seconds]

    def run(self, number: int) -> float:
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        Tick.now += number * seconds
        return seconds


def test_long_calls_have_few_turns_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 8192 takes 5 s: 84 calls of it and its peers took longer than the search."""
    monkeypatch.setattr(time, "perf_counter", lambda: Tick.now)
    monkeypatch.setattr(Tick, "now", 0.0)
    times = interleave({name: Tick(5.0) for name in "abcd"}, rounds=7, warm=0.05, most=21)
    assert times == {name: [5.0] * timing.FEW_ROUNDS for name in "abcd"}
    assert Tick.now == 2 * timing.FEW_ROUNDS * 4 * 5.0
    short = interleave({name: Tick(1e-3) for name in "abcd"}, rounds=7, warm=0.05, most=21)
    assert {len(found) for found in short.values()} == {3 * 7}


def test_more_rounds_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of 2 s and 4 s, which never are steady: the fourth ends after more than 10 s."""
    monkeypatch.setattr(time, "perf_counter", lambda: Tick.now)
    monkeypatch.setattr(Tick, "now", 0.0)
    times = interleave({"a": Tick(*[1.0, 1.0, 2.0, 2.0] * 6)}, rounds=3, warm=0.0, most=12)
    assert times == {"a": [1.0, 2.0, 1.0, 2.0]}


def test_a_long_first_call_makes_no_long_kernel() -> None:
    """Threads that wake up, or a driver that compiles."""
    assert interleave({"a": Tick(0.4, 1e-3)}, rounds=1, warm=0.0) == {"a": [1e-3] * 3}


def test_a_machine_without_pytorch_times_kernels_and_names_the_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    runner = Runner()
    monkeypatch.setattr(runner, "_clock", lambda path: Clock(lambda: None, Host()))
    call = {"kernels": {"ours": "k.so"}, "peers": ["torch"], "rounds": 2, "warm": 0.0}
    reply = runner.interleave(call)
    assert len(reply["times"]["ours"]) == 6
    assert reply["missing"] == {"torch": "PyTorch is not installed where the device is"}


def test_what_spins_is_a_method_of_a_peer() -> None:
    assert set(peers.SPINS) <= {method for own in peers.PEERS.values() for method in own}
