// What the attention kernels share: which positions a token sees, how a decode's splits share them, scores.
#pragma once
#include "kv.cuh"
#include "primitives.cuh"
#include "warps.cuh"

namespace attention {

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

constexpr float LOG2E = 1.4426950408889634f;
constexpr int MAX_SPLITS = 128;
constexpr int WARPS = 4;  // of a decode's block: each takes every fourth KV block of the split's
constexpr int THREADS = 32 * WARPS;

// The KV blocks that a token at `position` sees, and what of them a split gets: at least WARPS, so that no warp idles in a split that
// works.
struct Span {
    int first;     // first visible position
    int block;     // its block
    int n_blocks;  // blocks from there to the token's own
    int share;     // blocks of a split

    __device__ __forceinline__ Span(int position, int window, int n_splits) {
        first = window > 0 ? max(0, position - window + 1) : 0;
        block = first / kv::BLOCK_TOKENS;
        n_blocks = position / kv::BLOCK_TOKENS - block + 1;
        share = max(WARPS, (n_blocks + n_splits - 1) / n_splits);
    }

    __device__ __forceinline__ int used() const { return (n_blocks + share - 1) / share; }
};

// Products q * k become scores in units of log 2, so that their exponential is 2 ^ score. tanh(x) = 1 - 2 / (e^2x + 1), to 1e-7 absolutely
template <int N>
__device__ __forceinline__ void to_scores(float (&x)[N], float scale, float softcap) {
    if (softcap > 0.0f) {
        const float factor = 2.0f * LOG2E * scale / softcap, cap = softcap * LOG2E;
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = cap - 2.0f * cap * __fdividef(1.0f, exp2_approx(x[i] * factor) + 1.0f);
    } else {
        const float factor = scale * LOG2E;
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= factor;
    }
}

// What to take from scores before the exponential: the largest, or 0 while nothing was seen, so that -inf gives 0 and never NaN
__device__ __forceinline__ float origin(float most) { return most == -INFINITE ? 0.0f : most; }

__device__ __forceinline__ unsigned pack(float low, float high) {
    const __half2 h = __floats2half2_rn(low, high);
    return *(const unsigned*)&h;
}

__device__ __forceinline__ float rest(float x) { return x - __half2float(__float2half_rn(x)); }

__device__ __forceinline__ __half2 halves(unsigned bits) { return *(const __half2*)&bits; }

__device__ __forceinline__ unsigned bits(__half2 h) { return *(const unsigned*)&h; }

// Bytes become halves without conversions: 0x6400 | u is 1024 + u. Two bytes of w (0x4140: the low ones, 0x4342: the high ones), less
// `zero`
__device__ __forceinline__ __half2 two_halves(unsigned w, unsigned which, unsigned zero) {
    return __hsub2(halves(__byte_perm(w, 0x64646464u, which)), halves(zero));
}

constexpr unsigned LOW = 0x4140, HIGH = 0x4342;  // selectors of two_halves
constexpr unsigned ZERO_8 = 0x64806480;          // 1024 + 128: a signed byte with its sign bit flipped
constexpr unsigned ZERO_4 = 0x64086408;          // 1024 + 8

}  // namespace attention
