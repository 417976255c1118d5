// Attention without tensor cores, in float32: decode and prompts on devices before sm_75.
//
// A block has ROWS rows, tokens * query heads of one KV head, and takes 32 positions (a KV block) at a time. Keys, then values, pass
// through shared memory as float32, 64 dimensions at a time: [32][64 + 4], so that reads of 16 bytes by 8 lanes meet in no bank. For
// scores, lane = position and a warp has ROWS / 4 rows; for outputs a thread has 4 dimensions of ROWS / 8 rows.
#pragma once
#include "attention.cuh"

namespace attention {

// Elements i..i+3 (i a multiple of 4) of a cell
template <class T, int DIM>
__device__ __forceinline__ float4 four(const char* part, int cell, int i) {
    if constexpr (same<T, kv::F16>) {
        const uint2 w = __ldg((const uint2*)(part + (cell * DIM + i) * 2));
        const float2 a = __half22float2(halves(w.x)), b = __half22float2(halves(w.y));
        return make_float4(a.x, a.y, b.x, b.y);
    } else {
        constexpr bool BYTES = same<T, kv::Q8_0>;
        const float d = __half2float(__ldg((const __half*)(part + 32 * (BYTES ? DIM : DIM / 2)) + cell * (DIM / 32) + i / 32));
        if constexpr (BYTES) {
            const unsigned w = __ldg((const unsigned*)(part + cell * DIM + i));
            return make_float4(d * (signed char)w, d * (signed char)(w >> 8), d * (signed char)(w >> 16), d * (signed char)(w >> 24));
        } else {
            const unsigned w = __ldg((const unsigned*)(part + cell * (DIM / 2) + i / 32 * 16 + i % 16)) >> i / 16 % 2 * 4;
            return make_float4(d * ((int)(w & 15) - 8), d * ((int)(w >> 8 & 15) - 8), d * ((int)(w >> 16 & 15) - 8),
                               d * ((int)(w >> 24 & 15) - 8));
        }
    }
}

template <class TK, class TV, int DIM_K, int DIM_V, int ROWS>
struct Float {
    static constexpr int PITCH = 68, CHUNK = 64, SCORED = ROWS / WARPS, SUMMED = ROWS / 8, CHUNKS = (DIM_V + CHUNK - 1) / CHUNK;

    // 64 dimensions from `start` on of a KV block's 32 cells; cells after `last_cell` and dimensions after DIM become 0
    template <class T, int DIM>
    static __device__ __forceinline__ void load(float* shared, const char* part, int start, int last_cell) {
#pragma unroll
        for (int i = threadIdx.x; i < 32 * CHUNK / 4; i += THREADS) {
            const int cell = i / (CHUNK / 4), d = i % (CHUNK / 4) * 4;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (cell <= last_cell && start + d < DIM) x = four<T, DIM>(part, cell, start + d);
            *(float4*)(shared + cell * PITCH + d) = x;
        }
    }

    // grid: (KV heads * parts of their query heads, splits, tokens), or with tiles (the same, parts of a tile, tiles): see
    // attention_decode.cuh and attention_prompt.cuh
    static __device__ __forceinline__ void run(const float* q, float* y, const char* cache, const int* positions, const int* seqs,
                                               const int* tables, const int* tiles, float* work, int tables_stride, int n_head,
                                               int n_head_kv, int window, float scale, float softcap, long long block_bytes) {
        __align__(16) __shared__ float queries[ROWS][DIM_K], part[32 * PITCH], weights[ROWS][36];
        __shared__ float fades[ROWS], mosts[ROWS], sums[ROWS];
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int group = n_head / n_head_kv, heads = min(group, ROWS), parts = (group + heads - 1) / heads;
        const int kv_head = blockIdx.x / parts, first_head = kv_head * group + blockIdx.x % parts * heads;
        const int n_heads = min(heads, (kv_head + 1) * group - first_head);
        int first = blockIdx.z, n_tokens = 1;
        if (tiles) {
            const int tile = gridDim.z - 1 - blockIdx.z, per_part = ROWS / heads;
            first = tiles[2 * tile] + blockIdx.y * per_part;
            n_tokens = min(per_part, tiles[2 * tile] + tiles[2 * tile + 1] - first);
            if (n_tokens <= 0) return;
        }
        const int n_splits = tiles ? 1 : gridDim.y, start = positions[first], last = start + n_tokens - 1;
        int begin = (window > 0 ? max(0, start - window + 1) : 0) / kv::BLOCK_TOKENS, end = last / kv::BLOCK_TOKENS + 1;
        if (!tiles) {
            const Span span(start, window, n_splits);
            begin = span.block + blockIdx.y * span.share;
            end = min(begin + span.share, span.block + span.n_blocks);
            if (begin >= end) return;
        }
        const int* table = tables + (size_t)seqs[first] * tables_stride;
        const char* own = cache + (size_t)kv_head * (TK::bytes(DIM_K) + TV::bytes(DIM_V));

        for (int i = threadIdx.x; i < ROWS * DIM_K; i += THREADS) {
            const int row = i / DIM_K, d = i % DIM_K;
            const bool exists = row / heads < n_tokens && row % heads < n_heads;
            queries[row][d] = exists ? q[((size_t)(first + row / heads) * n_head + first_head + row % heads) * DIM_K + d] : 0.0f;
        }
        float most[SCORED], sum[SCORED], outputs[CHUNKS][SUMMED][4];
#pragma unroll
        for (int j = 0; j < SCORED; j++) most[j] = -INFINITE, sum[j] = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS * SUMMED * 4; c++) outputs[c / 4 / SUMMED][c / 4 % SUMMED][c % 4] = 0.0f;

