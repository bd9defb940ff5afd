"""A device of OpenCL: TVM generates OpenCL C, pyopencl compiles, launches and times it.

TVM's own OpenCL runtime is not in its wheel, so a built file holds the source and a description
of its launches, see `flextensor.targets.launches`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flextensor.errors import DeviceError, InputError
from flextensor.targets import host
from flextensor.targets.base import Target
from flextensor.targets.opencl_runtime import OpenCLRuntime

if TYPE_CHECKING:
    from flextensor.targets.launches import Program

LEAST_VECTOR_BITS = 128
"""A load of four floats, which pays on devices that call a width of one preferred."""
THREAD_REGISTERS, WARP = 255, 32
"""OpenCL does not tell; what most GPUs give a thread at most, and how many of them run in step."""
AVX512_CPUS = (
    "skylake-avx512", "cascadelake", "cooperlake", "cannonlake", "icelake-client",
    "icelake-server", "tigerlake", "rocketlake", "sapphirerapids", "emeraldrapids",
    "graniterapids", "znver4", "znver5", "x86-64-v4",
)  # fmt: skip
"""LLVM's names of CPUs whose vectors have 512 bits."""
AVX_BITS = 256


@dataclasses.dataclass(frozen=True)
class OpenCL(Target):
    """One device of one OpenCL platform.

    `index` is its place among the devices of all platforms in turn, `name`, `platform` and
    `driver` are its own words.
    """

    kind: ClassVar[str] = "opencl"
    first_call_seconds: ClassVar[float] = 10.0

    index: int = 0
    name: str = ""
    platform: str = ""
    driver: str = ""

    @classmethod
    def specs(cls) -> tuple[str, ...]:
        """One for every device, none without pyopencl or a platform."""
        try:
            return tuple(f"{cls.kind}:{i}" for i in range(len(_devices())))
        except DeviceError:
            return ()

    @classmethod
    def from_spec(cls, spec: str = "opencl", threads: int | None = None) -> OpenCL:
        """The first device, that of a number (``opencl:1``) or of a part of the names of its
        platform and its own (``opencl:nvidia``).

        Raises `DeviceError` when nothing of OpenCL is there, `InputError` for another device.
        """
        if threads is not None:
            raise InputError("threads cannot be chosen on an OpenCL device")
        devices = _devices()
        index = _choose(spec.partition(":")[2], [_full_name(d) for d in devices])
        return cls._of(index, devices[index])

    @classmethod
    def _of(cls, index: int, device: Any) -> OpenCL:
        shared = int(device.local_mem_size)
        cache = max(int(device.global_mem_cache_size), 2 * shared)
        bits = vector_bits(device)
        return cls(
            cores=int(device.max_compute_units),
            vector_bits=bits,
            vector_registers=max(THREAD_REGISTERS * 32 // bits, 1),
            l1_bytes=shared,
            l2_bytes=cache,
            l3_bytes=cache,
            max_unroll=1024,
            threads_per_block=int(device.max_work_group_size),
            shared_bytes=shared,
            thread_registers=THREAD_REGISTERS,
            warp=WARP if device.type & _pyopencl().device_type.GPU else 1,
            half="cl_khr_fp16" in str(device.extensions).split(),
            index=index,
            name=_name(device),
            platform=str(device.platform.name).strip(),
            driver=str(device.driver_version).strip(),
        )

    @property
    def device(self) -> str:
        """The device in words."""
        return f"{self.name}, {self.platform} {self.driver}"

    @property
    def fingerprint(self) -> str:
        """Platform, device, driver, compute units and TVM version."""
        version = importlib.metadata.version("apache-tvm")
        what = f"{self.platform}/{self.name}/{self.driver}/{self.cores}"
        return f"{self.kind}/{what}/tvm-{version}"

    @property
    def numbers(self) -> str:
        """Compute units and the limits of a work group in words."""
        return (
            f"{self.cores} compute units, {self.threads_per_block} threads a block, "
            f"{self.shared_bytes >> 10} KiB shared"
        )

    @property
    def host_threads(self) -> int:
        """All usable cores of the host."""
        return host.cores()

    def environment(self, folder: Path) -> dict[str, str]:
        """No cache of compiled kernels outlives the process: PoCL's own, and pyopencl's."""
        private = {"POCL_CACHE_DIR": str(folder / "pocl"), "PYOPENCL_NO_CACHE": "1"}
        return super().environment(folder) | private

    def tvm_target(self) -> Any:
        """The `tvm.target.Target` to compile for."""
        import tvm

        return tvm.target.Target(
            {
                "kind": "opencl",
                "host": "llvm",
                "max_threads_per_block": self.threads_per_block,
                "max_shared_memory_per_block": self.shared_bytes,
            }
        )

    def program(self, module: Any) -> Program:
        """OpenCL C, and what of it to launch."""
        from flextensor.targets import opencl_source

        return opencl_source.lower(module, self)

    def build(self, module: Any, path: Path) -> None:
        """Write source and launches into `path`; the driver compiles when they are loaded."""
        path.write_text(self.program(module).dumps())

    def source(self, module: Any) -> str:
        """OpenCL C."""
        return self.program(module).source

    def runtime(self) -> OpenCLRuntime:
        """A queue of its own on the device."""
        devices = _devices()
        found = devices[self.index] if self.index < len(devices) else None
        if found is None or _name(found) != self.name:
            raise DeviceError(f"OpenCL device {self.index} is not {self.name} on this machine")
        return OpenCLRuntime(found)

    def measure(self, what: str) -> float:
        """FLOP/s or bytes/s of all compute units; see `flextensor.targets.opencl_peaks`."""
        from flextensor.targets import opencl_peaks

        return opencl_peaks.measure(self, what)


def _pyopencl() -> Any:
    try:
        import pyopencl
    except ImportError:
        raise DeviceError(
            "OpenCL needs pyopencl: pip install 'pyopencl[pocl]', the latter for a CPU"
        ) from None
    return pyopencl


def _devices() -> list[Any]:
    """The devices of all platforms in turn, at least one; else `DeviceError`."""
    cl = _pyopencl()
    try:
        found = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:
        found = []
        reason = f" ({error})"
    else:
        reason = ""
    if not found:
        raise DeviceError(
            f"no OpenCL device found{reason}: install its driver, or PoCL for a CPU "
            "(pip install 'pyopencl[pocl]')"
        )
    return found


def _name(device: Any) -> str:
    return str(device.name).strip()


def vector_bits(device: Any) -> int:
    """Bits of the vectors that a device likes best.

    PoCL asks the CPU how wide its own are, and compiles for the nearest that its LLVM knows, which
    ends its version: for a Zen 4 it may be a Zen 3, whose code generator aborts at 512 bits.
    """
    lanes = max(int(device.preferred_vector_width_float), int(device.native_vector_width_float))
    bits = max(32 * lanes, LEAST_VECTOR_BITS)
    version = str(device.version).strip()
    pocl = "PoCL" in version and "x86_64" in version
    return min(bits, AVX_BITS) if pocl and not version.endswith(AVX512_CPUS) else bits


def _full_name(device: Any) -> str:
    """Platform and device, as they call themselves."""
    return f"{str(device.platform.name).strip()} {_name(device)}"


def _choose(wanted: str, names: list[str]) -> int:
    """The index of the one device that a number or a part of a name means; the first for ``""``."""
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    if wanted.isdigit():
        if int(wanted) < len(names):
            return int(wanted)
        raise InputError(f"there is no OpenCL device {wanted}; there is {listed}")
    found = [i for i, name in enumerate(names) if wanted.lower() in name.lower()]
    if not wanted:
        return 0
    if len(found) != 1:
        many = f"{len(found)} OpenCL devices are" if found else "no OpenCL device is"
        raise InputError(f"{many} called {wanted!r}; there is {listed}")
    return found[0]
