// Matrix times many rows of activations: tiles of 128 rows of weights x N tokens, N = 16, 32, 64 or 128, 256 threads.
//
// The tile walks along k in steps of 128 elements. Of each step the weights are unpacked once to signed bytes in shared memory, with
// their scales and minima as floats; the activations are copied as they are (asynchronously from sm_80 on, into the other of two buffers,
// while this step is multiplied), and the next step's weights are already on their way to registers. Products are int8 x int8 over
// 32 elements (16 where the format has a scale for each 16), by tensor cores from sm_75 on, by dp4a before, and are added to float sums.
//
// Dynamic shared memory, in this order (ggrun/runtime/cuda/matmul.py: gemm_shared_bytes):
//   weights    int8  [128 rows][144]       128 elements and 16 of padding, so that rows begin in different banks
//   scales     float [G][128 rows]         G = 4 groups of 32 elements, 8 of 16 for formats with HALVES
//   minima     float [G][128 rows]         only with MINIMA
//   twice      int8  [N tokens][144]
//              float [4][N]                d of 32 elements
//              float [8][N]                s of 16 elements, only with MINIMA
#pragma once
#include "formats.cuh"
#include "q8.cuh"

constexpr int TILE_ROWS = 128, TILE_K = 128, TILE_STRIDE = TILE_K + 16, GEMM_THREADS = 256;

// 12582912 = 1.5 * 2^23: an integer of less than 2^22 added to its bits is added to its value, so sums need no conversion.
constexpr int INTEGER_ZERO = 0x4b400000;
__device__ __forceinline__ float value_of_sum(int sum) { return __int_as_float(sum) - 12582912.0f; }

template <class F, int N>
struct TileMemory {
    static constexpr int GROUPS = F::HALVES ? 8 : 4;
    static constexpr int TOKEN_BYTES = N * TILE_STRIDE + 4 * 4 * N + (F::MINIMA ? 8 * 4 * N : 0);
    uint8_t* base;

    __device__ __forceinline__ uint8_t* weights(int row) const { return base + row * TILE_STRIDE; }
    __device__ __forceinline__ float* scales(int group) const { return (float*)(base + TILE_ROWS * TILE_STRIDE) + group * TILE_ROWS; }
    __device__ __forceinline__ float* minima(int group) const { return scales(GROUPS + group); }
    __device__ __forceinline__ uint8_t* tokens(int buffer, int token) const {
        return (uint8_t*)scales((F::MINIMA ? 2 : 1) * GROUPS) + buffer * TOKEN_BYTES + token * TILE_STRIDE;
    }
    __device__ __forceinline__ float* token_scales(int buffer, int group) const { return (float*)tokens(buffer, N) + group * N; }
    __device__ __forceinline__ float* token_sums(int buffer, int half) const { return token_scales(buffer, 4 + half); }
};

// The weights of a step: each thread unpacks 64 elements.
template <class F, int N>
struct WeightStep {
    static constexpr int UNITS = TILE_K / (16 * F::PIECES), EACH = TILE_ROWS * UNITS / GEMM_THREADS;
    typename F::Raw raw[EACH];

    __device__ __forceinline__ void load(const uint8_t* w, long long row_bytes, int last_row, int step, int n_units) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = (int)threadIdx.x + GEMM_THREADS * i, unit = step * UNITS + at % UNITS;
            const uint8_t* row = w + min(at / UNITS, last_row) * row_bytes;
            if (unit < n_units) F::load(raw[i], row + (long long)(unit / F::UNITS) * F::BYTES, unit % F::UNITS);
        }
    }
    __device__ __forceinline__ void store(const TileMemory<F, N>& memory, int step, int n_units) const {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = (int)threadIdx.x + GEMM_THREADS * i, row = at / UNITS, unit = step * UNITS + at % UNITS;
            if (unit >= n_units) continue;
            int q[F::PIECES][4];
            float scale[F::PIECES], minimum[F::PIECES];
            F::unpack(raw[i], unit % F::UNITS, q, scale, minimum);
            int first = (unit / F::UNITS * F::BLOCK + F::first(unit % F::UNITS)) % TILE_K;
#pragma unroll
            for (int p = 0; p < F::PIECES; p++) {
                int e = first + p * F::STEP;
                *(int4*)(memory.weights(row) + e) = make_int4(q[p][0], q[p][1], q[p][2], q[p][3]);
                if (!F::HALVES && e % 32 != 0) continue;  // the other half of 32 elements gives their scale
                memory.scales(e / (F::HALVES ? 16 : 32))[row] = scale[p];
                if (F::MINIMA) memory.minima(e / (F::HALVES ? 16 : 32))[row] = minimum[p];
            }
        }
    }
};

