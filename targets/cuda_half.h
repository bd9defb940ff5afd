// What TVM's CUDA C takes of cuda_fp16.h and mma.h, for NVRTC: no toolkit is needed, and compiling
// takes a third of the time. The functions on matrices are the compiler's own, those to which
// NVIDIA's headers forward; half is computed with as float, and rounded.
struct alignas(2) half {
  unsigned short bits;
  half() = default;
  __device__ __forceinline__ half(float value) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  __device__ __forceinline__ explicit half(double value) : half(float(value)) {}
  __device__ __forceinline__ explicit half(int value) : half(float(value)) {}
  __device__ __forceinline__ operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};
typedef half __half;
struct alignas(4) half2 { half x, y; };
typedef half2 __half2;
struct alignas(8) half4 { half x, y, z, w; };
#define HALF_OPERATOR(op)                                                  \
  __device__ __forceinline__ half operator op(half a, half b) {           \
    return half(float(a) op float(b));                                     \
  }
HALF_OPERATOR(+)
HALF_OPERATOR(-)
HALF_OPERATOR(*)
HALF_OPERATOR(/)
__device__ __forceinline__ half __float2half_rn(float value) { return half(value); }
__device__ __forceinline__ float __half2float(half value) { return float(value); }
__device__ __forceinline__ half2 make_half2(half x, half y) { return {x, y}; }
__device__ __forceinline__ half4 make_half4(half x, half y, half z, half w) {
  return {x, y, z, w};
}
__device__ __forceinline__ half max(half a, half b) { return float(a) > float(b) ? a : b; }
__device__ __forceinline__ half min(half a, half b) { return float(a) < float(b) ? a : b; }
__device__ __forceinline__ unsigned __pack_half2(half x, half y) {
  return unsigned(y.bits) << 16 | x.bits;
}

namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major { static const int columns = 0; };
struct col_major { static const int columns = 1; };
enum layout_t { mem_row_major, mem_col_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment;
template <typename Layout> struct fragment<matrix_a, 16, 16, 16, half, Layout> { int x[8]; };
template <typename Layout> struct fragment<matrix_b, 16, 16, 16, half, Layout> { int x[8]; };
template <> struct fragment<accumulator, 16, 16, 16, float, void> { float x[8]; };
template <typename Layout>
using LeftTile = fragment<matrix_a, 16, 16, 16, half, Layout>;
template <typename Layout>
using RightTile = fragment<matrix_b, 16, 16, 16, half, Layout>;
typedef fragment<accumulator, 16, 16, 16, float> Sums;

__device__ __forceinline__ void fill_fragment(Sums& sums, float value) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.x[i] = value;
}
template <typename Layout>
__device__ __forceinline__ void load_matrix_sync(
    LeftTile<Layout>& tile, const half* from, unsigned pitch) {
  __hmma_m16n16k16_ld_a(tile.x, (const int*)from, pitch, Layout::columns);
}
template <typename Layout>
__device__ __forceinline__ void load_matrix_sync(
    RightTile<Layout>& tile, const half* from, unsigned pitch) {
  __hmma_m16n16k16_ld_b(tile.x, (const int*)from, pitch, Layout::columns);
}
template <typename A, typename B>
__device__ __forceinline__ void mma_sync(
    Sums& sums, const LeftTile<A>& left, const RightTile<B>& right, const Sums& before) {
  __hmma_m16n16k16_mma_f32f32(
      sums.x, left.x, right.x, before.x, 2 * A::columns + B::columns, 0);
}
__device__ __forceinline__ void store_matrix_sync(
    float* to, const Sums& sums, unsigned pitch, layout_t layout) {
  if (layout == mem_row_major) {
    __hmma_m16n16k16_st_c_f32(to, (float*)sums.x, pitch, 0);
  } else {
    __hmma_m16n16k16_st_c_f32(to, (float*)sums.x, pitch, 1);
  }
}
}  // namespace wmma
}  // namespace nvcuda

#if __CUDA_ARCH__ >= 800
struct alignas(2) nv_bfloat16 {
  unsigned short bits;
  nv_bfloat16() = default;
  __device__ __forceinline__ nv_bfloat16(float value) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  __device__ __forceinline__ explicit nv_bfloat16(double value) : nv_bfloat16(float(value)) {}
  __device__ __forceinline__ explicit nv_bfloat16(int value) : nv_bfloat16(float(value)) {}
  __device__ __forceinline__ operator float() const {
    return __uint_as_float(unsigned(bits) << 16);
  }
};
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
struct alignas(8) nv_bfloat164 { nv_bfloat16 x, y, z, w; };
#define BFLOAT_OPERATOR(op)                                                             \
  __device__ __forceinline__ nv_bfloat16 operator op(nv_bfloat16 a, nv_bfloat16 b) {    \
    return nv_bfloat16(float(a) op float(b));                                           \
  }
BFLOAT_OPERATOR(+)
BFLOAT_OPERATOR(-)
BFLOAT_OPERATOR(*)
BFLOAT_OPERATOR(/)
__device__ __forceinline__ nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
__device__ __forceinline__ float __bfloat162float(nv_bfloat16 value) { return value; }
__device__ __forceinline__ nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) {
  return {x, y};
}
__device__ __forceinline__ nv_bfloat164 make_nv_bfloat164(
    nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) {
  return {x, y, z, w};
}
__device__ __forceinline__ nv_bfloat16 max(nv_bfloat16 a, nv_bfloat16 b) {
  return float(a) > float(b) ? a : b;
}
__device__ __forceinline__ nv_bfloat16 min(nv_bfloat16 a, nv_bfloat16 b) {
  return float(a) < float(b) ? a : b;
}
__device__ __forceinline__ unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) {
  return unsigned(y.bits) << 16 | x.bits;
}

namespace nvcuda {
namespace wmma {
template <typename Layout> struct fragment<matrix_a, 16, 16, 16, nv_bfloat16, Layout> { int x[4]; };
template <typename Layout> struct fragment<matrix_b, 16, 16, 16, nv_bfloat16, Layout> { int x[4]; };
template <typename Layout>
using LeftBfloatTile = fragment<matrix_a, 16, 16, 16, nv_bfloat16, Layout>;
template <typename Layout>
using RightBfloatTile = fragment<matrix_b, 16, 16, 16, nv_bfloat16, Layout>;

template <typename Layout>
__device__ __forceinline__ void load_matrix_sync(
    LeftBfloatTile<Layout>& tile, const nv_bfloat16* from, unsigned pitch) {
  __mma_bf16_m16n16k16_ld_a(tile.x, (const int*)from, pitch, Layout::columns);
}
template <typename Layout>
__device__ __forceinline__ void load_matrix_sync(
    RightBfloatTile<Layout>& tile, const nv_bfloat16* from, unsigned pitch) {
  __mma_bf16_m16n16k16_ld_b(tile.x, (const int*)from, pitch, Layout::columns);
}
template <typename A, typename B>
__device__ __forceinline__ void mma_sync(
    Sums& sums, const LeftBfloatTile<A>& left, const RightBfloatTile<B>& right,
    const Sums& before) {
  __mma_bf16_m16n16k16_mma_f32(
      sums.x, left.x, right.x, before.x, 2 * A::columns + B::columns, 0);
}
}  // namespace wmma
}  // namespace nvcuda
#endif
