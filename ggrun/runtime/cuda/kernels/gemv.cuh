// Matrix times few rows of activations: y[t][r] = dot(w[r], x[t]). What counts is that every weight byte comes from memory once.
//
// `lanes` neighbouring threads (8 ... 128, a power of two) work on R rows of weights and T tokens; a lane takes every lanes-th unit
// of the rows (formats.cuh), reads it one round ahead, and multiplies it with all tokens. Products are summed in integers over 16 or 32
// elements, then in floats in an order that depends on `lanes` only.
#pragma once
#include "formats.cuh"
#include "q8.cuh"

// Activations of T tokens; those past the last are the last again. Offsets in 32 bits, from one address, take few registers.
template <int T>
struct Tokens {
    const char* base;
    unsigned row[T];

    __device__ __forceinline__ Tokens(const char* x, unsigned row_bytes, int n_tokens) : base(x) {
#pragma unroll
        for (int t = 0; t < T; t++) row[t] = min(t, n_tokens - 1) * row_bytes;
    }
    template <class V>
    __device__ __forceinline__ V at(int t, unsigned offset) const {
        return *(const V*)(base + (row[t] + offset));
    }
};

// With so few tokens a lane reads its next unit while it multiplies this one; with more, multiplying takes longer than reading.
constexpr int READ_AHEAD_TOKENS = 2;

// Blocks of 128 threads that a multiprocessor should hold, which says how many registers the compiler may use: as many as it needs.
template <class F>
constexpr int blocks_for(int rows, int tokens) {
    bool wide = F::PIECES == 4;
    return tokens == 8 ? (wide ? 2 : 3) : tokens == 4 ? (wide ? 3 : 4) : tokens == 2 ? 4 : rows == 1 ? 7 : wide ? 4 : 5;
}
constexpr int rows_for(int tokens) { return tokens == 1 ? 1 : 2; }

__device__ __forceinline__ int dot16(const int (&a)[4], int4 b, int sum) {
    return __dp4a(a[3], b.w, __dp4a(a[2], b.z, __dp4a(a[1], b.y, __dp4a(a[0], b.x, sum))));
}

// One unit of R rows times T tokens. at: the unit's first element in the row.
template <class F, int T, int R>
__device__ __forceinline__ void multiply_unit(const typename F::Raw (&raw)[R], int unit, int at, const Tokens<T>& x, int k,
                                              float (&sum)[R][T]) {
    int q[R][F::PIECES][4];
    float scale[R][F::PIECES], minimum[R][F::PIECES];
#pragma unroll
    for (int r = 0; r < R; r++) F::unpack(raw[r], unit, q[r], scale[r], minimum[r]);
    constexpr int TOGETHER = F::STEP == 16 ? F::PIECES : 1;  // pieces under one scale
#pragma unroll
    for (int t = 0; t < T; t++) {
#pragma unroll
        for (int p = 0; p < F::PIECES; p += TOGETHER) {
            int e = at + p * F::STEP;
            int4 v[TOGETHER];
            float d = x.template at<float>(t, q8_scales_at(k) + e / 32 * 4), s = 0.0f;
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) v[i] = x.template at<int4>(t, e + 16 * i);
            if (F::MINIMA) {
                s = x.template at<float>(t, q8_sums_at(k) + e / 16 * 4);
                if (TOGETHER == 2) s += x.template at<float>(t, q8_sums_at(k) + e / 16 * 4 + 4);
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                int dot = 0;
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) dot = dot16(q[r][p + i], v[i], dot);
                sum[r][t] += scale[r][p] * d * (float)dot;
                if (F::MINIMA) sum[r][t] -= minimum[r][p] * s;
            }
        }
    }
}

// Plain numbers: float32 activations.
template <class F, int T, int R>
__device__ __forceinline__ void multiply_floats(const typename F::Raw (&raw)[R], int unit, const Tokens<T>& x, int k, float (&sum)[R][T]) {
    float v[R][8];
#pragma unroll
    for (int r = 0; r < R; r++) F::unpack(raw[r], v[r]);
#pragma unroll
    for (int t = 0; t < T; t++) {
        float a[8];
        load_activations(a, x.base + x.row[t], unit, k);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int i = 0; i < 8; i++) sum[r][t] += v[r][i] * a[i];
    }
}

template <class F>
__device__ __forceinline__ void load_unit(typename F::Raw& raw, const uint8_t* row, int unit, int k) {
    if constexpr (F::FLOAT)
        F::load(raw, row, unit, k);
    else
        F::load(raw, row + (long long)(unit / F::UNITS) * F::BYTES, unit % F::UNITS);
}

// This lane's part of the products of R rows and T tokens; none where there are no rows.
template <class F, int T, int R>
__device__ __forceinline__ void multiply_rows(const uint8_t* const (&w)[R], bool inside, const Tokens<T>& x, int k, int lane, int lanes,
                                              float (&sum)[R][T]) {
    const int n_units = inside ? units_of_row<F>(k) : 0;
    typename F::Raw raw[R], next[R];
    if (T <= READ_AHEAD_TOKENS)
#pragma unroll
        for (int r = 0; r < R; r++)
            if (lane < n_units) load_unit<F>(next[r], w[r], lane, k);
    for (int u = lane; u < n_units; u += lanes) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (T <= READ_AHEAD_TOKENS) raw[r] = next[r];
            int coming = T <= READ_AHEAD_TOKENS ? u + lanes : u;
            if (coming < n_units) load_unit<F>(T <= READ_AHEAD_TOKENS ? next[r] : raw[r], w[r], coming, k);
        }
        if constexpr (F::FLOAT)
            multiply_floats<F, T, R>(raw, u, x, k, sum);
        else
            multiply_unit<F, T, R>(raw, u % F::UNITS, u / F::UNITS * F::BLOCK + F::first(u % F::UNITS), x, k, sum);
    }
}

