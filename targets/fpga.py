"""An FPGA: a part with its board's memory, for which engines are generated and never run here.

A design is built as a simulator of its Verilog, by Verilator, for ``--measure rtl``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from flextensor.errors import DeviceError, InputError, unknown
from flextensor.targets import host
from flextensor.targets.base import Target
from flextensor.targets.engine import BYTES, SUM_BYTES, Engine
from flextensor.targets.engine_resources import DSP_PER_MAC
from flextensor.targets.fpga_parts import PARTS
from flextensor.targets.runtime import Runtime

MODEL = 1
"""Counts changes of what the model of engines says, so that no old prediction answers a new one."""
ENGINE = "flextensor.engine"
"""The attribute of a scheduled PrimFunc that has its engine, as JSON."""
USABLE = 0.8
"""Share of each resource that a design may take: beyond, tools place and route with luck only
(AMD UG949 calls for less than 80 % of DSP blocks and block RAM)."""
PORTS = 3
"""Memory ports of an engine: A, B and C."""
WIDEST_PORT = 64
"""Bytes: AXI ports of 512 bits are the widest that AMD's memory controllers and HLS offer."""
MEMORY_LATENCY = 64
"""Cycles from a request to its first beat, an assumption: about 300 ns at 200 MHz, as DDR4
behind an AXI interconnect has."""
BURST_GAP = 4
"""Cycles that a port loses where an address does not follow the last one, an assumption: a new
burst passes the address channel and, in part, opens another row of the memory."""
DEFAULTS = {"dtype": "int8", "clock": "", "memory": "", "latency": "", "gap": ""}
"""What a specification may set: the type; MHz, GB/s and cycles where they are not the part's."""


