"""An analytic model of CUDA kernels: seconds from what ptxas gave them and what a block does.

    seconds = sum over kernels of  LAUNCH + together(multiprocessors, L2, memory)

    multiprocessors   waves of resident blocks, one after the other, on the busiest of them
    L2, memory        bytes of the whole kernel over bandwidth

Blocks that fit a multiprocessor (`occupancy`), what of it each keeps busy (`Busy`), and how waves
follow each other (`waves`) are told at those functions. Latencies are of the micro-benchmarks of
Jia et al., "Dissecting the NVIDIA Volta (Turing) GPU Architecture via Microbenchmarking" (2018,
2019), rounded; rates of NVIDIA's architecture papers. The model ranks; its seconds are a bound
from below rather than a forecast.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flextensor.cost_models import gpu_work
from flextensor.cost_models.gpu_memory import SECTOR
from flextensor.cost_models.gpu_work import Work
from flextensor.errors import IllegalConfigError
from flextensor.schedulers.gpu_estimate import together, waves
from flextensor.targets import cuda_compiler, launches
from flextensor.targets.cuda import CUDA
from flextensor.targets.cuda_architectures import (
    REGISTER_UNIT,
    REGISTERS,
    WARP,
    Architecture,
)
from flextensor.targets.cuda_compiler import Binary, Resources
from flextensor.targets.launches import Function, Launch, Program

LAUNCH = 2e-6
"""Seconds between two kernels of one stream."""
SCHEDULERS = 4
"""Warp instructions that a multiprocessor issues in a cycle."""
TILE_FLOPS = 2 * 16**3
SPECIAL_LANES = 16
"""Special functions of a multiprocessor in a cycle."""
FILL_BYTES = 64
"""Bytes that a multiprocessor takes from L2 in a cycle."""
L2_BYTES = 48
"""Bytes that L2 gives in a cycle for every multiprocessor, all reading: 5120 of 108 on an A100."""
BARRIER_CYCLES = 30
EXPOSED = 1.2
"""Cycles over the busy ones from which waiting is named as the bound."""
L1_CYCLES, L2_CYCLES = 33, 260
"""From a load to its value."""


@dataclasses.dataclass(frozen=True)
class Busy:
    """Cycles that one block keeps each part of a multiprocessor busy.

    issue     instructions of all warps / 4 schedulers
    compute   multiply-adds of warps x 32 / lanes, special functions x 32 / 16
    matrix    products of tiles over the rate of the matrix units
    local     shared memory with its bank conflicts, and L1, on one port
    fill      sectors that L1 lacks and that stores send, over the way to L2
    """

    issue: float
    compute: float
    matrix: float
    local: float
    fill: float

    @classmethod
    def of(cls, work: Work, data: Architecture) -> Busy:
        """What a block's work takes on an architecture."""
        return cls(
            issue=work.instructions / SCHEDULERS,
            compute=work.multiply_adds * WARP / data.lanes + work.special * WARP / SPECIAL_LANES,
            matrix=work.tiles * TILE_FLOPS / data.warp_tensor_flops,
            local=work.shared_cycles + work.l1_cycles,
            fill=(work.missed + work.stored) * SECTOR / FILL_BYTES,
        )

    @property
    def cycles(self) -> float:
        """All parts at work side by side."""
        return together(self.issue, self.compute, self.matrix, self.local, self.fill)

    @property
    def most(self) -> str:
        """The part that is busiest."""
        values = dataclasses.asdict(self)
        return max(values, key=lambda part: float(values[part]))


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One kernel as the model sees it: `bound` is what takes the longest."""

    name: str
    seconds: float
    bound: str
    resident: int
    """Blocks that a multiprocessor holds."""
    occupancy: float
    """Resident threads over the most."""
    registers: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """All kernels of a program."""

    kernels: tuple[KernelTime, ...]

    @property
    def seconds(self) -> float:
        """Seconds of a call."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def summary(self) -> str:
        """The kernel that takes longest, in words."""
        k = max(self.kernels, key=lambda kernel: kernel.seconds)
        of = "" if len(self.kernels) == 1 else f" of {len(self.kernels)}"
        return (
            f"kernel {k.name}{of}: bound by {k.bound}, occupancy {k.occupancy:.0%}, "
            f"{k.registers} registers, {k.resident} blocks a multiprocessor"
        )


