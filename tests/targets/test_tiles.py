"""The kernel that measures what tile registers multiply at most."""

from __future__ import annotations

import re

import pytest

from flextensor.targets import tiles


@pytest.mark.parametrize(("dtype", "name"), [("int8", "tdpbssd"), ("bfloat16", "tdpbf16ps")])
def test_the_kernel_of_the_peak_multiplies_tiles(dtype: str, name: str) -> None:
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    text = tvm.compile(tiles.products(dtype, 2, 8), target=target).mod.inspect_source("s")
    found = re.findall(rf"^\s+{name}\s+(%tmm\d), (%tmm\d), (%tmm\d)", text, re.MULTILINE)
    assert {sums for _, _, sums in found} == {f"%tmm{tile}" for tile in range(4)}
    assert {operand for *pair, _ in found for operand in pair} == {f"%tmm{t}" for t in (4, 5, 6, 7)}
    assert len(re.findall(r"^\s+tileloadd", text, re.MULTILINE)) == 4
    assert "tilestored" in text and "ldtilecfg" in text and "tilerelease" in text
