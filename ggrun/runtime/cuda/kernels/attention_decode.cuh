// Attention of single tokens over the paged cache, and the sum over splits. From sm_75 on; attention_float.cuh serves the others.
//
// A block has one token and up to 16 query heads of one KV head, so that each cached byte is read once, and one split of the token's KV
// blocks, found on the device from its position: a captured graph can be replayed at any length. Its warps take KV blocks in turn, each
// with an online softmax of its own, and are added up at the end. Products run on tensor cores, straight from the cache
// (attention_fragments.cuh). Queries are split in two halves (high and low part, 22 bits together), so that scores are as exact as in
// float32. With up to 4 heads both parts share one tile of 8 columns: head h is column h, its low part column h + 4; and so are the parts
// of the softmax weights.
//
// Partial results, when there are several splits: float2 (largest score, sum) [T][n_head][n_splits], then float outputs
// [T][n_head][n_splits][dim_v], not yet divided by the sum. Splits past the token's last KV block write nothing.
#pragma once
#include "attention.cuh"
#include "attention_fragments.cuh"

namespace attention {

// What one warp knows of its KV blocks, for the columns 2t and 2t+1 of every tile of 8 heads
template <int ROWS, int TILES>
struct Softmax {
    float most[TILES][2], sum[TILES][2], outputs[ROWS][TILES][4];
};

template <class TK, class TV, int DIM_K, int DIM_V, int HEADS>
struct Decode {
    static constexpr int TILES = (HEADS + 7) / 8, STEPS = DIM_K / 16, ROWS = DIM_V / 16;
    static constexpr bool FOLDED = HEADS <= 4;
    static constexpr int COLUMNS = FOLDED ? 4 : 8 * TILES;  // with heads in them
    static constexpr int PITCH = COLUMNS + 1;               // of a dimension in shared memory: odd, so that lanes meet in no bank
    static constexpr int BLOCKS =
        DIM_V * TILES > 128 ? 2 : 3;  // of a multiprocessor, at least; unsaid, compilers save registers until they spill
    using Q = typename Query<!FOLDED>::Type;
    using Keys = typename Fragments<TK, DIM_K, TILES, Q>::Keys;
    using Values = typename Fragments<TV, DIM_V, TILES, Q>::Values;
    using State = Softmax<ROWS, TILES>;

    // The block's queries as operands, once for all its warps: [step][tile][lane]
    static __device__ __forceinline__ void load_queries(const float* q, int heads, Q* queries) {
        for (int i = threadIdx.x; i < STEPS * TILES * 32; i += THREADS) {
            const int g = i % 32 / 4, n = i / 32 % TILES, head = FOLDED ? g % 4 : 8 * n + g;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (head < heads) x = *(const float4*)(q + head * DIM_K + Keys::dim(i / 32 / TILES, i % 4));
            const uint2 high = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
            const uint2 low = make_uint2(pack(rest(x.x), rest(x.y)), pack(rest(x.z), rest(x.w)));
            if constexpr (FOLDED) {
                queries[i] = g < 4 ? high : low;
            } else {
                queries[i] = make_uint4(high.x, high.y, low.x, low.y);
            }
        }
    }

    // One KV block, of which positions first..last count; `edge` says that some do not
    static __device__ __forceinline__ void visit(State& state, const char* keys, const Q* queries, int base, int first, int last, bool edge,
                                                 float scale, float softcap, int g, int t) {
        float s[2][TILES][4] = {};
        Keys::multiply(s, keys, g, t, queries);
        int seen = ~0;  // bit 4i + j: the lane's j-th token of the i-th 16, as V's rows have them
        if (edge) {
            seen = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int position = base + j / 4 * 16 + 2 * t + j % 2 + j / 2 % 2 * 8;
                if (position >= first && position <= last) seen |= 1 << j;
            }
        }
        unsigned weights[2][TILES][2];
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float most[2] = {state.most[n][0], state.most[n][1]}, fade[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if constexpr (FOLDED) {
#pragma unroll
                    for (int c = 0; c < 4; c++) s[i][n][c] += __shfl_xor_sync(~0u, s[i][n][c], 2);
                }
                to_scores(s[i][n], scale, softcap);
                if (edge) {
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        const int position = base + 16 * i + g + c / 2 * 8;
                        if (position < first || position > last) s[i][n][c] = -INFINITE;
                    }
                }
#pragma unroll
                for (int c = 0; c < 4; c++) most[c % 2] = fmaxf(most[c % 2], s[i][n][c]);
            }
#pragma unroll
            for (int c = 0; c < 2; c++) {
#pragma unroll
                for (int step = 4; step < 32; step *= 2) most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], step));
                const float before = state.most[n][c];
                state.most[n][c] = most[c];
                most[c] = origin(most[c]);
                fade[c] = exp2_approx(before - most[c]);
                state.sum[n][c] *= fade[c];
            }
            if (__any_sync(~0u, fade[0] != 1.0f || fade[1] != 1.0f)) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
