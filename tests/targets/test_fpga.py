"""FPGA parts, specifications and engines as numbers; the Verilog and HLS text of a design."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from flextensor import targets
from flextensor.errors import DeviceError, InputError
from flextensor.operators import Gemm, Workload
from flextensor.targets import FPGA, engine_resources, fpga_hls, fpga_rtl, lookup
from flextensor.targets.engine import Digits, Engine
from flextensor.targets.fpga_parts import PARTS

ENGINE = Engine(
    kind="gemm", dtype="int8", groups=Digits(), rows=Digits((4, 5), (20, 2)),
    taps=Digits((3, 2), (10, 1)), block=0, columns=11, depth=24, pe_m=3, pe_n=2, pe_k=4,
    m_steps=2, n_steps=2, k_words=4, a_port=2, b_port=8, c_port=16, a_buffers=2, b_buffers=1,
    c_buffers=2, stationary="output",
)  # fmt: skip


def test_every_part_is_a_target_and_says_its_source() -> None:
    for name, part in PARTS.items():
        target = lookup(f"fpga:{name}")
        assert isinstance(target, FPGA)
        assert 0 < target.multipliers < part.dsps
        assert 0 < target.bram18 < part.bram18
        assert part.source
        assert f"fpga:{name}" in targets.present()
    assert lookup("fpga") == lookup("fpga:vu9p")


def test_a_specification_sets_type_clock_and_memory() -> None:
    target = lookup("fpga:zu9eg,dtype=int16,clock=250,memory=12.5,latency=30,gap=0")
    assert isinstance(target, FPGA)
    assert (target.dtype, target.clock, target.memory_bytes) == ("int16", 250e6, 12.5e9)
    assert (target.latency, target.gap, target.port_bytes) == (30, 0, 50)
    assert target.fingerprint != lookup("fpga:zu9eg,dtype=int16").fingerprint
    assert target.fingerprint != target.measured_by("rtl").fingerprint


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fpga:vu9", "did you mean vu9p"),
        ("fpga:vu9p,dtype=int4", "unknown data type of an FPGA 'int4'"),
        ("fpga:vu9p,clok=3", "did you mean clock"),
        ("fpga:vu9p,clock", "'clock' is no option=value"),
        ("fpga:vu9p,clock=fast", "clock of an FPGA must be a positive number, got 'fast'"),
        ("fpga:vu9p,clock=-1", "must be a positive number"),
        ("fpga:vu9p,memory=0.1", "moves 0 bytes per cycle, an engine needs 3"),
    ],
)
def test_bad_specifications_are_one_line(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        lookup(spec)
    assert "\n" not in str(caught.value)


def test_threads_measures_and_devices_that_it_has_not() -> None:
    with pytest.raises(InputError, match="threads cannot be chosen"):
        lookup("fpga", threads=2)
    with pytest.raises(InputError, match="unknown measure of fpga 'run'; known: model, rtl"):
        lookup("fpga").measured_by("run")
    with pytest.raises(InputError, match="unknown measure of llvm 'model'"):
        lookup("llvm").measured_by("model")
    with pytest.raises(DeviceError, match="does not run here"):
        lookup("fpga").runtime()
    with pytest.raises(DeviceError, match="float32 is in the model and HLS only"):
        lookup("fpga:vu9p,dtype=float32").check()


def test_what_runs_nowhere_has_no_engine() -> None:
    import tvm

    module = tvm.IRModule({"main": Workload(Gemm(m=3, n=5, k=7)).prim_func()})
    with pytest.raises(DeviceError, match="was not scheduled for an FPGA"):
        lookup("fpga").source(module)


def test_tools_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flextensor.targets import yosys

    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DeviceError, match="needs verilator, make, g.*: apt-get install verilator"):
        lookup("fpga").check()
    with pytest.raises(DeviceError, match="synthesis needs yosys: apt-get install yosys"):
        yosys.check()


def test_counters_step_as_their_offsets_do() -> None:
    digits = Digits((3, 2, 4), (100, 7, 1))
    offsets = [a * 100 + b * 7 + c for a in range(3) for b in range(2) for c in range(4)]
    state, seen = [0, 0, 0], [0]
    while len(seen) < digits.count:
        place = max(
            i for i, (d, e) in enumerate(zip(state, digits.extents, strict=True)) if d < e - 1
        )
        state = [*state[:place], state[place] + 1, *[0] * (2 - place)]
        seen.append(seen[-1] + digits.steps[place])
    assert seen == offsets
    assert Digits().count == 1
    assert Digits((3,), (5,)).scaled(2, 2) == Digits((3, 2), (10, 1))


def test_an_engine_travels_as_json_and_counts_its_tiles() -> None:
    assert Engine.load(json.loads(json.dumps(dataclasses.asdict(ENGINE)))) == ENGINE
    assert ENGINE.macs == 20 * 11 * 24
    assert (ENGINE.m_tiles, ENGINE.n_tiles, ENGINE.k_tiles) == (4, 3, 2)
    assert (ENGINE.m_edge, ENGINE.n_edge, ENGINE.k_edge) == (2, 2, 2)
    assert (ENGINE.a_beats, ENGINE.b_beats, ENGINE.c_beats) == (2, 1, 2)
    assert ENGINE.words == (16, 8, 8)


@pytest.mark.parametrize(
    ("bits", "words", "blocks"),
    [(8, 64, 1), (8, 1500, 1), (8, 3000, 2), (36, 512, 1), (37, 512, 2), (64, 600, 4),
     (512, 600, 29), (128, 513, 8)],
)  # fmt: skip
def test_block_ram_as_yosys_packs_it(bits: int, words: int, blocks: int) -> None:
    assert engine_resources.blocks(bits, words) == blocks


def test_resources_grow_with_what_is_built() -> None:
    base = engine_resources.resources(ENGINE)
    assert base.dsp == 24
    changes: list[dict[str, Any]] = [
        {"pe_n": 4},
        {"dtype": "int16"},
        {"m_steps": 900},
        {"k_words": 6},
        {"dtype": "float32"},
    ]
    for change in changes:
        other = engine_resources.resources(dataclasses.replace(ENGINE, **change))
        assert (other.dsp, other.bram18, other.lut) != (base.dsp, base.bram18, base.lut), change
    assert engine_resources.resources(ENGINE, lut_inputs=4).lut > base.lut


def test_the_top_module_is_whole() -> None:
    for engine in (ENGINE, dataclasses.replace(ENGINE, kind="depthwise", pe_k=1, block=60)):
        text = fpga_rtl.verilog(engine)
        assert "@" not in text.replace("always @(posedge clk)", "")
        assert ("depthwise_array" in text) == engine.depthwise
    assert {path.stem for path in fpga_rtl.sources()} >= {"row_loader", "gemm_array", "memory"}


def test_offsets_in_c_are_those_of_the_counters() -> None:
    digits = Digits((4, 3, 2), (100, 7, 1))
    text = fpga_hls.offset(digits).replace("/", "//")
    want = [a * 100 + b * 7 + c for a in range(4) for b in range(3) for c in range(2)]
    assert [eval(text, {"i": i}) for i in range(digits.count)] == want
    assert fpga_hls.offset(Digits()) == "0"
