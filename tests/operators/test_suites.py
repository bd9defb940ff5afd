"""The suites hold the paper's shapes, and the operators count arithmetic as the paper does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from flextensor.errors import InputError
from flextensor.operators import Conv2d, Workload, case, cases, registry, suites

PAPER = {
    "gemv": 6, "gemm": 7, "bilinear": 5, "conv1d": 7, "conv_transpose1d": 7, "conv2d": 15,
    "conv_transpose2d": 15, "group_conv2d": 14, "conv3d": 8, "conv_transpose3d": 8,
    "depthwise_conv2d": 7, "dilated_conv2d": 11, "block_circulant_matrix": 6, "shift_conv2d": 4,
}  # fmt: skip


def test_paper_suite_is_the_paper() -> None:
    assert sum(PAPER.values()) == len(cases("paper")) == 120
    assert {family: len(cases("paper", family)) for family in PAPER} == PAPER


@pytest.mark.parametrize("suite", suites())
def test_names_are_unique_and_lead_back(suite: str) -> None:
    every = cases(suite)
    assert len({c.name for c in every}) == len(every)
    assert all(case(c.full_name) == c for c in every)


@pytest.mark.parametrize("suite", ["paper", "extra", "overfeat", "smoke"])
def test_flops_are_twice_the_published_macs(suite: str) -> None:
    for c in cases(suite):
        assert c.macs is not None
        assert c.operator.flops() == 2 * c.macs, c.full_name


@pytest.mark.parametrize("suite", suites())
def test_every_case_is_a_legal_workload(suite: str) -> None:
    keys = [Workload(c.operator).key for c in cases(suite)]
    assert len(set(keys)) == len(keys)


def test_smoke_is_the_first_paper_case_of_every_family() -> None:
    assert [c.family for c in cases("smoke")] == list(PAPER)
    assert [c.operator for c in cases("smoke")] == [cases("paper", f)[0].operator for f in PAPER]
    assert set(PAPER) <= set(registry())


def test_known_shapes() -> None:
    c8 = case("paper/C8")
    assert c8.full_name == "paper/C8" and c8.family == "conv2d"
    assert Workload(c8.operator).buffers[-1].shape == (1, 512, 28, 28)
    assert Workload(case("paper/DIL2").operator).buffers[-1].shape == (1, 512, 54, 54)
    assert Workload(case("paper/T1").operator).buffers[-1].shape == (1, 3, 447, 447)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paper/C88", "unknown case of suite paper 'C88'; did you mean C8?"),
        ("papr/C8", "unknown suite 'papr'; did you mean paper?"),
        ("C8", "a case is written suite/name, as paper/C8; got 'C8'"),
    ],
)
def test_unknown_cases(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        case(name)
    assert str(error.value) == message


def test_unknown_family() -> None:
    with pytest.raises(InputError, match="unknown family of suite overfeat 'gemm'; known: conv2d"):
        cases("overfeat", "gemm")


def test_made_suites_are_what_their_script_makes() -> None:
    made = runpy.run_path(str(Path(__file__).parents[1] / "assets" / "make_suites.py"))
    for name, content in made["suites"]().items():
        assert made["SUITES"].joinpath(f"{name}.json").read_text() == made["text"](content)


def test_rounded_is_the_round_neighbour_of_pruned() -> None:
    assert len(cases("pruned")) == 24
    for odd, whole in zip(cases("pruned"), cases("rounded"), strict=True):
        assert odd.name == whole.name
        assert isinstance(odd.operator, Conv2d) and isinstance(whole.operator, Conv2d)
        assert odd.operator.in_channels % 2 == odd.operator.out_channels % 2 == 1
        assert whole.operator.in_channels % 16 == whole.operator.out_channels % 16 == 0
        assert 0 < whole.operator.in_channels - odd.operator.in_channels < 16