#pragma unroll
                    for (int c = 0; c < 4; c++) state.outputs[r][n][c] *= fade[c % 2];
                }
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const float w = exp2_approx(s[i][n][c] - most[c % 2]);
                    state.sum[n][c % 2] += w;
                    s[i][n][c] = FOLDED && t >= 2 ? rest(w) : w;
                }
                weights[i][n][0] = transpose_8x8(pack(s[i][n][0], s[i][n][1]));
                weights[i][n][1] = transpose_8x8(pack(s[i][n][2], s[i][n][3]));
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) Values::multiply(state.outputs, keys + TK::bytes(DIM_K), 16 * i, g, t, weights[i], seen >> 4 * i & 15);
    }

    // Outputs times factor[tile][2] into shared[dimension][column], or added to what is there
    static __device__ __forceinline__ void spill(const State& state, const float (&factor)[TILES][2], float* shared, bool add, int g,
                                                 int t) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int n = 0; n < TILES; n++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float x = state.outputs[r][n][c] * factor[n][c % 2];
                    if constexpr (FOLDED) x += __shfl_xor_sync(~0u, x, 2);
                    float* to = shared + (Values::dim(r, g) + c / 2) * PITCH + 8 * n + 2 * t + c % 2;
                    if (!FOLDED || t < 2) *to = add ? *to + x : x;
                }
            }
        }
    }

    // grid: (KV heads * parts of their query heads, splits, tokens)
    static __device__ __forceinline__ void run(const float* q, float* y, const char* cache, const int* positions, const int* seqs,
                                               const int* tables, float* work, int tables_stride, int n_head, int n_head_kv, int window,
                                               float scale, float softcap, long long block_bytes) {
        __shared__ Q queries[STEPS * TILES * 32];
        __shared__ float outputs[2][DIM_V * PITCH], mosts[WARPS][COLUMNS], sums[WARPS][COLUMNS];
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int group = n_head / n_head_kv, parts = (group + HEADS - 1) / HEADS;
        const int kv_head = blockIdx.x / parts, part = blockIdx.x % parts, token = blockIdx.z;
        const int head = kv_head * group + part * HEADS, heads = min(HEADS, group - part * HEADS);
        const int position = positions[token], n_splits = gridDim.y;
        const Span span(position, window, n_splits);
        const int begin = span.block + blockIdx.y * span.share, end = min(begin + span.share, span.block + span.n_blocks);
        if (begin >= end) return;

        load_queries(q + ((size_t)token * n_head + head) * DIM_K, heads, queries);
        __syncthreads();
        State state;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int c = 0; c < 2; c++) state.most[n][c] = -INFINITE, state.sum[n][c] = 0.0f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) state.outputs[r][n][c] = 0.0f;
            }
        }
        const int* table = tables + (size_t)seqs[token] * tables_stride;
        const char* own = cache + (size_t)kv_head * (TK::bytes(DIM_K) + TV::bytes(DIM_V));
        int id = begin + warp < end ? table[begin + warp] : 0;
        for (int block = begin + warp; block < end; block += WARPS) {
            const char* keys = own + id * block_bytes;
            if (block + WARPS < end) id = table[block + WARPS];  // ahead of its use
            const int base = block * kv::BLOCK_TOKENS;
            const bool edge = base < span.first || base + kv::BLOCK_TOKENS - 1 > position;
            visit(state, keys, queries + lane, base, span.first, position, edge, scale, softcap, g, t);
        }

        // the block's own maximum and sum of every column, then outputs by halves: warps 2 and 3 to shared memory, 0 and 1 on top, both
        // together
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
#pragma unroll
                for (int step = 4; step < 32; step *= 2) state.sum[n][c] += __shfl_xor_sync(~0u, state.sum[n][c], step);
                const int column = 8 * n + 2 * t + c;
                if (g == 0 && column < COLUMNS) mosts[warp][column] = state.most[n][c], sums[warp][column] = state.sum[n][c];
            }
        }
        __syncthreads();
        float factor[TILES][2];
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int column = FOLDED ? (2 * t + c) % 4 : 8 * n + 2 * t + c;
                float most = mosts[0][column];
