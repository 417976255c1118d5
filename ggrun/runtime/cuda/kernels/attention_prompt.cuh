// Attention of prompts over the paged cache, on tensor cores (sm_75 on).
//
// A tile is up to 64 consecutive tokens of one sequence; a block takes one KV head and a part of a tile, so many tokens that they make up
// to 64 rows with the query heads of that KV head: row = token * heads + head. A warp has 16 rows. Keys and values of TOKENS positions at a
// time become halves in shared memory, read by all rows: [TOKENS][DIM + 8], an odd number of 16-byte pieces, so that the 8 rows of an
// ldmatrix meet in no bank. Keys are loaded while the values before them are multiplied, and the other way round. Only blocks that some row
// of the part sees are visited, and a warp sits out what none of its rows sees.
#pragma once
#include "attention.cuh"

namespace attention {

constexpr int PROMPT_ROWS = 16 * WARPS;

// TOKENS cells of a KV head from position `base` on to shared memory, as halves; cells of positions after `last` become 0: they may hold
// NaN. offset: of the part (keys or values) in the block. Ends with a commit; in place after the next wait.
template <class T, int DIM, int TOKENS>
struct Stage {
    static constexpr int PITCH = DIM + 8;
    static constexpr int PIECES = DIM / (same<T, kv::Q4_0> ? 16 : 8);  // of a token; a thread moves one at a time

    static __device__ __forceinline__ void load(__half* shared, const char* cache, const int* table, long long block_bytes, int base,
                                                int last) {
#pragma unroll 2
        for (int i = threadIdx.x; i < TOKENS * PIECES; i += THREADS) {
            const int cell = i / PIECES, piece = i % PIECES, position = base + cell;
            __half* to = shared + cell * PITCH + 8 * piece;
            const char* part = cache + (position <= last ? table[position / kv::BLOCK_TOKENS] : 0) * block_bytes;
            if constexpr (same<T, kv::Q4_0>) to = shared + cell * PITCH + piece / 2 * 32 + piece % 2 * 8;
            if (position > last) {
                *(uint4*)to = make_uint4(0, 0, 0, 0);
                if constexpr (same<T, kv::Q4_0>) *(uint4*)(to + 16) = make_uint4(0, 0, 0, 0);
            } else {
                move(to, part, position % kv::BLOCK_TOKENS, piece);
            }
        }
        cp_async_commit();
    }

    static __device__ __forceinline__ uint4 widen(uint2 w, unsigned zero, __half2 d) {
        return make_uint4(bits(__hmul2(two_halves(w.x, LOW, zero), d)), bits(__hmul2(two_halves(w.x, HIGH, zero), d)),
                          bits(__hmul2(two_halves(w.y, LOW, zero), d)), bits(__hmul2(two_halves(w.y, HIGH, zero), d)));
    }

    static __device__ __forceinline__ void move(__half* to, const char* part, int cell, int piece) {
        if constexpr (same<T, kv::F16>) {
            cp_async16(to, part + (cell * DIM + 8 * piece) * 2);
        } else if constexpr (same<T, kv::Q8_0>) {
            uint2 w = __ldg((const uint2*)(part + cell * DIM + 8 * piece));
            const __half2 d = __half2half2(__ldg((const __half*)(part + 32 * DIM) + cell * (DIM / 32) + piece / 4));
            w.x ^= 0x80808080u, w.y ^= 0x80808080u;
            *(uint4*)to = widen(w, ZERO_8, d);
        } else {
            const uint2 w = __ldg((const uint2*)(part + cell * (DIM / 2) + 8 * piece));
            const __half2 d = __half2half2(__ldg((const __half*)(part + 16 * DIM) + cell * (DIM / 32) + piece / 2));
            *(uint4*)to = widen(make_uint2(w.x & 0x0F0F0F0Fu, w.y & 0x0F0F0F0Fu), ZERO_4, d);
            *(uint4*)(to + 16) = widen(make_uint2(w.x >> 4 & 0x0F0F0F0Fu, w.y >> 4 & 0x0F0F0F0Fu), ZERO_4, d);
        }
    }
};

template <class TK, class TV, int DIM_K, int DIM_V>
struct Prompt {
    static constexpr int TOKENS = DIM_K + DIM_V <= 256 ? 64 : DIM_K + DIM_V <= 384 ? 32 : 16;  // positions in shared memory at a time
    static constexpr int STEPS = DIM_K / 16, COLUMNS = DIM_V / 8, TILES = TOKENS / 8;
    static constexpr int PARKED =
        STEPS <= 8 ? 0 : STEPS - (TOKENS == 16 ? 2 : 8);  // steps whose queries wait in shared memory: registers would not do
    using Keys = Stage<TK, DIM_K, TOKENS>;
    using Values = Stage<TV, DIM_V, TOKENS>;
    static constexpr int SHARED_BYTES = TOKENS * (Keys::PITCH + Values::PITCH) * 2;

