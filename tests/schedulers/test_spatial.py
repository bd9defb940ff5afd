"""Stages that are read by digits of an index: a block of all digits is unrolled."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm

from flextensor.buffers import relative_error
from flextensor.lessons import MACHINES
from flextensor.operators import Workload, parse
from flextensor.schedulers import schedule, space
from flextensor.targets import lookup

MACHINE = MACHINES["llvm-avx512"]


def circulant(rows: int, cols: int, block: int) -> Workload:
    fields = {"rows": str(rows), "cols": str(cols), "block": str(block)}
    return Workload(parse("block_circulant_matrix", fields))


def test_the_first_seed_unrolls_a_block_and_gathers_nothing() -> None:
    workload = circulant(64, 48, 8)
    func = workload.prim_func("direct")
    first = space(func, MACHINE).seeds[0]
    assert first["diagonal_sum.digits"] == first["spread.digits"] == 1
    wide = dataclasses.replace(MACHINE, mcpu="znver4")
    library = tvm.compile(schedule(func, wide, first), target=wide.tvm_target())
    code = library.mod.imports[0].inspect_source("asm") if library.mod.imports else ""
    code = code or library.mod.inspect_source("asm")
    assert "vaddps" in code and "gather" not in code


@pytest.mark.parametrize("size", [(64, 48, 8), (60, 44, 4), (61, 43, 8), (64, 48, 16)])
@pytest.mark.parametrize("parallel", [0, 1])
@pytest.mark.parametrize("unroll", [0, 1])
def test_digits_compute_the_reference(
    size: tuple[int, int, int], parallel: int, unroll: int
) -> None:
    workload = circulant(*size)
    func = workload.prim_func("direct")
    found = space(func, MACHINE)
    wanted = {"digits": 1, "parallel": parallel, "unroll_k": unroll}
    config = dict(found.seeds[0])
    config |= {name: wanted[knob] for name in config
               if (knob := name.split(".")[1]) in wanted and name != "spread.unroll_k"}  # fmt: skip
    assert found.reason(config) is None and "diagonal_sum.digits" in config
    kernel = tvm.compile(schedule(func, MACHINE, config), target=lookup("llvm").tvm_target())
    inputs = workload.inputs(seed=3)
    expected = workload.reference(inputs)
    tensors = [tvm.runtime.tensor(a) for a in (*inputs, np.full(expected.shape, np.nan, "float32"))]
    kernel(*tensors)
    assert relative_error(tensors[-1].numpy(), expected) < 1e-5


def test_digits_have_neither_vectors_nor_another_order() -> None:
    found = space(circulant(64, 64, 8).prim_func("direct"), MACHINE)
    first = found.seeds[0]
    for other in ({"diagonal_sum.vectors": 1}, {"diagonal_sum.order": "xk"}):
        assert "unrolled digits" in str(found.reason(first | other))
        assert found.reason(first | other | {"diagonal_sum.digits": 0}) is None


def test_a_block_too_large_to_unroll_stays_a_loop() -> None:
    """32 x 32 sums are more than the 512 operations that a body may have."""
    found = space(circulant(64, 64, 32).prim_func("direct"), MACHINE)
    assert not any(knob.name.endswith("digits") for knob in found.knobs)