#pragma unroll
                for (int w = 1; w < WARPS; w++) most = fmaxf(most, mosts[w][column]);
                factor[n][c] = exp2_approx(state.most[n][c] - origin(most));
            }
        }
        if (warp >= 2) spill(state, factor, outputs[warp - 2], false, g, t);
        __syncthreads();
        if (warp < 2) spill(state, factor, outputs[warp], true, g, t);
        __syncthreads();
        for (int i = threadIdx.x; i < heads * DIM_V; i += THREADS) {
            const int column = i / DIM_V, d = i % DIM_V;
            float most = mosts[0][column], sum = 0.0f;
#pragma unroll
            for (int w = 1; w < WARPS; w++) most = fmaxf(most, mosts[w][column]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += sums[w][column] * exp2_approx(mosts[w][column] - origin(most));
            const float x = outputs[0][d * PITCH + column] + outputs[1][d * PITCH + column];
            const size_t row = (size_t)token * n_head + head + column;
            if (n_splits == 1) {
                y[row * DIM_V + d] = x / sum;
            } else {
                const size_t slot = row * n_splits + blockIdx.y;
                if (d == 0) ((float2*)work)[slot] = make_float2(most, sum);
                work[(size_t)gridDim.z * n_head * n_splits * 2 + slot * DIM_V + d] = x;
            }
        }
    }
};

// y from the splits' partial results. grid: (n_head, T), a thread a dimension
__device__ __forceinline__ void combine(const float* work, float* y, const int* positions, int window, int n_splits, int dim_v) {
    const int lane = threadIdx.x % 32;
    const size_t row = (size_t)blockIdx.y * gridDim.x + blockIdx.x;
    const int used = Span(positions[blockIdx.y], window, n_splits).used();
    const float2* seen = (const float2*)work + row * n_splits;
    const float* outputs = work + (size_t)gridDim.y * gridDim.x * n_splits * 2 + row * n_splits * dim_v;
    float2 mine[MAX_SPLITS / 32];
    float most = -INFINITE, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; i++) {
        mine[i] = 32 * i + lane < used ? seen[32 * i + lane] : make_float2(-INFINITE, 0.0f);
        most = fmaxf(most, mine[i].x);
    }
    most = warp_max(most);
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; i++) {
        mine[i].x = exp2_approx(mine[i].x - origin(most));
        sum += mine[i].x * mine[i].y;
    }
    sum = warp_sum(sum);
    const int d = threadIdx.x;
    float x = 0.0f;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; i++) {
        const int n = min(32, used - 32 * i);
#pragma unroll 4
        for (int s = 0; s < n; s++) {
            const float w = __shfl_sync(~0u, mine[i].x, s);
            if (d < dim_v) x += w * outputs[(size_t)(32 * i + s) * dim_v + d];
        }
    }
    if (d < dim_v) y[row * dim_v + d] = x / sum;
}

}  // namespace attention

#define KERNEL_attention_decode(TK, TV, DIM_K, DIM_V, HEADS)                                                                               \
    extern "C" __global__ void __launch_bounds__(128, attention::Decode<kv::TK, kv::TV, DIM_K, DIM_V, HEADS>::BLOCKS)                      \
        attention_decode__##TK##__##TV##__##DIM_K##__##DIM_V##__##HEADS(                                                                   \
            const float* q, float* y, const char* cache, const int* positions, const int* seqs, const int* tables, float* work,            \
            int tables_stride, int n_head, int n_head_kv, int window, float scale, float softcap, long long block_bytes) {                 \
        attention::Decode<kv::TK, kv::TV, DIM_K, DIM_V, HEADS>::run(q, y, cache, positions, seqs, tables, work, tables_stride, n_head,     \
                                                                    n_head_kv, window, scale, softcap, block_bytes);                       \
    }

#define KERNEL_attention_combine()                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                                      \
        attention_combine(const float* work, float* y, const int* positions, int window, int n_splits, int dim_v) {                        \
        attention::combine(work, y, positions, window, n_splits, dim_v);                                                                   \
    }