    // s[tile of 8 positions][4] = queries * keys: rows g and g + 8, positions 2t and 2t + 1
    static __device__ __forceinline__ void multiply_keys(float (&s)[TILES][4], const unsigned (&queries)[STEPS - PARKED][4],
                                                         const uint4* parked, const __half* keys, int lane) {
        const __half* own = keys + (lane / 16 * 8 + lane % 8) * Keys::PITCH + lane / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
#pragma unroll
            for (int c = 0; c < 4; c++) s[n][c] = s[n + 1][c] = 0.0f;
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                unsigned b[4];
                ldmatrix_x4(b, own + n * 8 * Keys::PITCH + 16 * k);
                unsigned a[4];
                if (k < PARKED) {
                    const uint4 x = parked[k * 32];
                    a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; i++) a[i] = queries[k < PARKED ? 0 : k - PARKED][i];
                }
                mma_f16_m16n8k16(s[n], a, b);
                mma_f16_m16n8k16(s[n + 1], a, b + 2);
            }
        }
    }

    static __device__ __forceinline__ void multiply_values(float (&outputs)[COLUMNS][4], const float (&s)[TILES][4], const __half* values,
                                                           int lane) {
        const __half* own = values + (lane % 16) * Values::PITCH + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < TILES; k += 2) {
            const unsigned weights[4] = {pack(s[k][0], s[k][1]), pack(s[k][2], s[k][3]), pack(s[k + 1][0], s[k + 1][1]),
                                         pack(s[k + 1][2], s[k + 1][3])};
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 2) {
                unsigned b[4];
                ldmatrix_x4_trans(b, own + k * 8 * Values::PITCH + 8 * n);
                mma_f16_m16n8k16(outputs[n], weights, b);
                mma_f16_m16n8k16(outputs[n + 1], weights, b + 2);
            }
        }
    }

    // grid: (parts of a tile, KV heads * parts of their query heads, tiles)
    static __device__ __forceinline__ void run(const float* q, float* y, const char* cache, const int* positions, const int* seqs,
                                               const int* tables, const int* tiles, int tables_stride, int n_head, int n_head_kv,
                                               int window, float scale, float softcap, long long block_bytes) {
        DYNAMIC_SHARED(__half, keys);
        __half* values = keys + TOKENS * Keys::PITCH;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int group = n_head / n_head_kv, heads = min(group, PROMPT_ROWS), head_parts = (group + heads - 1) / heads;
        const int kv_head = blockIdx.y / head_parts, first_head = kv_head * group + blockIdx.y % head_parts * heads;
        const int n_heads = min(heads, (kv_head + 1) * group - first_head);
        const int tile = gridDim.z - 1 - blockIdx.z;  // the last tile of a prompt sees most: it starts first
        const int per_part = PROMPT_ROWS / heads, first = tiles[2 * tile] + blockIdx.x * per_part;
        const int n_tokens = min(per_part, tiles[2 * tile] + tiles[2 * tile + 1] - first);
        if (n_tokens <= 0) return;
        const int start = positions[first], last = start + n_tokens - 1;
        const int* table = tables + (size_t)seqs[first] * tables_stride;
        const char* own = cache + (size_t)kv_head * (TK::bytes(DIM_K) + TV::bytes(DIM_V));
        int begin = window > 0 ? max(0, start - window + 1) : 0;
        begin = begin / kv::BLOCK_TOKENS * kv::BLOCK_TOKENS;  // no further back: blocks before the window may hold NaN

        const bool works = 16 * warp < n_tokens * heads;
        const int warp_first = start + min(16 * warp / heads, n_tokens - 1),
                  warp_last = start + min((16 * warp + 15) / heads, n_tokens - 1);
        __shared__ uint4 parked[WARPS][PARKED ? PARKED : 1][32];
        unsigned queries[STEPS - PARKED][4];
        const auto query = [&](int k, unsigned* a) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = 16 * warp + g + 8 * r;  // one that does not exist is like the last that does, and not written
                const int token = first + min(row / heads, n_tokens - 1), head = first_head + min(row % heads, n_heads - 1);
                const float* from = q + ((size_t)token * n_head + head) * DIM_K + 16 * k + 2 * t;
                const float2 x = *(const float2*)from, z = *(const float2*)(from + 8);
                a[r] = pack(x.x, x.y), a[2 + r] = pack(z.x, z.y);
            }
        };
