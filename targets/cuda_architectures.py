"""CUDA architectures as data: what a multiprocessor has, and one product of each.

Limits of a multiprocessor are from NVIDIA's CUDA C++ Programming Guide 13.0, section 5.1.1
("Technical Specifications per Compute Capability"); figures of the products from NVIDIA's own
papers, named beside each. Clocks are boost clocks, so that peaks are those of the data sheets.
"""

from __future__ import annotations

import dataclasses

from flextensor.errors import InputError, unknown

STATIC_SHARED = 48 << 10
"""Bytes of statically declared shared memory that a block may have, on every architecture."""
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
"""Along the sides x, y and z of a grid, on every architecture."""
MOST_THREADS, SIDE_THREADS = 1024, (1024, 1024, 64)
"""Of a block, and along its sides."""
REGISTERS = 65536
"""32-bit registers of a multiprocessor; a thread has at most 255."""
REGISTER_UNIT = 256
"""Registers are given to warps in multiples of this."""
WARP = 32
GONE = {"sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72"}
"""Older than what the compilers of CUDA 13 can build for."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One compute capability and the product whose numbers stand for it where no card is."""

    name: str
    product: str
    multiprocessors: int
    clock: float
    """Boost clock, Hz."""
    lanes: int
    """float32 multiply-adds of a multiprocessor per clock."""
    tensor_flops: float
    """Dense FLOP/s of the tensor cores, float16 with float32 sums, and the same of bfloat16 where
    they take it; 2 per multiply-add."""
    bandwidth: float
    """Bytes/s of the device's memory."""
    l2_bytes: int
    shared_bytes: int
    """Shared memory of a multiprocessor that blocks can have in all."""
    most_threads: int
    """Resident threads of a multiprocessor."""
    most_blocks: int
    """Resident blocks of a multiprocessor."""
    reserved_shared: int
    """Shared memory that every block takes for the system, bytes."""

    warp_share: float = 1.0
    """Of `tensor_flops`, what the instructions of one warp (mma.sync) reach."""

    @property
    def capability(self) -> int:
        """The number of the architecture, e.g. 80."""
        return int(self.name.removeprefix("sm_"))

    @property
    def asynchronous(self) -> bool:
        """Whether copies to shared memory go on beside a kernel: cp.async, since sm_80."""
        return self.capability >= 80

    @property
    def lane_products(self) -> bool:
        """Whether a warp multiplies 16 x 8 x 16 that its lanes hold: mma.m16n8k16, since sm_80."""
        return self.capability >= 80

    @property
    def bfloat(self) -> bool:
        """Whether there are instructions on bfloat16: since sm_80."""
        return self.capability >= 80

    @property
    def warp_tensor_flops(self) -> float:
        """FLOP of one multiprocessor's tensor cores per clock, by the instructions of one warp."""
        return self.tensor_flops * self.warp_share / (self.multiprocessors * self.clock)

    @property
    def flops(self) -> float:
        """float32 FLOP/s of all multiprocessors: 2 x multiprocessors x lanes x clock."""
        return 2.0 * self.multiprocessors * self.lanes * self.clock


KIB, MIB, GB = 1 << 10, 1 << 20, 1e9
ARCHITECTURES = {
    a.name: a
    for a in (
        # NVIDIA Turing GPU Architecture white paper WP-09183; T4 data sheet
        Architecture("sm_75", "NVIDIA T4", 40, 1.59e9, 64, 65e12, 320 * GB, 4 * MIB,
                     64 * KIB, 1024, 16, 0),
        # NVIDIA A100 Tensor Core GPU Architecture white paper, table 4
        Architecture("sm_80", "NVIDIA A100-SXM4-40GB", 108, 1.41e9, 64, 312e12, 1555 * GB,
                     40 * MIB, 164 * KIB, 2048, 32, KIB),
        # NVIDIA Ampere GA102 GPU Architecture white paper; A10 data sheet
        Architecture("sm_86", "NVIDIA A10", 72, 1.695e9, 128, 125e12, 600 * GB, 6 * MIB,
                     100 * KIB, 1536, 16, KIB),
        # Jetson AGX Orin Series technical brief (64 GB module)
        Architecture("sm_87", "Jetson AGX Orin 64GB", 16, 1.3e9, 128, 42.5e12, 204.8 * GB,
                     4 * MIB, 164 * KIB, 1536, 16, KIB),
        # NVIDIA Ada GPU Architecture white paper, table 2
        Architecture("sm_89", "NVIDIA GeForce RTX 4090", 128, 2.52e9, 128, 165.2e12, 1008 * GB,
                     72 * MIB, 100 * KIB, 1536, 24, KIB),
        # NVIDIA H100 Tensor Core GPU Architecture white paper; H100 SXM5 data sheet. The share of
        # mma.sync is from Luo et al., "Benchmarking and Dissecting the NVIDIA Hopper GPU" (2024)
        Architecture("sm_90", "NVIDIA H100 80GB HBM3", 132, 1.98e9, 128, 989.4e12, 3350 * GB,
                     50 * MIB, 228 * KIB, 2048, 32, KIB, 0.63),
        # NVIDIA Blackwell architecture technical brief; B200 figures of HGX B200. The share is an
        # assumption
        Architecture("sm_100", "NVIDIA B200", 148, 1.965e9, 128, 2250e12, 8000 * GB, 126 * MIB,
                     228 * KIB, 2048, 32, KIB, 0.5),
        # NVIDIA RTX Blackwell GPU Architecture white paper, table 3
        Architecture("sm_120", "NVIDIA GeForce RTX 5090", 170, 2.407e9, 128, 209.5e12,
                     1792 * GB, 96 * MIB, 100 * KIB, 1536, 24, KIB),
    )
}  # fmt: skip


def architecture(name: str) -> Architecture:
    """The architecture called e.g. ``sm_90``; `InputError` says why another cannot be."""
    if name in GONE:
        raise InputError(f"{name} is gone from CUDA 13; the oldest is {next(iter(ARCHITECTURES))}")
    if name not in ARCHITECTURES:
        raise unknown("CUDA architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]
