// The paged KV cache of a layer: what it is kept as, and how rows get into it.
//
// A block holds 32 tokens and is `block_bytes` long; in it, one KV head after the other: its keys, then its values.
// The part of a head with `dim` elements a token (keys: dim_k, values: dim_v):
//     f16     half [32][dim]
//     q8_0    int8 [32][dim], then half d [32][dim / 32]          x = d * q
//     q4_0    nibbles [32][dim / 2], then half d [32][dim / 32]   x = d * (n - 8); elements i and i + 16 of 32 share a byte, low and high
// The token at position p of sequence s is cell p % 32 of block tables[s * tables_stride + p / 32]; block 0 is the null block.
// Scales and quants are those of quant/legacy.py (Q8_0, Q4_0), to the bit: hence products and sums that may not be fused.
#pragma once
#include "primitives.cuh"
#include "rope.cuh"
#include "warps.cuh"

namespace kv {

constexpr int BLOCK_TOKENS = 32;
constexpr int MAX_CHUNKS = 8;  // of 32 elements: a head is up to 256 wide

__device__ __forceinline__ float inverse(float d) {
    const float result = __fdiv_rn(1.0f, d);
    return fabsf(result) < INFINITE ? result : 0.0f;  // a zero or tiny scale: the block rounds to zeros
}

struct F16 {
    static constexpr int bytes(int dim) { return 64 * dim; }

    // x: 32 elements of a cell, one a lane, from element `start` on
    static __device__ __forceinline__ void store(char* part, int cell, int dim, int start, float x, int lane) {
        if (start + lane < dim) ((__half*)part)[cell * dim + start + lane] = __float2half_rn(x);
    }
};

struct Q8_0 {
    static constexpr int bytes(int dim) { return 34 * dim; }

    static __device__ __forceinline__ void store(char* part, int cell, int dim, int start, float x, int lane) {
        const float d = __fdiv_rn(warp_max(fabsf(x)), 127.0f);
        part[cell * dim + start + lane] = (char)(int)roundf(__fmul_rn(x, inverse(d)));
        if (lane == 0) ((__half*)(part + 32 * dim))[(cell * dim + start) / 32] = __float2half_rn(d);
    }
};

struct Q4_0 {
    static constexpr int bytes(int dim) { return 18 * dim; }

    static __device__ __forceinline__ void store(char* part, int cell, int dim, int start, float x, int lane) {
        float largest = x;  // with its sign; of equal magnitudes the first
        int at = lane;
#pragma unroll
        for (int step = 16; step; step /= 2) {
            const float other = __shfl_xor_sync(~0u, largest, step);
            const int other_at = __shfl_xor_sync(~0u, at, step);
            const float mine = fabsf(largest), theirs = fabsf(other);
            if (theirs > mine || (theirs == mine && other_at < at)) largest = other, at = other_at;
        }
        const float d = __fdiv_rn(largest, -8.0f);
        const int n = min((int)__fadd_rn(__fmul_rn(x, inverse(d)), 8.5f), 15);
        const int high = __shfl_down_sync(~0u, n, 16);
        if (lane < 16) part[(cell * dim + start) / 2 + lane] = (char)(n | high << 4);
        if (lane == 0) ((__half*)(part + 16 * dim))[(cell * dim + start) / 32] = __float2half_rn(d);
    }
};

// Where the KV head's keys of the token's block begin
template <class TK, class TV>
__device__ __forceinline__ char* head_of(char* cache, const int* tables, int tables_stride, int seq, int position, int head, int dim_k,
                                         int dim_v, long long block_bytes) {
    const int id = tables[(size_t)seq * tables_stride + position / BLOCK_TOKENS];
    return cache + id * block_bytes + (size_t)head * (TK::bytes(dim_k) + TV::bytes(dim_v));
}

// Stores k [T][heads][dim_k] and v [T][heads][dim_v]; with a table (else null) also rotates: q [T][n_head][dim_k] to q_out, which may be q,
// and k on its way. A warp a head: first the query heads, then keys, then values. grid: (heads / warps, T)
template <class TK, class TV>
__device__ __forceinline__ void store(const float* q, float* q_out, const float* k, const float* v, const float* table, char* cache,
                                      const int* positions, const int* seqs, const int* tables, int tables_stride, int n_head, int heads,
                                      int dim_k, int dim_v, int n_rot, int neox, long long block_bytes) {
    const int token = blockIdx.y, lane = threadIdx.x % 32;
    int head = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= n_head + 2 * heads) return;
    const float* angles = table + (size_t)token * n_rot;
    const bool is_query = head < n_head, is_key = !is_query && head < n_head + heads;
    const int dim = is_query || is_key ? dim_k : dim_v;
    const bool turns = table && (is_query || is_key);
    head -= is_query ? 0 : is_key ? n_head : n_head + heads;
    const float* from =
        (is_query ? q + (size_t)token * n_head * dim_k : (is_key ? k : v) + (size_t)token * heads * dim) + (size_t)head * dim;
    float x[MAX_CHUNKS];
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
        const int i = 32 * c + lane;
        x[c] = i < dim ? (turns ? rotary::rotated(from, angles, i, n_rot, neox) : from[i]) : 0.0f;
    }
    __syncwarp();  // q_out may be q: all is read before any of it is written
    if (is_query) {
        float* to = q_out + ((size_t)token * n_head + head) * dim_k;
#pragma unroll
        for (int c = 0; c < MAX_CHUNKS; c++) {
            if (32 * c + lane < dim) to[32 * c + lane] = x[c];
        }
        return;
    }
    const int position = positions[token];
    char* keys = head_of<TK, TV>(cache, tables, tables_stride, seqs[token], position, head, dim_k, dim_v, block_bytes);
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
        if (32 * c >= dim) break;
        if (is_key) {
            TK::store(keys, position % BLOCK_TOKENS, dim, 32 * c, x[c], lane);
        } else {
            TV::store(keys + TK::bytes(dim_k), position % BLOCK_TOKENS, dim, 32 * c, x[c], lane);
        }
    }
}

}  // namespace kv

#define KERNEL_kv_store(TK, TV)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        kv_store__##TK##__##TV(const float* k, const float* v, char* cache, const int* positions, const int* seqs, const int* tables,      \
                               int tables_stride, int heads, int dim_k, int dim_v, long long block_bytes) {                                \
        kv::store<kv::TK, kv::TV>(nullptr, nullptr, k, v, nullptr, cache, positions, seqs, tables, tables_stride, 0, heads, dim_k, dim_v,  \
                                  0, 0, block_bytes);                                                                                      \
    }

#define KERNEL_rope_store(TK, TV)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        rope_store__##TK##__##TV(const float* q, float* q_out, const float* k, const float* v, const float* table, char* cache,            \
                                 const int* positions, const int* seqs, const int* tables, int tables_stride, int n_head, int heads,       \
                                 int dim_k, int dim_v, int n_rot, int neox, long long block_bytes) {                                       \
        kv::store<kv::TK, kv::TV>(q, q_out, k, v, table, cache, positions, seqs, tables, tables_stride, n_head, heads, dim_k, dim_v,       \
                                  n_rot, neox, block_bytes);                                                                               \
    }