def occupancy(block: int, kernel: Resources, data: Architecture, dynamic: int = 0) -> int:
    """Blocks of `block` threads, with `dynamic` bytes of shared memory beside what the kernel
    declares, that one multiprocessor holds.

    The least of what threads, blocks, registers (given to warps by 256) and shared memory (with
    what the system reserves) allow; 0 for a kernel that cannot be launched.
    """
    warps = math.ceil(block / WARP)
    registers = math.ceil(kernel.registers * WARP / REGISTER_UNIT) * REGISTER_UNIT * warps
    shared = kernel.shared + dynamic + data.reserved_shared
    limits = [data.most_blocks, data.most_threads // (warps * WARP)]
    limits.append(REGISTERS // max(registers, 1))
    limits.append(data.shared_bytes // shared if shared else data.most_blocks)
    return min(limits)


def predict(
    target: CUDA,
    function: Function,
    kernels: Mapping[str, Any],
    resources: Mapping[str, Resources],
) -> Prediction:
    """The model's view of a function; `IllegalConfigError` for spills and what cannot launch."""
    return Prediction(
        tuple(
            _kernel(target, function, launch, kernels[launch.kernel], resources[launch.kernel])
            for launch in function.launches
        )
    )


def _kernel(
    target: CUDA, function: Function, launch: Launch, kernel: Any, resources: Resources
) -> KernelTime:
    data, threads = target.data, math.prod(launch.block)
    spilled = resources.spill_stores + resources.spill_loads
    if spilled:
        raise IllegalConfigError(f"{launch.kernel} spills {spilled} bytes of registers")
    resident = occupancy(threads, resources, data, launch.shared)
    if not resident:
        raise IllegalConfigError(f"no block of {launch.kernel} fits a multiprocessor")
    work = gpu_work.of_block(kernel, launch.grid, launch.block)
    busy, blocks = Busy.of(work, data), math.prod(launch.grid)
    share = math.ceil(blocks / target.cores)  # of the busiest multiprocessor
    cycles = waves(share, resident, busy.cycles, _latency(work))
    traffic = blocks * (work.missed + work.stored) * SECTOR
    waits = cycles > EXPOSED * share * busy.cycles
    times = {
        "latency" if waits else busy.most: cycles / data.clock,
        "L2": traffic / (L2_BYTES * target.cores * data.clock),
        "memory": _memory_bytes(function, launch, traffic, data) / data.bandwidth,
    }
    bound = max(times, key=lambda name: times[name])
    return KernelTime(
        launch.kernel, LAUNCH + together(*times.values()), bound, resident,
        resident * math.ceil(threads / WARP) * WARP / data.most_threads, resources.registers,
    )  # fmt: skip


def _latency(work: Work) -> float:
    """Cycles that the longest chain of a block waits: loads, from L2 as far as L1 lacks them, and
    barriers."""
    lacking = work.missed / work.asked if work.asked else 0.0
    load = L1_CYCLES + min(lacking, 1.0) * (L2_CYCLES - L1_CYCLES)
    return work.rounds * load + work.barriers / work.warps * BARRIER_CYCLES


def _memory_bytes(function: Function, launch: Launch, traffic: float, data: Architecture) -> float:
    """Bytes to and from the card's memory: each buffer once, and what L2 cannot hold again.

    With a footprint F of the kernel's buffers and traffic T between L2 and multiprocessors:
    min(T, F) + max(T - F, 0) x max(1 - L2 / F, 0).
    """
    footprint = float(sum(function.sizes[position] for position in set(launch.arguments)))
    once = min(traffic, footprint)
    return once + max(traffic - footprint, 0.0) * max(1 - data.l2_bytes / footprint, 0.0)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A program, its machine code, and what the model says of it."""

    program: Program
    binary: Binary
    prediction: Prediction


def judge(target: CUDA, module: Any) -> Judged:
    """Lower, compile and judge a scheduled `tvm.IRModule`: no card is needed.

    Raises `IllegalConfigError` for spills, `DeviceError` when it does not compile.
    """
    program, kernels = launches.lowered(module, target.tvm_target())
    binary = cuda_compiler.compile_cuda(program.source, target.arch)
    prediction = predict(target, program.functions["main"], kernels, binary.resources)
    return Judged(program, binary, prediction)
