"""What a card can do at most, measured: multiply-adds in registers, tensor cores, reading memory.

A thread of each kernel writes what it has only if that is a number that it never is, so that the
compiler keeps the work and memory sees none of it.
"""

from __future__ import annotations

import ctypes
import math
import time
from typing import TYPE_CHECKING, Any

from flextensor.errors import UnsupportedError
from flextensor.targets import cuda_compiler, cuda_driver, peaks

if TYPE_CHECKING:
    from flextensor.targets.cuda import CUDA

THREADS = 256
BLOCKS = 8
"""Blocks for every multiprocessor."""
CHAINS, STEPS = 12, 1 << 12
"""Independent sums of a thread, and multiply-adds of each."""
TILES = 8
"""Independent 16x8 tiles of a warp, each of 4 sums a thread."""
READ_BYTES = 2 << 30
"""Far more than any L2 holds."""
TENSOR = {"float16": "f16", "bfloat16": "bf16"}
OPERANDS = {8: "{%4, %5}, {%4}", 16: "{%4, %5, %4, %5}, {%5, %4}"}
"""Registers of both operands, by the depth of a multiplication."""

COMPUTE = """
extern "C" __global__ void compute(float* out, float factor) {{
  float c[{chains}];
  for (int i = 0; i < {chains}; ++i) c[i] = threadIdx.x + i;
  for (int step = 0; step < {steps}; ++step)
    #pragma unroll
    for (int i = 0; i < {chains}; ++i) c[i] = c[i] * factor + factor;
  float sum = 0;
  for (int i = 0; i < {chains}; ++i) sum += c[i];
  if (sum == -1.25f) out[0] = sum;
}}
"""
MULTIPLY = """
extern "C" __global__ void compute(float* out, float factor) {{
  unsigned a = __float_as_uint(factor) + threadIdx.x, b = a + 1;
  float c[{tiles}][4] = {{}};
  for (int step = 0; step < {steps}; ++step)
    #pragma unroll
    for (int i = 0; i < {tiles}; ++i)
      asm volatile("mma.sync.aligned.m16n8k{k}.row.col.f32.{type}.{type}.f32 "
        "{{%0, %1, %2, %3}}, {operands}, {{%0, %1, %2, %3}};"
        : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3]) : "r"(a), "r"(b));
  float sum = 0;
  for (int i = 0; i < {tiles}; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == -1.25f) out[0] = sum;
}}
"""
READ = """
extern "C" __global__ void compute(const float4* in, float* out, long long count) {
  long long step = (long long)gridDim.x * blockDim.x;
  float4 sum = {0, 0, 0, 0};
  #pragma unroll 8
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    float4 x = in[i];
    sum.x += x.x; sum.y += x.y; sum.z += x.z; sum.w += x.w;
  }
  if (sum.x + sum.y + sum.z + sum.w == -1.25f) out[0] = sum.x;
}
"""


def measure(target: CUDA, what: str) -> float:
    """Measure ``bandwidth``, bytes/s, or the FLOP/s of a dtype, in this process: of float32 by its
    multiply-adds, of float16 and bfloat16 by ``mma.sync`` with float32 sums.

    Raises `UnsupportedError` for any other.
    """
    runtime = cuda_driver.CudaRuntime(target.index)
    threads = BLOCKS * target.cores * THREADS
    out = cuda_driver.CudaBuffer(runtime, 4)
    if what == peaks.BANDWIDTH:
        source = cuda_driver.CudaBuffer(runtime, READ_BYTES)
        runtime.ask("cuMemsetD8_v2", source.pointer, 0, ctypes.c_size_t(READ_BYTES))
        count = ctypes.c_longlong(READ_BYTES // 16)
        seconds = _best_seconds(target, runtime, READ, source.pointer, out.pointer, count)
        return READ_BYTES / seconds
    text, work = source_of(what, target.arch)
    seconds = _best_seconds(target, runtime, text, out.pointer, ctypes.c_float(0.5))
    return work * threads / seconds


def source_of(dtype: str, arch: str) -> tuple[str, int]:
    """A kernel that only multiplies and adds, and the FLOPs of each of its threads.

    Raises `UnsupportedError` for other dtypes than float32, float16 and bfloat16.
    """
    if dtype == "float32":
        return COMPUTE.format(chains=CHAINS, steps=STEPS), 2 * CHAINS * STEPS
    if dtype not in TENSOR:
        raise UnsupportedError(f"the peak of {dtype} is not measured on a CUDA card")
    k = 8 if arch == "sm_75" else 16
    text = MULTIPLY.format(tiles=TILES, steps=STEPS, type=TENSOR[dtype], k=k, operands=OPERANDS[k])
    return text, 2 * 16 * 8 * k * TILES * STEPS // 32


def _best_seconds(
    target: CUDA, runtime: cuda_driver.CudaRuntime, source: str, *arguments: Any
) -> float:
    """Seconds of the fastest of many launches of a source's kernel."""
    module = runtime.module(cuda_compiler.compile_cuda(source, target.arch).cubin)
    kernel = runtime.kernel(module, "compute")

    def call() -> None:
        runtime.launch(kernel, (BLOCKS * target.cores, 1, 1), (THREADS, 1, 1), arguments)

    best, end = math.inf, time.perf_counter() + peaks.MEASURE_SECONDS
    while time.perf_counter() < end:
        best = min(best, runtime.seconds(call, 1))
    return best