// Begins to copy the activations of a step: x_row(i) of `columns` is the q8 row of column i of the tile.
template <class F, int N, class Columns>
__device__ __forceinline__ void copy_tokens(const TileMemory<F, N>& memory, int buffer, const char* x, const Columns& columns, int k, int step) {
    const long long bytes = q8_row_bytes(k);
#pragma unroll 1
    for (int at = (int)threadIdx.x; at < N * 8; at += GEMM_THREADS) {
        int token = at / 8, e = step * TILE_K + at % 8 * 16;
        if (e < k) cp_async16(memory.tokens(buffer, token) + at % 8 * 16, x + columns.x_row(token) * bytes + e);
    }
#pragma unroll 1
    for (int at = (int)threadIdx.x; at < (F::MINIMA ? 12 : 4) * N; at += GEMM_THREADS) {
        int token = at % N, what = at / N;  // 0 ... 3: a scale; 4 ... 11: a sum
        int index = what < 4 ? step * 4 + what : step * 8 + what - 4;
        if (index >= (what < 4 ? k / 32 : k / 16)) continue;
        const char* row = x + columns.x_row(token) * bytes + (what < 4 ? q8_scales_at(k) : q8_sums_at(k));
        cp_async4(memory.token_scales(buffer, 0) + at, row + 4 * index);
    }
    cp_async_commit();
}

#if __CUDA_ARCH__ >= 750
constexpr bool WEIGHTS_AHEAD = true;

// Tensor cores. 8 warps as 8 x 1 (N < 64) or 4 x 2; a warp has ROWS x TOKENS products of 16 x 8.
template <class F, int N>
struct TileProduct {
    static constexpr int ACROSS = N >= 64 ? 2 : 1, ROWS = ACROSS, TOKENS = N / (8 * ACROSS);
    float sum[ROWS][TOKENS][4] = {};
    int row0, token0, g, t;

    __device__ __forceinline__ TileProduct() {
        int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
        row0 = warp / ACROSS * 16 * ROWS, token0 = warp % ACROSS * 8 * TOKENS, g = lane / 4, t = lane % 4;
    }
    // Groups of 32 elements [0, n_groups) of the step; columns from n_tokens on are not looked at.
    __device__ __forceinline__ void add(const TileMemory<F, N>& memory, int buffer, int n_groups, int n_tokens) {
#pragma unroll 1
        for (int group = 0; group < n_groups; group++) {
            int a[ROWS][4];
            constexpr int PARTS = F::HALVES ? 2 : 1;
            float scale[ROWS][PARTS][2], minimum[ROWS][PARTS][2];
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                int row = row0 + 16 * m + g;
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = *(const int*)(memory.weights(row + i % 2 * 8) + 32 * group + i / 2 * 16 + 4 * t);
#pragma unroll
                for (int part = 0; part < PARTS; part++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        scale[m][part][i] = memory.scales(group * PARTS + part)[row + 8 * i];
                        if (F::MINIMA) minimum[m][part][i] = memory.minima(group * PARTS + part)[row + 8 * i];
                    }
            }
#pragma unroll
            for (int n = 0; n < TOKENS; n++) {
                int column = token0 + 8 * n;
                if (column >= n_tokens) break;
                int b[2];
#pragma unroll
                for (int i = 0; i < 2; i++) b[i] = *(const int*)(memory.tokens(buffer, column + g) + 32 * group + 16 * i + 4 * t);
                float2 d = *(const float2*)(memory.token_scales(buffer, group) + column + 2 * t);
                float2 s[PARTS];
                if (F::MINIMA) {
                    float2 first = *(const float2*)(memory.token_sums(buffer, 2 * group) + column + 2 * t);
                    float2 second = *(const float2*)(memory.token_sums(buffer, 2 * group + 1) + column + 2 * t);
                    if (PARTS == 1)
                        s[0] = make_float2(first.x + second.x, first.y + second.y);
                    else
                        s[0] = first, s[PARTS - 1] = second;
                }
#pragma unroll
                for (int m = 0; m < ROWS; m++)
#pragma unroll
                    for (int part = 0; part < PARTS; part++) {
                        int c[4] = {INTEGER_ZERO, INTEGER_ZERO, INTEGER_ZERO, INTEGER_ZERO};
                        if (PARTS == 1)
                            mma_s8_m16n8k32(c, a[m], b);
                        else
                            mma_s8_m16n8k16(c, a[m] + 2 * part, b + part);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            float& total = sum[m][n][i];
                            total += scale[m][part][i / 2] * (i % 2 ? d.y : d.x) * value_of_sum(c[i]);
                            if (F::MINIMA) total -= minimum[m][part][i / 2] * (i % 2 ? s[part].y : s[part].x);
                        }
                    }
            }
        }
    }
    // f(row, column, sum) for everything that this thread has
    template <class Use>
    __device__ __forceinline__ void each(Use f) const {
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int n = 0; n < TOKENS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) f(row0 + 16 * m + g + i / 2 * 8, token0 + 8 * n + 2 * t + i % 2, sum[m][n][i]);
    }
};

