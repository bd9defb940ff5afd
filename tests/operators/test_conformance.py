"""What every operator of the registry must do; a new one is run through it by being registered."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from flextensor.errors import InputError
from flextensor.operators import Einsum, Operator, Workload, parse, registry

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
        assert error_of(workload, formulation) < 1e-5, (workload.key, formulation)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_legal_and_text_gives_them_back(name: str) -> None:
    operator = registry()[name]()
    workload = Workload(operator)
    assert parse(name, {k: str(v) for k, v in workload.params.items()}) == operator
    assert workload.key.startswith(f"{name}(") and "\n" not in workload.key
    assert workload.formulations[0] == "direct"
    assert workload.flops >= 0 and workload.bytes > 0
    assert pickle.loads(pickle.dumps(workload)) == workload


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_documented_types_and_frozen(name: str) -> None:
    operator = registry()[name]()
    assert type(operator).name == name and type(operator).__doc__
    fields = dataclasses.fields(operator)
    assert fields and {f.type for f in fields} <= {"int", "bool", "str"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(operator, fields[0].name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_programs_have_the_buffers_that_the_workload_says(name: str) -> None:
    workload = Workload(registry()[name]())
    for formulation in workload.formulations:
        params = workload.prim_func(formulation).params
        shapes = [tuple(int(n) for n in p.shape) for p in params]
        assert shapes == [b.shape for b in workload.buffers]
        assert [str(p.dtype) for p in params] == [b.dtype for b in workload.buffers]
        assert workload.prim_func(formulation) is workload.prim_func(formulation)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=1, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_inputs_follow_the_seed(name: str, data: st.DataObject) -> None:
    workload = Workload(data.draw(operators(name)))
    first, again, other = workload.inputs(1), workload.inputs(1), workload.inputs(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    for array, spec in zip(first, workload.buffers[:-1], strict=True):
        assert (array.shape, str(array.dtype)) == (spec.shape, spec.dtype)
        assert array.flags.c_contiguous and array.ctypes.data % 64 == 0
