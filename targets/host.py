"""What this host is: model, instruction sets, caches, usable cores, and the LLVM CPU to name."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DEFAULT_CACHES = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}
"""Bytes by level where the system does not say."""

WIDTHS = (("avx512f", 512, 32), ("avx2", 256, 16), ("asimd", 128, 32))
"""(instruction set, bits of a vector register, number of vector registers), best first."""

LLVM_NAMES = {
    "abm": "lzcnt",
    "bmi1": "bmi",
    "pni": "sse3",
    "sha_ni": "sha",
    "avx512_4fmaps": "avx5124fmaps",
    "avx512_vbmi2": "avx512vbmi2",
}
"""Kernel flags whose LLVM name is not the flag without underscores."""

EMITTED = frozenset(
    """
    sse sse2 sse3 ssse3 sse4.1 sse4.2 sse4a avx avx2 fma fma4 xop tbm f16c bmi bmi2 lzcnt popcnt
    movbe adx aes pclmul sha gfni vaes vpclmulqdq avxvnni avxifma avxvnniint8 avxneconvert
    avx512f avx512cd avx512bw avx512dq avx512vl avx512ifma avx512vbmi avx512vbmi2 avx512vnni
    avx512bitalg avx512vpopcntdq avx512bf16 avx512fp16 avx512er avx512pf avx512vp2intersect
    amx-tile amx-int8 amx-bf16 amx-fp16 amx-complex
    """.split()
)
"""LLVM features that change the code of a kernel and that the operating system reports. Others
(uintr, pku, clzero, ...) are left out: hypervisors hide them, and LLVM never emits them unasked."""

KNOWN_CPUS = (
    "znver5 znver4 znver3 znver2 znver1 graniterapids sapphirerapids icelake-server icelake-client "
    "cascadelake skylake-avx512 alderlake skylake haswell x86-64-v4 x86-64-v3 x86-64-v2 x86-64"
).split()


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE | re.IGNORECASE)
    return match.group(1).strip() if match else ""


def llvm_feature(flag: str) -> str:
    """The LLVM name of a flag of /proc/cpuinfo.

    >>> llvm_feature("avx512_bf16"), llvm_feature("amx_tile"), llvm_feature("sse4_2")
    ('avx512bf16', 'amx-tile', 'sse4.2')
    """
    if flag in LLVM_NAMES:
        return LLVM_NAMES[flag]
    if flag.startswith("amx_"):
        return flag.replace("_", "-")
    if flag.startswith("sse4_"):
        return flag.replace("_", ".")
    return "pclmul" if flag == "pclmulqdq" else flag.replace("_", "")


@functools.cache
def features() -> frozenset[str]:
    """Instruction sets of this host by their LLVM names."""
    text = _cpuinfo()
    flags = _field(text, "flags") or _field(text, "features")
    found = frozenset(map(llvm_feature, flags.split()))
    if "amx-tile" in found and not tiles_permitted():
        return frozenset(name for name in found if not name.startswith("amx-"))
    return found


def tiles_permitted() -> bool:
    """Whether Linux lets this process use tile registers (AMX), which it has to ask for: a sandbox
    may refuse. ``arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)``; Linux, x86/xstate.rst."""
    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)


@functools.cache
def model() -> str:
    """The processor as it calls itself."""
    return _field(_cpuinfo(), "model name") or platform.processor() or platform.machine()


@functools.cache
def cores() -> int:
    """Logical CPUs that this process may use; asked once, for what runs in it may bind a thread to
    fewer, and a device is the same all the time."""
    return len(os.sched_getaffinity(0))


def first_cpus() -> bool:
    """Whether the CPUs that this thread may use are the first of the host, as all of them are."""
    allowed = os.sched_getaffinity(0)
    return allowed == set(range(len(allowed)))


def vectors(isa: Iterable[str]) -> tuple[int, int]:
    """(bits of a vector register, vector registers) of a host with these instruction sets."""
    have = frozenset(isa)
    return next(((bits, count) for name, bits, count in WIDTHS if name in have), (128, 16))


def caches(folder: Path = CACHES) -> dict[int, int]:
    """Bytes of the data caches of core 0 by level; a default where the system does not say."""
    sizes = dict(DEFAULT_CACHES)
    for index in sorted(folder.glob("index*")):
        try:
            kind, level = (index / "type").read_text().strip(), int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if match and kind != "Instruction":
            sizes[level] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return sizes


def memory_bytes() -> int:
    """Bytes of main memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def best_cpu(
    isa: frozenset[str], known: Mapping[str, frozenset[str]], system: str
) -> tuple[str, tuple[str, ...]]:
    """(cpu, attributes): the CPU of `known` that uses most of `isa` and nothing else, and the rest.

    `known` maps LLVM CPU names to their LLVM features. A hypervisor may show LLVM a model number
    that is not the chip's: `system`, LLVM's own answer, only wins ties, and only when the host
    has its features.

    >>> best_cpu(frozenset({"avx2", "fma", "avx512f"}), {"haswell": frozenset({"avx2"})}, "haswell")
    ('haswell', ('+avx512f', '+fma'))
    """
    uses = {cpu: wanted & EMITTED for cpu, wanted in known.items()}
    fitting = [cpu for cpu in uses if uses[cpu] <= isa]
    if not fitting:
        return "", ()
    best = max(fitting, key=lambda cpu: (len(uses[cpu]), cpu == system))
    return best, tuple(f"+{name}" for name in sorted((isa & EMITTED) - known[best]))


@functools.cache
def llvm_cpu() -> tuple[str, tuple[str, ...]]:
    """The LLVM CPU and attributes to compile for on this host (imports tvm)."""
    import tvm
    from tvm.target import codegen

    system, triple = str(codegen.llvm_get_system_cpu()), codegen.llvm_get_system_triple()
    names = [cpu for cpu in (system, *KNOWN_CPUS) if codegen.llvm_is_valid_cpu(cpu, triple)]
    known = {}
    for cpu in names:
        target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
        known[cpu] = frozenset(map(str, codegen.llvm_get_cpu_features(target)))
    return best_cpu(features(), known, system)
