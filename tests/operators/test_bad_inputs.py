"""Whatever is wrong with an operator's parameters is said in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from flextensor.errors import InputError, UnsupportedError
from flextensor.operators import (
    BlockCirculant,
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Einsum,
    Gemm,
    Gemv,
    ShiftConv2d,
    Workload,
    parse,
    register,
)

HUGE = 2**31 - 1
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: parse("gem", {}), "unknown operator 'gem'; did you mean"),
    (
        lambda: parse("conv2d", {"heigth": "3"}),
        "unknown field of conv2d 'heigth'; did you mean hei",
    ),
    (lambda: parse("gemm", {"m": "3.5"}), "gemm: m must be an integer, got '3.5'"),
    (lambda: parse("gemm", {"relu": "yes"}), "gemm: relu must be true or false, got 'yes'"),
    (lambda: Gemm(m=0), "gemm: m must be between 1 and"),
    (lambda: Gemm(m=2.0), "gemm: m must be an integer"),  # type: ignore[arg-type]
    (lambda: Gemm(m=True), "gemm: m must be an integer"),
    (lambda: Gemm(bias=1), "gemm: bias must be true or false"),  # type: ignore[arg-type]
    (lambda: Einsum(3), "einsum: equation must be a string"),  # type: ignore[arg-type]
    (lambda: Conv2d(padding=-1), "conv2d: padding must be between 0 and"),
    (lambda: Conv2d(groups=5), "in_channels=64 is not divisible by groups=5"),
    (lambda: Conv2d(out_channels=9, groups=2), "out_channels=9 is not divisible by groups=2"),
    (lambda: Conv2d(height=4, dilation=2), "the window spans 5"),
    (lambda: DepthwiseConv2d(width=2), "the window spans 3"),
    (lambda: ShiftConv2d(height=1, kernel=2), "the window spans 2"),
    (lambda: ConvTranspose2d(output_padding=1), "must be smaller than stride=1 or dilation=1"),
    (lambda: ConvTranspose2d(padding=60), "the output would be [-89, -89]"),
    (lambda: BlockCirculant(block=300), "block=300 is larger than cols=256"),
    (lambda: Einsum("ij,jk->il", "i=1,j=2,k=3"), "output index l"),
    (lambda: Einsum("ii->i", "i=3"), "index i occurs twice in operand 'ii'"),
    (lambda: Einsum("ij->jj", "i=3,j=3"), "index j occurs twice in the output"),
    (lambda: Einsum("i...->i", "i=3"), "is not letters"),
    (lambda: Einsum("i->i->i", "i=3"), "is not letters"),
    (lambda: Einsum("i,->i", "i=3"), "has no indices"),
    (lambda: Einsum("ij->j", "i=3"), "no size for j"),
    (lambda: Einsum("i->i", "i=3,k=2"), "size given for k"),
    (lambda: Einsum("i->i", "i=3,i=2"), "index i has two sizes"),
    (lambda: Einsum("i->i", "i:3"), "cannot read the size 'i:3'"),
    (lambda: Einsum("i->i", "i=0"), "i must be between 1 and"),
    (lambda: Workload(Gemm(m=HUGE, n=HUGE)), "GiB, this machine has"),
    (lambda: Workload(Conv1d(length=HUGE, padding=HUGE)), "GiB, this machine has"),
    (lambda: Workload(ConvTranspose1d(length=HUGE, stride=HUGE)), "GiB, this machine has"),
    (lambda: Workload(Gemm()).prim_func("dirct"), "unknown formulation of gemm 'dirct'; did you"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_parameters_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_elements_than_an_index_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 2**30)
    with pytest.raises(InputError, match=r"more than 2\*\*31 - 1 elements"):
        Workload(Gemv(50_000, 50_000))


def test_inputs_and_reference_that_fit_only_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"SC_PAGE_SIZE": 2**20, "SC_PHYS_PAGES": 15}
    monkeypatch.setattr("flextensor.operators.workload.os.sysconf", room.__getitem__)
    with pytest.raises(UnsupportedError, match="^gemm: inputs and the float64 reference need 0.0"):
        Workload(Gemm(m=1024, n=1024, k=1024))  # 4 + 4 + 8 MiB
    Workload(Gemm(m=1024, n=1024, k=512))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'gemm' registered twice"):
        register(Gemm)


def test_einsum_is_canonical() -> None:
    assert Einsum("ij, jk", "k=4, i=2, j=3") == Einsum.of("ij,jk->ik", i=2, j=3, k=4)
    fields = {"equation": "ij,jk->ik", "i": "2", "j": "3", "k": "4"}
    assert parse("einsum", fields) == Einsum.of("ij,jk->ik", i=2, j=3, k=4)


def test_importing_operators_imports_no_framework() -> None:
    code = "import flextensor.operators, sys; print({'tvm', 'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
