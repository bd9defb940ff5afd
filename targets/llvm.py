"""The CPU of this host, compiled by LLVM."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from flextensor.errors import DeviceError, InputError
from flextensor.targets import dot_products, host, tiles
from flextensor.targets.base import Target
from flextensor.targets.runtime import TVMRuntime

OPTIONS = ["-dag-maps-huge-region:uint=100"]
"""Of LLVM. Its instruction schedulers compare every load with every store of a block, of at most so
many before they guess: without the bound an unrolled copy into panels takes them seconds."""


@dataclasses.dataclass(frozen=True)
class LLVM(Target):
    """A CPU as TVM's LLVM back end sees it.

    `model` is the processor in words, `mcpu` the LLVM CPU compiled for, `mattr` what the
    host has beyond it (``+avx512fp16``) and `features` the host's instruction sets.
    """

    kind: ClassVar[str] = "llvm"

    model: str = "cpu"
    mcpu: str = ""
    mattr: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @classmethod
    def from_spec(cls, spec: str = "llvm", threads: int | None = None) -> LLVM:
        """This host, with `threads` threads or all usable cores."""
        if spec != cls.kind:
            raise InputError(f"{spec!r}: the CPU is this host's, write {cls.kind!r}")
        usable = host.cores()
        if threads is not None and not 1 <= threads <= usable:
            raise InputError(f"threads must be between 1 and {usable} on this host, got {threads}")
        isa = host.features()
        bits, registers = host.vectors(isa)
        caches = host.caches()
        mcpu, mattr = host.llvm_cpu()
        return cls(
            cores=threads or usable,
            vector_bits=bits,
            vector_registers=registers,
            l1_bytes=caches[1],
            l2_bytes=caches[2],
            l3_bytes=caches[3],
            max_unroll=512,
            model=host.model(),
            mcpu=mcpu,
            mattr=mattr,
            features=tuple(sorted(isa & host.EMITTED)),
        )

    def dot_group(self, dtype: str) -> int:
        """4 of int8 with AVX512-VNNI, 2 of bfloat16 with AVX512-BF16."""
        feature, group = dot_products.NEEDS.get(dtype, ("", 0))
        return group if self._multiplies(feature) else 0

    def tile_depth(self, dtype: str) -> int:
        """64 of int8, 32 of bfloat16, with AMX."""
        found = tiles.INSTRUCTIONS.get(dtype)
        return found.depth if found and self._multiplies(found.feature) else 0

    def _multiplies(self, feature: str) -> bool:
        """Whether it has what multiplies 16 lanes at a time, and vectors are as wide."""
        return feature in self.features and self.vector_bits == 512

    @property
    def breed(self) -> str:
        """By vector registers, which decide the tiles: CPUs with 32 of them, or with 16."""
        return "llvm-avx512" if self.vector_registers >= 32 else "llvm-avx2"

    @property
    def chip(self) -> str:
        """LLVM's name of the CPU, e.g. ``znver4``."""
        return self.mcpu or "generic"

    @property
    def device(self) -> str:
        """The device in words."""
        return f"{self.model}, {self.cores} thread{'s' if self.cores > 1 else ''}"

    @property
    def fingerprint(self) -> str:
        """Model, LLVM CPU, instruction sets (hashed), threads and TVM version."""
        isa = hashlib.sha256(" ".join(self.features).encode()).hexdigest()[:8]
        version = importlib.metadata.version("apache-tvm")
        return f"llvm/{self.model}/{self.mcpu}/{isa}/{self.cores}/tvm-{version}"

    @property
    def numbers(self) -> str:
        """Vector registers and caches in words."""
        sizes = (self.l1_bytes, self.l2_bytes, self.l3_bytes)
        caches = ", ".join(f"{size >> 10} KiB" for size in sizes)
        return f"{self.vector_bits}-bit vectors x {self.vector_registers}, caches {caches}"

    def computes(self, dtype: str) -> bool:
        """All of them; LLVM has float32 take the place of what the CPU cannot compute in."""
        return True

    def tvm_target(self) -> Any:
        """The `tvm.target.Target` to compile for."""
        import tvm

        spec: dict[str, Any] = {"kind": "llvm", "num-cores": self.cores, "cl-opt": OPTIONS}
        if self.mcpu:
            spec["mcpu"] = self.mcpu
        if self.mattr:
            spec["mattr"] = list(self.mattr)
        return tvm.target.Target(spec)

    def check(self) -> None:
        """Raise `DeviceError` when there is no linker."""
        linker()

    def build(self, module: Any, path: Path) -> None:
        """Compile an IRModule into the shared library `path`; `DeviceError` when linking fails."""
        import tvm

        executable = tvm.compile(module, target=self.tvm_target())
        part = path.with_suffix(".o")
        executable.mod.write_to_file(str(part), "o")
        try:
            link(part, path)
        finally:
            part.unlink(missing_ok=True)

    def source(self, module: Any) -> str:
        """LLVM IR."""
        import tvm

        text: str = tvm.compile(module, target=self.tvm_target()).mod.inspect_source("ll")
        return text

    def runtime(self) -> TVMRuntime:
        """TVM's runtime on the CPU."""
        import tvm

        return TVMRuntime(tvm.cpu(), self.cores)

    def measure(self, what: str) -> float:
        """FLOP/s or bytes/s of all cores; see `flextensor.targets.peaks`."""
        from flextensor.targets import peaks

        return peaks.measure(self, what)


@functools.cache
def linker() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The link command and the libraries after the object.

    `ld` itself needs 5 ms and the compiler driver 20 ms; the driver is asked once for the
    run-time library that conversions of small floats may need.
    """
    driver = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    ld = shutil.which("ld")
    if ld is None and driver is None:
        raise DeviceError("no C compiler or linker found (cc, gcc, clang, ld): install one")
    if ld is None or driver is None:
        return (ld or str(driver), "-shared"), ()
    answer = subprocess.run([driver, "-print-libgcc-file-name"], capture_output=True, text=True)
    runtime = answer.stdout.strip()
    return (ld, "-shared"), (runtime,) if Path(runtime).is_file() else ()


def link(part: Path, path: Path) -> None:
    """Link one object into the shared library `path`; `DeviceError` with the linker's reason."""
    head, libraries = linker()
    command = [*head, "-o", str(path), str(part), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeviceError(f"{head[0]} cannot link {path.name}: {reason}")
