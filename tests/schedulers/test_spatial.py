"""Stages that run as they stand: which of their loops are parallel, which are unrolled."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tvm
from sample_programs import check, every_config, loops_of
from tvm import te

from flextensor.lessons import MACHINES
from flextensor.operators import FunctionOperator, Workload, parse
from flextensor.schedulers import schedule, space

MACHINE = MACHINES["sapphirerapids"]


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
    check(workload, MACHINE, config)


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


@pytest.mark.parametrize(("n", "k"), [(512, 64), (997, 67)])
def test_one_row_of_a_product_is_cut_for_all_cores(n: int, k: int) -> None:
    """Outside the reduction, whatever order the loops have."""
    workload = Workload(parse("gemm", {"m": "1", "n": str(n), "k": str(k)}))
    for config in every_config(workload, MACHINE):
        assert loops_of(workload, MACHINE, config)[0] == f"parallel({MACHINE.cores}", config
        check(workload, MACHINE, config)


def test_rows_of_a_matrix_stream_side_by_side() -> None:
    """Eight of them, in one pass over the columns of a task."""
    workload = Workload(parse("gemm", {"m": "1", "n": "4096", "k": "4096"}))
    first = space(workload.prim_func(), MACHINE).seeds[0]
    columns = 4096 // MACHINE.cores
    *_, around, rows = loops_of(workload, MACHINE, first)
    assert (around, rows) == (f"grid(512, {columns}", "unroll(8")


def test_few_rows_are_cut_for_the_cores_that_they_leave_idle() -> None:
    fields = {"batch": str(MACHINE.cores // 2), "m": "1", "n": "256", "k": "128"}
    workload = Workload(parse("batch_gemm", fields))
    first = space(workload.prim_func(), MACHINE).seeds[0]
    assert loops_of(workload, MACHINE, first)[0] == f"parallel({MACHINE.cores}"
    check(workload, MACHINE, first)


def scaled(length: int) -> list[Any]:
    a = te.placeholder((1, length), name="a")
    return [a, te.compute(a.shape, lambda i, j: a[i, j] * 2.0, name="scaled")]


def column_sums(rows: int, columns: int) -> list[Any]:
    a, k = te.placeholder((rows, columns), name="a"), te.reduce_axis((0, rows), "k")
    return [a, te.compute((columns,), lambda j: te.sum(a[k, j], axis=k), name="sums")]


@pytest.mark.parametrize("length", [1 << 15, 50257])
def test_a_map_of_one_row_is_parallel(length: int) -> None:
    workload = Workload(FunctionOperator(scaled, {"length": length}))
    for config in every_config(workload, MACHINE):
        assert loops_of(workload, MACHINE, config)[0] == f"parallel({MACHINE.cores}"
        check(workload, MACHINE, config)


def test_a_map_of_few_elements_is_left_to_one_core() -> None:
    workload = Workload(FunctionOperator(scaled, {"length": 4096}))
    for config in every_config(workload, MACHINE):
        assert not any("parallel" in loop for loop in loops_of(workload, MACHINE, config))


def test_sums_of_columns_are_parallel_outside_the_reduction() -> None:
    """Not once again for every row."""
    workload = Workload(FunctionOperator(column_sums, {"rows": 211, "columns": 509}))
    for config in every_config(workload, MACHINE):
        found = loops_of(workload, MACHINE, config)
        assert [loop for loop in found if "parallel" in loop] == found[:1], config
        check(workload, MACHINE, config)
