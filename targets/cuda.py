"""A CUDA device, or an architecture without one: TVM generates CUDA C, NVRTC or nvcc compiles it.

Where no card is, kernels are compiled all the same, judged by a model and proven in emulation.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import DeviceError, InputError
from flextensor.targets import cuda_driver, host
from flextensor.targets.base import Target
from flextensor.targets.cuda_architectures import (
    ARCHITECTURES,
    MOST_THREADS,
    REGISTERS,
    STATIC_SHARED,
    WARP,
    Architecture,
    architecture,
)
from flextensor.targets.runtime import Runtime

if TYPE_CHECKING:
    from flextensor.targets.launches import Program

MODEL = 2
"""Counts changes of what the model of kernels says, so that no old prediction answers a new one."""
NO_CARD = -1
COPIES_AHEAD = 3
"""Four panels in turn: more hide no more of the way to memory, and leave room for fewer blocks."""
HOW_WITHOUT = (
    "tune for an architecture by a model (--target cuda:sm_90 --measure model), on the card of a "
    "machine that serves it (flextensor serve there, --measure remote:HOST:PORT here), or carry "
    "kernels to a machine with a card (flextensor bundle)"
)


@dataclasses.dataclass(frozen=True)
class CUDA(Target):
    """One card, or the product that stands for an architecture (`index` is then `NO_CARD`).

    `arch` is e.g. ``sm_90``, `name` the card's or the product's. `emulated` kernels run on the
    host's CPU, see `flextensor.targets.cuda_emulation`.
    """

    kind: ClassVar[str] = "cuda"
    measures: ClassVar[tuple[str, ...]] = ("run", "model")

    arch: str = "sm_90"
    name: str = ""
    index: int = NO_CARD
    emulated: bool = False

    @classmethod
    def specs(cls) -> tuple[str, ...]:
        """One for every card of a known architecture."""
        cards = [card for card in cuda_driver.cards() if card.architecture in ARCHITECTURES]
        return tuple(f"{cls.kind}:{card.index}" for card in cards)

    @classmethod
    def from_spec(cls, spec: str = "cuda", threads: int | None = None) -> CUDA:
        """The first card (``cuda``), that of a number (``cuda:1``), or an architecture with or
        without a card (``cuda:sm_90``).

        Raises `DeviceError` when a card is wanted and none is there, `InputError` for others.
        """
        if threads is not None:
            raise InputError("threads cannot be chosen on a CUDA device")
        wanted, cards = spec.partition(":")[2], cuda_driver.cards()
        if wanted and not wanted.isdigit():
            data = architecture(wanted)
            found = [card for card in cards if card.architecture == wanted]
            return cls._card(found[0]) if found else cls._of(data)
        if not cards:
            raise DeviceError(f"no CUDA device found: {HOW_WITHOUT}")
        index = int(wanted or 0)
        if index >= len(cards):
            listed = ", ".join(f"{card.index}: {card.name}" for card in cards)
            raise InputError(f"there is no CUDA device {index}; there is {listed}")
        return cls._card(cards[index])

    @classmethod
    def _card(cls, card: cuda_driver.Card) -> CUDA:
        target = cls._of(architecture(card.architecture))
        return dataclasses.replace(
            target, cores=card.multiprocessors, name=card.name, index=card.index
        )

    @classmethod
    def _of(cls, data: Architecture) -> CUDA:
        return cls(
            cores=data.multiprocessors,
            vector_bits=32 * data.lanes,
            vector_registers=255,
            l1_bytes=data.shared_bytes,
            l2_bytes=data.l2_bytes,
            l3_bytes=data.l2_bytes,
            max_unroll=1024,
            threads_per_block=MOST_THREADS,
            shared_bytes=STATIC_SHARED,
            launch_shared_bytes=data.shared_bytes - data.reserved_shared,
            thread_registers=255,
            block_registers=REGISTERS,
            copies_ahead=COPIES_AHEAD if data.asynchronous else 0,
            warp=WARP,
            arch=data.name,
            name=data.product,
        )

    @property
    def data(self) -> Architecture:
        """What is known of the architecture."""
        return architecture(self.arch)

    @property
    def device(self) -> str:
        """The card in words, or the product with what was not there."""
        absent = ", no card here" if self.index == NO_CARD else ""
        return f"{self.name} ({self.arch}){absent}"

    @property
    def chip(self) -> str:
        """The architecture, e.g. ``sm_90``."""
        return self.arch

    @property
    def fingerprint(self) -> str:
        """Architecture, product, multiprocessors, TVM's version, and how it is measured."""
        version = importlib.metadata.version("apache-tvm")
        what = f"{self.arch}/{self.name}/{self.cores}/tvm-{version}"
        way = {"run": "/cold", "model": f"/model{MODEL}"}[self.measured]
        return f"{self.kind}/{what}{way}"

    def named(self, fingerprint: str) -> CUDA | None:
        """The card of the same architecture, here or where a bundle ran, or None; none is
        named by what a model says of it."""
        own = rf"{self.kind}/{self.arch}/(.+)/(\d+)/tvm-[^/]+(/cold)?"
        found = re.fullmatch(own, fingerprint)
        return found and dataclasses.replace(self, name=found[1], cores=int(found[2]))

    @property
    def numbers(self) -> str:
        """Multiprocessors and the limits of a block in words."""
        return (
            f"{self.cores} multiprocessors, {self.threads_per_block} threads and "
            f"{self.shared_bytes >> 10} KiB static shared memory a block"
        )

    @property
    def host_threads(self) -> int:
        """All usable cores of the host."""
        return host.cores()

    @property
    def conditions(self) -> str:
        """Events of the card around each call."""
        return "L2 overwritten before each call, PyTorch as CUDA graphs, cuDNN choosing by trial"

    @property
    def torch_device(self) -> str:
        """The card."""
        return f"cuda:{self.index}"

    def matrix_tile(self, dtype: str) -> int:
        """Tensor cores multiply 16 x 16 x 16 of float16 on every known architecture, of bfloat16
        since sm_80."""
        own = ("float16", "bfloat16") if self.data.bfloat else ("float16",)
        return 16 if dtype in own else 0

    def lane_tile(self, dtype: str) -> int:
        """mma.sync.m16n8k16, since sm_80."""
        return self.matrix_tile(dtype) if self.data.lane_products else 0

    def computes(self, dtype: str) -> bool:
        """All of them: what has no bfloat16 computes with it as float32, and rounds by integers."""
        return True

    def tvm_target(self) -> Any:
        """The `tvm.target.Target` to compile for."""
        import tvm

        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.arch,
                "host": "llvm",
                "max_threads_per_block": self.threads_per_block,
                "max_shared_memory_per_block": self.shared_bytes,
                "thread_warp_size": self.warp,
            }
        )

    def check(self) -> None:
        """A compiler, and a card where kernels are to run."""
        from flextensor.targets import cuda_compiler, cuda_emulation

        if self.emulated:
            return cuda_emulation.check()
        cuda_compiler.check()
        if self.measured == "run" and self.index == NO_CARD:
            raise DeviceError(f"no CUDA device of {self.arch} found: {HOW_WITHOUT}")

    def program(self, module: Any) -> Program:
        """CUDA C, and what of it to launch."""
        from flextensor.targets import launches

        return launches.lower(module, self.tvm_target())

    def build(self, module: Any, path: Path) -> None:
        """Write source, launches and, unless it is emulated, the cubin into `path`; `DeviceError`
        also for launches that no card takes."""
        from flextensor.targets import cuda_compiler
        from flextensor.targets.cuda_program import CudaProgram, check_launches

        program = self.program(module)
        check_launches(program)
        binary = None if self.emulated else cuda_compiler.compile_cuda(program.source, self.arch)
        path.write_text(CudaProgram(program, binary).dumps())

    def source(self, module: Any) -> str:
        """CUDA C."""
        return self.program(module).source

    def runtime(self) -> Runtime:
        """A context of its own on the card, or an emulation."""
        if self.emulated:
            from flextensor.targets.cuda_emulation import EmulatedRuntime

            return EmulatedRuntime()
        if self.index == NO_CARD:
            raise DeviceError(f"no CUDA device of {self.arch} found: {HOW_WITHOUT}")
        return cuda_driver.CudaRuntime(self.index)

    def measure(self, what: str) -> float:
        """FLOP/s or bytes/s of the card; see `flextensor.targets.cuda_peaks`."""
        from flextensor.targets import cuda_peaks

        return cuda_peaks.measure(self, what)

    def peak_flops(self, dtype: str = "float32") -> float:
        """FLOP/s of all multiprocessors, measured where kernels run; else by the data sheet, at
        boost clock."""
        if self.measured == "run" and self.index != NO_CARD:
            return super().peak_flops(dtype)
        data = self.data
        whole = data.tensor_flops if self.matrix_tile(dtype) else data.flops
        return whole * self.cores / data.multiprocessors

    def bandwidth(self) -> float:
        """Bytes/s of the card's memory, measured or by the data sheet alike."""
        if self.measured == "run" and self.index != NO_CARD:
            return super().bandwidth()
        return self.data.bandwidth

    def remeasure(self, dtype: str = "float32") -> None:
        """Measure again; the data sheet does not change."""
        if self.measured == "run" and self.index != NO_CARD:
            super().remeasure(dtype)
