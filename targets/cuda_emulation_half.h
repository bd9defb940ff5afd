// Half precision and matrix tiles of CUDA C on a CPU, for cuda_emulation.h. What a warp does
// together, its first lane does for all: when it comes there, what other warps have to write
// without a barrier between is not yet written, or what they want to read overwritten.
#pragma once

typedef _Float16 half;
typedef half __half;
struct alignas(4) half2 { half x, y; };
struct alignas(8) half4 { half x, y, z, w; };
struct uint1 { unsigned x; };
static inline half __float2half_rn(float value) { return half(value); }
static inline float __half2float(half value) { return float(value); }
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
static inline uint1 make_uint1(unsigned x) { return {x}; }
static inline unsigned __pack_half2(half x, half y) {
  unsigned short low, high;
  memcpy(&low, &x, 2);
  memcpy(&high, &y, 2);
  return unsigned(high) << 16 | low;
}

// Not __bf16, which g++ computes with only since version 13.
struct alignas(2) nv_bfloat16 {
  unsigned short bits;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {  // to the nearest, of two the even one
    unsigned whole;
    memcpy(&whole, &value, 4);
    bool nan = (whole & 0x7FFFFFFF) > 0x7F800000;
    bits = (nan ? whole | 0x400000 : whole + 0x7FFF + (whole >> 16 & 1)) >> 16;
  }
  explicit nv_bfloat16(double value) : nv_bfloat16(float(value)) {}
  explicit nv_bfloat16(int value) : nv_bfloat16(float(value)) {}
  operator float() const {
    unsigned whole = unsigned(bits) << 16;
    float value;
    memcpy(&value, &whole, 4);
    return value;
  }
};
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
struct alignas(8) nv_bfloat164 { nv_bfloat16 x, y, z, w; };
static inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
static inline float __bfloat162float(nv_bfloat16 value) { return value; }
static inline nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline nv_bfloat164 make_nv_bfloat164(
    nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) {
  return {x, y, z, w};
}
static inline unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) {
  return unsigned(y.bits) << 16 | x.bits;
}

static inline bool first_lane() {
  unsigned row = threadIdx.z * blockDim.y + threadIdx.y;
  return (row * blockDim.x + threadIdx.x) % 32 == 0;
}

static inline void demand_aligned(const void* pointer, size_t to);

namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static const int rows = std::is_same<Use, matrix_b>::value ? K : M;
  static const int columns = std::is_same<Use, matrix_a>::value ? K : N;
  float x[rows * columns];
};

// CUDA C Programming Guide, "Warp Matrix Functions": a tile begins at a multiple of 32 bytes, its
// rows lie a multiple of 16 bytes apart.
template <typename T>
void demand_tile(const T* first, unsigned pitch) {
  demand_aligned(first, 32);
  demand_aligned(first + pitch, 16);
}

template <typename F>
void fill_fragment(F& tile, float value) {
  if (first_lane()) std::fill(tile.x, tile.x + F::rows * F::columns, value);
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& tile, const T* from, unsigned pitch) {
  typedef fragment<Use, M, N, K, T, Layout> F;
  if (!first_lane()) return;
  demand_tile(from, pitch);
  bool turned = std::is_same<Layout, col_major>::value;
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j)
      tile.x[i * F::columns + j] = turned ? from[j * pitch + i] : from[i * pitch + j];
}

template <int M, int N, int K, typename T, typename A, typename B>
void mma_sync(fragment<accumulator, M, N, K, float>& sums,
              const fragment<matrix_a, M, N, K, T, A>& left,
              const fragment<matrix_b, M, N, K, T, B>& right,
              const fragment<accumulator, M, N, K, float>& before) {
  if (!first_lane()) return;
  for (int i = 0; i < M; ++i) {
    float row[N];
    for (int j = 0; j < N; ++j) row[j] = before.x[i * N + j];
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < N; ++j) row[j] += left.x[i * K + k] * right.x[k * N + j];
    for (int j = 0; j < N; ++j) sums.x[i * N + j] = row[j];
  }
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& sums,
                       unsigned pitch, layout_t layout) {
  if (!first_lane()) return;
  demand_tile(to, pitch);
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j)
      to[layout == mem_row_major ? i * pitch + j : j * pitch + i] = sums.x[i * N + j];
}
}  // namespace wmma
}  // namespace nvcuda
