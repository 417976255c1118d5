// Rotary position embedding. The table has one row a token, made once a batch for all layers: float [T][half][2], cos and sin.
#pragma once
#include "primitives.cuh"

namespace rotary {

// Element i of a head after rotation, from the unrotated head x. table: the token's row.
// neox rotates (i, i + n_rot / 2), else neighbours; elements from n_rot on stay.
__device__ __forceinline__ float rotated(const float* x, const float* table, int i, int n_rot, int neox) {
    if (i >= n_rot) return x[i];
    const int half = n_rot / 2;
    const bool first = neox ? i < half : i % 2 == 0;
    const int pair = neox ? (first ? i : i - half) : i / 2;
    const float other = x[neox ? (first ? i + half : i - half) : i ^ 1];
    const float2 turn = *(const float2*)(table + 2 * pair);
    return fmaf(x[i], turn.x, __fmul_rn(other, first ? -turn.y : turn.y));
}

}  // namespace rotary

// table[t][i] = magnitude * (cos, sin) of positions[t] * freq[i]. freq: float64 radians a position.
// The angle is reduced to half turns in float64; what float32 loses of it is put back to first order, so that long contexts stay exact.
#define KERNEL_rope_table()                                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        rope_table(const int* positions, const double* freq, float* table, int half, float magnitude, int n) {                             \
        const int at = blockIdx.x * blockDim.x + threadIdx.x;                                                                              \
        if (at >= n) return;                                                                                                               \
        double turns = positions[at / half] * freq[at % half] * 0.15915494309189533577;                                                    \
        turns = 2.0 * (turns - rint(turns));                                                                                               \
        const float near = (float)turns;                                                                                                   \
        const float rest = (float)((turns - near) * 3.14159265358979323846);                                                               \
        float sine, cosine;                                                                                                                \
        sincospif(near, &sine, &cosine);                                                                                                   \
        *(float2*)(table + 2 * (size_t)at) = make_float2(magnitude * fmaf(-rest, sine, cosine), magnitude * fmaf(rest, cosine, sine));     \
    }

// y = x [T][heads][head_dim] rotated; a thread has two elements of a head, so y may be x. grid: (pieces, T)
#define KERNEL_rope()                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        rope(const float* x, const float* table, float* y, int heads, int head_dim, int n_rot, int neox) {                                 \
        const int at = blockIdx.x * blockDim.x + threadIdx.x, pairs = head_dim / 2;                                                        \
        if (at >= heads * pairs) return;                                                                                                   \
        const int half = n_rot / 2, pair = at % pairs;                                                                                     \
        const int i = pair >= half || !neox ? 2 * pair : pair, j = pair >= half || !neox ? i + 1 : i + half;                               \
        const size_t head = ((size_t)blockIdx.y * heads + at / pairs) * head_dim;                                                          \
        const float* row = table + (size_t)blockIdx.y * n_rot;                                                                             \
        const float a = rotary::rotated(x + head, row, i, n_rot, neox), b = rotary::rotated(x + head, row, j, n_rot, neox);                \
        y[head + i] = a;                                                                                                                   \
        y[head + j] = b;                                                                                                                   \
    }
