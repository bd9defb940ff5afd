"""Engines of awkward workloads: legal by construction, and right when their HLS source is run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextensor.engines import Engines, integers
from flextensor.errors import IllegalConfigError, InputError
from flextensor.measure import Candidate
from flextensor.operators import Operator, Workload, parse
from flextensor.schedulers import Config, schedule, space
from flextensor.schedulers.engine_data import same
from flextensor.targets import FPGA, lookup
from flextensor.targets.engine import Engine
from flextensor.targets.fpga import engine_of
from flextensor.targets.rounding import ceil_div

SMALL = {"in_channels": "6", "out_channels": "10", "height": "9", "width": "7", "padding": "1"}
CASES: list[tuple[Operator, str]] = [
    (parse("gemm", {"m": "13", "n": "37", "k": "11"}), "direct"),
    (parse("gemv", {"m": "13", "k": "71"}), "direct"),
    (parse("batch_gemm", {"batch": "3", "m": "7", "n": "19", "k": "5"}), "direct"),
    (parse("conv2d", {**SMALL, "batch": "2"}), "direct"),
    (parse("conv2d", {**SMALL, "stride": "2", "groups": "2"}), "direct"),
    (parse("dilated_conv2d", SMALL), "direct"),
    (parse("conv1d", {"in_channels": "3", "out_channels": "5", "length": "23"}), "direct"),
    (parse("conv3d", {"in_channels": "2", "out_channels": "3", "depth": "4", "height": "5",
                      "width": "6"}), "direct"),
    (parse("conv_transpose2d", {**SMALL, "stride": "2"}), "direct"),
    (parse("conv_transpose2d", {**SMALL, "stride": "2"}), "subpixel"),
    (parse("depthwise_conv2d", {"channels": "5", "height": "9", "width": "11"}), "direct"),
    (parse("depthwise_conv2d", {"channels": "3", "height": "6", "width": "5", "multiplier": "2"}),
     "direct"),
    (parse("einsum", {"equation": "abc,cd->adb", "a": "3", "b": "5", "c": "9", "d": "18"}),
     "direct"),
]  # fmt: skip
TYPES = {"int8": np.int32, "int16": np.int64, "float32": np.float32}
SMALLEST = 1 << 17
"""Bytes on the chip of a design that PoCL runs."""


def target_of(spec: str) -> FPGA:
    target = lookup(spec)
    assert isinstance(target, FPGA)
    return target


def designs(engines: Engines, formulation: str, count: int) -> list[Candidate]:
    """The first seed, and random designs."""
    found = space(engines.workload.prim_func(formulation), engines.target)
    points = [found.point(found.seeds[0]), *found.sample(np.random.default_rng(1), 20 * count)]
    candidates = [Candidate(formulation, found.config(p)) for p in points]
    fitting = [c for c in candidates if _bytes(engines.engine(c)) < SMALLEST]
    assert len(fitting) > count
    return fitting[:count]


def _bytes(engine: Engine) -> int:
    a, b, c = engine.words
    return engine.pe_m * a * engine.a_word + b * engine.b_word + c * engine.c_word * 2


def run(source: str, a: Any, b: Any, count: int, dtype: str) -> Any:
    """The accumulators that the OpenCL kernel writes."""
    import pyopencl as cl

    context = cl.create_some_context(interactive=False)
    queue = cl.CommandQueue(context)
    out = np.zeros(count, TYPES[dtype])
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    buffers = [cl.Buffer(context, flags, hostbuf=np.ascontiguousarray(x)) for x in (a, b, out)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the attributes are for another compiler
        program = cl.Program(context, source).build(options="-w -DUNROLL=")
    cl.Kernel(program, "engine")(queue, (1,), (1,), *buffers)
    cl.enqueue_copy(queue, out, buffers[2])
    queue.finish()
    return out


def sums(e: Engine) -> int:
    """Accumulators that an engine writes."""
    rows = (e.m_tiles - 1) * e.m_steps + ceil_div(e.m_edge, e.pe_m)
    columns = (e.n_tiles - 1) * e.n_steps + e.n_edge
    return e.groups.count * rows * columns * e.pe_m * e.pe_n


@pytest.mark.parametrize(
    ("operator", "formulation"), CASES, ids=[f"{i}-{o.name}" for i, (o, _) in enumerate(CASES)]
)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_the_hls_source_computes_the_integer_reference(
    operator: Operator, formulation: str, dtype: str
) -> None:
    engines = Engines(Workload(operator), target_of(f"fpga:vu9p,dtype={dtype}"))
    func = engines.workload.prim_func(formulation)
    inputs = integers(engines.workload, dtype, seed=3)
    want = engines.workload.reference(inputs)
    for candidate in designs(engines, formulation, 2):
        module = schedule(func, engines.target, candidate.config)
        assert engine_of(module) == engines.engine(candidate)
        packing, engine = engines.packing(candidate), engines.engine(candidate)
        a, b = engines.operands(candidate, inputs)
        words = packing.a(a).astype(dtype), packing.b(b).astype(dtype)
        got = run(engines.target.source(module), *words, sums(engine), dtype)
        assert same(engines.output(candidate, got.astype(np.int64)), want, dtype)


def test_float32_designs_compute_the_reference() -> None:
    engines = Engines(Workload(CASES[3][0]), target_of("fpga:vu9p,dtype=float32"))
    inputs = engines.workload.inputs(0)
    (candidate,) = designs(engines, "direct", 1)
    packing = engines.packing(candidate)
    a, b = engines.operands(candidate, inputs)
    source = engines.target.source(
        schedule(engines.workload.prim_func(), engines.target, candidate.config)
    )
    words = packing.a(a).astype("float32"), packing.b(b).astype("float32")
    got = packing.c(run(source, *words, sums(engines.engine(candidate)), "float32"))
    np.testing.assert_allclose(got, engines.workload.reference(inputs), atol=1e-4)


@pytest.mark.parametrize("spec", ["fpga:vu9p", "fpga:ecp5-85k,dtype=int16"])
def test_nothing_that_is_proposed_exceeds_the_part(spec: str) -> None:
    target = target_of(spec)
    engines = Engines(Workload(parse("conv2d", {"padding": "1"})), target)
    part = engines.part("direct")
    found = space(engines.workload.prim_func(), target)
    assert found.seeds
    points = [found.point(s) for s in found.seeds] + found.sample(np.random.default_rng(0), 100)
    for point in points:
        config = engines.config(Candidate("direct", found.config(point)))
        needs, engine = part.resources(config), part.engine(config)
        assert needs.dsp <= target.multipliers
        assert needs.bram18 <= target.bram18
        assert needs.lut <= target.luts
        assert engine.a_port + engine.b_port + engine.c_port <= target.port_bytes
        assert engine.k_tiles == 1 or engine.stationary == "output"


def test_what_cannot_be_built_has_a_reason() -> None:
    target = target_of("fpga:ecp5-85k")
    found = space(Workload(parse("gemm", {})).prim_func(), target)
    seed = dict(found.seeds[0])
    changes: list[tuple[Config, str]] = [
        ({"gemm.pe_m": 64, "gemm.pe_n": 64, "gemm.m_steps": 1}, "DSP blocks, ecp5-85k has 124"),
        ({"gemm.m_steps": 256, "gemm.pe_m": 64}, "m_steps make tiles of 16384, there are 512"),
        ({"gemm.stationary": "weight", "gemm.k_tiles": 2}, "reduction in one tile"),
        ({"gemm.pe_k": 1, "gemm.a_port": 2}, "a_port moves 2 bytes a cycle, a word has 1"),
    ]
    for change, said in changes:
        reason = found.reason({**seed, **change})
        assert reason is not None and said in reason
        with pytest.raises(IllegalConfigError):
            schedule(Workload(parse("gemm", {})).prim_func(), target, {**seed, **change})


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("gemm", {"bias": "true"}, "no FPGA engine computes bias_add"),
        ("mttkrp", {}, "no FPGA engine computes"),
        ("gemm", {"dtype": "int8"}, "int32 outputs: leave the operator in float32 and name"),
        ("gemm", {"dtype": "float16"}, "the type with the part, as fpga:vu9p,dtype=int16"),
    ],
)
def test_what_no_engine_computes_is_refused(
    name: str, fields: dict[str, str], said: str, tmp_path: Path
) -> None:
    import flextensor

    with pytest.raises(InputError, match=said):
        flextensor.tune(parse(name, fields), target="fpga", db=tmp_path / "t.db")