        for (int block = begin; block < end; block++) {
            const char* keys = own + table[block] * block_bytes;
            const int base = block * kv::BLOCK_TOKENS, last_cell = last - base;
            float s[SCORED];
#pragma unroll
            for (int j = 0; j < SCORED; j++) s[j] = 0.0f;
#pragma unroll 1
            for (int d0 = 0; d0 < DIM_K; d0 += CHUNK) {
                __syncthreads();
                load<TK, DIM_K>(part, keys, d0, last_cell);
                __syncthreads();
#pragma unroll 4
                for (int d = 0; d < min(CHUNK, DIM_K - d0); d += 4) {
                    const float4 k = *(const float4*)(part + lane * PITCH + d);
#pragma unroll
                    for (int j = 0; j < SCORED; j++) {
                        const float4 x = *(const float4*)&queries[warp * SCORED + j][d0 + d];
                        s[j] += x.x * k.x + x.y * k.y + x.z * k.z + x.w * k.w;
                    }
                }
            }
            to_scores(s, scale, softcap);
#pragma unroll
            for (int j = 0; j < SCORED; j++) {
                const int row = warp * SCORED + j, position = base + lane, of = start + row / heads;
                const bool seen = position <= of && (window <= 0 || position > of - window);
                const float x = seen ? s[j] : -INFINITE;
                const float now = fmaxf(most[j], warp_max(x)), fade = exp2_approx(most[j] - origin(now)), w = exp2_approx(x - origin(now));
                most[j] = now;
                sum[j] = sum[j] * fade + w;
                weights[row][lane] = w;
                if (lane == 0) fades[row] = fade;
            }
            const int d = threadIdx.x % 16 * 4, rows = threadIdx.x / 16 * SUMMED;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                __syncthreads();
                load<TV, DIM_V>(part, keys + TK::bytes(DIM_K), c * CHUNK, last_cell);
                __syncthreads();
#pragma unroll
                for (int j = 0; j < SUMMED; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) outputs[c][j][e] *= fades[rows + j];
                }
#pragma unroll 2
                for (int cell = 0; cell < 32; cell += 4) {
                    float4 v[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) v[i] = *(const float4*)(part + (cell + i) * PITCH + d);
#pragma unroll
                    for (int j = 0; j < SUMMED; j++) {
                        const float4 w = *(const float4*)&weights[rows + j][cell];
                        outputs[c][j][0] += w.x * v[0].x + w.y * v[1].x + w.z * v[2].x + w.w * v[3].x;
                        outputs[c][j][1] += w.x * v[0].y + w.y * v[1].y + w.z * v[2].y + w.w * v[3].y;
                        outputs[c][j][2] += w.x * v[0].z + w.y * v[1].z + w.z * v[2].z + w.w * v[3].z;
                        outputs[c][j][3] += w.x * v[0].w + w.y * v[1].w + w.z * v[2].w + w.w * v[3].w;
                    }
                }
            }
        }

#pragma unroll
        for (int j = 0; j < SCORED; j++) {
            const float total = warp_sum(sum[j]);
            if (lane == 0) mosts[warp * SCORED + j] = most[j], sums[warp * SCORED + j] = total;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < SUMMED; j++) {
            const int row = threadIdx.x / 16 * SUMMED + j;
            if (row / heads >= n_tokens || row % heads >= n_heads) continue;
            const size_t at = (size_t)(first + row / heads) * n_head + first_head + row % heads, slot = at * n_splits + blockIdx.y;
            float* to = n_splits == 1 ? y + at * DIM_V : work + (size_t)gridDim.z * n_head * n_splits * 2 + slot * DIM_V;
            const float factor = n_splits == 1 ? 1.0f / sums[row] : 1.0f;
            if (n_splits > 1 && threadIdx.x % 16 == 0) ((float2*)work)[slot] = make_float2(mosts[row], sums[row]);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const int d = c * CHUNK + threadIdx.x % 16 * 4;
                if (d >= DIM_V) continue;
                const float* o = outputs[c][j];
                *(float4*)(to + d) = make_float4(o[0] * factor, o[1] * factor, o[2] * factor, o[3] * factor);
            }
        }
    }
};

}  // namespace attention

#define KERNEL_attention_float(TK, TV, DIM_K, DIM_V, ROWS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 3) attention_float__##TK##__##TV##__##DIM_K##__##DIM_V##__##ROWS(                    \
        const float* q, float* y, const char* cache, const int* positions, const int* seqs, const int* tables, const int* tiles,           \
        float* work, int tables_stride, int n_head, int n_head_kv, int window, float scale, float softcap, long long block_bytes) {        \
        attention::Float<kv::TK, kv::TV, DIM_K, DIM_V, ROWS>::run(q, y, cache, positions, seqs, tables, tiles, work, tables_stride,        \
                                                                  n_head, n_head_kv, window, scale, softcap, block_bytes);                 \
    }
