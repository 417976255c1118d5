// The k highest logits of each row with their ids, falling, ties: lower id first.
//
// A logit and its id make one key, higher is better: 32 bits that order as floats do, then 18 bits of 2^18 - 1 - id. Keys are different
// from each other, so that the k highest are a set that no order of threads can change. A block finds the k-th highest of its keys bit by
// bit from the top, by counting, and keeps what is not below. Kernel 1 does so for parts of a row, kernel 2 for what the parts kept; then
// ranks are counted.
#pragma once
#include "primitives.cuh"

namespace reduce {

constexpr int THREADS = 1024, PER = 8, PART = THREADS * PER;  // keys of a block
constexpr int ID_BITS = 18, BITS = 32 + ID_BITS, MAX_K = 256;
constexpr unsigned MAX_ID = (1u << ID_BITS) - 1;
typedef unsigned long long Key;

__device__ __forceinline__ Key key_of(float logit, int id) {
    const unsigned bits = __float_as_uint(logit + 0.0f);                                    // -0 becomes 0: they are equal
    const unsigned ordered = logit != logit ? 1 : bits >> 31 ? ~bits : bits | 0x80000000u;  // NaN: below all
    return (Key)ordered << ID_BITS | (MAX_ID - id);
}

__device__ __forceinline__ float logit_of(Key key) {
    const unsigned ordered = (unsigned)(key >> ID_BITS);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7FFFFFFFu : ~ordered);
}

// All threads get the sum of n over the block. counts: two rows of 32, used in turn, so that one barrier is enough
__device__ __forceinline__ int block_count(int n, int (*counts)[32], int turn) {
#pragma unroll
    for (int step = 16; step; step /= 2) n += __shfl_xor_sync(~0u, n, step);
    if (threadIdx.x % 32 == 0) counts[turn & 1][threadIdx.x / 32] = n;
    __syncthreads();
    int total = counts[turn & 1][threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    return total;
}

// The k highest of the block's keys (0: no key) to kept[], in no order, followed by zeros when there are fewer. k <= MAX_K
__device__ __forceinline__ void select(const Key (&keys)[PER], int k, Key* kept) {
    __shared__ int counts[2][32], next;
    Key least = 0;  // grows to the highest value that at least k keys reach, unless fewer keys exist
    if (threadIdx.x == 0) next = 0;
    for (int bit = BITS - 1; bit >= 0; bit--) {
        const Key tried = least | (Key)1 << bit;
        int n = 0;
#pragma unroll
        for (int i = 0; i < PER; i++) n += keys[i] >= tried;
        n = block_count(n, counts, bit);
        if (n >= k) least = tried;
        if (n == k) break;
    }
#pragma unroll
    for (int i = 0; i < PER; i++) {
        if (keys[i] != 0 && keys[i] >= least) kept[atomicAdd(&next, 1)] = keys[i];
    }
    __syncthreads();
    for (int i = next + threadIdx.x; i < k; i += THREADS) kept[i] = 0;
}

}  // namespace reduce

// kept[row][part][k]: the highest of logits [rows][n]. grid: (parts of 8192 logits, rows)
#define KERNEL_top_k_parts()                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) top_k_parts(const float* logits, reduce::Key* kept, int n, int k) {                 \
        reduce::Key keys[reduce::PER];                                                                                                     \
        for (int i = 0; i < reduce::PER; i++) {                                                                                            \
            const int id = blockIdx.x * reduce::PART + i * reduce::THREADS + threadIdx.x;                                                  \
            keys[i] = id < n ? reduce::key_of(logits[(size_t)blockIdx.y * n + id], id) : 0;                                                \
        }                                                                                                                                  \
        reduce::select(keys, k, kept + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * k);                                                 \
    }

// out[row]: float logits [k], then int ids [k]. kept: n (<= 8192) keys a row. grid: (1, rows)
#define KERNEL_top_k_merge()                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) top_k_merge(const reduce::Key* kept, float* out, int n, int k) {                    \
        __shared__ reduce::Key best[reduce::MAX_K];                                                                                        \
        reduce::Key keys[reduce::PER];                                                                                                     \
        for (int i = 0; i < reduce::PER; i++) {                                                                                            \
            const int at = i * reduce::THREADS + threadIdx.x;                                                                              \
            keys[i] = at < n ? kept[(size_t)blockIdx.y * n + at] : 0;                                                                      \
        }                                                                                                                                  \
        reduce::select(keys, k, best);                                                                                                     \
        __syncthreads();                                                                                                                   \
        if (threadIdx.x >= k) return;                                                                                                      \
        const reduce::Key mine = best[threadIdx.x];                                                                                        \
        int rank = 0;                                                                                                                      \
        for (int i = 0; i < k; i++) rank += best[i] > mine;                                                                                \
        float* row = out + (size_t)blockIdx.y * 2 * k;                                                                                     \
        row[rank] = reduce::logit_of(mine);                                                                                                \
        ((int*)row)[k + rank] = (int)(reduce::MAX_ID - (unsigned)(mine & reduce::MAX_ID));                                                 \
    }
