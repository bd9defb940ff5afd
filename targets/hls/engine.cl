// One engine as a single work item. The arrays are on the chip: `a` has a bank for every row of the
// array of multipliers, `b` and `c` give or take a whole word each cycle. The three pointers are to
// lie in three memory banks (v++ --connectivity.sp engine_1.a_memory:DDR[0], b_memory:DDR[1], ...).
// The xcl_ attributes are those of Vitis (UG1399); other OpenCL compilers ignore them, but not the
// unroll hint: build with -DUNROLL= there, for thousands of products are too many for a CPU.

#ifndef UNROLL
#define UNROLL __attribute__((opencl_unroll_hint))
#endif
#define PIPELINE __attribute__((xcl_pipeline_loop(1)))
#define PARTITION(dimension) __attribute__((xcl_array_partition(complete, dimension)))

// rows * words of A by im2col addressing; row r goes into bank r % PE_M
static void read_a(__global const item* restrict memory, __local item a[PE_M][A_WORDS][LANES],
                   int base, int first_row, int rows, int first_tap, int words) {
    for (int row = 0; row < rows; ++row) {
        PIPELINE
        for (int word = 0; word < words; ++word) {
            const int place = base + row_offset(first_row + row) + tap_offset(first_tap + word);
            UNROLL
            for (int lane = 0; lane < LANES; ++lane)
                a[row % PE_M][row / PE_M * words + word][lane] = memory[place * LANES + lane];
        }
    }
}

// words of B, which lie in the order of use
static void read_b(__global const item* restrict memory, __local item b[B_WORDS][PE_K * PE_N],
                   int first, int words) {
    PIPELINE
    for (int word = 0; word < words; ++word) {
        UNROLL
        for (int lane = 0; lane < PE_K * PE_N; ++lane)
            b[word][lane] = memory[(first + word) * (PE_K * PE_N) + lane];
    }
}

// c += a * b for one tile, a word of the reduction per cycle
static void multiply(__local item a[PE_M][A_WORDS][LANES], __local item b[B_WORDS][PE_K * PE_N],
                     __local sum c[C_WORDS][PE_M][PE_N], int row_steps, int column_steps, int words,
                     int fresh) {
    for (int row = 0; row < row_steps; ++row)
        for (int column = 0; column < column_steps; ++column) {
            sum total[PE_M][PE_N] PARTITION(0);
            PIPELINE
            for (int word = 0; word < words; ++word) {
                UNROLL
                for (int i = 0; i < PE_M; ++i) {
                    UNROLL
                    for (int j = 0; j < PE_N; ++j) {
                        __local sum* place = &c[row * column_steps + column][i][j];
                        sum value = word ? total[i][j] : (fresh ? 0 : *place);
                        UNROLL
                        for (int lane = 0; lane < PE_K; ++lane)
                            value += (sum)a[i][row * words + word][DEPTHWISE ? j : lane] *
                                     b[column * words + word][lane * PE_N + j];
                        total[i][j] = value;
                        if (word == words - 1) *place = value;
                    }
                }
            }
        }
}

// words of C, in the order in which they are done
static void write_c(__global sum* restrict memory, __local sum c[C_WORDS][PE_M][PE_N], int first,
                    int words) {
    PIPELINE
    for (int word = 0; word < words; ++word) {
        UNROLL
        for (int lane = 0; lane < PE_M * PE_N; ++lane)
            memory[(first + word) * (PE_M * PE_N) + lane] = c[word][lane / PE_N][lane % PE_N];
    }
}

// reading and computing overlap where OVERLAP says that the buffers are double
OVERLAP
static void step(__global const item* restrict a_memory, __global const item* restrict b_memory,
                 __local item a[PE_M][A_WORDS][LANES], __local item b[B_WORDS][PE_K * PE_N],
                 __local sum c[C_WORDS][PE_M][PE_N], int group, int m, int n, int k, int first) {
    const int rows = m == M_TILES - 1 ? M_EDGE : TILE_M;
    const int columns = n == N_TILES - 1 ? N_EDGE : N_STEPS;
    const int words = k == K_TILES - 1 ? K_EDGE : K_WORDS;
    const int b_first = (group * COLUMN_STEPS + n * N_STEPS) * TAPS + columns * k * K_WORDS;
    read_a(a_memory, a, group_offset(group) + n * BLOCK, m * TILE_M, A_KEPT && !first ? 0 : rows,
           k * K_WORDS, words);
    read_b(b_memory, b, b_first, B_KEPT && !first ? 0 : columns * words);
    multiply(a, b, c, (rows + PE_M - 1) / PE_M, columns, words, k == 0);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void engine(__global const item* restrict a_memory, __global const item* restrict b_memory,
            __global sum* restrict c_memory) {
    __local item a[PE_M][A_WORDS][LANES] PARTITION(1) PARTITION(3);
    __local item b[B_WORDS][PE_K * PE_N] PARTITION(2);
    __local sum c[C_WORDS][PE_M][PE_N] PARTITION(2) PARTITION(3);
    int stored = 0;
    for (int group = 0; group < GROUPS; ++group)
        for (int outer = 0; outer < OUTER; ++outer)
            for (int inner = 0; inner < INNER; ++inner) {
                const int m = ROWS_INNER ? inner : outer, n = ROWS_INNER ? outer : inner;
                const int rows = m == M_TILES - 1 ? M_EDGE : TILE_M;
                const int columns = n == N_TILES - 1 ? N_EDGE : N_STEPS;
                for (int k = 0; k < K_TILES; ++k)
                    step(a_memory, b_memory, a, b, c, group, m, n, k, inner == 0);
                const int words = (rows + PE_M - 1) / PE_M * columns;
                write_c(c_memory, c, stored, words);
                stored += words;
            }
}
