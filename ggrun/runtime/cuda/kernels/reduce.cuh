// The k highest logits of each row with their ids, falling, ties: lower id first; and the row's greatest logit m with the sum of exp(x - m)
// over all its logits x, no number when a logit is none or when all are -infinity.
//
// A logit and its id make one key, higher is better: 32 bits that order as floats do, then 18 bits of 2^18 - 1 - id. Keys are different
// from each other, so that the k highest are a set that no order of threads can change. A block finds the k-th highest of its keys bit by
// bit from the top, by counting, and keeps what is not below. Kernel 1 does so for parts of a row, kernel 2 for what the parts kept; then
// ranks are counted.
#pragma once
#include "primitives.cuh"
#include "warps.cuh"

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

// All threads get, of the block, the greatest value, which is never a NaN
__device__ __forceinline__ float block_max(float x, float* parts) {
#pragma unroll
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// All threads get the sum over the block, in an order that is always the same
__device__ __forceinline__ float block_sum(float x, float* parts) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// (greatest, sum of scale * exp(x - greatest)) of the block's x; a part of -infinity alone adds nothing
template <int N>
__device__ __forceinline__ float2 total_of(const float (&x)[N], const float (&scale)[N], float* most, float* sums) {
    float greatest = x[0];
#pragma unroll
    for (int i = 1; i < N; i++) greatest = fmaxf(greatest, x[i]);
    greatest = block_max(greatest, most);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) sum += x[i] == -INFINITE ? 0.0f : scale[i] * __expf(x[i] - greatest);
    return make_float2(greatest, block_sum(sum, sums));
}

}  // namespace reduce

// kept[row][part][k]: the highest of logits [rows][n]; totals[row][part]. grid: (parts of 8192 logits, rows)
#define KERNEL_top_k_parts()                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) top_k_parts(const float* logits, reduce::Key* kept, float2* totals, int n, int k) { \
        __shared__ float most[32], sums[32];                                                                                               \
        reduce::Key keys[reduce::PER];                                                                                                     \
        float x[reduce::PER], ones[reduce::PER];                                                                                           \
        for (int i = 0; i < reduce::PER; i++) {                                                                                            \
            const int id = blockIdx.x * reduce::PART + i * reduce::THREADS + threadIdx.x;                                                  \
            x[i] = id < n ? logits[(size_t)blockIdx.y * n + id] : -INFINITE;                                                               \
            ones[i] = 1.0f;                                                                                                                \
            keys[i] = id < n ? reduce::key_of(x[i], id) : 0;                                                                               \
        }                                                                                                                                  \
        const size_t part = (size_t)blockIdx.y * gridDim.x + blockIdx.x;                                                                   \
        const float2 total = reduce::total_of(x, ones, most, sums);                                                                        \
        if (threadIdx.x == 0) totals[part] = total;                                                                                        \
        reduce::select(keys, k, kept + part * k);                                                                                          \
    }

// out[row]: float logits [k], int ids [k], float greatest, float sum. kept: n_parts * k (<= 8192) keys a row. grid: (1, rows)
#define KERNEL_top_k_merge()                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                                     \
    top_k_merge(const reduce::Key* kept, const float2* totals, float* out, int n_parts, int k) {                                           \
        __shared__ reduce::Key best[reduce::MAX_K];                                                                                        \
        __shared__ float most[32], sums[32];                                                                                               \
        reduce::Key keys[reduce::PER];                                                                                                     \
        for (int i = 0; i < reduce::PER; i++) {                                                                                            \
            const int at = i * reduce::THREADS + threadIdx.x;                                                                              \
            keys[i] = at < n_parts * k ? kept[(size_t)blockIdx.y * n_parts * k + at] : 0;                                                  \
        }                                                                                                                                  \
        reduce::select(keys, k, best);                                                                                                     \
        const float2 part = threadIdx.x < n_parts ? totals[(size_t)blockIdx.y * n_parts + threadIdx.x] : make_float2(-INFINITE, 0.0f);     \
        const float x[1] = {part.x}, scale[1] = {part.y};                                                                                  \
        const float2 total = reduce::total_of(x, scale, most, sums);                                                                       \
        float* row = out + (size_t)blockIdx.y * (2 * k + 2);                                                                               \
        if (threadIdx.x == 0) {                                                                                                            \
            row[2 * k] = total.x;                                                                                                          \
            row[2 * k + 1] = total.x == -INFINITE ? NOT_A_NUMBER : total.y;                                                                \
        }                                                                                                                                  \
        __syncthreads();                                                                                                                   \
        if (threadIdx.x >= k) return;                                                                                                      \
        const reduce::Key mine = best[threadIdx.x];                                                                                        \
        int rank = 0;                                                                                                                      \
        for (int i = 0; i < k; i++) rank += best[i] > mine;                                                                                \
        row[rank] = reduce::logit_of(mine);                                                                                                \
        ((int*)row)[k + rank] = (int)(reduce::MAX_ID - (unsigned)(mine & reduce::MAX_ID));                                                 \
    }