#else
constexpr bool WEIGHTS_AHEAD = false;  // too few registers

// dp4a: a thread has 8 rows, 16 apart, x N / 16 tokens, 16 apart.
template <class F, int N>
struct TileProduct {
    static constexpr int ROWS = 8, TOKENS = N / 16;
    float sum[ROWS][TOKENS] = {};
    int row0, token0;

    __device__ __forceinline__ TileProduct() { row0 = (int)threadIdx.x % 16, token0 = (int)threadIdx.x / 16; }
    __device__ __forceinline__ void add(const TileMemory<F, N>& memory, int buffer, int n_groups, int) {
        constexpr int PARTS = F::HALVES ? 2 : 1;
#pragma unroll 1
        for (int at = 0; at < n_groups * PARTS; at++) {  // 32 elements, or 16
            constexpr int WORDS = 2 / PARTS;             // of 16 elements
            int4 b[TOKENS][WORDS];
            float d[TOKENS], s[TOKENS];
#pragma unroll
            for (int n = 0; n < TOKENS; n++) {
                int token = token0 + 16 * n;
#pragma unroll
                for (int i = 0; i < WORDS; i++) b[n][i] = *(const int4*)(memory.tokens(buffer, token) + 16 * (at * WORDS + i));
                d[n] = memory.token_scales(buffer, at / PARTS)[token];
                if (F::MINIMA) {
                    s[n] = memory.token_sums(buffer, at * WORDS)[token];
                    if (PARTS == 1) s[n] += memory.token_sums(buffer, at * WORDS + 1)[token];
                }
            }
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                int row = row0 + 16 * m;
                int4 a[WORDS];
#pragma unroll
                for (int i = 0; i < WORDS; i++) a[i] = *(const int4*)(memory.weights(row) + 16 * (at * WORDS + i));
                float scale = memory.scales(at)[row], minimum = F::MINIMA ? memory.minima(at)[row] : 0.0f;
#pragma unroll
                for (int n = 0; n < TOKENS; n++) {
                    int dot = INTEGER_ZERO;
#pragma unroll
                    for (int i = 0; i < WORDS; i++) {
                        dot = __dp4a(a[i].x, b[n][i].x, dot), dot = __dp4a(a[i].y, b[n][i].y, dot);
                        dot = __dp4a(a[i].z, b[n][i].z, dot), dot = __dp4a(a[i].w, b[n][i].w, dot);
                    }
                    sum[m][n] += scale * d[n] * value_of_sum(dot);
                    if (F::MINIMA) sum[m][n] -= minimum * s[n];
                }
            }
        }
    }
    template <class Use>
    __device__ __forceinline__ void each(Use f) const {
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int n = 0; n < TOKENS; n++) f(row0 + 16 * m, token0 + 16 * n, sum[m][n]);
    }
};

#endif

// One tile of a block format: rows row0 ... row0 + 127 of w times the tile's columns.
template <class F, int N, class Columns>
__device__ __forceinline__ void gemm_tile(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out,
                                          int row0, const Columns& columns) {
    DYNAMIC_SHARED(uint8_t, bytes);
    const TileMemory<F, N> memory{bytes};
    const int n_units = units_of_row<F>(k), n_steps = (k + TILE_K - 1) / TILE_K;
    w += row0 * row_bytes;
    WeightStep<F, N> weights;
    TileProduct<F, N> product;
    copy_tokens<F, N>(memory, 0, x, columns, k, 0);
    weights.load(w, row_bytes, n_out - 1 - row0, 0, n_units);
    for (int step = 0; step < n_steps; step++) {
        weights.store(memory, step, n_units);
        if (step + 1 < n_steps) {
            copy_tokens<F, N>(memory, (step + 1) & 1, x, columns, k, step + 1);
            if (WEIGHTS_AHEAD) weights.load(w, row_bytes, n_out - 1 - row0, step + 1, n_units);
            cp_async_wait<1>();
        } else
            cp_async_wait<0>();
        __syncthreads();
        product.add(memory, step & 1, min(4, k / 32 - 4 * step), columns.count);
        if (!WEIGHTS_AHEAD && step + 1 < n_steps) weights.load(w, row_bytes, n_out - 1 - row0, step + 1, n_units);
        __syncthreads();
    }
    product.each([&](int row, int column, float sum) {
        if (row0 + row < n_out && column < columns.count)
            y[(long long)columns.y_row(column) * n_out + row0 + row] = sum + (bias ? bias[row0 + row] : 0.0f);
    });
}
