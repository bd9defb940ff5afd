from __future__ import annotations

from pathlib import Path

import pytest

from flextensor import targets
from flextensor.targets import Target, peaks


@pytest.fixture
def target() -> Target:
    return targets.lookup("llvm")


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured; the values are invented."""
    calls: list[str] = []

    def measure(target: Target, what: str) -> float:
        calls.append(what)
        return 1e9 + len(calls)

    monkeypatch.setattr(peaks, "_in_worker", measure)
    return calls


def test_each_value_is_measured_once_per_fingerprint(target: Target, measured: list[str]) -> None:
    for _ in range(2):
        assert [target.peak_flops(), target.bandwidth(), target.peak_flops("float64")] == [
            1e9 + 1,
            1e9 + 2,
            1e9 + 3,
        ]
    assert measured == ["float32", "bandwidth", "float64"]
    other = targets.load(targets.dump(target) | {"model": "another"})
    assert other.peak_flops() == 1e9 + 4


def test_the_highest_reading_is_kept(
    target: Target, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    low = target.peak_flops(), target.bandwidth()
    target.remeasure()
    high = target.peak_flops(), target.bandwidth()
    assert high > low
    monkeypatch.setattr(peaks, "_in_worker", lambda target, what: 1.0)
    target.remeasure()
    assert (target.peak_flops(), target.bandwidth()) == high


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_cache_is_measured_again(
    target: Target, measured: list[str], content: str
) -> None:
    target.peak_flops()
    (path,) = peaks.cache_folder().iterdir()
    path.write_text(content)
    assert target.peak_flops() == 1e9 + 2
    assert target.peak_flops() == 1e9 + 2


def test_a_cache_that_cannot_be_written_costs_one_measurement_in_every_process(
    target: Target, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [target.peak_flops(), target.peak_flops(), target.bandwidth()] == [
        1e9 + 1,
        1e9 + 1,
        1e9 + 2,
    ]
    assert measured == ["float32", "bandwidth"], "once in a process"
