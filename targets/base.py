"""What a target is (hardware numbers, build, fingerprint) and what a measured point is."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from flextensor.errors import unknown
from flextensor.targets import host

if TYPE_CHECKING:
    from flextensor.targets.runtime import Runtime


class Status(enum.StrEnum):
    """How a measurement ended."""

    OK = "ok"
    ILLEGAL = "illegal"
    BUILD_ERROR = "build_error"
    RUN_ERROR = "run_error"
    TIMEOUT = "timeout"
    WRONG_RESULT = "wrong_result"


TWIN = "same program as an earlier trial"
"""How the message begins of a trial that was not run: it has the outcome of another, which was
compiled to the very same program."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One measured point.

    `times` are seconds per call, one entry per repeat, empty unless the status is ``ok``.
    `message` is the reason of a failure, one line. `error` is max|y - y64| / max|y64| of the
    output against the float64 reference, or None where it was not computed.
    """

    formulation: str
    config: Mapping[str, Any]
    status: Status
    times: tuple[float, ...] = ()
    message: str = ""
    error: float | None = None
    build_seconds: float = 0.0
    run_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the point ran, in time, with the right result."""
        return self.status is Status.OK

    @property
    def twin(self) -> bool:
        """Whether another trial of the same program was run in its place."""
        return self.message.startswith(TWIN)

    def as_twin(self, formulation: str, config: Mapping[str, Any], build_seconds: float) -> Trial:
        """The outcome of another config that was compiled to the same program."""
        message = f"{TWIN}: {self.message}" if self.message else TWIN
        return Trial(
            formulation, config, self.status, self.times, message, self.error, build_seconds
        )

    @property
    def seconds(self) -> float:
        """Median seconds per call; infinite for a failure."""
        return statistics.median(self.times) if self.ok and self.times else float("inf")


