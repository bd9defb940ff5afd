"""What every operator of the registry must do; a new one is run through it by being registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from flextensor.errors import InputError
from flextensor.operators import Einsum, Operator, Workload, parse, registry
from flextensor.operators.base import DTYPES
from flextensor.testing import OperatorCase

NAMES = sorted(registry())
SMALL = {
    "batch": st.integers(1, 2),
    "kernel": st.integers(1, 4),
    "stride": st.integers(1, 3),
    "padding": st.integers(0, 2),
    "output_padding": st.integers(0, 1),
    "dilation": st.sampled_from([1, 1, 2]),
    "groups": st.sampled_from([1, 1, 2, 3]),
    "multiplier": st.integers(1, 3),
    "block": st.integers(1, 4),
    "dtype": st.sampled_from(DTYPES),
}
EQUATIONS = ["bij,bjk->bik", "ij->i", "ij,ij->", "ij->ji", "i,j->ij", "i,ij,jk->k", "ab,bcd->dca"]


@st.composite
def operators(draw: st.DrawFn, name: str) -> Operator:
    """A legal operator with small and awkward sizes."""
    cls = registry()[name]
    if cls is Einsum:
        equation = draw(st.sampled_from(EQUATIONS))
        letters = sorted({i for i in equation if i.isalpha()})
        return Einsum.of(equation, **{i: draw(st.integers(1, 7)) for i in letters})
    values: dict[str, Any] = {
        f.name: draw(st.booleans() if f.type == "bool" else SMALL.get(f.name, st.integers(1, 9)))
        for f in dataclasses.fields(cls)
    }
    for field in {"in_channels", "out_channels"} & set(values):
        values[field] = draw(st.integers(1, 3)) * values.get("groups", 1)
    try:
        return cls(**values)
    except InputError:
        assume(False)
        raise


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_formulation_computes_the_reference(
    name: str, data: st.DataObject, error_of: Callable[[Workload, str], float]
) -> None:
    workload = Workload(data.draw(operators(name)))
    for formulation in workload.formulations:
        error = error_of(workload, formulation)
        assert error <= workload.tolerance(1e-5), (workload.key, formulation)


class TestRegistered(OperatorCase):
    @pytest.fixture(params=NAMES)
    def operator(self, request: pytest.FixtureRequest) -> Operator:
        return shrunk(registry()[request.param])


def shrunk(cls: type[Operator]) -> Operator:
    """The defaults of an operator with no extent above 9 and no channels above 8."""
    if cls is Einsum:
        return Einsum.of("bij,bjk->bik", b=2, i=5, j=9, k=7)
    values: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(cls)}
    for field, value in values.items():
        if type(value) is int:
            values[field] = min(value, 8 if "channels" in field else 9)
    return cls(**values)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_legal_and_text_gives_them_back(name: str) -> None:
    operator = registry()[name]()
    assert parse(name, {k: str(v) for k, v in operator.params().items()}) == operator