@dataclasses.dataclass(frozen=True)
class FPGA(Target):
    """One part. `multipliers`, `bram18` and `luts` are what a design may take, `USABLE` of all.

    `clock` is in Hz, `memory_bytes` in bytes/s, `latency` and `gap` in cycles.
    """

    kind: ClassVar[str] = "fpga"
    measures: ClassVar[tuple[str, ...]] = ("model", "rtl")

    measured: str = "model"
    part: str = "vu9p"
    dtype: str = "int8"
    bram18: int = 0
    luts: int = 0
    lut_inputs: int = 6
    clock: float = 200e6
    memory_bytes: float = 76.8e9
    latency: int = MEMORY_LATENCY
    gap: int = BURST_GAP

    @classmethod
    def specs(cls) -> tuple[str, ...]:
        """One for every part: designs need no device here."""
        return tuple(f"{cls.kind}:{name}" for name in PARTS)

    @classmethod
    def from_spec(cls, spec: str = "fpga", threads: int | None = None) -> FPGA:
        """``fpga[:[PART][,dtype=int16][,clock=MHZ][,memory=GB/S][,latency=N][,gap=N]]``."""
        if threads is not None:
            raise InputError("threads cannot be chosen on an FPGA")
        name, *options = spec.partition(":")[2].split(",")
        name = name or next(iter(PARTS))
        if name not in PARTS:
            raise unknown("FPGA part", name, PARTS)
        given = _options(options)
        if given["dtype"] not in BYTES:
            raise unknown("data type of an FPGA", given["dtype"], BYTES)
        part = PARTS[name]
        bram18 = int(USABLE * part.bram18)
        target = cls(
            cores=1,
            vector_bits=8 * WIDEST_PORT,
            vector_registers=1,
            l1_bytes=2048,
            l2_bytes=bram18 * 2048,
            l3_bytes=bram18 * 2048,
            max_unroll=int(USABLE * part.dsps),
            multipliers=int(USABLE * part.dsps),
            part=name,
            dtype=given["dtype"],
            bram18=bram18,
            luts=int(USABLE * part.luts),
            lut_inputs=part.lut_inputs,
            clock=_number("clock", given["clock"], 1e6, part.clock),
            memory_bytes=_number("memory", given["memory"], 1e9, part.memory_bytes),
            latency=int(_number("latency", given["latency"], 1, MEMORY_LATENCY)),
            gap=int(_number("gap", given["gap"], 1, BURST_GAP)),
        )
        if target.port_bytes < PORTS:
            moves = f"moves {target.port_bytes} bytes per cycle, an engine needs {PORTS}"
            raise InputError(f"the memory of {spec} {moves}")
        return target

    @property
    def port_bytes(self) -> int:
        """Bytes that the memory moves per cycle, all ports together."""
        return int(self.memory_bytes / self.clock)

    @property
    def device(self) -> str:
        """The part in words, with what is assumed of it."""
        return f"{self.part}, {self.dtype}, {self.clock / 1e6:.0f} MHz assumed, not run"

    @property
    def fingerprint(self) -> str:
        """Part, type, clock, memory, and how a design is measured."""
        memory = f"{self.memory_bytes:.4g}/{self.latency}/{self.gap}"
        what = f"{self.part}/{self.dtype}/{self.clock:.4g}/{memory}/{self.cores}"
        version = MODEL if self.measured == "model" else ""
        return f"{self.kind}/{what}/{self.measured}{version}"

    @property
    def numbers(self) -> str:
        """What a design may take, in words."""
        return (
            f"{self.multipliers} DSP, {self.bram18} block RAM (18 Kb), {self.luts} LUT, "
            f"{self.memory_bytes / 1e9:.1f} GB/s"
        )

    @property
    def host_threads(self) -> int:
        """All usable cores of the host."""
        return host.cores()

    def tvm_target(self) -> Any:
        """What the host's part of a design compiles for."""
        import tvm

        return tvm.target.Target("llvm")

    def peak_flops(self, dtype: str = "") -> float:
        """Two operations a cycle of every multiply-accumulate unit that fits."""
        return 2 * (self.multipliers // DSP_PER_MAC[self.dtype]) * self.clock

    def bandwidth(self) -> float:
        """The memory's, from its data sheet."""
        return self.memory_bytes

    def remeasure(self, dtype: str = "float32") -> None:
        """Nothing here is measured."""

    def measure(self, what: str) -> float:
        """The same from the data sheet; nothing here is measured."""
        return self.bandwidth() if what == "bandwidth" else self.peak_flops(what)

    def traffic(self, buffers: Sequence[Any]) -> int:
        """Bytes of operands of the part's type, and of the sums that come out."""
        *inputs, output = (int(math.prod(buffer.shape)) for buffer in buffers)
        return sum(inputs) * BYTES[self.dtype] + output * SUM_BYTES[self.dtype]

    def runtime(self) -> Runtime:
        """Always `DeviceError`: there is no board."""
        raise DeviceError("a design for an FPGA does not run here; export it, or simulate it")

    def check(self) -> None:
        """Raise `DeviceError` when Verilator is missing, or the type has no RTL."""
        from flextensor.targets import verilator

        if self.dtype == "float32":
            raise DeviceError("the RTL has int8 and int16; float32 is in the model and HLS only")
        verilator.check()

    def build(self, module: Any, path: Path) -> None:
        """Compile the engine of a scheduled IRModule into the simulator `path`."""
        from flextensor.targets import verilator

        verilator.build(engine_of(module), path, self.latency, self.gap)

    def source(self, module: Any) -> str:
        """The engine of a scheduled IRModule as OpenCL C for HLS."""
        from flextensor.targets import fpga_hls

        return fpga_hls.kernel(engine_of(module))


def engine_of(module: Any) -> Engine:
    """The engine that a scheduled IRModule describes; `DeviceError` when it has none."""
    attrs = module["main"].attrs
    if attrs is None or ENGINE not in attrs:
        raise DeviceError("the program has no engine: it was not scheduled for an FPGA")
    return Engine.load(json.loads(str(attrs[ENGINE])))


def _options(texts: list[str]) -> dict[str, str]:
    found = dict(DEFAULTS)
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in DEFAULTS:
            raise unknown("option of an FPGA", name, DEFAULTS)
        if not (equals and value):
            raise InputError(f"{text!r} is no option=value of an FPGA")
        found[name] = value
    return found


def _number(name: str, text: str, scale: float, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text) * scale
    except ValueError:
        value = -1.0
    if not 1 <= value < 1e15 and not (value == 0 and name == "gap"):
        raise InputError(f"{name} of an FPGA must be a positive number, got {text!r}")
    return value
