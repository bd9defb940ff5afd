// The part of CUDA C that TVM generates, on a CPU: blocks one after the other, the threads of a
// block as fibers that change places at __syncthreads() and, within a warp, at shuffles. Between two
// barriers warp 0 runs first, then warp 1, and of a warp between two shuffles thread 0, then thread
// 1: what a missing barrier leaves unwritten is read unwritten.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

using std::max;
using std::min;
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static

struct Extents { unsigned x, y, z; };
static Extents threadIdx, blockIdx, blockDim, gridDim;

#define EMULATED_VECTOR(T, N)                                     \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                 \
  struct N##3 { T x, y, z; };                                     \
  struct alignas(4 * sizeof(T)) N##4 { T x, y, z, w; };           \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }     \
  static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; } \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float)
EMULATED_VECTOR(int, int)
EMULATED_VECTOR(unsigned, uint)
EMULATED_VECTOR(signed char, char)
EMULATED_VECTOR(unsigned char, uchar)
EMULATED_VECTOR(unsigned short, ushort)
struct alignas(16) double2 { double x, y; };
static inline double2 make_double2(double x, double y) { return {x, y}; }
#include "cuda_emulation_half.h"
#define __expf expf  // glibc has declarations of these names
#define __logf logf
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }

struct Copy { void* to; const void* from; int bytes; unsigned group; };  // not yet done
struct Fiber {
  jmp_buf at;          // where it waits
  ucontext_t begin;    // where it starts, on a stack of its own
  Extents place;
  bool started, done;
  std::vector<Copy> copies;
  unsigned groups;  // of copies, committed
  unsigned asked;   // for copies
  enum { READY, BLOCK, WARP } waits;  // for whom
  unsigned shuffles;
  uint64_t given[2];  // to the last shuffles: one may read while another is in the next
};
static const size_t STACK_BYTES = 256 << 10;
static jmp_buf scheduler;
static Fiber* running;
static void (*kernel_body)();
static unsigned char* dynamic_shared;  // shared memory whose size is given at launch
static const size_t SHARED_GUARD = 4096;

static std::vector<Fiber>* block_fibers;

__attribute__((noinline)) static void wait_for(decltype(Fiber::waits) whom) {
  __asm__ volatile("" ::: "memory");
  running->waits = whom;
  if (!_setjmp(running->at)) _longjmp(scheduler, 1);
  __asm__ volatile("" ::: "memory");
}

// Ends the thread: a card refuses vectors, rows and copies that do not lie at a multiple of their
// size. g++ calls it where -fsanitize=alignment finds a pointer to be so.
static bool aligned;
extern "C" __attribute__((noreturn, visibility("hidden")))
void __ubsan_handle_type_mismatch_v1_abort(void*, void*) {
  aligned = false;
  running->done = true;
  _longjmp(scheduler, 1);
}
static inline void demand_aligned(const void* pointer, size_t to) {
  if (uintptr_t(pointer) % to) __ubsan_handle_type_mismatch_v1_abort(nullptr, nullptr);
}

static inline void __syncthreads() { wait_for(Fiber::BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { wait_for(Fiber::WARP); }
static inline unsigned __activemask() { return ~0u; }

// The value that lane `from` of the `width` lanes around this one gave; its own from beyond them.
template <typename T>
static T shuffle(T value, long from, int width) {
  unsigned turn = running->shuffles++ % 2;
  memcpy(&running->given[turn], &value, sizeof(T));
  wait_for(Fiber::WARP);
  size_t own = size_t(running - block_fibers->data()), first = own - own % width;
  size_t source = from < 0 || from >= width ? own : first + from;
  if (source < block_fibers->size()) memcpy(&value, &(*block_fibers)[source].given[turn], sizeof(T));
  return value;
}
static inline long lane_of(int width) { return (running - block_fibers->data()) % width; }
template <typename T>
static T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  return shuffle(value, lane & (width - 1), width);
}
template <typename T>
static T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  return shuffle(value, lane_of(width) + delta, width);
}
template <typename T>
static T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  return shuffle(value, lane_of(width) - long(delta), width);
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
  return shuffle(value, lane_of(width) ^ mask, width);
}

#include "cuda_emulation_lanes.h"