// Sums over the lanes of each group; every lane gets them. All threads of the block call it.
template <int N>
__device__ __forceinline__ void sum_over_lanes(float (&sum)[N], int lanes) {
    for (int step = min(lanes, 32) / 2; step > 0; step /= 2)
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    if (lanes <= 32) return;
    __shared__ float parts[4][N];
    int warp = (int)threadIdx.x / 32;
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int i = 0; i < N; i++) parts[warp][i] = sum[i];
    __syncthreads();
    int first = warp & ~(lanes / 32 - 1);
#pragma unroll
    for (int i = 0; i < N; i++) {
        sum[i] = parts[first][i];
        for (int j = 1; j < lanes / 32; j++) sum[i] += parts[first + j][i];
    }
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// Rows of activations: q8 beside block formats, float32 beside plain numbers.
template <class F>
__device__ __forceinline__ unsigned activation_bytes(int k) {
    return F::FLOAT ? 4u * k : (unsigned)q8_row_bytes(k);
}

// Rows row ... row + R - 1 of w times up to T tokens.
template <class F, int T, int R>
__device__ __forceinline__ void gemv_rows(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out,
                                          int n_tokens, int lanes) {
    int lane = (int)threadIdx.x & (lanes - 1);
    int first = R * (int)(blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes);
    const uint8_t* rows[R];
#pragma unroll
    for (int r = 0; r < R; r++) rows[r] = w + min(first + r, n_out - 1) * row_bytes;
    float sum[R][T] = {};
    multiply_rows<F, T, R>(rows, first < n_out, Tokens<T>(x, activation_bytes<F>(k), n_tokens), k, lane, lanes, sum);
    sum_over_lanes((float(&)[R * T])sum, lanes);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int t = 0; t < T; t++)
            if (((r * T + t) & (lanes - 1)) == lane && first + r < n_out && t < n_tokens)
                y[(long long)t * n_out + first + r] = sum[r][t] + (bias ? bias[first + r] : 0.0f);
}

// y = silu(gate) * up, gate and up being row r of two matrices of one format.
template <class F, int T>
__device__ __forceinline__ void gated_rows(const uint8_t* gate, const uint8_t* up, long long row_bytes, const char* x, float* y, int k, int n_out,
                                           int n_tokens, int lanes) {
    int lane = (int)threadIdx.x & (lanes - 1);
    int row = (int)(blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes);
    const uint8_t* rows[2] = {gate + min(row, n_out - 1) * row_bytes, up + min(row, n_out - 1) * row_bytes};
    float sum[2][T] = {};
    multiply_rows<F, T, 2>(rows, row < n_out, Tokens<T>(x, activation_bytes<F>(k), n_tokens), k, lane, lanes, sum);
    sum_over_lanes((float(&)[2 * T])sum, lanes);
#pragma unroll
    for (int t = 0; t < T; t++)
        if ((t & (lanes - 1)) == lane && row < n_out && t < n_tokens) y[(long long)t * n_out + row] = silu(sum[0][t]) * sum[1][t];
}

// One row of the expert that slot blockIdx.y was routed to. x: a row of activations for every slots_per_row slots.
template <class F>
__device__ __forceinline__ void expert_row(const uint8_t* w, long long row_bytes, long long expert_bytes, const char* x, const int* ids, float* y,
                                           int k, int n_out, int n_expert, int slots_per_row, int lanes) {
    int lane = (int)threadIdx.x & (lanes - 1), slot = (int)blockIdx.y;
    int row = (int)(blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes);
    int expert = min(max(ids[slot], 0), n_expert - 1);
    const uint8_t* rows[1] = {w + expert * expert_bytes + min(row, n_out - 1) * row_bytes};
    float sum[1][1] = {};
    multiply_rows<F, 1, 1>(rows, row < n_out, Tokens<1>(x + slot / slots_per_row * (long long)activation_bytes<F>(k), 0, 1), k, lane, lanes, sum);
    sum_over_lanes((float(&)[1])sum, lanes);
    if (lane == 0 && row < n_out) y[(long long)slot * n_out + row] = sum[0][0];
}

// Blocks of 128 threads; grid x covers the rows, 128 / lanes * R a block.
#define KERNEL_gemv(F, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128, blocks_for<F>(rows_for(T), T))                                               \
        gemv__##F##__##T(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out, int n_tokens, \
                         int lanes) {                                                                                              \
        gemv_rows<F, T, rows_for(T)>(w, row_bytes, x, y, bias, k, n_out, n_tokens, lanes);                                         \
    }

#define KERNEL_gated(F, T)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, blocks_for<F>(2, T))                                                         \
        gated__##F##__##T(const uint8_t* gate, const uint8_t* up, long long row_bytes, const char* x, float* y, int k, int n_out, int n_tokens, \
                          int lanes) {                                                                                             \
        gated_rows<F, T>(gate, up, row_bytes, x, y, k, n_out, n_tokens, lanes);                                                    \
    }

#define KERNEL_expert_gemv(F)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, blocks_for<F>(1, 1))                                                         \
        expert_gemv__##F(const uint8_t* w, long long row_bytes, long long expert_bytes, const char* x, const int* ids, float* y, int k, \
                         int n_out, int n_expert, int slots_per_row, int lanes) {                                                  \
        expert_row<F>(w, row_bytes, expert_bytes, x, ids, y, k, n_out, n_expert, slots_per_row, lanes);                            \
    }
