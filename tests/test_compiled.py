"""compiled: what a program is known by, on every target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flextensor import compiled
from flextensor.operators import Gemm, Workload
from flextensor.schedulers import spaces
from flextensor.schedulers.space import Point
from flextensor.targets import Target, lookup


def target_of(spec: str) -> Target:
    found = lookup(spec)
    return dataclasses.replace(found, emulated=True) if spec.startswith("cuda") else found  # type: ignore[call-arg]


@pytest.mark.parametrize("spec", ["llvm", "opencl", "cuda:sm_80"])
def test_a_digest_is_of_the_program_and_of_nothing_else(spec: str, tmp_path: Path) -> None:
    target, workload = target_of(spec), Workload(Gemm(m=24, n=32, k=16))
    space, func = spaces(workload, target)["direct"], workload.prim_func()
    first = space.point(space.seeds[0])

    def digest(number: int, point: Point) -> str:
        path = tmp_path / f"kernel{number}.so"
        compiled.build(func, target, space.config(point), path)
        return compiled.digest(path)

    assert digest(0, first) == digest(1, first)
    others = space.neighbours(first)[-3:]
    assert {digest(n, point) for n, point in enumerate(others)} - {digest(0, first)}


def test_a_digest_is_of_what_is_packed_ahead_too(tmp_path: Path) -> None:
    path = tmp_path / "kernel.so"
    path.write_bytes(b"the same code")
    bare = compiled.digest(path)
    found = []
    for shape in (4, 8):
        path.with_suffix(".json").write_text(f'{{"packed": [[{shape}], "float32"]}}')
        found.append(compiled.digest(path))
    assert len({bare, *found}) == 3