// Copies to shared memory beside the kernel: every other one at once, which finds what is still read,
// and the others as late as they may be, at the wait for their group, which finds what is not waited
// for. Zeros where there is nothing to copy are written at once.
static inline void copy_async(void* to, const void* from, int bytes, bool inside) {
  demand_aligned(to, bytes);
  if (inside) demand_aligned(from, bytes);
  size_t own = size_t(running - block_fibers->data());
  if (!inside) memset(to, 0, bytes);
  else if ((own + running->asked++) % 2) memcpy(to, from, bytes);
  else running->copies.push_back({to, from, bytes, running->groups});
}
static inline void commit_copies() { ++running->groups; }
static inline void wait_for_copies(unsigned but) {
  std::vector<Copy> later;
  for (const Copy& copy : running->copies)
    if (copy.group + but < running->groups) memcpy(copy.to, copy.from, copy.bytes);
    else later.push_back(copy);
  running->copies.swap(later);
}

static void fiber_main() {
  kernel_body();
  running->done = true;
  _longjmp(scheduler, 1);
}

static void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.place;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  setcontext(&fiber.begin);
}

// Lets the threads of [begin, end) go on when all of them wait for each other; whether it did.
static bool release(std::vector<Fiber>& fibers, size_t begin, size_t end,
                    decltype(Fiber::waits) whom) {
  for (size_t i = begin; i < end; ++i)
    if (fibers[i].done || fibers[i].waits != whom) return false;
  for (size_t i = begin; i < end; ++i) fibers[i].waits = Fiber::READY;
  return true;
}

// Runs every thread up to where it waits for others until all are done; false when some wait for
// ever, which hangs on a device.
static bool run_block(std::vector<Fiber>& fibers, char* stacks) {
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = stacks + i * STACK_BYTES;
    fiber.begin.uc_stack.ss_size = STACK_BYTES;
    fiber.begin.uc_link = nullptr;
    fiber.started = fiber.done = false;
    fiber.copies.clear();
    fiber.groups = fiber.asked = 0;
    fiber.waits = Fiber::READY;
    fiber.shuffles = 0;
    unsigned t = unsigned(i);
    fiber.place = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    makecontext(&fiber.begin, fiber_main, 0);
  }
  block_fibers = &fibers;
  for (;;) {
    size_t done = 0;
    for (size_t warp = 0; warp < fibers.size(); warp += 32) {
      size_t end = min(warp + 32, fibers.size());
      do {
        for (size_t i = warp; i < end; ++i)
          if (!fibers[i].done && fibers[i].waits == Fiber::READY) resume(fibers[i]);
      } while (release(fibers, warp, end, Fiber::WARP));
      for (size_t i = warp; i < end; ++i) done += fibers[i].done;
    }
    if (done == fibers.size()) return true;
    if (!release(fibers, 0, fibers.size(), Fiber::BLOCK)) return false;
  }
}

// 0, 1 when the threads of a block disagree about its barriers, 2 when memory is short, 3 when a
// block writes outside of its `shared` bytes of dynamic memory, 4 when a pointer is not aligned.
static int run_grid(void (*body)(), const unsigned* grid, const unsigned* block, unsigned shared) {
  kernel_body = body;
  size_t guarded = (shared + 127) / 128 * 128 + 2 * SHARED_GUARD;
  unsigned char* memory = static_cast<unsigned char*>(aligned_alloc(128, guarded));
  if (!memory) return 2;
  dynamic_shared = memory + SHARED_GUARD;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  std::vector<Fiber> fibers(size_t(block[0]) * block[1] * block[2]);
  size_t bytes = fibers.size() * STACK_BYTES;
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return free(memory), 2;
  size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
  bool agreed = true, inside = true;
  aligned = true;
  for (size_t b = 0; b < blocks && agreed && inside && aligned; ++b) {
    memset(memory, 0xFF, guarded);  // NaN where nothing is written
    blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]),
                unsigned(b / grid[0] / grid[1])};
    agreed = run_block(fibers, static_cast<char*>(stacks));
    for (size_t i = 0; i < SHARED_GUARD; ++i)
      inside &= memory[i] == 0xFF && memory[guarded - 1 - i] == 0xFF;
  }
  munmap(stacks, bytes);
  free(memory);
  return !aligned ? 4 : !agreed ? 1 : !inside ? 3 : 0;
}
