// Instructions by which the lanes of a warp load and multiply tiles together, on a CPU, for
// cuda_emulation.h. Every lane gives what it has, waits for the others, and takes its own part, by
// the fragment layouts of the PTX ISA ("Matrix Fragments for mma.m16n8k16", "ldmatrix"). What other
// lanes have to write without a barrier between is not yet written when a lane reads its row.
#pragma once

// The lanes' gifts of this turn, after all have come; those of the next turn go elsewhere.
template <typename T>
static const T* gifts(const T& own) {
  static T given[2][1024];  // the most threads of a block
  unsigned turn = running->shuffles++ % 2;
  size_t thread = size_t(running - block_fibers->data());
  given[turn][thread] = own;
  wait_for(Fiber::WARP);
  return given[turn] + thread / 32 * 32;
}

// Four tiles of 8 x 8, their rows of 16 bytes named by eight lanes each: a lane gets two neighbours
// of row lane / 4 of each tile, or of column lane / 4.
struct TileRow { unsigned short x[8]; };
template <bool turned>
static void load_tiles(const void* row, unsigned* (&to)[4]) {
  demand_aligned(row, sizeof(TileRow));
  TileRow own;
  memcpy(&own, row, sizeof own);
  const TileRow* all = gifts(own);
  long lane = lane_of(32), first = lane / 4, second = lane % 4 * 2;
  for (int tile = 0; tile < 4; ++tile) {
    const TileRow* rows = all + 8 * tile;
    unsigned low = turned ? rows[second].x[first] : rows[first].x[second];
    unsigned high = turned ? rows[second + 1].x[first] : rows[first].x[second + 1];
    *to[tile] = high << 16 | low;
  }
}
static void ldmatrix_sync_aligned_m8n8_x4_shared_b16(
    unsigned& a, unsigned& b, unsigned& c, unsigned& d, const void* row) {
  unsigned* to[] = {&a, &b, &c, &d};
  load_tiles<false>(row, to);
}
static void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(
    unsigned& a, unsigned& b, unsigned& c, unsigned& d, const void* row) {
  unsigned* to[] = {&a, &b, &c, &d};
  load_tiles<true>(row, to);
}

// Elements of a lane: of A[16 x 16] rows lane / 4 and + 8 by turns, columns 2 (lane % 4) and + 8
// after both; of B[16 x 8] column lane / 4, rows 2 (lane % 4) and + 8.
struct TileParts { float a[8], b[4]; };
template <typename T>
static void multiply_tiles(float* (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                           const float (&before)[4]) {
  T left[8], right[4];
  memcpy(left, a, sizeof left);
  memcpy(right, b, sizeof right);
  TileParts own;
  for (int i = 0; i < 8; ++i) own.a[i] = float(left[i]);
  for (int i = 0; i < 4; ++i) own.b[i] = float(right[i]);
  const TileParts* all = gifts(own);
  long lane = lane_of(32), row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const TileParts* rows = all + 4 * row;
    const TileParts* columns = all + 4 * (column + i % 2);
    int lower = i / 2 * 2;
    float sum = before[i];
    for (int half = 0; half < 2; ++half)  // of the sixteen that are summed
      for (int k = 0; k < 8; ++k)
        sum += rows[k / 2].a[half * 4 + lower + k % 2] * columns[k / 2].b[half * 2 + k % 2];
    *sums[i] = sum;
  }
}
#define EMULATED_MMA(name, T)                                                              \
  static void mma_sync_aligned_m16n8k16_row_col_##name(                                    \
      float& s, float& t, float& u, float& v, unsigned a, unsigned b, unsigned c,          \
      unsigned d, unsigned e, unsigned f, float w, float x, float y, float z) {            \
    float* sums[] = {&s, &t, &u, &v};                                                      \
    multiply_tiles<T>(sums, {a, b, c, d}, {e, f}, {w, x, y, z});                           \
  }
EMULATED_MMA(f32_f16_f16_f32, half)
EMULATED_MMA(f32_bf16_bf16_f32, nv_bfloat16)