@dataclasses.dataclass(frozen=True)
class Target(ABC):
    """A device: mostly numbers. Schedulers ask for the numbers and never for the kind.

    Sizes are in bytes, one cache level as one core sees it (L3: shared by all cores).
    """

    kind: ClassVar[str]
    """The name on the command line, e.g. ``llvm``."""

    cores: int
    """Threads that a kernel may use."""
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    max_unroll: int
    """Statements that an unrolled loop body may hold before compile time explodes."""
    threads_per_block: int = 0
    """Threads that may share memory and wait for each other; 0 when a device has no such blocks,
    and its parallel loops are those of a CPU."""
    shared_bytes: int = 0
    """Memory that the threads of one block share."""
    launch_shared_bytes: int = 0
    """The same where a launch asks for it; 0 where it cannot."""
    thread_registers: int = 0
    """32-bit registers of one thread of a block."""
    block_registers: int = 0
    """The same of all threads of a block together; 0 where that is no limit."""
    copies_ahead: int = 0
    """Copies to shared memory that can be under way while a block computes with earlier ones."""
    warp: int = 1
    """Threads of a block that run in step; 1 where they take turns."""
    half: bool = True
    """Whether kernels may use float16."""
    multipliers: int = 0
    """Multipliers that a design may be made of; 0 when a device runs programs, and no designs."""
    measured: str = "run"
    """How a candidate's time is learnt, one of `measures`."""
    remote: str = ""
    """HOST:PORT of the `flextensor serve` that runs kernels, on the machine that has the device;
    empty when that is this machine. No part of the fingerprint: the device is the same."""

    measures: ClassVar[tuple[str, ...]] = ("run",)
    """Ways to learn a candidate's time, the default first: ``run`` it on the device, ask a
    ``model``, or simulate its ``rtl``."""

    first_call_seconds: ClassVar[float] = 0.0
    """What a driver may take to compile a kernel at its first call; 0 when it compiles none."""

    @classmethod
    def specs(cls) -> tuple[str, ...]:
        """The specifications of the devices that are there, for `from_spec`."""
        return (cls.kind,)

    def measured_by(self, measure: str | None) -> Self:
        """The target with one of its `measures`, the default for None; `InputError` for another."""
        if measure is not None and measure not in self.measures:
            raise unknown(f"measure of {self.kind}", measure, self.measures)
        return dataclasses.replace(self, measured=measure or self.measures[0])

    def traffic(self, buffers: Sequence[Any]) -> int:
        """Bytes that buffers (inputs, then the output) take in the memory of the device."""
        return sum(buffer.nbytes for buffer in buffers)

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of `dtype` in one vector register."""
        bits = int("".join(filter(str.isdigit, dtype)) or 8)  # "bool" has no digits
        return self.vector_bits // bits

    def matrix_tile(self, dtype: str) -> int:
        """Rows, columns and depth of the tiles of `dtype` that matrix units multiply at a time,
        with sums in float32; 0 without such units."""
        return 0

    def lane_tile(self, dtype: str) -> int:
        """Depth of such tiles where the registers of a warp's lanes hold them in an order that is
        known; 0 where only the units know it."""
        return 0

    def computes(self, dtype: str) -> bool:
        """Whether kernels may use a dtype."""
        return {"float16": self.half, "bfloat16": False}.get(dtype, True)

    def dot_group(self, dtype: str) -> int:
        """Products of `dtype` that one vector instruction sums for every lane of 32 bits; 0
        without such an instruction."""
        return 0

    def tile_depth(self, dtype: str) -> int:
        """Products of `dtype` that an instruction on tile registers sums for each of 16 x 16 sums;
        0 without such registers."""
        return 0

    def bound(self, dtype: str) -> str:
        """The dtype whose peak bounds kernels of `dtype`: its own where something multiplies it
        faster, else float32."""
        faster = self.matrix_tile(dtype), self.tile_depth(dtype), self.dot_group(dtype)
        return dtype if any(faster) else "float32"

    @property
    @abstractmethod
    def device(self) -> str:
        """The device in words, e.g. ``Intel(R) Xeon(R) Processor, 2 threads``."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Everything that makes measured times comparable: device, features, threads, driver."""

    def named(self, fingerprint: str) -> Self | None:
        """The device that a fingerprint of measured times is of, if it is this one or, where that
        can be told, one of the same architecture; else None."""
        return self if fingerprint == self.fingerprint else None

    @property
    @abstractmethod
    def numbers(self) -> str:
        """What schedules are made to fit, in words, e.g. ``512-bit vectors x 32``."""

    @property
    def host_threads(self) -> int:
        """Threads of the host that builds and libraries of the CPU may take."""
        return self.cores

    @property
    def builders(self) -> int:
        """Builds that this machine makes at a time."""
        return host.cores() if self.remote else self.host_threads

    @property
    def conditions(self) -> str:
        """How it and its peers are timed, in words."""
        return "warm caches"

    @property
    def torch_device(self) -> str:
        """Where PyTorch computes beside it, in PyTorch's words."""
        return "cpu"

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables of a process that runs kernels; its drivers keep their files in `folder`.

        TVM binds threads to the first CPUs of the host, which are not for every process to use.
        """
        threads = str(self.host_threads)
        return {
            "TMPDIR": str(folder),
            "OMP_NUM_THREADS": threads,
            "TVM_NUM_THREADS": threads,
            "TVM_BIND_THREADS": str(int(host.first_cpus())),
        }

    @abstractmethod
    def tvm_target(self) -> Any:
        """The `tvm.target.Target` to compile for."""

    @property
    def breed(self) -> str:
        """The kind of device as far as schedules travel: what was measured on one device of a
        breed guides searches on another."""
        return self.kind

    @property
    def chip(self) -> str:
        """The chip in its compiler's words: what is shipped of a breed is kept by chip."""
        return self.kind

    @abstractmethod
    def runtime(self) -> Runtime:
        """What loads and calls in this process what `build` wrote; `DeviceError` without device."""

    def check(self) -> None:  # noqa: B027 - a hook
        """Raise `DeviceError` when something that every build or run needs is missing."""

    @abstractmethod
    def build(self, module: Any, path: Path) -> None:
        """Compile a scheduled `tvm.IRModule` into the one file `path`, for `runtime().load`.

        Raises `DeviceError` when compiling or linking fails outside TVM, else what TVM raises.
        """

    @abstractmethod
    def source(self, module: Any) -> str:
        """What a scheduled `tvm.IRModule` is compiled to, as text for a person."""

    @abstractmethod
    def measure(self, what: str) -> float:
        """Measure in this process, FLOP/s of a dtype, or bytes/s for ``bandwidth``."""

    def peak_flops(self, dtype: str = "float32") -> float:
        """Measured peak of all cores, FLOP/s; measured once per fingerprint, then cached."""
        from flextensor.targets import peaks

        return peaks.peak_flops(self, dtype)

    def bandwidth(self) -> float:
        """Measured main-memory bandwidth of all cores, bytes/s; measured once, then cached."""
        from flextensor.targets import peaks

        return peaks.bandwidth(self)

    def remeasure(self, dtype: str = "float32") -> None:
        """Measure both again and keep what is higher, before they are reported with results."""
        from flextensor.targets import peaks

        peaks.remeasure(self, dtype)