#pragma unroll 1
        for (int k = 0; k < PARKED; k++) {  // read by this lane alone
            unsigned a[4];
            query(k, a);
            parked[warp][k][lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
#pragma unroll
        for (int k = 0; k < STEPS - PARKED; k++) query(PARKED + k, queries[k]);
        float outputs[COLUMNS][4], s[TILES][4], most[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) outputs[n][c] = 0.0f;
        }

        Keys::load(keys, own, table, block_bytes, begin, last);
        for (int base = begin; base <= last; base += TOKENS) {
            cp_async_wait<0>();
            __syncthreads();  // keys are there, and nobody reads the values before
            Values::load(values, own + TK::bytes(DIM_K), table, block_bytes, base, last);
            const bool sees = works && base <= warp_last && (window <= 0 || base + TOKENS > warp_first - window + 1);
            if (sees) {
                multiply_keys(s, queries, parked[warp][0] + lane, keys, lane);
                const bool edge = base + TOKENS - 1 > warp_first || (window > 0 && base < warp_last - window + 1);
                soften(s, most, sum, outputs, edge, base, start, 16 * warp + g, heads, window, scale, softcap, t);
            }
            cp_async_wait<0>();
            __syncthreads();
            if (base + TOKENS <= last) Keys::load(keys, own, table, block_bytes, base + TOKENS, last);
            if (sees) multiply_values(outputs, s, values, lane);
        }

#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            const int row = 16 * warp + g + 8 * r;
            if (row / heads >= n_tokens || row % heads >= n_heads) continue;
            const float inverse = 1.0f / sum[r];
            float* to = y + ((size_t)(first + row / heads) * n_head + first_head + row % heads) * DIM_V + 2 * t;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                *(float2*)(to + 8 * n) = make_float2(outputs[n][2 * r] * inverse, outputs[n][2 * r + 1] * inverse);
        }
    }

    // Products become weights (those of masked positions 0), and what was summed before fades
    static __device__ __forceinline__ void soften(float (&s)[TILES][4], float (&most)[2], float (&sum)[2], float (&outputs)[COLUMNS][4],
                                                  bool edge, int base, int start, int row, int heads, int window, float scale,
                                                  float softcap, int t) {
        float now[2] = {most[0], most[1]}, zero[2], fade[2];
#pragma unroll
        for (int n = 0; n < TILES; n++) to_scores(s[n], scale, softcap);
        if (edge) {
            const int own[2] = {start + row / heads - base - 2 * t,
                                start + (row + 8) / heads - base - 2 * t};  // from the lane's first position on
#pragma unroll
            for (int n = 0; n < TILES; n++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int behind = own[c / 2] - (8 * n + c % 2);
                    if (behind < 0 || (window > 0 && behind >= window)) s[n][c] = -INFINITE;
                }
            }
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) now[c / 2] = fmaxf(now[c / 2], s[n][c]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 1));
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 2));
            zero[r] = origin(now[r]);
            fade[r] = exp2_approx(most[r] - zero[r]);
            most[r] = now[r];
            sum[r] *= fade[r];
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[n][c] = exp2_approx(s[n][c] - zero[c / 2]);
                sum[c / 2] += s[n][c];
            }
        }
        if (!__any_sync(~0u, fade[0] != 1.0f || fade[1] != 1.0f)) return;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) outputs[n][c] *= fade[c / 2];
        }
    }
};

}  // namespace attention

#define KERNEL_attention_prompt(TK, TV, DIM_K, DIM_V)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_prompt__##TK##__##TV##__##DIM_K##__##DIM_V(                             \
        const float* q, float* y, const char* cache, const int* positions, const int* seqs, const int* tables, const int* tiles,           \
        int tables_stride, int n_head, int n_head_kv, int window, float scale, float softcap, long long block_bytes) {                     \
        attention::Prompt<kv::TK, kv::TV, DIM_K, DIM_V>::run(q, y, cache, positions, seqs, tables, tiles, tables_stride, n_head,           \
                                                             n_head_kv, window, scale, softcap, block_bytes);                              \
    }
